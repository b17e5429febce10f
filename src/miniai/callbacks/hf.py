"Models of Hugging Face, which compute their own loss."
from typing import Any

from miniai.callbacks.train import TrainCB

__all__ = ['HFCB']


class HFCB(TrainCB):
    """The five phases for models that take batches, dicts or BatchEncodings, as keyword arguments and return an object
    with `loss` and `logits`, as those of Hugging Face do. `learn.preds` are the logits and `learn.loss` is the model's
    loss; `loss_func` is not used. `targets` names what metrics compare the logits with. A loss over tokens is a mean
    over tokens: give MetricsCB and AccumulateCB `weight=lambda learn: (learn.batch[1] != -100).sum()`. In half
    precision, or with Accelerate, use a class of your own: `class HFMixed(HFCB, MixedPrecision): pass`."""
    uses_loss_func = False
    def __init__(self, targets: Any = 'labels') -> None: super().__init__(inputs=dict, targets=targets)

    def predict(self, learn: Any) -> None:
        out = learn.model(**learn.batch[0])
        if not hasattr(out, 'logits'): raise TypeError(
            f"HFCB: the model's output, a {type(out).__name__}, has no logits; use TrainCB(inputs=…, targets=…)")
        learn.preds, learn.loss = out.logits, out.loss

    def get_loss(self, learn: Any) -> None:
        "The model has computed the loss already."
        if learn.loss is None and getattr(learn, 'trains', True): raise ValueError(
            f"HFCB: the model returned no loss for a batch with {list(learn.batch[0])}: it needs 'labels'")

"A function applied to each batch before the model sees it."
from collections.abc import Callable
from typing import Any

from miniai.events import Callback

__all__ = ['BatchTransformCB']


class BatchTransformCB(Callback):
    "Replaces each batch with `tfm(batch)`, in training if `on_train` and in validation if `on_val`."
    def __init__(self, tfm: Callable[[Any], Any], on_train: bool = True, on_val: bool = True) -> None:
        self.tfm, self.on_train, self.on_val = tfm, on_train, on_val

    def before_batch(self, learn: Any) -> None:
        if self.on_train if learn.model.training else self.on_val: learn.batch = self.tfm(learn.batch)

"Validation with weight averages."
from typing import Any

from miniai.events import Callback

__all__ = ['AverageCB']


class AverageCB(Callback):
    "Validates with the weight averages of an optimizer made with `ema=…`. Training uses the weights themselves."
    _swapped = False

    def before_fit(self, learn: Any) -> None:
        if learn.trains and getattr(learn.opt, 'ema', None) is None:
            raise ValueError("AverageCB needs an optimizer that keeps weight averages, such as "
                             "opt_func=partial(AdamW, ema=0.999)")

    def before_epoch(self, learn: Any) -> None:
        if not learn.training and hasattr(learn.opt, 'swap_averages'): self._swap(learn)

    def cleanup_epoch(self, learn: Any) -> None:
        if self._swapped: self._swap(learn)

    def _swap(self, learn: Any) -> None:
        learn.opt.swap_averages()
        self._swapped = not self._swapped

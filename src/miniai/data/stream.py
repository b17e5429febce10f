"A loader of a stream: a dataset without length or index, whose order changes with the epoch only if it is told."
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

__all__ = ['StreamLoader']


class StreamLoader(DataLoader):
    """A DataLoader of an IterableDataset, in the stream's order. Each pass begins with `dataset.set_epoch(epoch)`, if
    there is such a method, so that a stream of Hugging Face that was shuffled has another order each time. `epoch` is
    the next epoch: each pass adds one, and it may be set."""
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epoch = 0  # not in the class: checkpoints hold an object's own attributes, also before the first pass

    def __iter__(self) -> Any:
        if hasattr(self.dataset, 'set_epoch'): self.dataset.set_epoch(self.epoch)
        self.epoch += 1
        return super().__iter__()

    def snapshot(self) -> Callable[[], None]:
        "A function that puts `epoch` back as it is now, such as after a dry run."
        epoch = self.epoch
        def restore() -> None: self.epoch = epoch
        return restore

"Batches from memory: images kept as they came, shuffled by (seed, epoch), gathered and made float by the batch."
from collections.abc import Iterator

import torch
from torch import Tensor

from .fmnist import MEAN, STD, ImageSet
from .loaders import DataLoaders

__all__ = ['MemoryLoader', 'image_loaders']


class MemoryLoader:
    """Batches `(x, y)` of `bs` from uint8 images `x` (N, H, W) and labels `y` (N,) in memory: x as float32
    (bs, 1, H, W), from 0 to 1, less `mean`, over `std`. With `shuffle` the order is a function of `seed` and of how
    often the loader was gone through; the last batch may be smaller. `source` says where the data came from."""
    def __init__(self, x: Tensor, y: Tensor, bs: int, shuffle: bool = False, seed: int = 0,
                 mean: float = 0., std: float = 1., source: str = '') -> None:
        if bs < 1: raise ValueError(f"the batch size must be 1 or more, got {bs}")
        if len(x) != len(y):
            raise ValueError(f"inputs and targets must have the same length, got {len(x)} and {len(y)}")
        self.x, self.y, self.bs, self.shuffle, self.seed, self.mean, self.std = x, y, bs, shuffle, seed, mean, std
        self.epoch, self.source = 0, source

    def __len__(self) -> int: return (len(self.x) + self.bs - 1) // self.bs

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(self.epoch)
        self.epoch += 1
        for idxs in order.split(self.bs) if len(order) else (): yield self._images(self.x[idxs]), self.y[idxs]

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle: return torch.arange(len(self.x))
        generator = torch.Generator().manual_seed((self.seed*1_000_003 + epoch) % 2**63)
        return torch.randperm(len(self.x), generator=generator)

    def _images(self, x: Tensor) -> Tensor: return x[:, None].float().div_(255).sub_(self.mean).div_(self.std)


def image_loaders(data: ImageSet, bs: int, seed: int = 0) -> DataLoaders:
    """Loaders over an ImageSet in memory, normalised: training shuffled by `seed`,
    validation in order with batches twice as large."""
    given = dict(mean=MEAN, std=STD, source=data.source)
    return DataLoaders(MemoryLoader(data.x_train, data.y_train, bs, shuffle=True, seed=seed, **given),
                       MemoryLoader(data.x_valid, data.y_valid, bs*2, **given))

"The pictures of a folder as rows of a MemoryLoader: decoded by several threads when first needed, then kept."
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from miniai.data.picture_files import PictureError
from miniai.environment import n_cpus
from miniai.show.tracking import tracked

__all__ = ['PictureRows']

_AHEAD = 3  # batches that are decoded before they are asked for


class PictureRows:
    """Stands for a tensor of uint8, the pictures in `files` as `decode` gives them, each of `shape`, (H, W) or
    (3, H, W). Batches are decoded by `workers` threads, some ahead of the one in use. With `keep` a picture is decoded
    once and stays in memory. PictureError, which names the file, for a picture that cannot be read. `contents` is a
    digest of the names and sizes of the files: a run resumes only if it is the same."""
    dtype, device = torch.uint8, torch.device('cpu')
    def __init__(self, files: Sequence[Path], decode: Callable[[Path], np.ndarray], shape: Sequence[int],
                 keep: bool = True, workers: int | None = None) -> None:
        if workers is not None and workers < 1: raise ValueError(f"workers must be 1 or more, got {workers}")
        self._files, self._decoder, self._keep, self._workers = list(files), decode, keep, workers or n_cpus()
        self.shape = torch.Size((len(files), *shape))
        self.ndim, self.contents = len(self.shape), _digest(files)
        self._memory = self._empty(len(files) if keep else 0)  # the system gives it as it fills
        self._kept, self._pool = torch.zeros(len(files), dtype=torch.bool), None

    @property
    def files(self) -> list[Path]: return self._files

    @property
    def keep(self) -> bool: return self._keep

    def __len__(self) -> int: return len(self._files)
    def numel(self) -> int: return self.shape.numel()

    def _empty(self, n: int) -> Tensor:
        "Memory for `n` pictures, channels last, as decoders write them."
        h, w = self.shape[-2:]
        return torch.empty((n, h, w, 3) if self.ndim == 4 else (n, h, w), dtype=torch.uint8)

    def gathered(self, order: Tensor, bs: int | list[int]) -> Iterator[Tensor]:
        "The rows in `order`, `bs` at a time, or as many as a list says."
        parts, begun = iter(order.split(bs)), deque()
        try:
            begun += map(self._begin, islice(parts, _AHEAD))
            while begun:
                part, batch, futures = begun.popleft()
                for future in futures: future.result()
                if self.keep: self._kept[part] = True
                begun += map(self._begin, islice(parts, 1))
                found = self._memory.index_select(0, part) if self.keep else batch
                yield found.permute(0, 3, 1, 2) if self.ndim == 4 else found
        finally: _cancel(future for *_, futures in begun for future in futures)

    def _begin(self, part: Tensor) -> tuple[Tensor, Tensor, list[Future]]:
        "Start to decode the rows of a batch that are not in memory."
        missing = (part[~self._kept[part]] if self.keep else part).tolist()
        memory = self._memory if self.keep else self._empty(len(part))
        places = missing if self.keep else range(len(part))
        return part, memory, [self._threads().submit(self._decode, i, memory, place)
                              for i, place in zip(missing, places, strict=True)]

    def _decode(self, i: int, memory: Tensor | None, place: int) -> None:
        a = self._decoder(self._files[i])
        if memory is not None: memory.numpy()[place] = a if a.ndim == 2 else a.transpose(1, 2, 0)

    def check(self) -> dict[int, str]:
        "Decode every picture now, with a progress bar. What is wrong with each that cannot be read, by its index."
        todo, bad = (~self._kept).nonzero().flatten().tolist(), {}
        futures = [self._threads().submit(self._decode, i, self._memory if self.keep else None, i) for i in todo]
        try:
            for i, future in zip(todo, tracked(futures, 'decoding'), strict=True):
                try: future.result()
                except PictureError as e: bad[i] = str(e)
                else: self._kept[i] = self.keep
        finally: _cancel(futures)  # after Ctrl-C, Python would wait for all of them
        return bad

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None: self._pool = ThreadPoolExecutor(self._workers, 'pictures')
        return self._pool

    def __getstate__(self) -> dict: return vars(self) | dict(_pool=None)


def _digest(files: Sequence[Path]) -> str:
    described = [(*Path(f).parts[-2:], os.lstat(f).st_size if os.path.lexists(f) else 0) for f in files]
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def _cancel(futures: Iterable[Future]) -> None:
    for future in futures: future.cancel()

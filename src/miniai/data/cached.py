"Ordinary loaders turned into loaders in memory: each sample decoded once, looked at twice, kept where it fits."
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import partial
from traceback import extract_tb
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from miniai.data.memory import MemoryLoader
from miniai.device import map_tensors
from miniai.environment import available_memory
from miniai.show.displays import best_display

__all__ = ['cached_pair', 'cached_loader']


def cached_pair(train: Any, valid: Any, memory: float | None, check: str, seed: int) -> list:
    "What `DataLoaders.cached` makes of its two loaders: `memory` is for both."
    if check not in ('some', 'all'): raise ValueError(f"check must be 'some' or 'all', got {check!r}")
    if memory is None: memory = available_memory()//2
    if memory < 0: raise ValueError(f"memory is a number of bytes, 0 or more, got {memory}")
    new = []
    for name, dl in (('train', train), ('valid', valid)):
        new.append(cached_loader(dl, name, memory, check, seed))
        if new[-1] is not dl: memory -= sum(t.nbytes for t in new[-1].tensors)
    return new


def cached_loader(dl: Any, name: str, memory: float, check: str = 'some', seed: int = 0) -> Any:
    "A MemoryLoader of all that `dl` gives, or `dl` itself, with a warning, where that may not be."
    if isinstance(dl, MemoryLoader | list | tuple): return dl
    why = _unfit(dl)
    if not why:
        tensors, template, why = _decoded(dl, name, memory)
    if why:
        warnings.warn(f"the {name} loader stays as it is, not cached: {why}", stacklevel=4)
        return dl
    _check_again(dl, name, tensors, check)
    return MemoryLoader(*tensors.values(), bs=dl.batch_size, drop_last=dl.drop_last, seed=seed,
                        shuffle=type(dl.sampler) is RandomSampler, to_float=False, pack=partial(_packed, template))


def _unfit(dl: Any) -> str:
    "Why a loader cannot be cached, whatever its samples; empty where it can."
    if not isinstance(dl, DataLoader) or type(dl).__iter__ is not DataLoader.__iter__:
        return f"it is of class {type(dl).__name__}, whose samples cannot be had by index"
    if isinstance(dl.dataset, IterableDataset) or not isinstance(dl.dataset, Sized):
        return "its dataset is a stream, without length or index"
    if not len(dl.dataset): return "its dataset is empty"
    if dl.batch_sampler is None: return "it gives samples, not batches: its batch_size is None"
    odd = [s for s, ok in ((dl.batch_sampler, type(dl.batch_sampler) is BatchSampler),
                           (dl.sampler, _plain(dl.sampler, len(dl.dataset)))) if not ok]
    if odd: return f"its order is that of its {type(odd[0]).__name__}, which no shuffle by seed can stand for"
    return "its batches are those of a batch_sampler of its own" if dl.batch_size is None else ""


def _plain(sampler: Any, n: int) -> bool:
    "Does a sampler give each sample once?"
    if type(sampler) is RandomSampler: return not sampler.replacement and sampler.num_samples == n
    return type(sampler) is SequentialSampler


def _pass(dl: DataLoader, indices: Any, num_workers: int, seed: int) -> DataLoader:
    "A loader like `dl` over `indices`. It draws from a generator of its own, so the user's draws stay what they were."
    workers = dict(prefetch_factor=dl.prefetch_factor, multiprocessing_context=dl.multiprocessing_context,
                   worker_init_fn=dl.worker_init_fn, timeout=dl.timeout) if num_workers else {}
    return DataLoader(dl.dataset, dl.batch_size, sampler=indices, collate_fn=partial(_collated, dl.collate_fn),
                      num_workers=num_workers, generator=torch.Generator().manual_seed(seed), **workers)


def _collated(collate: Callable[[list], Any], samples: list) -> Any:
    "What `collate` makes of the samples. Where PyTorch's default one is at a loss, a TypeError says at which item."
    try: return collate(samples)
    except Exception as e:
        odd = next((words for sample in samples for words in _uncollatable(sample, 'sample')), None)
        if odd is None or not any(f.name == 'default_collate' for f in extract_tb(e.__traceback__)): raise
        raise TypeError(f"{odd}: only what PyTorch's default collate makes tensors of can be cached. Leave it out in "
                        f"the dataset or in a collate function of your own") from e


def _uncollatable(x: Any, path: str) -> Iterator[str]:
    "What default_collate takes no batch of, inside a sample, by path."
    if isinstance(x, Mapping):
        for k, v in x.items(): yield from _uncollatable(v, f'{path}[{k!r}]')
    elif isinstance(x, tuple | list):
        for i, v in enumerate(x): yield from _uncollatable(v, f'{path}[{i}]')
    elif not isinstance(x, Tensor | np.ndarray | np.generic | int | float | str | bytes):
        yield f'{path} is a {type(x).__name__}'


def _decoded(dl: DataLoader, name: str, memory: float) -> tuple[dict[str, Tensor] | None, Any, str]:
    """Every tensor of all samples by its path in a batch, a batch to rebuild others by, and an empty string; or, where
    they take more than `memory`, nothing but the words that say so. They live where the collate function puts them."""
    n, kept, done = len(dl.dataset), None, 0
    for batch in _shown(_pass(dl, range(n), dl.num_workers, 0), f'caching {name}'):
        found, size = dict(_leaves(batch)), min(dl.batch_size, n - done)
        if kept is None:
            need = sum(t.nbytes for t in found.values())*n/size
            if need > memory: return None, None, f"it would take {_bytes(need)}, more than the {_bytes(memory)} it may"
            template, kept = batch, {k: t.new_empty((n, *t.shape[1:])) for k, t in found.items()}
        _check_alike(kept, found, size, name, done//dl.batch_size)
        for k, t in found.items(): kept[k][done:done + size] = t
        done += size
    return kept, map_tensors(lambda t: t.new_empty(0), template), ''


def _bytes(n: float) -> str:
    unit, name = next(((u, nm) for u, nm in ((1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB')) if n >= u), (1, 'bytes'))
    return f'{n/unit:.3g} {name}'


def _leaves(x: Any, path: str = 'batch') -> Iterator[tuple[str, Tensor]]:
    "Every tensor inside a batch, by its path, in the order of `map_tensors`. TypeError for what is no tensor."
    if isinstance(x, Tensor): yield path, x.detach()
    elif isinstance(x, Mapping):
        for k, v in x.items(): yield from _leaves(v, f'{path}[{k!r}]')
    elif isinstance(x, tuple | list):
        for i, v in enumerate(x): yield from _leaves(v, f'{path}[{i}]')
    else: raise TypeError(f"{path} is a {type(x).__name__}: only tensors can be cached. Leave it out in the "
                          f"collate function, or keep the ordinary loader")


def _packed(template: Any, tensors: list[Tensor]) -> Any:
    remaining = iter(tensors)
    return map_tensors(lambda _: next(remaining), template)


def _check_alike(kept: dict[str, Tensor], found: dict[str, Tensor], size: int, name: str, i: int) -> None:
    "ValueError unless a batch has the tensors of those before it, with one row a sample."
    if kept.keys() != found.keys():
        raise ValueError(f"batch {i} of {name} holds {', '.join(found)}, those before it {', '.join(kept)}: "
                         f"they cannot be cached as one")
    for k, t in found.items():
        if t.shape[:1] != (size,):
            raise ValueError(f"{k} of batch {i} of {name} has shape {tuple(t.shape)}, for {size} samples: "
                             f"to be cached it must have one row for each")
        if (t.shape[1:], t.dtype) == (kept[k].shape[1:], kept[k].dtype): continue
        raise ValueError(f"{k} of batch {i} of {name} has rows {t.dtype} {tuple(t.shape[1:])}, those before it "
                         f"{kept[k].dtype} {tuple(kept[k].shape[1:])}: to be cached, samples must have one size. "
                         f"Resize or pad them in the dataset, or keep the ordinary loader")


def _check_again(dl: DataLoader, name: str, tensors: dict[str, Tensor], check: str, n_some: int = 64) -> None:
    "ValueError where a second look, in another order and other batches, gives other samples."
    indices = _spread(len(dl.dataset), len(dl.dataset) if check == 'all' else n_some)
    again = _pass(dl, indices, dl.num_workers if check == 'all' else min(dl.num_workers, 1), 1)
    for i, batch in enumerate(_shown(again, f'checking {name}')):
        at, found = torch.tensor(indices[i*dl.batch_size:(i + 1)*dl.batch_size]), dict(_leaves(batch))
        _check_alike(tensors, found, len(at), f'{name}, looked at again,', i)
        for k, t in found.items(): _check_same(tensors[k], t, at, f'{k} of {name}')


def _spread(n: int, most: int) -> list[int]:
    "The last and the first index, and others drawn by a fixed seed, up to `most`."
    if n <= 2: return list(range(n))[::-1]
    between = torch.randperm(n - 2, generator=torch.Generator().manual_seed(0))[:most - 2] + 1
    return [n - 1, *between.tolist(), 0]


def _check_same(kept: Tensor, t: Tensor, at: Tensor, what: str) -> None:
    first = kept[at.to(kept.device)]
    same = ((first == t) | ((first != first) & (t != t))).unsqueeze(1).flatten(1).all(1)
    if same.all(): return
    raise ValueError(f"cannot be cached: sample {int(at[int(same.long().argmin())])} in {what} was another when looked "
                     f"at again, and a cached dataset must give the same sample each time. Take random augmentation "
                     f"out of it and do it by the batch (BatchTransformCB), or keep the ordinary loader")


def _shown(dl: Iterable, label: str, quiet: float = 2.) -> Iterator:
    "The batches of `dl`, with a bar where they take more than `quiet` seconds."
    face, started = best_display(), time.perf_counter()
    due = started + quiet
    try:
        for done, batch in enumerate(dl, 1):
            yield batch
            if time.perf_counter() < due: continue
            face.bar(label, done, len(dl), '')
            due = time.perf_counter() + face.seconds_between_updates
    finally: face.close()

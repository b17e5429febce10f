"Ordinary DataLoaders turned into loaders in memory: each sample is decoded once, and some or all are checked again."
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
from miniai.show.tracking import tracked

__all__ = ['cached_pair', 'cached_loader']


def cached_pair(train: Any, valid: Any, memory: float | None, check: str, seed: int) -> list:
    "The two loaders of `DataLoaders.cached`; `memory` is the limit for both, in bytes."
    if check not in ('some', 'all'): raise ValueError(f"check must be 'some' or 'all', got {check!r}")
    if memory is None: memory = available_memory()//2
    if memory < 0: raise ValueError(f"memory must be a number of bytes, 0 or more, got {memory}")
    new = []
    for name, dl in (('train', train), ('valid', valid)):
        new.append(cached_loader(dl, name, memory, check, seed))
        if new[-1] is not dl: memory -= sum(t.nbytes for t in new[-1].tensors)
    return new


def cached_loader(dl: Any, name: str, memory: float, check: str = 'some', seed: int = 0) -> Any:
    "A MemoryLoader of everything in `dl`; or `dl` itself, with a warning, if it cannot be cached."
    if isinstance(dl, MemoryLoader | list | tuple): return dl
    reason = _uncacheable_reason(dl)
    if not reason: tensors, template, reason = _decoded(dl, name, memory)
    if reason:
        warnings.warn(f"the {name} loader is not cached and stays as it is: {reason}", stacklevel=4)
        return dl
    _check_again(dl, name, tensors, check)
    return MemoryLoader(*tensors.values(), bs=dl.batch_size, drop_last=dl.drop_last, seed=seed,
                        shuffle=type(dl.sampler) is RandomSampler, to_float=False, pack=partial(_packed, template))


def _uncacheable_reason(dl: Any) -> str:
    "Why a loader cannot be cached, whatever its samples are; '' if it can."
    if not isinstance(dl, DataLoader) or type(dl).__iter__ is not DataLoader.__iter__:
        return f"it is a {type(dl).__name__}, not a plain DataLoader"
    if isinstance(dl.dataset, IterableDataset) or not isinstance(dl.dataset, Sized):
        return "its dataset is a stream, without length or index"
    if not len(dl.dataset): return "its dataset is empty"
    if dl.batch_sampler is None: return "its batch_size is None, so it yields samples instead of batches"
    s, n = dl.sampler, len(dl.dataset)
    once = type(s) is SequentialSampler or (type(s) is RandomSampler and not s.replacement and s.num_samples == n)
    for x, ok in ((dl.batch_sampler, type(dl.batch_sampler) is BatchSampler), (s, once)):
        if not ok: return f"the order of its {type(x).__name__} is not known to be sequential or a shuffle"
    return "it was given a batch_sampler: give it batch_size and shuffle instead" if dl.batch_size is None else ""


def _pass(dl: DataLoader, indices: Any, num_workers: int, seed: int) -> DataLoader:
    "A loader like `dl` over `indices`, with its own generator, so that the user's random draws stay the same."
    workers = dict(prefetch_factor=dl.prefetch_factor, multiprocessing_context=dl.multiprocessing_context,
                   worker_init_fn=dl.worker_init_fn, timeout=dl.timeout) if num_workers else {}
    return DataLoader(dl.dataset, dl.batch_size, sampler=indices, collate_fn=partial(_collate, dl.collate_fn),
                      num_workers=num_workers, generator=torch.Generator().manual_seed(seed), **workers)


def _collate(collate: Callable[[list], Any], samples: list) -> Any:
    "`collate(samples)`; if PyTorch's default collate function fails, a TypeError names the item it cannot take."
    try: return collate(samples)
    except Exception as e:
        odd = next((found for sample in samples for found in _uncollatable(sample, 'sample')), None)
        if odd is None or not any(f.name == 'default_collate' for f in extract_tb(e.__traceback__)): raise
        raise TypeError(f"{odd}: only what PyTorch's default collate turns into tensors can be cached. Leave it out "
                        f"in the dataset or in your own collate function") from e


def _uncollatable(x: Any, path: str) -> Iterator[str]:
    "The items inside a sample that default_collate cannot take, by path."
    for k, v in _children(x): yield from _uncollatable(v, f'{path}[{k!r}]')
    if not isinstance(x, Mapping | tuple | list | Tensor | np.ndarray | np.generic | int | float | str | bytes):
        yield f'{path} is a {type(x).__name__}'


def _children(x: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(x, Mapping): return x.items()
    return enumerate(x) if isinstance(x, tuple | list) else ()


def _decoded(dl: DataLoader, name: str, memory: float) -> tuple[dict[str, Tensor] | None, Any, str]:
    """The tensors of all samples by their path in a batch, an empty batch as the template for others, and ''; or
    nothing, and the reason, if they take more than `memory`. They stay where the collate function puts them."""
    n, kept, done = len(dl.dataset), None, 0
    for batch in tracked(_pass(dl, range(n), dl.num_workers, 0), f'caching {name}'):
        found, size = dict(_leaves(batch)), min(dl.batch_size, n - done)
        if kept is None:
            need = sum(t.nbytes for t in found.values())*n/size
            if need > memory: return None, None, f"it takes {_bytes(need)}, more than the limit of {_bytes(memory)}"
            template, kept = batch, {k: t.new_empty((n, *t.shape[1:])) for k, t in found.items()}
        _check_alike(kept, found, size, f'batch {done//dl.batch_size} of {name}')
        for k, t in found.items(): kept[k][done:done + size] = t
        done += size
    return kept, map_tensors(lambda t: t.new_empty(0), template), ''


def _bytes(n: float) -> str:
    unit, name = next(((u, nm) for u, nm in ((1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB')) if n >= u), (1, 'bytes'))
    return f'{n/unit:.3g} {name}'


def _leaves(x: Any, path: str = 'batch') -> Iterator[tuple[str, Tensor]]:
    "Each tensor inside a batch by its path, in the order of `map_tensors`. TypeError for anything else."
    if isinstance(x, Tensor): yield path, x.detach()
    elif not isinstance(x, Mapping | tuple | list):
        raise TypeError(f"{path} is a {type(x).__name__}: only tensors can be cached. Leave it out in the collate "
                        f"function, or keep the ordinary loader")
    for k, v in _children(x): yield from _leaves(v, f'{path}[{k!r}]')


def _packed(template: Any, tensors: list[Tensor]) -> Any:
    remaining = iter(tensors)
    return map_tensors(lambda _: next(remaining), template)


def _check_alike(kept: dict[str, Tensor], found: dict[str, Tensor], size: int, where: str) -> None:
    "ValueError unless the tensors of a batch are those of the batches before, with one row for each sample."
    if kept.keys() != found.keys():
        raise ValueError(f"cannot cache: {where} holds {', '.join(found)}, the batches before hold {', '.join(kept)}")
    for k, t in found.items():
        if t.shape[:1] != (size,):
            raise ValueError(f"cannot cache: {k} in {where} has shape {tuple(t.shape)}, and needs one row for each of "
                             f"its {size} samples")
        if (t.shape[1:], t.dtype) == (kept[k].shape[1:], kept[k].dtype): continue
        raise ValueError(f"cannot cache: {k} in {where} has rows {t.dtype} {tuple(t.shape[1:])}, the batches before "
                         f"have {kept[k].dtype} {tuple(kept[k].shape[1:])}. Resize or pad the samples in the dataset, "
                         f"or keep the ordinary loader")


def _check_again(dl: DataLoader, name: str, tensors: dict[str, Tensor], check: str) -> None:
    "ValueError if samples loaded again, in another order and other batches, differ."
    indices = _spread(len(dl.dataset), len(dl.dataset) if check == 'all' else 64)
    again = _pass(dl, indices, dl.num_workers if check == 'all' else min(dl.num_workers, 1), 1)
    for i, batch in enumerate(tracked(again, f'checking {name}')):
        at, found = torch.tensor(indices[i*dl.batch_size:(i + 1)*dl.batch_size]), dict(_leaves(batch))
        _check_alike(tensors, found, len(at), f'batch {i} of {name}, loaded again,')
        for k, t in found.items():
            first = tensors[k][at.to(tensors[k].device)]
            same = ((first == t) | ((first != first) & (t != t))).unsqueeze(1).flatten(1).all(1)  # NaN equals NaN
            if same.all(): continue
            raise ValueError(f"cannot cache: sample {int(at[int(same.long().argmin())])} in {k} of {name} differs when "
                             f"it is loaded again. Move random augmentation from the dataset to batches "
                             f"(BatchTransformCB), or keep the ordinary loader")


def _spread(n: int, most: int) -> list[int]:
    "The last and the first index, and others drawn with a fixed seed, `most` in all."
    if n <= 2: return list(range(n))[::-1]
    between = torch.randperm(n - 2, generator=torch.Generator().manual_seed(0))[:most - 2] + 1
    return [n - 1, *between.tolist(), 0]

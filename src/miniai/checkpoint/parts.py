"The parts of tensors that are sharded over processes: files of torch.distributed.checkpoint in one folder."
import hashlib
import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from miniai.atomic import sync
from miniai.checkpoint.tree import Sharded
from miniai.distributed.dtensor import is_dtensor

__all__ = ['REST', 'is_folder', 'mapped', 'taken_out', 'filled', 'sharded_in', 'write_parts', 'own_digests',
           'check_parts', 'read_parts', 'own_error']

REST = 'rest.safetensors'  # in the folder: the file with everything that is not sharded, and the parts' digests
_METADATA = '.metadata'    # of torch, a pickle
_PIECE = 1 << 20


def is_folder(path: str) -> bool:
    "Is this a folder of parts?"
    return os.path.isfile(os.path.join(path, REST))


def mapped(f: Callable[[Any, tuple], Any], x: Any, path: tuple = ()) -> Any:
    "`x`, nested lists, tuples and dicts, with `f(leaf, path)` for each leaf; `path` are its keys from the outside in."
    if type(x) in (list, tuple): return type(x)(mapped(f, y, (*path, i)) for i, y in enumerate(x))
    if type(x) in (dict, OrderedDict): return type(x)((k, mapped(f, y, (*path, k))) for k, y in x.items())
    return f(x, path)


def taken_out(state: Any) -> tuple[Any, dict[str, Tensor]]:
    "`state` with a Sharded in place of each DTensor, and the DTensors by name: the path in the state."
    tensors = {}
    def take(x: Any, path: tuple) -> Any:
        if not is_dtensor(x): return x
        name = '/'.join(map(str, path))
        tensors[name] = x.detach()
        return Sharded(name, tuple(x.shape), str(x.dtype).removeprefix('torch.'))
    return mapped(take, state), tensors


def filled(state: Any, tensors: dict[str, Any]) -> Any:
    "`state` with `tensors` in place of the Sharded of those names."
    return mapped(lambda x, path: tensors[x.name] if isinstance(x, Sharded) else x, state)


def sharded_in(state: Any) -> dict[str, Sharded]:
    "Each Sharded in `state`, by name."
    found = {}
    mapped(lambda x, path: found.update({x.name: x}) if isinstance(x, Sharded) else x, state)
    return found


def write_parts(folder: str, tensors: dict[str, Tensor], group: Any, background: bool = False) -> Any:
    """Write the parts that this process has to `folder`. All processes of `group` call this. With `background` returns
    a future, once the parts are copied."""
    import torch.distributed.checkpoint as dcp
    save = dcp.async_save if background else dcp.save
    return save(tensors, storage_writer=dcp.FileSystemWriter(folder), process_group=group)


def own_digests(folder: str, rank: int) -> dict[str, list]:
    "The files that process `rank` wrote: size and sha256 by name. Returns when they are on the disk."
    names = [nm for nm in os.listdir(folder) if nm.startswith(f'__{rank}_') or (rank == 0 and nm == _METADATA)]
    return {nm: _digest(os.path.join(folder, nm), True) for nm in names}


def _digest(path: str, synced: bool = False) -> list:
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        if synced: sync(f.fileno())
        while piece := f.read(_PIECE): digest.update(piece)
        return [f.tell(), digest.hexdigest()]


def check_parts(folder: str, parts: dict[str, list], i: int = 0, n: int = 1) -> None:
    "ValueError unless the files of `folder` are as `parts` says: of `n` processes that share the work, the `i`-th."
    for nm in sorted(parts):
        if not os.path.isfile(os.path.join(folder, nm)): raise ValueError(f'its part {nm} is missing')
    for nm in sorted(parts)[i::n]:
        if _digest(os.path.join(folder, nm)) != parts[nm]:
            raise ValueError(f'damaged: the sha256 of its part {nm} is not as stated; use another checkpoint')


def read_parts(folder: str, tensors: dict[str, Tensor]) -> None:
    "Fill `tensors`, whole ones or DTensors, from the parts of those names in `folder`, which were checked."
    import torch.distributed.checkpoint as dcp
    with open(os.path.join(folder, _METADATA), 'rb') as f: _Harmless(f).load()
    with own_error(), warnings.catch_warnings():  # that only one process reads: each one reads what it needs
        warnings.filterwarnings('ignore', 'torch.distributed is disabled')
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(folder), no_dist=True)


@contextmanager
def own_error() -> Iterator[None]:
    "What failed in a process, instead of torch's CheckpointException, which is no Exception."
    from torch.distributed.checkpoint import CheckpointException
    try: yield
    except CheckpointException as e: raise next(iter(e.failures.values()))[0] from None


class _Harmless(pickle.Unpickler):
    "Refuses a pickle that names anything but what torch.distributed.checkpoint writes, which could be any code."
    def find_class(self, module: str, name: str) -> Any:
        known = {'torch.distributed.checkpoint.filesystem': ['_StorageInfo'], 'torch.serialization': ['_get_layout'],
                 'torch': ['Size'], 'collections': ['OrderedDict'], 'pathlib': ['PosixPath', 'WindowsPath', 'Path']}
        dtype = module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype)
        ours = module == 'torch.distributed.checkpoint.metadata' and '.' not in name
        if dtype or ours or name in known.get(module, ()): return super().find_class(module, name)
        raise ValueError(f'damaged: its {_METADATA} names {module}.{name}')

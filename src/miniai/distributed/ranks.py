"The processes of a run: which one this is, and numbers and decisions that all of them share."
import atexit
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from miniai.distributed.torchrun import launched, meeting_place, show_first_error

__all__ = ['rank', 'world', 'is_first', 'part', 'split_data_over', 'part_of', 'own_device', 'start', 'close', 'agree',
           'total', 'most', 'total_on_device', 'gathered', 'gathered_parts', 'from_first', 'of_first',
           'failing_together']

_data_mesh = None   # the processes that the data is divided over, if not all
_host_group = None  # a group that moves numbers of the CPU, if the main one cannot


def _started() -> bool: return dist.is_available() and dist.is_initialized()


def rank() -> int:
    "The number of this process, from 0."
    return dist.get_rank() if _started() else 0


def world() -> int:
    "The number of processes that train together."
    return dist.get_world_size() if _started() else 1


def is_first() -> bool:
    "Whether this is the process that prints and writes files. True in a run of one process."
    return rank() == 0


# The data


def split_data_over(mesh: Any) -> None:
    """Divide the data over the processes of a 1-D DeviceMesh instead of all: those of a tensor-parallel model that
    hold parts of the same weights need the same batches. None: over all again."""
    global _data_mesh
    if mesh is not None and mesh.ndim != 1:
        raise ValueError(f"data is divided over a mesh of 1 dimension, got {mesh.ndim}: pass a part of it, such as "
                         f"mesh['dp']")
    _data_mesh = mesh


def part() -> tuple[int, int]:
    "Which part of the data this process gets, from 0, and how many parts there are."
    if not _started() or _data_mesh is None: return rank(), world()
    return _data_mesh.get_local_rank(), _data_mesh.size()


def part_of(n: int) -> range:
    """This process's part of a batch of `n` samples: in order, of equal sizes, the first ones larger by one if they
    must be. Empty if there are fewer samples than parts."""
    i, parts = part()
    size, larger = divmod(n, parts)
    first = i*size + min(i, larger)
    return range(first, first + size + (i < larger))


# The group


def own_device(device: str | None = None) -> torch.device:
    "The device of this process: an accelerator of its own, or the CPU. `device` names the kind."
    kind = torch.device(device).type if device else 'cuda' if torch.cuda.is_available() else 'cpu'
    if kind != 'cuda': return torch.device(kind)
    found = torch.device(kind, int(os.environ.get('LOCAL_RANK', 0)))
    torch.cuda.set_device(found)
    return found


def start(device: str | None = None) -> torch.device:
    """Join the processes that torchrun started, unless that is done already, and return this one's device. No group is
    made if torchrun did not start this process. The group ends with the process."""
    found = own_device(device)
    if not _started() and (launched() or (0, 1))[1] > 1:
        dist.init_process_group('cpu:gloo,cuda:nccl' if found.type == 'cuda' else 'gloo', **meeting_place())
        atexit.register(close)
        sys.excepthook = show_first_error
    if rank(): warnings.filterwarnings('ignore')  # the first process gives the same ones
    return found


def close() -> None:
    "Leave the group, together with the others unless this process failed."
    global _host_group, _data_mesh
    _host_group = _data_mesh = None
    if not _started(): return
    # Gloo's threads may abort a process that leaves while the other still talks to it.
    if dist.get_backend() == 'gloo' and not hasattr(sys, 'last_value'):
        with suppress(RuntimeError): dist.monitored_barrier(timeout=timedelta(seconds=5))
    dist.destroy_process_group()


# What all share. Every process must call these, in the same order.


def _group() -> Any:
    "A group for values on the CPU."
    global _host_group
    if 'gloo' in str(dist.get_backend_config()): return None
    if _host_group is None: _host_group = dist.new_group(backend='gloo')
    return _host_group


def total(numbers: list[float]) -> list[float]:
    "Each number summed over all processes, in double precision."
    return _reduced(numbers, dist.ReduceOp.SUM)


def most(numbers: list[float]) -> list[float]:
    "The largest of each number over all processes."
    return _reduced(numbers, dist.ReduceOp.MAX)


def _reduced(numbers: list[float], op: Any) -> list[float]:
    if world() == 1: return numbers
    values = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(values, op, group=_group())
    return values.tolist()


def agree(flag: Any) -> bool:
    "Whether `flag` is true in any process."
    return total([float(bool(flag))])[0] > 0


def total_on_device(x: Tensor) -> Tensor:
    "`x` summed over all processes, without waiting for its device. Changes `x`."
    if world() > 1: dist.all_reduce(x, group=_group() if x.is_cpu else None)
    return x


def gathered(x: Any, group: Any = None) -> list:
    "The objects `x` of all processes, in order of rank. They are pickled. `group`: a gloo group of all, for a thread."
    if world() == 1: return [x]
    found = [None]*world()
    dist.all_gather_object(found, x, group=group or _group())
    return found


def gathered_parts(x: Any) -> list:
    "The objects `x` of the processes that have different parts of the data, in order of parts. They are pickled."
    found = gathered((part()[0], x))
    return [x for _, x in sorted(dict(reversed(found)).items())]


def from_first(x: Any) -> Any:
    "The object `x` of the first process. It is pickled."
    if world() == 1: return x
    box = [x]
    dist.broadcast_object_list(box, src=0, group=_group())
    return box[0]


@contextmanager
def failing_together(group: Any = None) -> Iterator[None]:
    "An error that one process raises within this block is raised in all of them at its end."
    own = None
    try: yield
    except Exception as e: own = e
    first = next((e for e in gathered(own, group) if e is not None), None)
    if first is not None: raise own or first


def of_first(f: Callable[[], Any]) -> Any:
    "What `f()` returns in the first process, which alone calls it. If it raises an Exception there, all raise that."
    with failing_together(): found = f() if is_first() else None
    return from_first(found)

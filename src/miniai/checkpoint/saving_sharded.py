"ShardedSaver: saves states with DTensors, of which every process has a part, as folders."
import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from os import PathLike
from typing import Any

import torch.distributed as dist
from torch import Tensor

from miniai.atomic import atomic_write, in_progress, sync_folder, temporary_name
from miniai.checkpoint.durable import SaveError, in_thread, write_durably
from miniai.checkpoint.header import header_bytes
from miniai.checkpoint.layout import memory_of
from miniai.checkpoint.parts import REST, own_digests, own_error, write_parts
from miniai.checkpoint.saving import Saver
from miniai.checkpoint.tree import flatten
from miniai.distributed.ranks import failing_together, from_first, gathered, is_first, rank

__all__ = ['ShardedSaver']


class ShardedSaver(Saver):
    """Saves sharded states, one folder after another, in the background by default; every process calls `save`, on a
    file system that all share. A folder appears under its name when all of it is on the disk. A failure, in any
    process, is raised in all by the next call of any method."""
    def __init__(self) -> None: self._last, self._group = None, None

    def save(self, path: str | PathLike, state: dict[str, Any], tensors: dict[str, Tensor], *,
             also: Iterable[str | PathLike] = (), background: bool = True) -> None:
        """Save `state`, that of the first process, and `tensors`, its DTensors, as `taken_out` gives them, in the
        folder `path`. `also` are names of links to it, which replace links. Waits for the save before."""
        self.wait()
        if self._group is None: self._group = dist.new_group(backend='gloo')
        path = os.path.realpath(path)
        part = from_first(temporary_name(path))
        with failing_together(): rest = _copied(state) if is_first() else None
        in_progress.add(part)
        finish = partial(self._finish, path, part, rest, [os.path.abspath(p) for p in also],
                         sum(x.numel()*x.element_size() for x in tensors.values()))
        if not background: return finish(lambda: write_parts(part, tensors, self._group))
        writing = write_parts(part, tensors, self._group, background)
        self._last = in_thread(finish, writing.result)

    def _finish(self, path: str, part: str, rest: Any, also: list[str], size: int, write: Callable) -> None:
        "Wait until all processes have written their parts. Then the first one adds the rest and renames the folder."
        try:
            with own_error(): write()
            with failing_together(self._group): own = own_digests(part, rank())
            parts = {nm: x for found in gathered(own, self._group) for nm, x in found.items()}
            with failing_together(self._group):
                if is_first(): _publish(path, part, rest, parts, also)
        except Exception as e:
            raise SaveError(path, size, e, 'nothing has changed at this path') from e
        finally:
            if is_first(): shutil.rmtree(part, ignore_errors=True)
            in_progress.discard(part)

    def abandon(self) -> None:
        "Do not wait for the save in progress, which goes on: it needs all processes."
        self._last = None


def _copied(state: dict[str, Any]) -> tuple[Any, dict]:
    "The state as JSON values, and copies of its tensors with their layouts, in an order in which all are aligned."
    json, leaves = flatten(state)
    ordered = sorted(leaves.items(), key=lambda item: -item[1][0].itemsize)
    return json, {nm: (layout, memory_of(t).cpu().clone()) for nm, (layout, t) in ordered}


def _publish(path: str, part: str, rest: tuple[Any, dict], parts: dict[str, list], also: list[str]) -> None:
    "Complete the folder `part` and let it replace what is at `path`."
    missing = sorted(parts.keys() - set(os.listdir(part)))
    if missing: raise OSError(f'{missing[0]}, written by another process, is not there: a sharded model needs a folder '
                              f'that all processes share')
    json, leaves = rest
    head = header_bytes(json | dict(parts=parts), leaves)
    write_durably([os.path.join(part, REST)], head, [memoryview(m.numpy()) for _, m in leaves.values()])
    old = temporary_name(path) if os.path.lexists(path) else None
    if old: os.rename(path, old)
    os.rename(part, path)
    for link in also: _link(path, link)
    sync_folder(os.path.dirname(path))
    if old: shutil.rmtree(old)


def _link(path: str, link: str) -> None:
    "Let `link` be a link to `path`, at once."
    with atomic_write(link) as new: os.symlink(os.path.relpath(path, os.path.dirname(link)), new)

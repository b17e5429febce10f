"What torchrun says, and keeps for all the processes it starts. They may ask one by one, at any time."
import os
import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Any
from uuid import uuid4

import torch.distributed as dist

__all__ = ['launched', 'meeting_place', 'is_first_to_fail', 'show_first_error', 'kept']


def launched() -> tuple[int, int] | None:
    "The rank of this process and the number of all that torchrun started; None if it did not start this one."
    if 'RANK' not in os.environ: return None
    return int(os.environ['RANK']), int(os.environ.get('WORLD_SIZE', 1))


def _has_store() -> bool:
    "Does torchrun itself hold a store for its processes? Other launchers leave that to the first process."
    return launched() is not None and os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'


def _store(timeout: timedelta = timedelta(seconds=5)) -> Any:
    "torchrun's store, which outlives a process that fails."
    address = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    return dist.PrefixStore('miniai', dist.TCPStore(*address, is_master=False, timeout=timeout))


def meeting_place() -> dict[str, Any]:
    """The arguments of `init_process_group` that let only processes meet that torchrun started together. When it
    restarts them, its store still has the addresses of those that are dead, and torch would connect to these."""
    if not _has_store(): return {}
    store, (rank, world) = _store(dist.distributed_c10d.default_pg_timeout), launched()
    return dict(store=dist.PrefixStore(_name_of_start(store, rank, world), store), rank=rank, world_size=world)


def _name_of_start(store: Any, rank: int, world: int) -> str:
    """A name that all processes of this start know, and no earlier one: the first process confirms it to each. The
    count of restarts would not do, because it differs between machines."""
    own = uuid4().hex
    if rank == 0:
        store.set('start', own)
        store.set(f'{own} all', ' '.join(store.get(f'{own} {i}').decode() for i in range(1, world)))
        return own
    while True:
        name = store.get('start').decode()  # that of an earlier start, until the first process has begun
        store.set(f'{name} {rank}', own)
        if store.check([f'{name} all']) and own in store.get(f'{name} all').decode(): return name
        time.sleep(.05)


def is_first_to_fail() -> bool:
    """Whether no other process has called this before, since torchrun started or restarted them. When one fails, others
    have the same error or lose their connection: only the first should say why."""
    if not _has_store(): return True
    try: return _store().add(f"failed {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except dist.DistError: return True


def show_first_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    "As `sys.excepthook`: shows the traceback of the process that fails first."
    if is_first_to_fail(): sys.__excepthook__(kind, error, traceback)
    else: print(f"process {os.environ['RANK']} ended too: {kind.__name__}", file=sys.stderr)


def kept(name: str, value: str | None = None) -> str | None:
    "The text under `name`, kept also when torchrun restarts its processes; None without one. `value` replaces it."
    if not _has_store(): return value
    store = _store()
    if value is not None: store.set(name, value)
    return store.get(name).decode() if store.check([name]) else None

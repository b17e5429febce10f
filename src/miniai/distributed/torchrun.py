"What torchrun says, and keeps for all the processes it starts. They may ask one by one, at any time."
import os
import sys
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch.distributed as dist

__all__ = ['launched', 'is_first_to_fail', 'show_first_error', 'kept']


def launched() -> tuple[int, int] | None:
    "The rank of this process and the number of all that torchrun started; None if it did not start this one."
    if 'RANK' not in os.environ: return None
    return int(os.environ['RANK']), int(os.environ.get('WORLD_SIZE', 1))


def _store() -> Any:
    "torchrun's store, which outlives a process that fails."
    address = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    return dist.PrefixStore('miniai', dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=5)))


def is_first_to_fail() -> bool:
    """Whether no other process has called this before, since torchrun started or restarted them. When one fails, others
    have the same error or lose their connection: only the first should say why."""
    if launched() is None: return True
    try: return _store().add(f"failed {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (dist.DistError, KeyError): return True


def show_first_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    "As `sys.excepthook`: shows the traceback of the process that fails first."
    if is_first_to_fail(): sys.__excepthook__(kind, error, traceback)
    else: print(f"process {os.environ['RANK']} ended too: {kind.__name__}", file=sys.stderr)


def kept(name: str, value: str | None = None) -> str | None:
    "The text under `name`, kept also when torchrun restarts its processes; None without one. `value` replaces it."
    if launched() is None: return value
    store = _store()
    if value is not None: store.set(name, value)
    return store.get(name).decode() if store.check([name]) else None

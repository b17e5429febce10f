"The machine and process that this is: package versions, memory that is free, and memory given back."
import gc
import os
import sys
import traceback
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ['version_of', 'available_memory', 'clean_mem', 'clean_tb', 'clean_ipython_hist']

_MEMINFO, _CGROUP = Path('/proc/meminfo'), Path('/sys/fs/cgroup')


@lru_cache
def version_of(package: str) -> str | None:
    "The installed version of `package`, by its distribution's name, as it was at the first call; None without it."
    try: return version(package)
    except PackageNotFoundError: return None


def available_memory() -> int:
    """Bytes that can be had without swapping: what the system says is available, or a quarter of all where it does not
    say; less where a container's limit (cgroup v2 or v1) leaves less."""
    return max(0, min(_of_the_system(), _of_the_container()))


def _of_the_system() -> int:
    try: lines = dict(line.split(':') for line in _MEMINFO.read_text().splitlines())
    except (OSError, ValueError): return _quarter()
    return int(lines['MemAvailable'].split()[0])*1024 if 'MemAvailable' in lines else _quarter()


def _quarter() -> int:
    try: return os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')//4
    except (AttributeError, ValueError, OSError): return 2**30


def _of_the_container() -> int | float:
    "What the container's limit leaves: cgroup v2's or v1's, which says 'no limit' by a number near 2**63."
    v2 = _left(_CGROUP, 'max', 'current', 'inactive_file')
    return min(v2, _left(_CGROUP/'memory', 'limit_in_bytes', 'usage_in_bytes', 'total_inactive_file'))


def _left(folder: Path, most: str, current: str, cache: str) -> int | float:
    "What a limit leaves; page cache, which is given back when asked for, does not count as taken."
    try:
        limit, taken = ((folder/f'memory.{nm}').read_text().strip() for nm in (most, current))
        stat = dict(line.split() for line in (folder/'memory.stat').read_text().splitlines())
        return float('inf') if limit == 'max' else int(limit) - int(taken) + int(stat.get(cache, 0))
    except (OSError, ValueError): return float('inf')


def clean_ipython_hist() -> None:
    "Forget the outputs that a notebook keeps alive: `Out`, `_`, `__` and their like."
    shell = sys.modules['IPython'].get_ipython() if 'IPython' in sys.modules else None
    if shell is None: return
    numbered = [n for n in shell.user_ns if n.startswith('_') and n.strip('_i').isdigit()]
    for name in [*numbered, '_', '__', '___']:
        for names in (shell.user_ns, shell.user_ns_hidden): names.pop(name, None)
    shell.user_ns.get('Out', {}).clear()
    if shell.displayhook.do_full_cache: shell.displayhook.flush()


def clean_tb() -> None:
    "Forget the last error, whose traceback keeps the tensors of every frame alive."
    if hasattr(sys, 'last_traceback'): traceback.clear_frames(sys.last_traceback)
    for name in ('last_traceback', 'last_type', 'last_value', 'last_exc'): sys.__dict__.pop(name, None)


def clean_mem() -> None:
    "Give back the memory that a notebook's last error and history keep, and the accelerator's cache."
    clean_tb()
    clean_ipython_hist()
    gc.collect()
    if torch.cuda.is_available(): torch.cuda.empty_cache()

"The machine and the process: package versions, available memory, and freeing memory."
import gc
import os
import platform
import sys
import traceback
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path
from typing import Any

import torch

__all__ = ['version_of', 'machine_facts', 'n_cpus', 'available_memory', 'clean_mem', 'clean_tb', 'clean_ipython_hist']

_PACKAGES = 'miniai-torch', 'torch', 'numpy', 'numba', 'safetensors', 'matplotlib', 'tqdm'
_MEMINFO, _CGROUP = Path('/proc/meminfo'), Path('/sys/fs/cgroup')


@lru_cache
def version_of(package: str) -> str | None:
    "The installed version of `package` (a distribution's name), read once; None if it is not installed."
    try: return version(package)
    except PackageNotFoundError: return None


def machine_facts(device: str) -> dict[str, Any]:
    "What a run depends on beside its options: versions, the machine and its number of threads, as plain values."
    return dict(python=platform.python_version(), platform=platform.platform(), machine=platform.machine(),
                cpus=os.cpu_count(), threads=torch.get_num_threads(), device=device,
                gpu=torch.cuda.get_device_name() if device.startswith('cuda') else None,
                versions={package: version_of(package) for package in _PACKAGES})


def n_cpus() -> int:
    "The processors that this process may use."
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that can be allocated without swapping: what Linux reports as available (elsewhere a quarter of memory),
    or what the limit of the container leaves, if that is less."""
    return max(0, min(_system_memory(), _container_memory()))


def _system_memory() -> int:
    try:
        lines = dict(line.split(':') for line in _MEMINFO.read_text().splitlines())
        return int(lines['MemAvailable'].split()[0])*1024
    except (OSError, ValueError, KeyError): pass
    try: return os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')//4
    except (AttributeError, ValueError, OSError): return 2**30


def _container_memory() -> int | float:
    "What the limit of cgroup v2 or v1 leaves, infinite without a limit. v1 writes a number near 2**63 for no limit."
    v1, v2 = _CGROUP/'memory', _CGROUP
    left = [inf]
    for folder, limit, usage, cache in ((v2, 'max', 'current', 'inactive_file'),
                                        (v1, 'limit_in_bytes', 'usage_in_bytes', 'total_inactive_file')):
        try:
            most, used = ((folder/f'memory.{name}').read_text().strip() for name in (limit, usage))
            stat = dict(line.split() for line in (folder/'memory.stat').read_text().splitlines())
            # The page cache counts as used, but is freed when memory is needed.
            if most != 'max': left.append(int(most) - int(used) + int(stat.get(cache, 0)))
        except (OSError, ValueError): pass
    return min(left)


def clean_ipython_hist() -> None:
    "Delete the outputs that a notebook keeps: `Out`, `_`, `__` and so on."
    shell = sys.modules['IPython'].get_ipython() if 'IPython' in sys.modules else None
    if shell is None: return
    numbered = [n for n in shell.user_ns if n.startswith('_') and n.strip('_i').isdigit()]
    for name in [*numbered, '_', '__', '___']:
        for names in (shell.user_ns, shell.user_ns_hidden): names.pop(name, None)
    shell.user_ns.get('Out', {}).clear()
    if shell.displayhook.do_full_cache: shell.displayhook.flush()


def clean_tb() -> None:
    "Delete the last error: its traceback keeps the tensors of every frame alive."
    if hasattr(sys, 'last_traceback'): traceback.clear_frames(sys.last_traceback)
    for name in ('last_traceback', 'last_type', 'last_value', 'last_exc'): sys.__dict__.pop(name, None)


def clean_mem() -> None:
    "Free the memory that a notebook's last error and outputs hold, and the cache of the GPU."
    clean_tb()
    clean_ipython_hist()
    gc.collect()
    if torch.cuda.is_available(): torch.cuda.empty_cache()

"How much memory this process may still take. Knows the operating system alone."
import os
from pathlib import Path

__all__ = ['available_memory']

_MEMINFO, _CGROUP = Path('/proc/meminfo'), Path('/sys/fs/cgroup')


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

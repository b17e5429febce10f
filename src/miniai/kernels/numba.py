"Kernels by Numba: what they can work on, compiling them, and running them on a safe number of threads."
import os
from collections import Counter
from collections.abc import Callable
from functools import lru_cache, partial
from threading import RLock

import numpy as np
import torch
from torch import Tensor

from miniai.kernels.cache import load_module
from miniai.kernels.memory import irregular
from miniai.kernels.source import POINTERS, step_source
from miniai.kernels.trace import Trace

__all__ = ['Kernel', 'compiled', 'missing_numba', 'serial_reason', 'step_kernel', 'unsupported']

WORTH_IT = 1 << 16  # elements: with fewer, waking threads costs more than they save
compiled = Counter()  # how many kernels this process has compiled, not loaded from the cache, serial and parallel
_PID = os.getpid()

# Held while Numba is imported or compiles, and while the process forks: a child must not inherit a lock of Numba's
# that none of its own threads will ever release.
_compiling = RLock()
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(before=_compiling.acquire, after_in_parent=_compiling.release,
                        after_in_child=_compiling.release)


class Kernel:
    "A generated module, compiled when first needed. `kernel(elements, table, chunks, *rest)` runs it over a table."
    def __init__(self, source: str) -> None: self.source, self.functions = source, {}

    def __call__(self, elements: int, table: np.ndarray, chunks: np.ndarray, *rest: np.ndarray) -> None:
        self.ready(elements, *rest)(table, chunks, *rest)

    def ready(self, elements: int, *rest: np.ndarray) -> Callable[..., None]:
        "The compiled function for a table of that many elements: a parallel one if that is safe and worthwhile."
        way = 'serial' if elements < WORTH_IT or serial_reason(elements) else 'parallel'
        run = self.functions.get(way) or self._compile(way, rest)
        return run if way == 'serial' else partial(_on_torch_threads, run)

    def _compile(self, way: str, rest: tuple[np.ndarray, ...]) -> Callable[..., None]:
        "Compile or load by a call over no chunks at all, which touches no memory."
        with _compiling:
            run = getattr(load_module(self.source), way)
            run(np.zeros((1, 1), np.uint64), np.zeros((0, 4), np.int64), *rest)
            compiled[way] += sum(run.stats.cache_misses.values())
        self.functions[way] = run
        return run


@lru_cache(maxsize=256)
def step_kernel(trace: Trace, dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...]) -> Kernel:
    "The kernel that steps tensors of `dtypes` by a trace; see step_source."
    return Kernel(step_source(trace, dtypes, dither))


def _on_torch_threads(run: Callable[..., None], *args: np.ndarray) -> None:
    "Call `run` with as many Numba threads as torch has, then restore Numba's own number."
    import numba
    before, wanted = numba.get_num_threads(), min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if wanted == before: return run(*args)
    numba.set_num_threads(wanted)
    try: run(*args)
    finally: numba.set_num_threads(before)


def serial_reason(elements: int) -> str:
    """Why a kernel over that many elements runs on one thread; '' if it may run in parallel. It depends only on the
    model and the machine."""
    if elements < WORTH_IT: return 'the model is small'
    if torch.get_num_threads() == 1: return 'torch has one thread'
    if os.getpid() != _PID: return 'this is a forked process'  # a forked child dies under OpenMP
    return _layer_reason()


@lru_cache(maxsize=1)
def _layer_reason() -> str:
    "Why Numba's threading layer is unsafe; '' if it is safe. workqueue aborts when two threads step at once."
    with _compiling:
        from numba import config, threading_layer
        try: layer = threading_layer()
        except ValueError: layer = config.THREADING_LAYER  # no parallel kernel has run yet
        if layer == 'workqueue': return 'Numba uses the threading layer workqueue, which is unsafe'
        for pool in ('omppool', 'tbbpool'):
            try: __import__(f'numba.np.ufunc.{pool}')
            except ImportError: continue
            return ''
        return 'there is no OpenMP'


@lru_cache(maxsize=1)
def missing_numba() -> str:
    "Why there are no kernels at all; '' if there are."
    with _compiling:
        try:
            from numba import config
        except ImportError as e: return f'Numba cannot be imported ({e})'
    return 'NUMBA_DISABLE_JIT is set' if config.DISABLE_JIT else ''


def unsupported(x: Tensor) -> str:
    "Why kernels cannot work on a tensor; '' if they can."
    if not x.is_cpu: return f'no kernel for {x.device.type}'
    return irregular(x) or ('' if x.dtype in POINTERS else f'no kernel for {x.dtype}') or missing_numba()

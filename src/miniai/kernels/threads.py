"When a kernel may run in parallel, and on how many threads. Knows Numba's threading, once a kernel is wanted."
import os
from collections.abc import Callable
from functools import lru_cache
from threading import RLock

import torch

__all__ = ['parallel_reason', 'on_torchs_threads', 'undisturbed', 'WORTH_IT']

WORTH_IT = 1 << 16  # elements: below this, waking threads costs more than they save
_PID = os.getpid()
undisturbed = RLock()  # whoever imports Numba or compiles with it holds it, and no process forks meanwhile
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(before=undisturbed.acquire, after_in_parent=undisturbed.release,
                        after_in_child=undisturbed.release)


@lru_cache(maxsize=1)
def _layer_reason() -> str:
    "Why the threading layer is unsafe, '' where it is safe: workqueue aborts when two threads step at once."
    with undisturbed: return _look_at_layer()


def _look_at_layer() -> str:
    from numba import config, threading_layer
    try: layer = threading_layer()
    except ValueError: layer = config.THREADING_LAYER
    if layer == 'workqueue': return 'the threading layer workqueue is not safe'
    for pool in ('omppool', 'tbbpool'):
        try: __import__(f'numba.np.ufunc.{pool}')
        except ImportError: continue
        return ''
    return 'there is no OpenMP'


def parallel_reason(elements: int) -> str:
    """Why a step over so many elements runs serially; '' where it may run in parallel. It depends on model and machine
    alone."""
    if elements < WORTH_IT: return 'the model is small'
    if torch.get_num_threads() == 1: return 'torch has one thread'
    if os.getpid() != _PID: return 'this is a forked process'
    return _layer_reason()


def on_torchs_threads(run: Callable[[], None]) -> None:
    "Call `run` with as many Numba threads as torch has, and leave Numba's own number as it was."
    import numba
    before, wanted = numba.get_num_threads(), min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if wanted == before: return run()
    numba.set_num_threads(wanted)
    try: run()
    finally: numba.set_num_threads(before)

"""Functions run by several processes that form a gloo group, with the environment that torchrun gives. The processes
are forked from one that has imported preloaded.py."""
import faulthandler
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

needs_distributed = pytest.mark.skipif(not dist.is_available(),
                                       reason='this build of torch has no torch.distributed')


@cache
def _context():
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['preloaded'])
    with pytest.MonkeyPatch.context() as patch:  # the server does not get sys.path in all versions of Python
        patch.setenv('PYTHONPATH', os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


def run_ranks(function, n, *args, timeout=120, group=True):
    """Call `function(*args)` of a test file in `n` processes, and return what each returned, by rank. They form a gloo
    group unless `group` is False. AssertionError with the traceback of a rank that fails, or with the place where each
    rank hangs after `timeout` seconds. When it returns, all processes have ended."""
    context = _context()
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    where = inspect.getfile(function), function.__module__, function.__qualname__
    args = pickle.dumps(args)  # multiprocessing's own way opens a file for each tensor
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(Path(folder), rank, n, store.port, where, args, timeout, group) for rank in range(n)]
        processes = [context.Process(target=_rank, args=job, daemon=True) for job in jobs]
        try:
            for p in processes: p.start()
            _wait_for(processes, Path(folder), timeout)
            return [pickle.loads((Path(folder)/f'{rank}.pickle').read_bytes()) for rank in range(n)]
        finally:
            for p in processes:
                if p.pid: p.kill(), p.join()


def _wait_for(processes, folder, timeout):
    "Return when all processes have ended well. AssertionError with the output of those that have not."
    running, until = {p.sentinel: p for p in processes}, time.monotonic() + timeout + 5
    while running and all(not p.exitcode for p in processes) and time.monotonic() < until:
        for sentinel in wait(list(running), 1): running.pop(sentinel).join()
    wrong = [i for i, p in enumerate(processes) if p.exitcode] or [i for i, p in enumerate(processes) if p.is_alive()]
    assert not wrong, '\n'.join(f'rank {i}, exit code {processes[i].exitcode}:\n{(folder/f"{i}.log").read_text()}'
                                for i in wrong)


def _rank(folder, rank, n, port, where, args, timeout, group):
    "Exits without the interpreter's cleanup, in which gloo's threads may abort a process that has done its work."
    log = os.open(folder/f'{rank}.log', os.O_CREAT | os.O_RDWR)
    for fd in (1, 2): os.dup2(log, fd)
    os.environ |= dict(RANK=f'{rank}', LOCAL_RANK=f'{rank}', WORLD_SIZE=f'{n}', LOCAL_WORLD_SIZE=f'{n}',
                       MASTER_ADDR='127.0.0.1', MASTER_PORT=f'{port}', TORCHELASTIC_USE_AGENT_STORE='True',
                       GLOO_SOCKET_IFNAME='lo', OMP_NUM_THREADS='1')
    faulthandler.dump_traceback_later(timeout, exit=True, file=2)
    multiprocessing.current_process()._config['daemon'] = False  # loaders may have workers
    torch.set_num_threads(1)
    torch.manual_seed(0)
    failed = True
    try:
        if group: dist.init_process_group('gloo')
        (folder/f'{rank}.pickle').write_bytes(pickle.dumps(_found(*where)(*pickle.loads(args))))
        if dist.is_initialized(): dist.barrier()
        failed = False
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(failed)


def _found(path, module, name):
    "The function of that name in the file `path`, imported as `module`."
    spec = importlib.util.spec_from_file_location(module, path)
    sys.modules[module] = found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return getattr(found, name)

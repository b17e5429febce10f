"Kernels by Numba: the same bits in every process, on every number of threads."
import os
import subprocess
import sys
import threading

import pytest
import torch

from miniai.kernels import fused, numba
from miniai.optim import AdamW
from opts import everything, params, run, same


@pytest.mark.parametrize('options', [dict(clip_norm=1., ema=.9), dict(state='bf16')])
def test_any_number_of_threads_and_any_chunk_size_gives_the_same_bits(options, parallel, monkeypatch):
    results = []
    for threads_, chunk in [(1, 1 << 15), (2, 1 << 15), (2, 1000), (2, 1001), (1, 1001), (2, 7)]:
        monkeypatch.setattr(fused, 'CHUNK', chunk)
        torch.set_num_threads(threads_)
        ps = params((9001,), (33, 7), (5, 3, 3, 3), (1,), ())
        opt = run(AdamW(ps, lr=.1, **options), ps, 4)
        assert ('on 2 threads' if threads_ == 2 else 'on one thread, because torch has one thread') in opt.path
        results.append(everything(opt, ps))
    assert all(same(results[0], r) for r in results[1:])


def test_a_forked_child_gets_the_same_bits_as_its_parent(parallel):
    ps, qs = params((3000,)), params((3000,))
    (opt, twin), p = [run(AdamW(x, lr=.1, clip_norm=1.), x, 2) for x in (ps, qs)], ps[0]
    torch.set_num_threads(1)
    twin.step()
    torch.set_num_threads(2)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            opt.step()
            code = 0 if torch.equal(p, qs[0]) and 'this is a forked process' in opt.path else 3
        finally: os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    opt.step()
    assert torch.equal(p, qs[0])


def test_threads_that_step_their_own_optimizers_get_the_bits_of_one_thread(parallel):
    def fresh(i):
        ps = params((3000,), (50, 2), seed=i)
        return AdamW(ps, lr=.1, clip_norm=1.), ps
    alone, together = [fresh(i) for i in range(4)], [fresh(i) for i in range(4)]
    for i, (opt, ps) in enumerate(alone): run(opt, ps, 20, i)
    workers = [threading.Thread(target=run, args=(opt, ps, 20, i)) for i, (opt, ps) in enumerate(together)]
    for w in workers: w.start()
    for w in workers: w.join()
    assert all(same(everything(*a), everything(*b)) for a, b in zip(alone, together, strict=True))


def test_without_a_safe_threading_layer_steps_run_on_one_thread_and_give_the_same_bits(parallel, monkeypatch):
    ps, qs = params((3000,)), params((3000,))
    run(AdamW(ps, lr=.1), ps, 3)
    monkeypatch.setattr(numba, '_layer_reason', lambda: 'there is no OpenMP')
    opt = run(AdamW(qs, lr=.1), qs, 3)
    assert torch.equal(ps[0], qs[0])
    assert opt.path.endswith('on one thread, because there is no OpenMP')


FORKS = """
import os, sys, threading, time, torch
from torch import nn
from miniai.optim import AdamW
def made():
    p = nn.Parameter(torch.ones(70_000))
    p.grad = torch.ones_like(p)
    return AdamW([p], lr=.1)
torch.set_num_threads(2)
first, others = made(), [made(), made()]
thread = threading.Thread(target=first.step)
thread.start()
children = []
for opt in others:
    time.sleep(.1)
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # torch's own threads do not survive a fork
        opt.step()
        os._exit(7)
    children.append(pid)
for _ in range(600):
    codes = [os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in children]
    if all(codes): break
    time.sleep(.1)
else:
    for pid in children: os.kill(pid, 9)
    sys.exit('a child hangs')
thread.join()
sys.exit([c.si_status for c in codes] != [7, 7])
"""


def test_children_forked_during_another_threads_first_step_can_step():
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', FORKS], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr


NO_JIT = """
import torch
from miniai.kernels.histogram import tally
from miniai.optim import Adam
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.tensor([1., -2., 0.])
opt = Adam([p], lr=.1, clip_norm=1e6, ema=.9)
opt.step()
assert torch.allclose(p, torch.tensor([.9, 1.1, 1.]), atol=1e-4), p
assert tally(torch.ones(9))[2].sum() == 9
print(opt.path)
"""


def test_with_numbas_compiler_switched_off_torch_steps_in_batches_and_the_path_says_so():
    out = subprocess.run([sys.executable, '-c', NO_JIT], env=os.environ | dict(NUMBA_DISABLE_JIT='1'),
                         capture_output=True, text=True, timeout=120)
    assert out.stdout == \
        'batched: 1 parameter, 3 elements in float32, on cpu, because NUMBA_DISABLE_JIT is set\n', out.stderr


def test_a_numba_that_cannot_be_imported_is_a_reason_to_step_eagerly(monkeypatch):
    monkeypatch.setitem(sys.modules, 'numba', None)
    assert numba.missing_numba.__wrapped__().startswith('Numba cannot be imported (')

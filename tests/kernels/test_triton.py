"The pass by Triton, in Triton's interpreter on CPUs: over addresses alone, by kernels that schedules do not change."
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from miniai.kernels import triton
from miniai.kernels.triton import TritonPass
from miniai.optim import AdamW, optimizer
from opts import everything, force_batched, force_triton, params, run, same
from oracle import drawn, move
from passes import CHECKS


@pytest.fixture
def interpreted(monkeypatch): force_triton(monkeypatch)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('check', CHECKS)
def test_what_every_pass_must_do(check, dtype, interpreted): check(TritonPass, dtype)


@pytest.mark.parametrize(('dtype', 'rounding'), [(torch.bfloat16, 'stochastic'), (torch.bfloat16, 'nearest'),
                                                 (torch.float32, 'stochastic')])
def test_states_and_parameters_are_rounded_to_the_same_bits_as_by_torch(dtype, rounding, monkeypatch):
    def rule(p, g, a, b, c, *, lr): return p - lr*g, p/4, g, lr*g  # what float32 computes without an error
    def stepped():
        ps = params((9, 4), (2, 3, 2, 2), (2050,), dtype=torch.bfloat16)
        ps[1] = nn.Parameter(ps[1].detach().to(memory_format=torch.channels_last))
        ps = [nn.Parameter(p.detach().to(dtype)) for p in ps]
        opt = optimizer(rule)(ps, lr=.5, seed=3, state='bf16', rounding=rounding)
        for p in ps: p.grad = torch.empty_like(p).copy_(torch.linspace(-1, 2, p.numel()).view(p.shape))
        for _ in range(2): opt.step()
        return everything(opt, ps)
    force_batched(monkeypatch)
    want = stepped()
    force_triton(monkeypatch)
    assert same(stepped(), want)


def test_pieces_that_start_anywhere_in_memory_are_stepped(interpreted):
    whole = torch.randn(5000)
    p, q = nn.Parameter(whole[3:4900]), nn.Parameter(whole[3:4900].clone())
    for x in (p, q): x.grad = torch.linspace(-1, 1, 4897)
    before, opts = whole.clone(), [AdamW([x], lr=.1, clip_norm=1.) for x in (p, q)]
    for opt in opts: opt.step()
    assert torch.equal(p, q)
    assert torch.equal(whole[:3], before[:3])
    assert torch.equal(whole[4900:], before[4900:])


def test_several_elements_are_moved_at_a_time_only_if_every_piece_starts_at_a_multiple_of_16():
    addresses = np.array([[1600, 3200], [32, 64]], np.uint64)
    pieces = np.array([[0, 0, 2048, 0], [0, 2048, 5, 2048], [1, 0, 3, 0]])
    assert triton._aligned(addresses, pieces)
    assert not triton._aligned(addresses + np.uint64(4), pieces)
    assert not triton._aligned(addresses, pieces + 3)


def test_no_schedule_makes_a_kernel_or_moves_the_memory_that_kernels_read(interpreted):
    rng, ps = np.random.default_rng(0), params((50,), (3, 3))
    opt = run(AdamW(ps, lr=1., ema=.9, state='bf16'), ps, 1)
    def memory(): return {k: x.data_ptr() for k, (_, x) in opt._plan.tables[0].path.kept.items()}
    before, kernels = memory(), triton._kernel.cache_info().misses
    assert set(before) == {'table', 'h', 'keys'}
    for _ in range(3):
        move(opt.param_groups[0], drawn(rng, AdamW))
        opt.ema = rng.uniform(.5, .99)
        run(opt, ps, 1)
    assert (memory(), triton._kernel.cache_info().misses) == (before, kernels)


COMPILED = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from miniai.kernels.triton import PIECE, _kernel
from miniai.kernels.triton_source import step_source
from miniai.optim import AdamW
from miniai.optim.stages import Stages, program
trace = program(AdamW.spec, Stages(clip_value=True, cautious=True)).trace
kernel = _kernel(step_source(trace, (torch.bfloat16,)*2 + (torch.float32, torch.bfloat16), (True, False, False, True)))
types = dict(table='*i64', chunks='*i64', h='*fp32', keys='*i64', out='*i64',
             COLUMNS='constexpr', BLOCK='constexpr', ALIGNED='constexpr')
for target, kind, words in ((GPUTarget('cuda', 80, 32), 'ptx', ('ld.global.v4.b32', 'st.global.v4.b32')),
                            (GPUTarget('hip', 'gfx942', 64), 'amdgcn', ('global_load_dwordx4',))):
    source = ASTSource(kernel, types, constexprs={(5,): 4, (6,): PIECE, (7,): True})
    code = triton.compile(source, target=target, options=dict(num_warps=8, enable_fp_fusion=True)).asm[kind]
    for word in words: assert word in code, (target, word)
print('compiled')
"""


def test_kernels_compile_for_gpus_of_nvidia_and_amd_and_move_several_elements_at_a_time(tmp_path):
    pytest.importorskip('triton')
    env = {k: x for k, x in os.environ.items() if k != 'TRITON_INTERPRET'} | dict(TRITON_CACHE_DIR=str(tmp_path))
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', COMPILED], env=env, capture_output=True, text=True)
    assert out.stdout == 'compiled\n', out.stderr


def test_only_gpus_of_known_kinds_and_dtypes_have_kernels(monkeypatch):
    assert TritonPass.unsupported(torch.zeros(3)) == 'no kernel for cpu'
    monkeypatch.setattr(triton, 'DEVICES', ('cpu',))
    assert TritonPass.unsupported(torch.zeros(3, dtype=torch.int32)) == 'no kernel for torch.int32'
    with monkeypatch.context() as m:
        m.setattr(triton, 'has_double', lambda device: False)
        assert 'double precision' in TritonPass.unsupported(torch.zeros(3))
    assert 'gaps' in TritonPass.unsupported(torch.zeros(4, 4)[:, ::2])
    monkeypatch.setattr(triton, 'missing_triton', lambda: 'Triton is not installed')
    assert TritonPass.unsupported(torch.zeros(3)) == 'Triton is not installed'

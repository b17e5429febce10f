"Every optimizer with every stage, on four processes that share the parameters in every way: the steps of one process."
import math
from functools import cache
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import nn

from miniai.distributed.dtensor import is_dtensor, local
from miniai.jobs.registry import OPTIMIZERS
from opts import force_eager
from ranks import run_ranks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason='this build of torch has no torch.distributed')
LAYOUTS = 'fsdp', 'hsdp', 'fsdp x tp', 'zero'
STAGES = dict(clipped=(torch.float64, dict(clip_norm=.5, clip_value=.3, skip_nonfinite=True)),
              averaged=(torch.float64, dict(cautious='rescaled', ema=.9, clip_norm=.7, decoupled=False)),
              single=(torch.float32, dict(clip_norm=.5, skip_nonfinite=True, cautious=True)),
              rough_states=(torch.float32, dict(state='bf16', ema=.9)),
              rough=(torch.bfloat16, dict(rounding='stochastic', cautious='rescaled')))
STEPS, POISONED = 10, 4


def net(dtype):
    "On four processes its parameters have even, uneven and empty parts."
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3)).to(dtype)


@cache
def mesh(*shape):
    from torch.distributed.tensor import init_device_mesh
    return init_device_mesh('cpu', shape, mesh_dim_names=('dp', 'tp')[:len(shape)])


def laid_out(layout, model):
    if layout in (None, 'zero'): return model
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    over = mesh(4) if layout == 'fsdp' else mesh(2, 2)
    if layout == 'fsdp x tp':
        parallelize_module(model, over['tp'], {'0': ColwiseParallel(), '2': RowwiseParallel()})
        over = over['dp']
    for i in (0, 2): fully_shard(model[i], mesh=over)
    return fully_shard(model, mesh=over)


def like(g, p):
    "The gradient `g`, known to all processes, as `p` is placed."
    if not is_dtensor(p): return g
    return dist.tensor.distribute_tensor(g, p.device_mesh, p.placements, src_data_rank=None)


def made(layout, name, params, **options):
    cls = OPTIMIZERS[name].build
    if layout != 'zero': return cls(params, **options)
    from torch.distributed.optim import ZeroRedundancyOptimizer
    return ZeroRedundancyOptimizer(params, cls, **options)


def stepped(layout, name, stages):
    "The parts here of weights and of weight averages, if there are any; steps skipped; paths taken; parameters."
    dtype, options = STAGES[stages]
    model = laid_out(layout, net(dtype))
    ps = list(model.parameters())
    opt = made(layout, name, ps, lr=.01, wd=.1, **options)
    inner = getattr(opt, 'optim', opt)
    g = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        for p in ps:
            grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(dtype)
            if step == POISONED and inner.skip_nonfinite and p is ps[0]: grad[0] = math.nan
            p.grad = like(grad, p)
        opt.step()
    found = [local(p).detach().clone() for p in ps]
    if inner.ema:
        with inner.averaged(model): averages = [local(p).detach().clone() for p in ps]
        assert all(torch.equal(local(p), x) for p, x in zip(ps, found, strict=True))
        found += averages
    return found, inner.skipped, inner.path, ps


def in_one(path, cases):
    "What `stepped` finds in one process, without parameters, by case."
    with pytest.MonkeyPatch.context() as patch:
        if path == 'eager': force_eager(patch)
        return {case: stepped(None, *case)[:3] for case in cases}


def in_parts(path, wanted):
    "By layout and case: the largest difference on this rank from what is wanted, steps skipped, and paths taken."
    with pytest.MonkeyPatch.context() as patch:
        if path == 'eager': force_eager(patch)
        found = {}
        for layout, (case, (want, *_)) in product(LAYOUTS, wanted.items()):
            got, skipped, way, ps = stepped(layout, *case)
            pairs = [(x, local(like(w, p))) for x, w, p in zip(got, want, ps*2, strict=False)]
            assert len(got) == len(want)
            assert all(x.shape == w.shape for x, w in pairs)
            found[layout, case] = max(float((x - w).abs().max()) for x, w in pairs if x.numel()), skipped, way
        return found


CASES = dict(fused=[(name, stages) for name in OPTIMIZERS for stages in STAGES  # each needs a kernel of its own
                    if stages == 'averaged' or name in ('adamw', 'rmsprop', 'nadamw')],
             eager=[(name, stages) for name in ('rmsprop', 'nadamw') for stages in STAGES])


@pytest.mark.parametrize('path', CASES)
def test_steps_on_parts_are_the_steps_of_one_process(path):
    wanted = in_one(path, CASES[path])
    for rank, found in enumerate(run_ranks(in_parts, 4, path, wanted, timeout=240)):
        for (layout, case), (difference, skipped, way) in found.items():
            most = 0 if 'rough' in case[1] else {torch.float64: 1e-12, torch.float32: 1e-6}[STAGES[case[1]][0]]
            assert difference <= most, (rank, layout, case, difference)
            assert skipped == wanted[case][1] == ('skip_nonfinite' in STAGES[case[1]][1]), (rank, layout, case)
            assert way.startswith(path), (rank, layout, case, way)

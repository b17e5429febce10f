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
from miniai.optim import matrix_groups
from opts import force_eager
from ranks import needs_distributed, run_ranks

pytestmark = needs_distributed
LAYOUTS = 'fsdp', 'hsdp', 'fsdp x tp', 'zero'
STAGES = dict(clipped=(torch.float64, dict(clip_norm=.5, clip_value=.3, skip_nonfinite=True)),
              averaged=(torch.float64, dict(cautious='rescaled', ema=.9, clip_norm=.7, decoupled=False)),
              single=(torch.float32, dict(clip_norm=.5, skip_nonfinite=True, cautious=True)),
              tail=(torch.float64, dict(tail=4, cautious_decay=True, clip_norm=.7)),
              sphere=(torch.float64, dict(hyperball=True, tail=4, cautious='rescaled', clip_value=.3)),
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
    if layout in (None, 'ddp', 'zero'): return model
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
    if cls.spec.others: params = matrix_groups(params, cls)
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
    if inner.stages.averages:
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


def trained(layout):
    """Norms of the gradients, predictions with averages, and then with the weights, which train on in between; steps
    skipped; the weights."""
    model, rank = laid_out(layout, net(torch.float64)), dist.get_rank() if layout else 0
    loss_of = nn.parallel.DistributedDataParallel(model) if layout in ('ddp', 'zero') else model
    opt = made(layout, 'adamw', model.parameters(), lr=.01, wd=.1, clip_norm=.05, skip_nonfinite=True, ema=.9)
    inner, norms, g = getattr(opt, 'optim', opt), [], torch.Generator().manual_seed(2)
    x, y = torch.randn(8, 6, generator=g, dtype=torch.float64), torch.randn(8, 3, generator=g, dtype=torch.float64)
    part = {None: slice(8), 'fsdp x tp': slice(rank//2*4, rank//2*4 + 4)}.get(layout, slice(rank*2, rank*2 + 2))
    def train(steps):
        for step in range(steps):
            rows = x.clone()
            if step == POISONED: rows[0] = math.nan
            (loss_of(rows[part]) - y[part]).square().mean().backward()
            assert inner.path
            norms.append(math.sqrt(inner._plan.sum_of_squares()))
            opt.step()
            opt.zero_grad()
    train(STEPS)
    predictions = []
    with torch.no_grad():
        predictions.append(model(x))
        with inner.averaged(model): predictions.append(model(x))
        predictions.append(model(x))
    train(2)
    weights = [(p.full_tensor() if is_dtensor(p) else p).detach() for p in model.parameters()]
    return norms, inner.skipped, [*predictions, *weights]


@pytest.mark.parametrize('layout', ['ddp', *LAYOUTS])
def test_a_model_trained_on_four_processes_is_that_of_one(layout):
    norms, skipped, wanted = trained(None)
    assert skipped == 1
    assert not torch.allclose(wanted[0], wanted[1])
    assert torch.equal(wanted[0], wanted[2])
    ranks = run_ranks(trained, 4, layout)
    for its_norms, its_skipped, found in ranks:
        assert its_skipped == 1
        assert its_norms == pytest.approx(norms, rel=1e-12, nan_ok=True)
        assert repr(its_norms) == repr(ranks[0][0])  # to the last bit: ranks decide alike
        for a, b in zip(found, wanted, strict=True): assert torch.allclose(a, b, rtol=0, atol=1e-12)


def saved_and_continued(folder):
    "Whether training goes on to the bit from what torch.distributed.checkpoint saved."
    from torch.distributed.checkpoint import load, save
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    def made():
        model = laid_out('fsdp x tp', net(torch.float64))
        first, *others = model.parameters()
        groups = [dict(params=[first], lr=.02), dict(params=others, rule=OPTIMIZERS['nadamw'].build)]
        return model, OPTIMIZERS['momentum'].build(groups, lr=.01, ema=.9, state='bf16')
    def train(model, opt, seed):
        g = torch.Generator().manual_seed(seed)
        for _ in range(3):
            for p in model.parameters(): p.grad = like(torch.randn(p.shape, generator=g, dtype=torch.float64), p)
            opt.step()
            opt.zero_grad()
    def states(model, opt): return dict(zip(('model', 'opt'), get_state_dict(model, opt), strict=True))
    one, other = made(), made()
    train(*one, 1)
    save(states(*one), checkpoint_id=folder)
    read = states(*other)
    load(read, checkpoint_id=folder)
    set_state_dict(*other, model_state_dict=read['model'], optim_state_dict=read['opt'])
    for pair in (one, other): train(*pair, 2)
    pairs = zip(one[0].parameters(), other[0].parameters(), strict=True)
    return [torch.equal(local(a), local(b)) for a, b in pairs]


def test_torchs_distributed_checkpoints_hold_all_of_the_state(tmp_path):
    assert run_ranks(saved_and_continued, 4, str(tmp_path/'saved'), timeout=120) == [[True]*6]*4


def fused_cases():
    "Each needs a kernel of its own: all stages for three rules, and one for every other rule."
    classes = {name: row.build for name, row in OPTIMIZERS.items() if row.build.spec.untraced == ''}
    some = [(name, stages) for name in ('adamw', 'rmsprop', 'nadamw') for stages in STAGES if stages != 'sphere']
    return some + [(name, 'clipped' if cls.spec.evaluated else 'averaged') for name, cls in classes.items()
                   if name not in ('adamw', 'rmsprop', 'nadamw')]


CASES = dict(fused=fused_cases(),
             eager=[(name, stages) for name in ('rmsprop', 'nadamw', 'muon')
                    for stages in STAGES if stages not in ('tail', 'sphere')]
                   # Norms of parts round otherwise than those of the whole, which random rounding of states shows.
                   + [(name, stages) for name in ('mars', 'lamb', 'scion') for stages in ('clipped', 'single', 'rough')]
                   + [('nadamw', 'tail'), ('lamb', 'tail'), ('nadamw', 'sphere'), ('muon', 'sphere')]
                   + [('kron', 'averaged'), ('kron', 'rough'), ('soap', 'rough_states'), ('soap', 'rough')])


@pytest.mark.parametrize('path', CASES)
def test_steps_on_parts_are_the_steps_of_one_process(path):
    wanted = in_one(path, CASES[path])
    for rank, found in enumerate(run_ranks(in_parts, 4, path, wanted, timeout=240)):
        for (layout, case), (difference, skipped, way) in found.items():
            most = 0 if 'rough' in case[1] else {torch.float64: 1e-12, torch.float32: 1e-6}[STAGES[case[1]][0]]
            assert difference <= most, (rank, layout, case, difference)
            assert skipped == wanted[case][1] == ('skip_nonfinite' in STAGES[case[1]][1]), (rank, layout, case)
            assert all(f'{path}: ' in line for line in way.splitlines()), (rank, layout, case, way)

"ZeroRedundancyOptimizer: an optimizer in it knows that other ranks have the other parameters."
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from miniai.optim import AdamW
from miniai.optim.optimizer import inner_optimizer
from miniai.optim.schedules import has_momentum
from miniai.optim.zero import from_all_ranks, zero_around, zero_groups
from opts import params, run
from ranks import needs_distributed, run_ranks

pytestmark = needs_distributed
SHAPES = (3, 4), (5,), (2, 2), (1,)


def in_zero():
    from torch.distributed.optim import ZeroRedundancyOptimizer
    class Own(ZeroRedundancyOptimizer):
        def __init__(self, params, lr): super().__init__(params, partial(AdamW, clip_norm=.1, ema=.5), lr=lr)
    ps = params(*SHAPES, dtype=torch.float64)
    opt = Own(ps, lr=.1)
    inner = inner_optimizer(opt)
    found = dict(inner=inner is opt.optim and inner.zero is opt, of_its_own=AdamW(ps).zero is None)
    opt.add_param_group(dict(params=params((6,), dtype=torch.float64), lr=.2))
    ps += opt.param_groups[1]['params']
    run(opt, ps, 3)
    found |= dict(groups=zero_groups(opt) == ((dist.group.WORLD, 'cpu'),), own=[p in inner.state for p in ps])
    averages = inner.averages()
    new = from_all_ranks(opt, {p: p.detach() + 1 for p in inner.state})
    with inner.averaged(): shown = [p.detach().clone() for p in ps]
    found |= dict(averages=[averages[p] for p in ps], shown=shown, moved=[float((new[p] - p).mean()) for p in ps])
    return found | dict(weights=[p.detach() for p in ps])


def test_norms_and_weight_averages_are_over_the_parameters_of_all_ranks():
    ps = params(*SHAPES, dtype=torch.float64)
    more = params((6,), dtype=torch.float64)
    opt = run(AdamW([dict(params=ps), dict(params=more, lr=.2)], lr=.1, clip_norm=.1, ema=.5), ps + more, 3)
    ranks = run_ranks(in_zero, 2)
    for found in ranks:
        assert (found['inner'], found['of_its_own'], found['groups']) == (True, True, True)
        assert found['moved'] == pytest.approx([1.]*5)
        for p, x, average, shown in zip(ps + more, *(found[k] for k in ('weights', 'averages', 'shown')), strict=True):
            assert torch.allclose(x, p, rtol=0, atol=1e-12)
            assert torch.allclose(average, opt.state[p]['ema'], rtol=0, atol=1e-12)
            assert torch.equal(average, shown)
    assert [a + b for a, b in zip(*(found['own'] for found in ranks), strict=True)] == [1]*5


def cycled(zero=False):
    ps = params(*SHAPES, dtype=torch.float64)
    opt = AdamW(ps, lr=.1)
    if zero:
        from torch.distributed.optim import ZeroRedundancyOptimizer
        opt = ZeroRedundancyOptimizer(ps, AdamW, lr=.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=.1, total_steps=4, cycle_momentum=has_momentum(opt))
    for step in range(3):
        run(opt, ps, 1, seed=step)
        schedule.step()
    return [p.detach() for p in ps]


def test_a_schedule_cycles_momentum_as_for_the_optimizer_alone():
    for found in run_ranks(cycled, 2, True):
        for x, p in zip(found, cycled(), strict=True): assert torch.equal(x, p)


def test_without_it_there_are_no_others():
    assert zero_around() is None
    assert zero_groups(None) == ()
    assert AdamW(nn.Linear(2, 2).parameters()).zero is None

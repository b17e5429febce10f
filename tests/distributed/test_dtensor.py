"DTensors: where a process's part is in the whole, sums over parts, and gradients that are placed in another way."
import pytest
import torch
import torch.distributed as dist
from torch import nn

from miniai.distributed.dtensor import (
    groups_of,
    has_sums_in_parts,
    is_dtensor,
    local,
    placed_as,
    placement,
    reshard,
    runs,
    summed,
    total,
)
from miniai.optim import SGD, AdamW, optimizer
from ranks import needs_distributed, run_ranks

pytestmark = needs_distributed


def places(x):
    starts, n = runs(x)
    return [start + i for start in starts.tolist() for i in range(n)]


def cut(x, mesh, *kinds): return dist.tensor.distribute_tensor(x, mesh, kinds, src_data_rank=None)


def placed():
    "For DTensors whose elements are their places: the places that `runs` gives, and those in memory."
    from torch.distributed.tensor import Replicate, Shard, init_device_mesh
    from torch.distributed.tensor.placement_types import _StridedShard
    line, square = init_device_mesh('cpu', (4,)), init_device_mesh('cpu', (2, 2))
    found = []
    for shape in (8, 3), (7, 3), (2, 5), (1, 1), (5, 6, 7):
        x = torch.arange(torch.Size(shape).numel()).view(shape)
        found += [cut(x, line, Shard(d)) for d in range(len(shape))]
        found += [cut(x, square, *kinds) for kinds in (
            (Shard(0), Shard(1)), (Shard(1), Shard(0)), (Replicate(), Shard(1)), (Shard(0), Replicate()),
            (Shard(0), Shard(0)), (_StridedShard(0, split_factor=2), Shard(0)), (Shard(1), Shard(1)))]
    return [(places(x), local(x).flatten().tolist()) for x in found]


def sums():
    "Sums over parts, with the number of messages each rank took part in; and all ranks' norm of an uneven gradient."
    from torch.distributed.tensor import Partial, Replicate, Shard, init_device_mesh
    from torch.distributed.tensor.placement_types import _StridedShard
    mesh, sent, all_reduce = init_device_mesh('cpu', (2, 2)), [], dist.all_reduce
    def counted(*args, **kwargs): sent.append(all_reduce(*args, **kwargs))
    dist.all_reduce = counted
    found = {}
    layouts = dict(copies=(Replicate(), Replicate()), columns=(Shard(0), Replicate()), rows=(Replicate(), Shard(0)),
                   strided=(_StridedShard(0, split_factor=2), Shard(0)), partial=(Partial(), Shard(0)))
    for nm, kinds in layouts.items():
        x = dist.tensor.DTensor.from_local(torch.ones(2), mesh, kinds)
        found[nm] = summed([1., float(dist.get_rank())], groups_of(placement(x))), has_sums_in_parts(placement(x))
    sent.clear()
    one, both = (groups_of((mesh, kinds)) for kinds in ((Shard(0), Replicate()), (Shard(0), Shard(0))))
    found['total'] = total([(1., one), (10., both), (100., ()), (1000., both)]), len(sent)
    dist.all_reduce = all_reduce
    return found


def awkward():
    "Gradients still being communicated, partial sums, placed otherwise; a rule that sees the whole tensor; FSDP2."
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh
    mesh, found = init_device_mesh('cpu', (2,)), {}
    def parameter(x, kind): return nn.Parameter(cut(x, mesh, kind))
    late = parameter(torch.ones(6), Replicate())
    part = cut(torch.arange(6.), mesh, Shard(0))
    with torch.no_grad(): late.grad = part.redistribute(mesh, [Replicate()], async_op=True)
    AdamW([late], lr=.1, wd=0.).step()
    odd = parameter(torch.ones(4), Replicate())
    odd.grad = cut(torch.ones(4), mesh, Shard(0))
    opt = AdamW([odd], lr=.1)
    opt.step()
    found['path'] = opt.path
    partial = parameter(torch.zeros(2), Replicate())
    partial.grad = DTensor.from_local(torch.tensor([3., 4.])*(.75 if dist.get_rank() else .25), mesh, [Partial()])
    SGD([partial], lr=1., clip_norm=.5).step()
    rough = parameter(torch.zeros(6).bfloat16(), Shard(0))
    rough.grad = cut(torch.ones(6).bfloat16(), mesh, Replicate())
    AdamW([rough], lr=1.003e-3, wd=0., rounding='stochastic').step()
    def normalized(p, g, *, lr): return p - lr*g/g.norm()
    whole = parameter(torch.zeros(5), Shard(0))
    whole.grad = cut(torch.arange(5.), mesh, Shard(0))
    optimizer(normalized)([whole], lr=.1).step()
    model = fully_shard(nn.Linear(2, 3), mesh=mesh)
    model(torch.ones(1, 2))
    found['gathered'] = [is_dtensor(p) for p in model.parameters()]
    reshard(model)
    found['resharded'] = [is_dtensor(p) for p in model.parameters()]
    return found | {nm: p.detach().full_tensor() for nm, p in dict(late=late, odd=odd, partial=partial, rough=rough,
                                                                  whole=whole).items()}


@pytest.fixture(scope='module')
def found(): return run_ranks(awkward, 2)[0]


def test_runs_are_the_places_in_the_whole_of_what_a_process_has():
    for found in run_ranks(placed, 4):
        for by_runs, there in found: assert by_runs == there


def test_sums_run_over_parts_and_not_over_copies_with_one_message_for_each_group():
    for rank, found in enumerate(run_ranks(sums, 4)):
        row, column = divmod(rank, 2)
        assert found['total'] == (1*2 + 10*4 + 100 + 1000*4, 2)
        assert [found[nm] for nm in ('copies', 'strided', 'columns', 'rows', 'partial')] == [
            ([1., rank], False), ([4., 0 + 1 + 2 + 3], False), ([2., column + column + 2], False),
            ([2., 4*row + 1], False), ([2., 4*row + 1], True)]


def test_a_gradient_that_is_still_being_communicated_is_waited_for(found):
    assert torch.allclose(found['late'], 1 - .1*(torch.arange(6) > 0), atol=1e-5)


def test_a_gradient_placed_otherwise_takes_the_eager_path(found):
    assert torch.allclose(found['odd'], torch.full((4,), 1 - .1*.01 - .1), atol=1e-6)
    assert 'eager: 1 parameter, because its gradient or state is placed differently' in found['path']
    p = nn.Parameter(torch.zeros(6).bfloat16())
    p.grad = torch.ones(6).bfloat16()
    AdamW([p], lr=1.003e-3, wd=0., rounding='stochastic').step()
    assert torch.equal(found['rough'], p)


def test_a_gradient_of_partial_sums_is_clipped_by_the_norm_of_the_sum(found):
    assert torch.allclose(found['partial'], -torch.tensor([.3, .4]), atol=1e-4)


def test_a_rule_without_a_trace_sees_the_whole_tensor(found):
    assert torch.allclose(found['whole'], -.1*torch.arange(5.)/30**.5)


def test_resharding_brings_back_the_parameters_that_the_optimizer_has(found):
    assert found['gathered'] == [False, False]
    assert found['resharded'] == [True, True]


def test_a_plain_tensor_is_whole_and_its_own_part():
    x = torch.ones(2, 3)
    assert local(x) is x
    assert placed_as(x, None) is x
    assert placement(x) is None
    assert groups_of(None) == ()
    assert places(x) == list(range(6))
    assert summed([1.], ()) == [1.]
    assert total([(1., ()), (2., ())]) == 3.
    assert not is_dtensor(x)
    reshard(nn.Linear(2, 2))

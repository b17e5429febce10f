"DTensors: every rule and option on parts in two processes is what it is on whole tensors in one."
import pytest
import torch
import torch.distributed as dist
from torch import nn

from miniai.distributed.dtensor import is_dtensor, local, placement, summed
from miniai.optim import SGD, Adagrad, AdamW, Lion, NAdamW, RMSProp, optimizer
from ranks import run_ranks

CASES = [(AdamW, {}), (NAdamW, dict(cautious='rescaled', ema=.9)), (RMSProp, dict(clip_norm=.5, decoupled=False)),
         (Lion, dict(clip_value=.5, skip_nonfinite=True)), (Adagrad, dict(cautious=True))]
SHAPES = [(7, 3), (4,), (1, 5), ()]


def whole(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g, dtype=dtype) for s in SHAPES]


def gradients(steps=6):
    g = torch.Generator().manual_seed(1)
    return [[torch.randn(s, generator=g, dtype=torch.float64) for s in SHAPES] for _ in range(steps)]


def stepped(cls, options, wrap=lambda x: x, unwrap=lambda x: x):
    ps = [nn.Parameter(wrap(x)) for x in whole()]
    opt = cls(ps, lr=.01, wd=.1, **options)
    for gs in gradients():
        for p, g in zip(ps, gs, strict=True): p.grad = wrap(g)
        opt.step()
    if options.get('skip_nonfinite'):
        for p in ps: p.grad = wrap(torch.full(p.shape, torch.inf, dtype=torch.float64))
        opt.step()
        assert opt.skipped == 1
    return [unwrap(p.detach()) for p in ps], opt


def awkward(mesh, shard, Partial, Replicate):
    "Gradients being communicated, gradients as partial sums, random rounding of parts."
    dtensor, rank = torch.distributed.tensor, dist.get_rank()
    late = nn.Parameter(dtensor.distribute_tensor(torch.ones(6), mesh, [Replicate()]))
    with torch.no_grad(): late.grad = shard(torch.arange(6.)).redistribute(mesh, [Replicate()], async_op=True)
    AdamW([late], lr=.1, wd=0.).step()
    summed_up = nn.Parameter(dtensor.distribute_tensor(torch.zeros(2), mesh, [Replicate()]))
    summed_up.grad = dtensor.DTensor.from_local(torch.tensor([3., 4.])*(.75 if rank else .25), mesh, [Partial()])
    SGD([summed_up], lr=1., clip_norm=.5).step()
    rough = nn.Parameter(shard(torch.zeros(3000).bfloat16()))
    rough.grad = shard(torch.full((3000,), 1.001).bfloat16())
    for _ in range(2): AdamW([rough], lr=1.003e-3, wd=0., rounding='stochastic').step()
    odd = nn.Parameter(shard(torch.zeros(7).bfloat16()))
    odd.grad = shard(torch.ones(7).bfloat16())
    def untraced(p, g, *, lr): return p - float(lr)*g
    optimizer(untraced)([odd], lr=.1, rounding='stochastic').step()
    return dict(late=late.detach().full_tensor(), summed_up=summed_up.detach().full_tensor(),
                rough=rough.detach().full_tensor(), cut=odd.detach().full_tensor())


def found_by():
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor, init_device_mesh
    mesh = init_device_mesh('cpu', (2,))
    found = {}
    for i, (cls, options) in enumerate(CASES):
        def shard(x): return distribute_tensor(x, mesh, [Shard(0) if x.ndim else Replicate()])
        got, opt = stepped(cls, options, shard, lambda x: x.full_tensor())
        found[i] = got, opt.path, {k: is_dtensor(v) for k, v in opt.state[opt.param_groups[0]['params'][0]].items()}
    x = distribute_tensor(torch.ones(4), mesh, [Replicate()])
    odd = nn.Parameter(x)
    odd.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    opt = AdamW([odd], lr=.1)
    opt.step()
    found |= awkward(mesh, shard, Partial, Replicate)
    partial = torch.distributed.tensor.DTensor.from_local(torch.ones(4), mesh, [Partial()])
    sums = [summed([1., 2.], placement(t)) for t in (shard(torch.ones(4)), x)]
    found['odd'] = odd.detach().full_tensor(), opt.path, sums, local(shard(torch.arange(4.))), is_dtensor(partial)
    return found


@pytest.fixture(scope='module')
def found(): return run_ranks(found_by, 2)[0]


@pytest.mark.skipif(not dist.is_available(), reason='this build of torch has no torch.distributed')
@pytest.mark.parametrize('case', range(len(CASES)))
def test_steps_on_parts_in_two_processes_are_the_steps_on_whole_tensors(found, case):
    got, path, states = found[case]
    want, _ = stepped(*CASES[case])
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(got, want, strict=True))
    assert 'eager' not in path
    assert all(d == (k not in ('step', 'mu_product')) for k, d in states.items())


def test_a_gradient_placed_differently_takes_the_eager_path(found):
    stepped_to, path, _, _, _ = found['odd']
    assert torch.allclose(stepped_to, torch.full((4,), 1 - .1*.01 - .1), atol=1e-6)
    assert 'eager: 1 parameter, because its gradient or state is placed differently' in path


def test_a_gradient_that_is_still_being_communicated_is_waited_for(found):
    assert torch.allclose(found['late'], 1 - .1*(torch.arange(6) > 0), atol=1e-5)


def test_a_gradient_of_partial_sums_is_clipped_by_the_norm_of_the_sum(found):
    assert torch.allclose(found['summed_up'], -torch.tensor([.3, .4]), atol=1e-4)


def test_each_part_of_a_dtensor_is_rounded_by_its_own_random_numbers(found):
    first, second = found['rough'].chunk(2)
    assert not torch.equal(first, second)
    assert torch.allclose(found['cut'].float(), torch.tensor(-.1), rtol=1e-2)


def test_sums_run_over_parts_and_not_over_copies(found):
    _, _, sums, part, partial = found['odd']
    assert sums == [[2., 4.], [1., 2.]]
    assert part.tolist() == [0., 1.]
    assert partial


def test_a_plain_tensor_is_its_own_local_part():
    x = torch.ones(2)
    assert local(x) is x
    assert placement(x) is None
    assert summed([1.], None) == [1.]
    assert not is_dtensor(x)

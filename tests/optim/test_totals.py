"Rules that change hyperparameters by sums over all parameters: Prodigy against its paper, and rules of one's own."
import copy
from functools import partial

import pytest
import torch

from miniai.optim import SGD, Prodigy, optimizer, rules, starts, totals
from opts import eager, params, path, run, same
from ranks import needs_distributed, run_ranks

SHAPES = (3, 4), (5,), (), (2, 3, 3, 3)
assert eager  # fixtures
assert path


def papers(xs, targets, lrs, wds, steps, gone, beta1=.9, beta2=.999, eps=1e-8):
    "Algorithm 4 of Mishchenko & Defazio, for a list of tensors, with the decay of its section on AdamW."
    x0, m, v, s = [x.clone() for x in xs], *([0*x for x in xs] for _ in range(3))
    d, r, b = 1e-6, 0., beta2**.5
    for k in range(steps):
        dots = norms = 0.
        now = [i for i in range(len(xs)) if not gone(k, i)]
        gs = [(x - target)*(1 + .1*k % .3) for x, target in zip(xs, targets, strict=True)]
        for i in now:
            rate = lrs[i]/(1 + k/50)
            m[i] = beta1*m[i] + (1 - beta1)*d*gs[i]
            v[i] = beta2*v[i] + (1 - beta2)*d**2*gs[i]**2
            s[i] = b*s[i] + (1 - b)*rate*d**2*gs[i]
            dots += rate*d**2*float((gs[i]*(x0[i] - xs[i])).sum())
            norms += float(s[i].abs().sum())
        for i in now:
            rate = d*lrs[i]/(1 + k/50)
            xs[i] = xs[i] - rate*m[i]/(v[i].sqrt() + d*eps) - rate*wds[i]*xs[i]
        r = b*r + (1 - b)*dots
        d = max(d, r/norms)
    return xs, d


def gone(k, i): return (k + i) % 6 == 5


def trained(opt, ps, targets, lrs, first, steps):
    for k in range(first, first + steps):
        for i, (p, target) in enumerate(zip(ps, targets, strict=True)):
            p.grad = None if gone(k, i) else (p.detach() - target)*(1 + .1*k % .3)
        for group, lr in zip(opt.param_groups, lrs, strict=True): group['lr'] = lr/(1 + k/50)
        opt.step()
    return opt


def made(ps, **kw): return Prodigy([dict(params=ps[:2], wd=.05), dict(params=ps[2:], lr=.5)], **kw)


def distance(steps=100):
    ps = params(*SHAPES, dtype=torch.float64)
    targets = [p.detach() for p in params(*SHAPES, dtype=torch.float64, seed=4)]
    want, d = papers([p.detach().clone() for p in ps], targets, [1, 1, .5, .5], [.05, .05, 0, 0], steps, gone)
    opt = trained(made(ps), ps, targets, [1, .5], 0, steps)
    assert [g['d'] for g in opt.param_groups] == pytest.approx([d, d], rel=1e-10)
    return max(float((p - x).detach().abs().max()) for p, x in zip(ps, want, strict=True)), d


def test_100_steps_are_the_papers_with_groups_missing_gradients_and_a_moving_rate():
    worst, d = distance()
    assert worst < 1e-10
    assert d > 1e4*1e-6  # the estimate has grown


@pytest.mark.usefixtures('eager')
def test_the_eager_path_takes_them_too(): assert distance(20)[0] < 1e-11


def test_a_run_resumes_exactly_from_a_state_dict_which_has_the_estimate():
    targets = [p.detach() for p in params(*SHAPES, seed=4)]
    ps, qs = params(*SHAPES), params(*SHAPES)
    opt = trained(made(ps), ps, targets, [1, .5], 0, 10)
    saved = copy.deepcopy(opt.state_dict())
    with torch.no_grad():
        for p, q in zip(ps, qs, strict=True): q.copy_(p)
    other = made(qs)
    other.load_state_dict(saved)
    for o, xs in ((opt, ps), (other, qs)): trained(o, xs, targets, [1, .5], 10, 10)
    assert same([p.detach() for p in ps], [q.detach() for q in qs])
    assert same(opt.state_dict(), other.state_dict())


def test_prodigy_on_python_floats_gives_what_it_gives_on_tensors():
    p, *s = 1.5, 1.5, 0., 0., 0.
    x, *xs = (torch.tensor(v, dtype=torch.float64) for v in (p, *s))
    for t in range(1, 10):
        p, *s = rules.prodigy(p, .3*t, *s, lr=.7, wd=.1, d=.01*t)
        x, *xs = rules.prodigy(x, torch.tensor(.3*t, dtype=torch.float64), *xs, lr=.7, wd=.1, d=.01*t)
        assert [p, *s] == pytest.approx([float(v) for v in (x, *xs)], rel=1e-13)


def test_without_any_gradient_but_zeros_the_estimate_stays():
    ps = params((3,))
    ps[0].grad = torch.zeros(3)
    opt = Prodigy(ps)
    opt.step()
    assert opt.param_groups[0]['d'] == 1e-6


@totals(lambda lr, moved: dict(lr=lr/(1 + moved)), moved=lambda p, g, start: (p - start)*(p - start))
@starts(start=lambda p, g: p)
def slowing(p, g, start, *, lr): return p - lr*g, start


def test_a_rule_of_your_own_changes_its_rate_by_clipped_gradients_as_it_sees_them():
    p, q = params((3,), (2,), dtype=torch.float64)
    opt = optimizer(slowing)([dict(params=[p]), dict(params=[q], rule=SGD, lr=1.)], lr=.5, clip_value=.1)
    start, rate = p.detach().clone(), .5
    for _ in range(3):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        moved = float((p.detach() - start).square().sum())
        opt.step()
        rate /= 1 + moved
        assert [g['lr'] for g in opt.param_groups] == pytest.approx([rate, 1.], rel=1e-12)


@totals(lambda lr, size: dict(lr=lr/(1 + size)), size=lambda lr: 2*lr)
def shrinking(p, g, *, lr): return p - lr*g


def test_a_number_is_summed_over_all_elements(path):
    p, q = params((3,), (2, 2), dtype=torch.float64)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    opt = optimizer(shrinking)([p, q], lr=.5)
    opt.step()
    assert opt.param_groups[0]['lr'] == pytest.approx(.5/(1 + 7*2*.5), rel=1e-12)


def in_parts(kind):
    ps = params((3, 4), (5,), (2, 2), dtype=torch.float64)
    model = torch.nn.Module()
    for i, p in enumerate(ps): model.register_parameter(f'p{i}', p)
    if kind == 'fsdp':
        from torch.distributed.fsdp import fully_shard
        fully_shard(model)
    opt = Prodigy(model.parameters())
    if kind == 'zero':
        from torch.distributed.optim import ZeroRedundancyOptimizer
        opt = ZeroRedundancyOptimizer(ps, partial(Prodigy), lr=1.)
    g = torch.Generator().manual_seed(3)
    for _ in range(20):
        for p in model.parameters():
            grad = 1 + .3*torch.randn(p.shape, generator=g, dtype=torch.float64)
            if kind == 'fsdp':
                from torch.distributed.tensor import distribute_tensor
                grad = distribute_tensor(grad, p.device_mesh, p.placements)
            p.grad = grad
        opt.step()
    return opt.param_groups[0]['d'], [getattr(p, 'full_tensor', p.clone)().detach() for p in model.parameters()]


@needs_distributed
@pytest.mark.parametrize('kind', ['fsdp', 'zero'])
def test_sums_are_those_of_all_processes(kind):
    d, wanted = in_parts(None)
    for its_d, found in run_ranks(in_parts, 2, kind):
        assert its_d == pytest.approx(d, rel=1e-9)
        for x, y in zip(found, wanted, strict=True): assert torch.allclose(x, y, rtol=0, atol=1e-10)


def test_a_step_runs_fused_with_a_pass_before_it_for_the_sums():
    ps = params((3, 4), (5,))
    opt = run(Prodigy(ps), ps, 2)
    assert opt.path.startswith('fused: 2 parameters')
    assert opt.takes_totals


@pytest.mark.parametrize('state', ['bf16', 'int8'])
def test_states_that_the_sums_read_are_exact_when_others_are_small(state):
    a, b = params((64, 80)), params((64, 80))
    for ps, kw in ((a, {}), (b, dict(state=state))):
        opt = Prodigy(ps, **kw)
        for k in range(20):
            ps[0].grad = torch.full((64, 80), 1 + .1*(k % 3))
            opt.step()
    dtypes = {nm: x.dtype for nm, x in opt.state[b[0]].items() if nm != 'step'}
    small = torch.bfloat16 if state == 'bf16' else torch.uint8
    assert dtypes == dict(p0=torch.float32, s=torch.float32, exp_avg=small, exp_avg_sq=small)
    assert float((a[0] - b[0]).detach().norm()/(a[0] - opt.state[b[0]]['p0']).detach().norm()) < .05

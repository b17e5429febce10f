"Tables: memory that moves between steps is found, and never written to after it was left."
import copy

import pytest
import torch
from torch import nn

from miniai.optim import SGD, AdamW, Momentum
from opts import everything, params, run, same

CHANGES = dict(
    data=lambda opt, p: setattr(p, 'data', p.data.clone()),
    gradient=lambda opt, p: setattr(p, 'grad', p.grad.clone()),
    state=lambda opt, p: opt.state[p].update(exp_avg=opt.state[p]['exp_avg'].clone()),
    state_data=lambda opt, p: setattr(opt.state[p]['exp_avg'], 'data', opt.state[p]['exp_avg'].data.clone()),
    state_dict=lambda opt, p: opt.load_state_dict(copy.deepcopy(opt.state_dict())),
    dicts=lambda opt, p: opt.state.update({p: dict(opt.state[p])}),
    groups=lambda opt, p: opt.param_groups.__setitem__(0, dict(opt.param_groups[0])),
    pickled=lambda opt, p: opt.__setstate__(opt.__getstate__()),
    path=lambda opt, p: opt.path)


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('which', [0, 1])
def test_tensors_may_move_between_steps_without_changing_a_bit(change, which):
    ps, qs = params((40,), (4, 5)), params((40,), (4, 5))
    a, b, keep = AdamW(ps, lr=.1), AdamW(qs, lr=.1), []
    run(a, ps, 2), run(b, qs, 2)
    for _ in range(3):
        keep.append((ps[which].data, ps[which].grad, dict(a.state[ps[which]])))
        CHANGES[change](a, ps[which])
        run(a, ps, 1), run(b, qs, 1)
    assert same(everything(a, ps), everything(b, qs))


def test_memory_that_a_parameter_or_state_has_left_is_not_written_to():
    p, = params((40,))
    opt = run(AdamW([p], lr=.1), [p], 2)
    left, state = p.data, opt.state[p]['exp_avg']
    p.data, opt.state[p]['exp_avg'] = p.data.clone(), state.clone()
    before = left.clone(), state.clone()
    run(opt, [p], 1)
    assert torch.equal(left, before[0])
    assert torch.equal(state, before[1])


def test_a_parameter_or_state_that_replaces_another_is_stepped_instead():
    p, q = params((4,), (4,))
    opt = run(Momentum([p], lr=.1), [p], 2)
    opt.param_groups[0]['params'][0] = q
    opt.state[q] = opt.state.pop(p)
    before, start = p.detach().clone(), q.detach().clone()
    run(opt, [q], 1)
    assert torch.equal(p, before)
    assert not torch.equal(q, start)
    fresh = dict(step=0, momentum_buffer=torch.zeros(4))
    opt.state[q] = fresh
    run(opt, [q], 1)
    assert opt.state[q] is fresh
    assert fresh['step'] == 1
    assert fresh['momentum_buffer'].abs().min() > 0


def test_no_kernel_runs_over_a_state_with_another_size_dtype_or_layout():
    p, = params((6, 4))
    transposed, double = torch.zeros(6, 4).t().contiguous().t(), torch.zeros(6, 4, dtype=torch.float64)
    for wrong in (transposed, double, torch.zeros(6, 8)[:, ::2]):
        opt = run(Momentum([p], lr=.1), [p], 1)
        opt.state[p]['momentum_buffer'].data = wrong
        run(opt, [p], 1)
        assert wrong.abs().min() > 0
    opt = run(Momentum([p], lr=.1), [p], 1)
    opt.state[p]['momentum_buffer'] = torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match='size'): run(opt, [p], 1)


def test_a_lazily_negated_gradient_keeps_its_sign():
    p, = params((1000, 4))
    opt = SGD([p], lr=1.)
    p.grad = torch.ones_like(p)
    opt.step()
    before = p.detach().clone()
    p.grad = torch._neg_view(torch.ones(1000, 4))
    opt.step()
    assert torch.equal(p.detach(), before + 1)
    assert 'eager' in opt.path


def test_a_gradient_that_shrinks_is_not_read_beyond_its_end():
    p, = params((1000, 4))
    opt = SGD([p], lr=1.)
    p.grad = torch.ones_like(p)
    opt.step()
    before = p.detach().clone()
    p.grad.data = torch.ones(2, 4)
    with pytest.raises(RuntimeError): opt.step()
    assert torch.equal(p.detach(), before)


def test_a_transposed_parameter_is_stepped_in_place_by_the_kernel():
    p, q = nn.Parameter(torch.randn(6, 4).t()), None
    q = nn.Parameter(p.detach().contiguous())
    p.grad = torch.randn(6, 4).t()
    q.grad = p.grad.contiguous()
    a, b, where = AdamW([p], lr=.1), AdamW([q], lr=.1), p.data_ptr()
    for _ in range(3): a.step(), b.step()
    assert torch.equal(p, q)
    assert (p.data_ptr(), p.stride()) == (where, (1, 4))
    assert a.path.startswith('fused')

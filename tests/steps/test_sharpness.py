"SAMCB: what Foret et al.'s algorithm does in a plain loop, in the Learner, with any optimizer."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import AccumulateCB, Callback, CancelBatchException, MetricsCB, MixedPrecision
from miniai.callbacks.accelerate import AccelerateCB
from miniai.callbacks.precision import ScalingCB
from miniai.distributed.callback import DistributedCB
from miniai.learner import Learner, MomentumLearner, TrainLearner
from miniai.optim import AdamW, ScheduleFreeSGD
from miniai.steps.sharpness import SAMCB
from ranks import needs_distributed, run_ranks
from small import learner, loaders, same, weights

RHO, LR, EPOCHS = .2, .1, 2
each_optimizer = pytest.mark.parametrize('opt_func', [torch.optim.SGD, partial(AdamW, eps=1e-3), ScheduleFreeSGD])


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def by_hand(opt_func, clip=None, dtype=None):
    "Algorithm 1 as a plain loop. Returns the model's state and the losses of the first passes."
    model, losses = net(), []
    norm, params = model[1], list(model.parameters())
    opt = opt_func(params, LR)
    def loss_of(x, y):
        with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None): return F.cross_entropy(model(x), y)
    for _ in range(EPOCHS):
        model.train()
        getattr(opt, 'train', lambda: None)()
        for x, y in loaders().train:
            loss = loss_of(x, y)
            losses.append(loss.item())
            grads = torch.autograd.grad(loss, params)
            length = torch.cat([g.flatten() for g in grads]).norm()
            kept, norm.momentum = [p.detach().clone() for p in params], 0.
            for p, g in zip(params, grads, strict=True): p.data += RHO*g/length
            grads = torch.autograd.grad(loss_of(x, y), params)
            norm.momentum = .1
            norm.num_batches_tracked -= 1
            for p, g, w in zip(params, grads, kept, strict=True): p.data, p.grad = w, g
            if clip: nn.utils.clip_grad_norm_(params, clip)
            opt.step()
    getattr(opt, 'eval', lambda: None)()
    return model.state_dict(), losses


class Losses(Callback):
    def __init__(self): self.seen = []
    def after_batch(self, learn):
        if learn.training: self.seen.append(learn.loss.item())


class Clip(Callback):
    def after_backward(self, learn): nn.utils.clip_grad_norm_(learn.model.parameters(), .05)


def trained(*cbs, opt_func=torch.optim.SGD, model=None, **kw):
    learn = learner([SAMCB(RHO), *cbs], model=model or net(), opt_func=opt_func, lr=LR, **kw)
    learn.fit(EPOCHS)
    return learn


def assert_close(state, want, **kw):
    for nm, x in want.items(): torch.testing.assert_close(state[nm], x, **kw)


@each_optimizer
@pytest.mark.parametrize('clip', [None, .05])
def test_a_fit_is_the_papers_loop_and_its_losses_are_those_of_first_passes(opt_func, clip):
    want, losses = by_hand(opt_func, clip)
    cb = Losses()
    learn = trained(cb, MetricsCB(), *[Clip()]*bool(clip), opt_func=opt_func)
    assert_close(weights(learn), want, rtol=1e-5, atol=2e-5)
    assert cb.seen == pytest.approx(losses, rel=1e-5)
    assert learn.history[0]['loss'] == pytest.approx(sum(losses[:4])/4, rel=1e-5)


def test_bfloat16_runs_both_passes_in_autocast():
    want, losses = by_hand(torch.optim.SGD, dtype=torch.bfloat16)
    cb = Losses()
    learn = trained(cb, MixedPrecision(), cls=Learner)
    assert cb.seen == pytest.approx(losses, rel=1e-5)
    assert_close(weights(learn), want, rtol=1e-5, atol=1e-6)


def test_accelerate_runs_both_passes():
    want, _ = by_hand(torch.optim.SGD)
    assert_close(weights(trained(AccelerateCB(mixed_precision='no'), cls=Learner)), want, rtol=1e-5, atol=1e-6)


def test_a_batch_cancelled_in_its_second_pass_leaves_weights_and_buffers_as_the_first_found_them():
    class Cancel(Callback):
        def __init__(self): self.calls = 0
        def after_loss(self, learn):
            self.calls += learn.training
            if learn.training and self.calls % 2 == 0: raise CancelBatchException
    learn = learner([SAMCB(RHO), Cancel()], model=net(), lr=LR)
    before = dict(learn.model.named_parameters())
    before = {nm: p.detach().clone() for nm, p in before.items()}
    learn.fit(1)
    assert same({nm: p.detach() for nm, p in learn.model.named_parameters()}, before)
    assert learn.model[1].num_batches_tracked == 4


class Scaled(ScalingCB):
    scaler = torch.amp.GradScaler('cpu')
    def before_fit(self, learn): pass


@pytest.mark.parametrize('cb', [AccumulateCB(1), Scaled()])
def test_what_cannot_run_a_batch_twice_is_refused(cb):
    with pytest.raises(ValueError, match=f'which {type(cb).__name__} cannot do: leave it out, or'):
        trained(cb, cls=Learner if isinstance(cb, ScalingCB) else TrainLearner)


def test_a_learner_that_keeps_gradients_and_a_distance_of_0_are_refused():
    with pytest.raises(ValueError, match='MomentumLearner, whose zero_grad keeps gradients'):
        trained(cls=MomentumLearner)
    with pytest.raises(ValueError, match='must be above 0, got 0'): SAMCB(0)


def in_parts(how):
    "Losses and weights with layers that see each sample alone, on the processes that there are."
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    cb, state = Losses(), {}
    class Last(Callback):
        order = 20
        def after_fit(self, learn):
            state.update({nm.removeprefix('module.'): getattr(p, 'full_tensor', p.clone)().detach()
                          for nm, p in learn.model.named_parameters()})
    class Double(Callback):
        def before_batch(self, learn): learn.batch = (learn.batch[0].double(), learn.batch[1])
    learn = learner([SAMCB(RHO), Double(), cb, Last(), *([DistributedCB(how)] if how else [])], model=model, lr=LR,
                    opt_func=torch.optim.SGD)
    learn.fit(EPOCHS)
    return cb.seen, state


@needs_distributed
@pytest.mark.parametrize('how', ['ddp', 'fsdp'])
def test_two_processes_take_the_steps_of_one(how):
    losses, want = in_parts(None)
    for seen, found in run_ranks(in_parts, 2, how):
        assert seen == pytest.approx(losses, rel=1e-10)
        assert_close(found, want, rtol=0, atol=1e-10)

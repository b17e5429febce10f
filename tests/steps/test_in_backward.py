"Steps in the backward pass: the weights of ordinary steps to the bit, and gradients that are freed early."
from contextlib import suppress
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from miniai import (
    AccumulateCB,
    AdamW,
    AverageCB,
    BatchSchedCB,
    Callback,
    CheckpointCB,
    DataLoaders,
    Momentum,
    StepInBackwardCB,
    TrainLearner,
    warmup_cosine,
)
from miniai.distributed import DistributedCB
from miniai.optim import Muon, Prodigy
from miniai.steps import in_backward
from resuming import StopCB, Stopped

X, Y = torch.randn(64, 6), torch.randint(3, (64,))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch): monkeypatch.setattr(in_backward, 'TOGETHER', 10)


class Net(nn.Module):
    "A matrix that is used twice, a parameter that is not used in every batch, one never, and a frozen one."
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm, self.mid = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)
        self.sometimes, self.never = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
        self.calls = 0
        self.first.bias.requires_grad_(False)
    def forward(self, x):
        self.calls += 1
        h = self.mid(F.relu(self.mid(F.relu(self.norm(self.first(x))))))
        return self.last(h) * (self.sometimes if self.calls % 2 else 1)


def trained(opt_func, cbs, epochs=2, **kwargs):
    model = Net()
    learn = TrainLearner(model, DataLoaders.from_arrays(X, Y, bs=16, valid=.25), F.cross_entropy, .01, cbs, opt_func)
    learn.fit(epochs, **kwargs)
    return model


def same_weights(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


OPTIMIZERS = [AdamW, Muon, partial(AdamW, ema=.9, cautious='rescaled', clip_value=.1), partial(AdamW, state='bf16'),
              torch.optim.AdamW, partial(torch.optim.SGD, momentum=.9)]


@pytest.mark.parametrize('opt_func', OPTIMIZERS)
def test_the_weights_are_those_of_ordinary_steps_to_the_bit(opt_func):
    cbs = [BatchSchedCB(warmup_cosine())]
    a, b = trained(opt_func, cbs), trained(opt_func, [StepInBackwardCB(), DistributedCB('ddp', device='cpu'), *cbs])
    assert same_weights(a, b)
    assert not same_weights(a, Net())


def test_gradients_are_freed_before_those_of_earlier_layers_are_there():
    alive = []
    class Watch(Callback):
        def before_fit(self, learn):
            ps = [p for p in learn.model.parameters() if p.requires_grad]
            for p in ps:
                p.register_post_accumulate_grad_hook(
                    lambda _: alive.append(sum(q.grad is not None and q.numel() >= 10 for q in ps)))
    trained(AdamW, [StepInBackwardCB(), Watch()])
    assert max(alive) == 1
    alive.clear()
    trained(AdamW, [Watch()])
    assert max(alive) == 3


def test_averages_of_weights_and_a_second_fit_are_those_of_ordinary_steps():
    def twice(cbs):
        learn = TrainLearner(Net(), DataLoaders.from_arrays(X, Y, bs=16, valid=.25), F.cross_entropy, .01, cbs,
                             partial(AdamW, ema=.9))
        learn.fit(1)
        learn.opt_func = None
        learn.fit(1)
        return learn.model
    a, b = twice([AverageCB(keep=True)]), twice([AverageCB(keep=True), StepInBackwardCB()])
    assert same_weights(a, b)
    assert not any(p._post_accumulate_grad_hooks for p in b.parameters())


def test_a_run_resumes_exactly(tmp_path):
    def begin(*cbs):
        return trained(Momentum, [StepInBackwardCB(), CheckpointCB(tmp_path, batches=1), *cbs], resume=True)
    with suppress(Stopped): begin(StopCB(1, 1, True))
    assert same_weights(begin(), trained(Momentum, [StepInBackwardCB()]))


class Clip(Callback):
    def after_backward(self, learn): nn.utils.clip_grad_norm_(learn.model.parameters(), 1.)


@pytest.mark.parametrize(('opt_func', 'cbs', 'named'), [
    (partial(AdamW, clip_norm=1.), [], 'clip_norm'),
    (Prodigy, [], 'Prodigy'), (partial(AdamW, skip_nonfinite=True), [], 'skip_nonfinite'),
    (AdamW, [Clip()], 'Clip'), (AdamW, [AccumulateCB(2)], 'AccumulateCB'),
    (torch.optim.LBFGS, [], 'LBFGS')])
def test_what_needs_all_gradients_is_refused_by_name(opt_func, cbs, named):
    with pytest.raises(ValueError, match=f'before the next is complete, but {named} must see all of them'):
        trained(opt_func, [StepInBackwardCB(), *cbs])


class Reentrant(Net):
    "Both uses of the matrix in a backward pass of their own, by torch's older way of checkpointing."
    def forward(self, x):
        h = self.norm(self.first(x))
        for _ in range(2): h = checkpoint(self.mid, h, use_reentrant=True)
        return self.last(h)


def test_a_second_gradient_in_a_batch_is_an_error():
    learn = TrainLearner(Reentrant(), DataLoaders.from_arrays(X, Y, bs=16), F.cross_entropy, .01, [StepInBackwardCB()])
    with pytest.raises(ValueError, match=r'of shape \(8.*\) in this batch.* use_reentrant=False'):
        learn.fit(1)


def test_after_an_error_in_the_backward_ordinary_steps_are_taken():
    class Fail(Callback):
        def after_loss(self, learn):
            if learn.training: learn.loss.register_hook(fail)
    def fail(g): raise RuntimeError('within the backward')
    learn = TrainLearner(Net(), DataLoaders.from_arrays(X, Y, bs=16, valid=.25), F.cross_entropy, .01, [], AdamW)
    with pytest.raises(RuntimeError, match='within the backward'): learn.fit(1, cbs=[StepInBackwardCB(), Fail()])
    learn.fit(2)
    assert learn.opt.state[learn.model.last.weight]['step'] == 6

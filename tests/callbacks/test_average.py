"AverageCB: validation uses the averaged weights, training the weights themselves."
from functools import partial

import pytest
import torch
from torch import nn

from miniai.callbacks.average import AverageCB
from miniai.optim import AdamW


class FakeLearner:
    def __init__(self, opt, training, trains=True): self.opt, self.training, self.trains = opt, training, trains


def stepped():
    model = nn.Linear(3, 2)
    opt = AdamW(model.parameters(), lr=.1, ema=.9)
    for p in model.parameters(): p.grad = torch.randn_like(p)
    for _ in range(3): opt.step()
    return model, opt


def test_only_an_evaluation_epoch_sees_the_averages():
    model, opt = stepped()
    weights, average, cb = model.weight.detach().clone(), opt.state[model.weight]['ema'].clone(), AverageCB()
    for training, seen in ((True, weights), (False, average)):
        learn = FakeLearner(opt, training)
        cb.before_fit(learn)
        cb.before_epoch(learn)
        assert torch.equal(model.weight, seen)
        cb.cleanup_epoch(learn)
        assert torch.equal(model.weight, weights)
        assert torch.equal(opt.state[model.weight]['ema'], average)


def test_an_optimizer_without_averages_is_an_error_that_says_what_to_do():
    learn = FakeLearner(partial(AdamW, lr=.1)([nn.Parameter(torch.ones(2))]), True)
    with pytest.raises(ValueError, match='AverageCB needs an optimizer that keeps weight averages'):
        AverageCB().before_fit(learn)

"A Learner left as it was, whatever happened in between."
import pytest
import torch
from torch import nn, optim

from miniai.callbacks.dry_run import dry_run
from miniai.learner import MetricsCB, MomentumLearner
from small import copied, equal, everything, learner, same, weights


def net(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize('own_optimizer', [False, True])
@pytest.mark.parametrize('fails', [False, True])
def test_after_training_inside_it_model_optimizer_and_history_are_as_they_were(own_optimizer, fails):
    learn = learner(MetricsCB(), model=net(), opt_func=optim.Adam)
    learn.fit(1)
    if own_optimizer: learn.opt_func = None
    learn.model[0].eval()
    learn.model[0].weight.grad = torch.ones_like(learn.model[0].weight)
    before, opt, history, metrics = copied(everything(learn)), learn.opt, learn.history, learn.metrics
    def train():
        learn.fit(2)
        assert not same(before[0], weights(learn))
        if fails: raise KeyError('oh')
    if fails:
        with pytest.raises(KeyError, match='oh'), dry_run(learn, trains=True): train()
    else:
        with dry_run(learn, trains=True): train()
    assert equal(everything(learn), before)
    assert learn.opt is opt
    assert (learn.history, learn.metrics) == (history, metrics)


def test_the_gradient_that_momentum_learner_keeps_stays():
    learn = learner(cls=MomentumLearner)
    learn.fit(1)
    before = copied(everything(learn))
    with dry_run(learn, trains=True): learn.fit(1)
    assert equal(everything(learn), before)
    assert before[1][0].abs().sum() > 0


def test_what_callbacks_replace_inside_it_is_put_back():
    learn = learner(MetricsCB())
    kept = learn.dls, learn.lr, learn.opt_func, learn.model, learn.cbs, list(learn.cbs)
    with dry_run(learn, trains=True):
        learn.cbs.append(MetricsCB())
        learn.dls, learn.lr, learn.opt_func, learn.model = None, 7., None, nn.Linear(4, 3)
    assert (learn.dls, learn.lr, learn.opt_func, learn.model, learn.cbs, list(learn.cbs)) == kept


def test_an_optimizer_without_state_dict_is_taken():
    class Bare:
        def step(self): pass
        def zero_grad(self): pass
    learn = learner(opt_func=None)
    learn.opt = bare = Bare()
    with dry_run(learn, trains=True): learn.fit(1)
    assert learn.opt is bare


def test_a_model_that_is_moved_to_another_type_inside_it_comes_back_with_its_gradients():
    learn = learner()
    learn.model[0].weight.grad = torch.ones(8, 4)
    before = weights(learn)
    with dry_run(learn, trains=True): learn.model.double()
    assert {k: v.float().equal(before[k]) for k, v in weights(learn).items()} == dict.fromkeys(before, True)
    assert learn.model[0].weight.grad.float().equal(torch.ones(8, 4))

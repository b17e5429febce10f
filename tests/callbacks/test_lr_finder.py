"The learning-rate finder: what it records, when it stops, what it suggests, and that it changes nothing."
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from miniai.activations import ActivationStats
from miniai.callbacks.lr_finder import suggest_lr
from miniai.datasets import DataLoaders
from miniai.learner import LRFinderCB, MetricsCB, ProgressCB, TrainLearner, lr_find
from miniai.sgd import BatchSchedCB
from small import Heard, batches, copied, equal, everything, hooks_on, learner, raising, same, weights


class Losses:
    "Makes the loss of the i-th training batch what `f(i)` says."
    def __init__(self, f): self.f, self.i = f, 0
    def after_loss(self, learn):
        learn.loss = learn.loss*0 + self.f(self.i)
        self.i += 1


def many(n=100): return DataLoaders(batches(n), batches(2))
def find(f, n=100, **kwargs):
    finder = LRFinderCB(**kwargs)
    learner(Losses(f), dls=many(n), lr=1e-5).fit(1, valid=False, cbs=finder)
    return finder


def valley(i): return 2. - 1.9/(1 + np.exp(-(i - 30)/3)) + np.exp(max(0, i - 60) - 3)


def test_the_rate_is_multiplied_by_gamma_each_batch():
    finder = find(lambda i: 1., n=20, gamma=1.5)
    assert finder.lrs == pytest.approx([1e-5*1.5**i for i in range(20)])
    assert finder.losses == [1.]*20


def test_every_group_rises():
    def two_groups(params, lr):
        a, *rest = params
        return optim.SGD([dict(params=[a], lr=lr), dict(params=rest, lr=lr*10)], lr=lr)
    learn = learner(opt_func=two_groups, lr=1e-5)
    learn.fit(1, valid=False, cbs=LRFinderCB(gamma=2))
    assert [g['lr'] for g in learn.opt.param_groups] == pytest.approx([16e-5, 16e-4])


@pytest.mark.parametrize(('mult', 'stops'), [(3, 14), (2, 9)])
def test_it_stops_at_the_first_loss_above_max_mult_times_the_best(mult, stops):
    falling_then_rising = [5., 3, 2, 1, 1.1, 1.5, 1.9, 2., 1.9, 2.01, 2.5, 2.9, 3., 2.5, 3.01, 9]
    finder = find(lambda i: falling_then_rising[i], max_mult=mult)
    assert finder.losses == pytest.approx(falling_then_rising[:stops + 1])


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_it_stops_at_a_loss_that_is_not_finite_before_that_is_an_error(bad):
    finder = find(lambda i: bad if i == 4 else 1.)
    assert len(finder.losses) == 5
    assert not np.isfinite(finder.losses[-1])


def test_it_plots_at_the_end_also_when_the_fit_is_cancelled():
    finder = LRFinderCB()
    learner([Losses(valley), finder], dls=many(), lr=1e-5).fit(1)
    ax, = plt.gcf().axes
    assert ax.get_xscale() == 'log'
    assert list(ax.lines[0].get_xdata()) == finder.lrs
    assert list(ax.lines[0].get_ydata()) == finder.losses
    assert ax.lines[1].get_xdata()[0] == finder.suggestion


def test_validation_is_skipped_and_plots_nothing():
    finder, cb = LRFinderCB(), Heard()
    learner([finder, cb]).fit(2, train=False)
    assert finder.lrs == []
    assert cb.log.count('before_batch') == 2
    assert plt.get_fignums() == []


def test_a_fit_that_fails_before_the_finder_starts_plots_nothing():
    finder = LRFinderCB()
    learn = learner([finder])
    learn.fit(1, valid=False)
    plt.close('all')
    broken = Heard({'before_fit': raising(ValueError('oh'))}, order=-1)
    with pytest.raises(ValueError, match='oh'): learn.fit(1, cbs=broken)
    assert plt.get_fignums() == []


def test_plot_uses_the_given_axis():
    finder, ax = find(valley), plt.subplots()[1]
    assert finder.plot(ax) is ax
    marks = [line.get_xdata()[0] for line in ax.lines[1:]]
    assert marks == [finder.suggestion, finder.peak]
    assert finder.suggestion < finder.peak


@pytest.mark.parametrize('gamma', [1, .5])
def test_a_gamma_of_at_most_1_is_an_error(gamma):
    with pytest.raises(ValueError, match='gamma must be above 1, so that the rate rises, got'): LRFinderCB(gamma=gamma)


@pytest.mark.parametrize('ends', [None, ValueError('oh')])
def test_the_fit_is_a_dry_run_and_the_next_one_is_not(ends):
    seen, cbs = [], [Heard({'after_step': raising(ends)})] if ends else []
    learn = learner([LRFinderCB(), Heard({'before_batch': lambda learn: seen.append(learn.dry_run)}), *cbs])
    if ends:
        with pytest.raises(ValueError, match='oh'): learn.fit(1, valid=False)
    else: learn.fit(1, valid=False)
    assert set(seen) == {True}
    assert learn.dry_run is False


# The suggestion

def test_the_suggestion_is_where_the_loss_falls_most_steeply_over_log_rate():
    lrs = np.geomspace(1e-6, 10, 80)
    for steepest in (1e-4, 1e-3, 1e-2):
        losses = 2 - 1.5/(1 + np.exp(-3*np.log(lrs/steepest))) + (lrs > 1)*lrs*5
        assert suggest_lr(lrs, losses) == pytest.approx(steepest, rel=.5)


@pytest.mark.parametrize('losses', [[1.]*20, list(np.linspace(1, 3, 20)), [3., 2, 1, 2], [],
                                    list(1 + .1*np.random.default_rng(0).standard_normal(40))])
def test_without_a_clear_fall_there_is_no_suggestion(losses):
    assert suggest_lr(np.geomspace(1e-5, 1, len(losses)), losses) is None


def test_losses_that_are_not_finite_are_ignored():
    lrs = np.geomspace(1e-6, 10, 80)
    losses = 2 - 1.5/(1 + np.exp(-3*np.log(lrs/1e-3)))
    assert suggest_lr(lrs, [*losses[:79], float('nan')]) == pytest.approx(1e-3, rel=.5)


# lr_find

def learnable(n=60):
    g = torch.Generator().manual_seed(0)
    w = torch.randn(4, 3, generator=g)
    xs = [torch.randn(32, 4, generator=g) for _ in range(n)]
    return DataLoaders([(x, (x @ w).argmax(1)) for x in xs], [(x, (x @ w).argmax(1)) for x in xs[:2]])


def test_it_suggests_a_rate_that_trains():
    learn = learner(dls=learnable())
    lr = learn.lr_find()
    assert 1e-3 < lr < 10
    learn.cbs.append(MetricsCB())
    learn.fit(2, lr=lr)
    assert learn.history[-1]['loss'] < .5 < 1.0986  # log 3: guessing


@pytest.mark.parametrize('own_optimizer', [False, True])
@pytest.mark.parametrize('fails', [False, True])
def test_it_restores_everything(own_optimizer, fails):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    learn = learner(MetricsCB(), model=net, opt_func=optim.Adam)
    learn.fit(1)
    if own_optimizer: learn.opt_func = None
    learn.model.eval()
    before, opt, history, cbs = copied(everything(learn)), learn.opt, learn.history, learn.cbs
    if fails:
        learn.cbs.append(Heard({'after_step': raising(ValueError('oh'))}))
        with pytest.raises(ValueError, match='oh'): learn.lr_find()
    else: learn.lr_find(max_epochs=3)
    assert equal(everything(learn), before)
    assert learn.opt is opt
    assert learn.history is history
    assert learn.cbs is cbs


@pytest.mark.parametrize('own_optimizer', [False, True])
def test_it_starts_at_start_lr(own_optimizer):
    learn, seen = learner(lr=.3), []
    if own_optimizer: learn.opt, learn.opt_func = optim.SGD(learn.model.parameters(), lr=.3), None
    learn.cbs.append(Heard({'before_batch': lambda learn: seen.append(learn.opt.param_groups[0]['lr'])}))
    learn.lr_find(start_lr=1e-4, gamma=2, max_epochs=1)
    assert seen == pytest.approx([1e-4, 2e-4, 4e-4, 8e-4])


def test_later_training_is_as_if_it_had_not_been_called():
    a, b = learner(), learner()
    a.lr_find()
    a.fit(1)
    b.fit(1)
    assert same(weights(a), weights(b))


def test_schedules_are_left_out():
    sched = BatchSchedCB(partial(optim.lr_scheduler.OneCycleLR, max_lr=.1, total_steps=4, cycle_momentum=False))
    learn = learner(sched)
    learn.lr_find(max_epochs=2)
    assert sched.schedo is None
    assert learn.cbs == [sched]


def test_it_trains_for_at_most_max_epochs_and_does_not_validate():
    cb = Heard()
    learner(cb, loss_func=lambda p, y: p.mean()*0 + 1).lr_find(max_epochs=3)
    assert (cb.log.count('before_epoch'), cb.log.count('before_batch')) == (3, 12)


def test_it_works_with_metrics_bars_and_hooks_and_leaves_none():
    learn = learner([MetricsCB(), ProgressCB(plot=True), ActivationStats()], dls=learnable())
    learn.lr_find()
    assert hooks_on(learn.model) == 0
    assert '_log' not in vars(learn.cbs[0])


def test_it_is_also_a_function_and_passes_gamma_and_max_mult_on():
    seen = []
    learn = learner(Heard({'before_batch': lambda learn: seen.append(learn.opt.param_groups[0]['lr'])}), lr=None)
    assert lr_find(learn, gamma=2, max_mult=1e9, start_lr=1., max_epochs=1) is None
    assert seen == [1., 2., 4., 8.]


def test_without_a_suggestion_it_says_so_and_returns_none(capsys):
    assert learner(loss_func=lambda p, y: p.mean()*0 + 1).lr_find(max_epochs=2) is None
    assert 'no suggestion, because the loss never fell clearly from lr=1e-05 on' in capsys.readouterr().out


def test_it_needs_an_optimizer():
    with pytest.raises(ValueError, match='no optimizer'): learner(opt_func=None).lr_find()


def test_an_exploding_loss_stops_it_early():
    cb = Heard()
    learner(cb, dls=learnable(), loss_func=lambda p, y: F.cross_entropy(p, y)).lr_find(gamma=3)
    assert cb.log.count('before_batch') < 40


# More than one suggestion

def test_full_results_are_data_and_hold_the_rate_that_it_returns_otherwise():
    found = learner(dls=learnable()).lr_find(full=True)
    assert found.half == learner(dls=learnable()).lr_find()
    assert found.lrs == pytest.approx([1e-5*1.3**i for i in range(len(found.losses))])
    assert 1/30 < found.tenth/found.half < 30


def noisy(learn):
    "A loss that falls from 2 to 0.2 and rises at 1, with noise; one batch is unlucky."
    lr = learn.opt.param_groups[0]['lr']
    noise = 6. if learn.iter == 20 else .02*(learn.iter % 3)
    learn.loss = learn.loss*0 + 2 - 1.8/(1 + (1e-2/lr)**2) + max(0, lr - 1)*100 + noise


def test_one_unlucky_batch_does_not_end_the_search():
    learn, figures = learner(Heard({'after_loss': noisy}), dls=many()), len(plt.get_fignums())
    found = learn.lr_find(full=True)
    assert found.lrs[-1] > 1
    assert found.half == pytest.approx(1e-2, rel=.5)
    assert len(plt.get_fignums()) == figures + 1
    first = LRFinderCB()
    learn.fit(1, valid=False, cbs=first, lr=1e-5)
    assert len(first.losses) == 21
    assert first.ended_early


def test_one_batch_with_hardly_any_loss_does_not_end_the_search():
    def tiny(learn):
        noisy(learn)
        if learn.iter == 8: learn.loss = learn.loss*0 + 1e-6  # such as the last batch of an epoch, of one sample
    learn, first = learner(Heard({'after_loss': tiny}), dls=many()), LRFinderCB()
    learn.fit(1, valid=False, cbs=first, lr=1e-5)
    assert len(first.losses) == 10
    found = learn.lr_find(full=True)
    assert found.lrs[-1] > 1
    assert found.half == pytest.approx(1e-2, rel=.5)


def test_the_best_loss_is_a_mean_of_as_many_losses_as_it_says():
    losses = [4., 2, 1, 3, 2.9, 3.1, 3.2, 9, 9]
    assert len(find(lambda i: losses[i], max_mult=3, average=1).losses) == 6  # the best is 1
    assert len(find(lambda i: losses[i], max_mult=3, average=3).losses) == 8  # the best is (2 + 1 + 3)/3


def test_a_doubt_is_printed(capsys):
    rate = learner(Losses(lambda i: 3 - i/50), dls=many()).lr_find(max_epochs=1)
    said = capsys.readouterr().out
    assert said.startswith(f'lr_find: do not rely on {rate:.2g}: the loss still fell at the last rate; allow more')


@pytest.mark.filterwarnings('ignore:Detected call of `lr_scheduler.step')  # by torch, of the same mistake
@pytest.mark.parametrize('losses', [lambda i: 2., lambda i: 1.2**i], ids=['flat', 'rising'])
def test_phases_that_make_no_step_are_an_error(losses):
    class Still(TrainLearner):
        def get_loss(self):
            super().get_loss()
            self.loss = self.loss*0 + losses(self.iter)
        def step(self): pass
    with pytest.raises(RuntimeError, match=r'the optimizer made no step in \d+ batches'):
        learner(cls=Still, dls=many(), opt_func=optim.SGD).lr_find()

"What the first batch of a fit tells: a last batch that a batch norm will refuse, unused items, hidden weights."
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from miniai import AccumulateCB, Callback, DataLoaders, MaxBatchesCB, MemoryLoader, ProgressCB, TrainCB, TrainLearner
from miniai.callbacks.wrapped import MappedLoader, WrappedLoader
from miniai.learner import Learner
from resuming import Quiet
from small import Heard, batches, learner


def test_the_look_is_there_for_the_first_batch_of_each_fit_only():
    seen = []
    def look(learn): seen.append('FirstBatchCB' in [type(cb).__name__ for cb in learn.cbs])
    learn = learner(Heard({'before_batch': look}))
    for _ in range(2): learn.fit(1)
    assert seen == ([True] + [False]*5)*2


class Hiding(nn.Module):
    "A loss that ignores class 0."
    def forward(self, out, y): return F.cross_entropy(out, y, ignore_index=0)


def weight(learn): return (learn.batch[1] != 0).sum()


@pytest.mark.parametrize(('cbs', 'named'), [
    ([Quiet()], 'Quiet'), ([ProgressCB()], 'MetricsCB'), ([AccumulateCB(2)], 'AccumulateCB'),
    ([Quiet(), AccumulateCB(2, weight)], 'Quiet')])
def test_a_loss_that_hides_what_targets_weigh_is_told_once_by_who_averages(cbs, named):
    learn = learner(cbs, loss_func=Hiding())
    with pytest.warns(UserWarning, match=f'ignores some targets, but {named} will weigh.*weight=lambda') as told:
        learn.fit(2)
    assert len(told) == 1


def test_nothing_is_told_where_weights_are_given_or_nothing_is_averaged_or_the_run_is_dry():
    learner([Quiet(weight=weight), AccumulateCB(2, weight)], loss_func=Hiding()).fit(1)
    learner(loss_func=Hiding()).fit(1)
    learner(Quiet(), loss_func=Hiding()).lr_find(max_epochs=1)


def halved_sum(out, y): return 0.5*(out.softmax(1) - F.one_hot(y, 3)).square().sum()


def test_a_summed_loss_whose_reported_mean_depends_on_the_batches_is_told_once():
    with pytest.warns(UserWarning, match="a sum over the batch.*but Quiet will average.*weight='sum'") as told:
        learner([Quiet()], loss_func=halved_sum).fit(2)
    assert len(told) == 1


def test_a_sum_is_not_told_where_its_weight_is_given_or_the_only_batch_holds_all():
    learner([Quiet(weight='sum')], loss_func=halved_sum).fit(1)
    learner([Quiet()], loss_func=halved_sum, dls=DataLoaders(batches(1), [])).fit(1, valid=False)


# A last batch of one sample

def pairs(n): return TensorDataset(torch.randn(n, 4), torch.arange(n) % 3)
def memory(n, bs=6, **kwargs): return MemoryLoader(*pairs(n).tensors, bs=bs, **kwargs)
def torchs(n, bs=6, **kwargs): return DataLoader(pairs(n), bs, **kwargs)
def sampled(n, bs=6): return DataLoader(pairs(40), bs, sampler=SubsetRandomSampler(range(n)))
def norm_net(norm=None): return nn.Sequential(nn.Linear(4, 8), norm or nn.BatchNorm1d(8), nn.Linear(8, 3))
def fit(model, dl, *cbs): learner(list(cbs), model=model, dls=DataLoaders(dl, [])).fit(1, valid=False)


class Batches(Callback):
    only_shows = True
    def before_fit(self, learn): self.n = 0
    def after_batch(self, learn): self.n += 1


@pytest.mark.parametrize('loader', [memory, torchs, sampled])
@pytest.mark.parametrize('norm', [nn.BatchNorm1d(8), nn.BatchNorm1d(8, track_running_stats=False)])
def test_a_last_batch_that_a_batch_norm_will_refuse_is_an_error_in_the_first_batch(loader, norm):
    said = r"^the last of the 4 training batches has 1 sample, but layer '1', a BatchNorm1d .*drop_last=True .*size$"
    seen, model = Batches(), norm_net(norm)
    with pytest.raises(ValueError, match=said): fit(model, loader(19), seen)
    assert seen.n == 0
    assert not model[1]._forward_pre_hooks


def test_batches_of_one_sample_are_an_error():
    with pytest.raises(ValueError, match=r"^a training batch has 1 sample, but layer '1', a BatchNorm1d"):
        fit(norm_net(), memory(4, 1))


def images(n): return MemoryLoader(torch.randn(n, 1, 4, 4), torch.arange(n) % 3, bs=6)
def conv_net(): return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


class TwoViews(nn.Module):
    "Sees each sample twice, so that its batch norm gets two values for one sample."
    def __init__(self):
        super().__init__()
        self.net = norm_net()
    def forward(self, x): return self.net(torch.cat([x, -x])).unflatten(0, (2, -1)).mean(0)


@pytest.mark.parametrize(('model', 'dl'), [
    (norm_net(), memory(18)), (norm_net(), memory(20)), (norm_net(), memory(19, drop_last=True)),
    (norm_net(), torchs(19, drop_last=True)), (conv_net(), images(19)), (TwoViews(), memory(19)),
    (norm_net(nn.LayerNorm(8)), memory(19)), (norm_net(nn.BatchNorm1d(8).eval()), memory(19))],
    ids=['whole', 'two', 'dropped', 'dropped by torch', 'images', 'two views', 'layer norm', 'frozen'])
def test_what_a_batch_norm_accepts_trains(model, dl):
    seen = Batches()
    fit(model, dl, seen)
    assert seen.n == len(dl)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_loader_that_a_callback_wraps_is_seen_through_unless_it_becomes_shorter():
    class Wraps(Callback):
        def __init__(self, n): self.n = n
        def before_epoch(self, learn):
            learn.dl = MappedLoader(learn.dl, lambda b: b) if self.n == 4 else Shorter(learn.dl)
    class Shorter(WrappedLoader):
        def __len__(self): return 3
        def __iter__(self): return islice(iter(self.dl), 3)
    with pytest.raises(ValueError, match='the last of the 4'): fit(norm_net(), memory(19), Wraps(4))
    fit(norm_net(), memory(19), Wraps(3))


@pytest.mark.parametrize('steps', [dict(steps=4, valid_every=3), dict(steps=9, valid_every=2), dict(steps=5)])
def test_a_fit_of_steps_says_so_too_if_it_takes_the_last_batch_in_any_epoch(steps):
    learn = learner(model=norm_net(), dls=DataLoaders(memory(19), memory(9)))
    with pytest.raises(ValueError, match='the last of the 4'): learn.fit(**steps)
    assert (learn.epoch, learn.iter) == (0, 0)
    learn.fit(steps=3, valid_every=steps.get('valid_every'))
    learn.fit(2, cbs=MaxBatchesCB(3))


# Items that nothing uses

def triples(): return DataLoaders(*[[(x, y, x) for x, y in batches(n)] for n in (3, 1)])


def test_items_that_a_train_learner_drops_are_told_once_a_fit():
    learn = learner(dls=triples())
    for _ in range(2):
        says = r'has 3 items and TrainLearner uses 2.*TrainCB\(n_inp=…\)'
        with pytest.warns(UserWarning, match=says) as told: learn.fit(2)
        assert len(told) == 1


def test_a_learner_that_takes_its_own_items_is_not_warned():
    class Mine(TrainLearner):
        def get_loss(self): self.loss = self.loss_func(self.preds, self.batch[1]) + self.batch[2].mean()
    learner(cls=Mine, dls=triples()).fit(1)
    learner(TrainCB(), cls=Learner, dls=triples(), loss_func=lambda p, y, x: F.cross_entropy(p, y)).fit(1)

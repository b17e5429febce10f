"fit_one_cycle: the rates and momenta of each group at each step against torch's own scheduler."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from miniai import AccumulateCB, AdamW, Callback, CheckpointCB, FreezeCB, Momentum, TrainLearner
from miniai.optim import SGD, no_decay_groups
from resuming import Quiet, assert_resumes_exactly
from small import learner, loaders


class Note(Callback):
    "What the optimizer's groups hold at each step."
    def __init__(self, *names): self.names, self.rows = names or ('lr',), []
    def after_step(self, learn):
        self.rows.append([[g[nm] for nm in self.names] for g in learn.opt.param_groups])


def by_torch(n, lrs, opt_func, names=('lr',), **kwargs):
    opt = opt_func([dict(params=[nn.Parameter(torch.zeros(1))], lr=lr) for lr in lrs])
    sched, rows = OneCycleLR(opt, lrs, total_steps=n, **kwargs), []
    for _ in range(n):
        rows.append([[g[nm] for nm in names] for g in opt.param_groups])
        opt.step()
        sched.step()
    return rows


def deep():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def approx(rows): return [[pytest.approx(list(g)) for g in row] for row in rows]


@settings(max_examples=15)
@given(epochs=st.integers(1, 4), batches=st.integers(1, 5), lr=st.floats(1e-4, 1.))
def test_one_rate_follows_torchs_cycle_over_all_batches_of_the_fit(epochs, batches, lr):
    learn, note = learner(model=deep(), dls=loaders(batches), opt_func=torch.optim.AdamW), Note()
    learn.fit_one_cycle(epochs, lr, cbs=note)
    assert note.rows == approx(by_torch(epochs*batches, [lr], torch.optim.AdamW))


def test_a_fit_of_a_number_of_steps_is_one_cycle_too():
    learn, note = learner(model=deep(), dls=loaders(4), opt_func=torch.optim.AdamW), Note()
    learn.fit_one_cycle(lr=.1, cbs=note, steps=7)
    assert note.rows == approx(by_torch(7, [.1], torch.optim.AdamW))


@settings(max_examples=15)
@given(epochs=st.integers(1, 3), start=st.floats(1e-6, 1e-3), times=st.floats(1., 1e3))
def test_a_slice_gives_each_layer_its_own_cycle_from_the_start_to_the_end_rate(epochs, start, times):
    end = start*times
    learn, note = learner(model=deep(), opt_func=AdamW), Note('lr', 'betas')
    learn.fit_one_cycle(epochs, slice(start, end), cbs=note)
    want = by_torch(epochs*4, [start, (start*end)**.5, end], torch.optim.AdamW, ('lr', 'betas'))
    assert [[lr for lr, _ in row] for row in note.rows] == [pytest.approx([lr for lr, _ in row]) for row in want]
    assert [row[0][1][0] for row in note.rows] == pytest.approx([row[0][1][0] for row in want])
    assert [g['name'] for g in learn.opt.param_groups] == ['0', '2', '4']


@pytest.mark.parametrize(('opt_func', 'cycles'), [
    (partial(torch.optim.SGD, momentum=.9), True), (torch.optim.SGD, False), (Momentum, True), (SGD, False)])
def test_momentum_cycles_if_the_optimizer_has_any(opt_func, cycles):
    learn, note = learner(model=deep(), opt_func=opt_func), Note('momentum' if cycles else 'lr')
    learn.fit_one_cycle(2, .1, cbs=note)
    name, of = ('momentum' if cycles else 'lr'), partial(torch.optim.SGD, momentum=.9 if cycles else 0)
    assert note.rows == approx(by_torch(8, [.1], of, (name,), cycle_momentum=cycles))
    if not cycles: assert learn.opt.param_groups[0].get('momentum', 0) == 0


def test_the_learners_rate_is_the_default_and_groups_of_ones_own_keep_theirs():
    def groups(params, lr):
        params = list(params)
        return AdamW([dict(params=params[:2], lr=lr/10), dict(params=params[2:])], lr)
    learn, note = learner(model=deep(), lr=.2, opt_func=groups), Note()
    learn.fit_one_cycle(1, cbs=[note])
    assert note.rows == approx(by_torch(4, [.02, .2], torch.optim.AdamW))


def test_groups_by_depth_and_by_decay_are_used_together():
    learn, note = learner(model=deep(), opt_func=lambda params, lr: AdamW(no_decay_groups(params, .3), lr)), Note()
    learn.fit_one_cycle(1, slice(1e-4, 1e-2), cbs=note)
    assert [g['weight_decay'] for g in learn.opt.param_groups] == [.3, 0.]*3
    want = by_torch(4, [1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2], torch.optim.AdamW)
    assert note.rows == approx(want)
    learn.fit_one_cycle(1, 1e-2)  # the same opt_func without a slice
    assert [g['weight_decay'] for g in learn.opt.param_groups] == [.3, 0.]


def test_steps_of_several_batches_are_counted():
    learn, note = learner(model=deep(), opt_func=AdamW), Note()
    learn.fit_one_cycle(2, .1, cbs=[note, AccumulateCB(2)])
    assert note.rows == approx(by_torch(8, [.1], torch.optim.AdamW)[::2])


def test_a_loss_with_parameters_learns_at_the_end_rate_and_frozen_layers_have_no_group():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, out, y): return F.cross_entropy(out*self.scale, y)
    learn = learner(model=deep(), loss_func=Scaled(), opt_func=AdamW)
    learn.freeze('0')
    learn.fit_one_cycle(1, slice(1e-4, 1e-2))
    assert [(g['name'], len(g['params'])) for g in learn.opt.param_groups] == [('2', 2), ('4', 2), ('rest', 1)]
    assert [g['max_lr'] for g in learn.opt.param_groups] == pytest.approx([1e-4, 1e-2, 1e-2])


def test_a_body_that_thaws_later_trains_at_its_own_rate():
    learn = learner([FreezeCB('0', 1)], model=deep(), opt_func=AdamW)
    before = learn.model[0].weight.clone()
    learn.fit_one_cycle(2, slice(1e-3, 1e-1))
    assert learn.opt.param_groups[0]['max_lr'] == pytest.approx(1e-3)
    assert not torch.equal(before, learn.model[0].weight)


class Cycles(TrainLearner):
    def fit(self, *args, **kwargs):
        if 'lr' in kwargs: return super().fit(*args, **kwargs)
        return self.fit_one_cycle(*args, lr=self.cycle, **kwargs)


@pytest.mark.parametrize('lr', [1e-2, slice(1e-4, 1e-2)])
def test_a_resumed_cycle_is_exact(lr, tmp_path):
    def make(folder, *cbs):
        saves = CheckpointCB(folder, batches=1, keep=99)
        learn = learner([Quiet(), saves, *cbs], cls=Cycles, model=deep(), opt_func=AdamW)
        learn.cycle = lr
        return learn
    assert_resumes_exactly(make, tmp_path)


def test_the_optimizer_function_is_put_back_also_after_an_error():
    learn = learner(model=deep(), opt_func=AdamW)
    learn.fit_one_cycle(1, slice(1e-4, 1e-2))
    assert learn.opt_func is AdamW
    class Fails(Callback):
        def after_step(self, learn): raise OSError('no')
    with pytest.raises(OSError, match='no'): learn.fit_one_cycle(1, slice(1e-4, 1e-2), cbs=Fails())
    assert (learn.opt_func, learn.cbs) == (AdamW, [])


def test_an_optimizer_that_stays_begins_each_cycle_with_its_highest_rate():
    model = deep()
    learn, note = learner(model=model, opt_func=None), Note()
    learn.opt = torch.optim.AdamW(model.parameters(), .1)
    for _ in range(2): learn.fit_one_cycle(1, cbs=note)
    assert note.rows == approx(by_torch(4, [.1], torch.optim.AdamW)*2)
    with pytest.raises(ValueError, match='lr as a slice needs an opt_func'): learn.fit_one_cycle(1, slice(1e-4, 1e-2))


@pytest.mark.parametrize('lr', [slice(1e-3), slice(1e-3, None), slice(1e-2, 1e-3), slice(0., 1e-3), slice(-1e-3, 1e-3)])
def test_a_slice_without_a_start_and_a_larger_end_is_an_error(lr):
    with pytest.raises(ValueError, match=r'lr needs a start and an end above it, as in slice\(1e-5, 1e-3\)'):
        learner(model=deep(), opt_func=AdamW).fit_one_cycle(1, lr)


def test_an_optimizer_function_that_ignores_the_groups_is_an_error():
    model = deep()
    learn = learner(model=model, opt_func=lambda params, lr: AdamW(model.parameters(), lr))
    with pytest.raises(ValueError, match=r'needs an opt_func\(params, lr\) that gives `params` to the optimizer'):
        learn.fit_one_cycle(1, slice(1e-4, 1e-2))

"The state of a run: everything that later steps depend on is saved and restored to the bit."
import csv
import io
import logging
import math
import os
import re
import string
import threading
import weakref
from copy import deepcopy
from datetime import datetime
from fractions import Fraction
from functools import partial
from itertools import count, cycle

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from tqdm.auto import tqdm

from miniai import ActivationStats, Callback, DataLoaders, MetricsCB, TrainLearner
from miniai.accel import AccumulateCB
from miniai.checkpoint.tree import flatten
from miniai.metrics.accuracy import accuracy
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.packing import unpack_dense
from miniai.resume.restore import ResumeError
from miniai.resume.state import RunState, run_state
from resuming import StopCB, assert_resumes_exactly, fit_until_stopped, net, run
from small import batches, learner


def saved(folder, *cbs, **kwargs): return learner([*cbs, CheckpointCB(folder, batches=1, keep=100)], **kwargs)


# The loss, and parameters beside the model

class Sliding(nn.Module):
    "A loss divided by a running mean of itself, in a buffer."
    def __init__(self, persistent):
        super().__init__()
        self.register_buffer('mean', torch.ones(()), persistent=persistent)

    def forward(self, preds, targets):
        loss = F.cross_entropy(preds, targets)
        self.mean.mul_(.7).add_(.3*loss.detach())
        return loss/self.mean


@pytest.mark.parametrize(('form', 'persistent'), [
    (lambda m: m, True), (lambda m: m, False), (lambda m: m.forward, True), (lambda m: partial(m.forward), True)])
def test_the_module_of_a_loss_is_restored_in_whatever_form_it_is_given(form, persistent, tmp_path):
    make = lambda folder, *cbs: saved(folder, *cbs, loss_func=form(Sliding(persistent)))  # noqa: E731
    assert_resumes_exactly(make, tmp_path)


def test_parameters_that_the_optimizer_trains_beside_the_model_are_restored(tmp_path):
    def make(folder, *cbs):
        learn = run(folder, cbs=cbs)
        warmth, plain = nn.Parameter(torch.ones(())), learn.opt_func
        learn.loss_func = lambda preds, y: F.cross_entropy(preds*warmth, y)
        learn.opt_func = lambda ps, lr: plain([*ps, warmth], lr)
        return learn
    assert_resumes_exactly(make, tmp_path, ((1, 1),))


# Other modules and optimizers

class Two(TrainLearner):
    "A second net, with its own optimizer, learns to predict the loss and scales it."
    def __init__(self, *args, lr=.1, **kwargs):
        super().__init__(*args, lr=lr, **kwargs)
        self.critic = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.critic_opt = optim.Adam(self.critic.parameters(), .01)

    def get_loss(self):
        guess = self.critic(self.batch[0]).squeeze(1)
        loss = F.cross_entropy(self.preds, self.batch[1], reduction='none')
        self.loss = (loss*guess.detach().sigmoid()).mean() + (guess - loss.detach()).square().mean()

    def step(self):
        super().step()
        if self.iter % 2: self.critic_opt.step()

    def zero_grad(self):
        super().zero_grad()
        if self.iter % 2: self.critic_opt.zero_grad()


def test_a_learners_other_modules_and_optimizers_and_their_gradients_are_restored(tmp_path):
    assert_resumes_exactly(partial(saved, cls=Two), tmp_path, ((0, 0), (0, 1), (1, 1)))


class BestCB(Callback):
    "Puts a copy of the model on the Learner after each epoch."
    def after_epoch(self, learn): learn.best_model = deepcopy(learn.model)


def test_a_module_added_during_the_run_is_left_out_with_a_warning_and_a_new_one_stays(tmp_path):
    make = partial(learner, cls=Two)
    alone = make([BestCB(), CheckpointCB(tmp_path/'alone')])
    alone.fit(3)
    make([BestCB(), CheckpointCB(tmp_path/'run')]).fit(2)
    again = make([BestCB(), CheckpointCB(tmp_path/'run')])
    again.probe = nn.Linear(2, 2)
    says = r"not restored, because this run has no such object.*: learn.best_model$"
    with pytest.warns(UserWarning, match=says): again.fit(3, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), alone.model.parameters(), strict=True))


# Modes, frozen parameters, buffers

class SwitchCB(Callback):
    "After the first epoch, ends the training of the critic and of the loss's module."
    def after_epoch(self, learn):
        if learn.training: return
        learn.critic.eval()
        learn.critic[0].requires_grad_(False)
        learn.loss_func.eval()


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(.5)

    def forward(self, preds, targets, **kwargs): return F.cross_entropy(self.drop(preds), targets, **kwargs)


class Judged(Two):
    def get_loss(self):
        super().get_loss()
        self.loss = self.loss + self.loss_func(self.preds, self.batch[1])


def test_modes_and_frozen_parameters_of_other_modules_are_restored(tmp_path):
    make = lambda folder, *cbs: saved(folder, SwitchCB(), *cbs, cls=Judged, loss_func=Dropped())  # noqa: E731
    assert_resumes_exactly(make, tmp_path, ((0, 2), (1, 0)))


class ChangeModelCB(Callback):
    "Freezes a weight for the first epoch, and stops the training of BatchNorm in each."
    def before_fit(self, learn): learn.model[0].weight.requires_grad_(False)
    def after_epoch(self, learn): learn.model[0].weight.requires_grad_(True)
    def after_batch(self, learn):
        if learn.training and learn.iter == 1: learn.model[1].eval()


def test_modes_and_frozen_parameters_that_callbacks_change_are_restored(tmp_path):
    assert_resumes_exactly(lambda folder, *cbs: run(folder, cbs=[ChangeModelCB(), *cbs]), tmp_path, ((0, 3), (1, 3)))


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = ['sea']

    def forward(self, x):
        self.register_buffer('seen', x.detach().mean() + getattr(self, 'seen', 0.), persistent=False)
        return x + 1e-3*self.seen

    def get_extra_state(self): return dict(words=['sea'])
    def set_extra_state(self, state): self.words = state['words']


def test_buffers_made_by_a_forward_and_states_that_are_not_tensors_are_restored(tmp_path):
    def make(folder, *cbs):
        torch.manual_seed(0)
        return run(folder, cbs=cbs, model=nn.Sequential(Remembering(), net()))
    assert_resumes_exactly(make, tmp_path, ((1, 1),))


# Generators and gradients

class Noise:
    "Adds noise, with its own generator."
    def __init__(self): self.rng = np.random.default_rng(3)
    def __call__(self, x): return x + float(self.rng.standard_normal())


class Moves:
    def __init__(self): self.noise = Noise()
    def apply(self, x): return self.noise(x)


class NoiseCB(Callback):
    "Has a generator deep inside; those of the Learner and its loader do not count as its own."
    def __init__(self): self.inside = dict(moves=Moves())
    def before_fit(self, learn): self.learn, self.dl, self.sampler = learn, learn.dls.train, learn.dls.train.sampler
    def before_batch(self, learn): learn.batch = self.inside['moves'].apply(learn.batch[0]), learn.batch[1]


def test_generators_deep_inside_callbacks_are_restored_and_those_of_the_learner_are_not_theirs(tmp_path):
    def make(folder, *cbs):
        g = torch.Generator().manual_seed(1)
        ds = TensorDataset(torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()]))
        dl = DataLoader(ds, 6, sampler=RandomSampler(ds, True, generator=g))
        return saved(folder, NoiseCB(), *cbs, dls=DataLoaders(dl, dl))
    assert_resumes_exactly(make, tmp_path)


def words(n=4, bs=6):
    g = torch.Generator().manual_seed(4)
    return [(torch.randint(0, 30, (bs, 5), generator=g), torch.randint(0, 3, (bs,), generator=g)) for _ in range(n)]


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(30, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x): return self.out(self.words(x).mean(1))


def test_sparse_gradients_that_wait_for_a_step_are_restored(tmp_path):
    def make(folder, *cbs):
        torch.manual_seed(2)
        return saved(folder, AccumulateCB(2), *cbs, model=Bag(), dls=DataLoaders(words(), words(2)), opt_func=optim.SGD)
    assert_resumes_exactly(make, tmp_path, ((0, 0), (0, 1)))


def test_a_sparse_gradient_with_an_index_beyond_its_shape_is_refused():
    g = dict(indices=torch.tensor([[10**9]]), values=torch.ones(1, 4), shape=[30, 4], coalesced=True)
    with pytest.raises(RuntimeError, match='size is inconsistent with indices'): unpack_dense(g)


# Callbacks

class FussyCB(Callback):
    "Has a state, and may refuse a saved one."
    def __init__(self, *refused): self.word, self.refused = 'new', set(refused)
    def before_fit(self, learn): self.word = 'begun'
    def after_batch(self, learn): self.word = 'saved'
    def state_dict(self): return dict(word=self.word)
    def load_state_dict(self, state):
        self.word = state['word']
        if self.word in self.refused: raise KeyError('flavour')


def test_if_one_callback_refuses_its_saved_state_all_keep_theirs(tmp_path):
    fit_until_stopped(run(tmp_path, cbs=[FussyCB(), FussyCB(), StopCB(0, 2)]), 1)
    first, second = FussyCB(), FussyCB('saved')
    learn = run(tmp_path, cbs=[first, second])
    before = [p.tolist() for p in learn.model.parameters()]
    says = r"learn\.cbs\.FussyCB 2 refuses its saved state: KeyError: 'flavour'"
    with pytest.warns(UserWarning, match='refused'), pytest.raises(ResumeError, match=says): learn.fit(1, resume=True)
    assert (first.word, second.word) == ('begun', 'begun')
    assert [p.tolist() for p in learn.model.parameters()] == before


def hooked(*kinds): return ActivationStats(lambda m: isinstance(m, kinds))


@pytest.mark.parametrize(('before', 'after', 'says'), [
    (lambda: MetricsCB(a=accuracy), lambda: MetricsCB(a=accuracy, b=accuracy), r"MetricsCB.metrics was .*'a'.* now"),
    (lambda: hooked(nn.Conv2d), lambda: hooked(nn.Conv2d, nn.Linear), 'ActivationStats .*statistics of 1 modules'),
    (lambda: AccumulateCB(2), lambda: AccumulateCB(4), 'AccumulateCB 2.n was 2 in the checkpoint and is 4')])
def test_records_of_other_metrics_modules_or_steps_are_refused(before, after, says, tmp_path):
    fit_until_stopped(run(tmp_path, cbs=[before(), StopCB(0, 2)]))
    with pytest.raises(ResumeError, match=says): run(tmp_path, cbs=[after()]).fit(2, resume=True)


# What is data and what is text

def holding(**held):
    learn = learner(dls=DataLoaders(*(DataLoader(TensorDataset(*b), 6) for b in batches(2))))
    learn.opt = optim.SGD(learn.model.parameters(), .1)
    for nm, x in held.items(): setattr(learn, nm, x)
    return learn


def flat(x): return {f'{path}.{nm}': v for path, slots in x.items() for nm, v in slots.items()}
def attributes(state): return flat(state['attributes'])
def settings(state): return flat(state['settings'])


class Thing:
    def __init__(self, **kwargs): vars(self).update(kwargs)


def remembering(x): return lambda: x


@pytest.mark.parametrize(('change', 'path'), [
    (lambda learn: setattr(learn, 'n', 2), 'learn.n'), (lambda learn: learn.list.append(2), 'learn.list'),
    (lambda learn: learn.nest['a'][0].add(2), 'learn.nest'), (lambda learn: learn.x.add_(1), 'learn.x'),
    (lambda learn: setattr(learn.thing, 'rate', 2.), 'learn.thing.rate'),
    (lambda learn: setattr(learn.model, 'n', 1), 'learn.model.n'),
    (lambda learn: setattr(learn, 'new', 'word'), 'learn.new'),
    (lambda learn: setattr(learn.dls.train, 'seen', [1]), 'learn.dls.train.seen'),
    (lambda learn: learn.dls.train.dataset.tensors[0].add_(1), 'learn.dls.train.dataset.tensors'),
    (lambda learn: setattr(learn.f, 'calls', 3), 'learn.f.calls'),
    (lambda learn: learn.big.__setitem__(0, 1), 'learn.big')])
def test_what_changed_since_the_fit_began_is_data_and_what_did_not_is_text(change, path):
    learn = holding(n=1, list=[1], nest=dict(a=[{1}]), x=torch.zeros(9), thing=Thing(rate=.1), big=[0]*999,
                    f=remembering(Thing()))
    state = RunState(learn)
    before = state.take(learn)
    assert path not in attributes(before)
    change(learn)
    after = state.take(learn)
    assert attributes(after).keys() - attributes(before).keys() == {path}
    assert path not in settings(after)
    assert settings(before).keys() - settings(after).keys() <= {path}
    assert {k: x for k, x in settings(before).items() if k != path} == settings(after)


def test_settings_are_class_and_slots_as_text():
    found = settings(RunState(learn := holding(n=1, thing=Thing(rate=.1))).take(learn))
    want = {'learn.n': '1', 'learn.thing.rate': '0.1', 'learn.thing': 'Thing', 'learn.model.0.in_features': '4',
            'learn.model.frozen': '[]', 'learn.opt.class': 'SGD', 'learn.opt.group 0.momentum': '0',
            'learn.dls.train.batch_size': '6', 'learn.model.1.class': 'ReLU', 'learn.loss_func': 'cross_entropy'}
    assert {k: found.get(k) for k in want} == want


def test_values_of_which_text_tells_only_some_are_data_but_large_data_only_if_it_changed():
    x = torch.zeros(2**10, 2**9)
    learn = holding(x=x.clone(), many=[0]*1001, weight=nn.Parameter(torch.zeros(2)))
    learn.dls.train.dataset.tensors = x, torch.zeros(2**10)
    learn.dls.train.many = [0]*1001
    state = RunState(learn)
    assert {k for k in attributes(state.take(learn)) if not k.startswith('learn.dls')} == {
        'learn.x', 'learn.many', 'learn.weight'}
    assert not {k for k, v in attributes(state.take(learn)).items() if k.startswith('learn.dls') and not isinstance(
        v, int | str | None)}
    x[0] = 1
    assert 'learn.dls.train.dataset.tensors' in attributes(state.take(learn))


def test_how_a_pass_began_is_a_copy_of_what_has_changed_in_it_and_only_of_the_data():
    learn = holding(n=1)
    learn.dls.train.rng, learn.dls.train.order = np.random.default_rng(1), np.arange(3)
    learn.dls.train.fixed = [1, 2]
    state = RunState(learn)
    state.begin_pass(learn)
    learn.dls.train.order[:] = 9
    learn.n, learn.dls.train.late = 2, 1
    begun = state.take(learn, ['begun'])['begun']
    assert {*begun} == {'attributes', 'absent', 'states', 'random', 'running'}
    assert begun['absent'] == {'learn.dls.train': ['late']}
    assert {*attributes(begun)} == {'learn.dls.train.order'}
    assert attributes(begun)['learn.dls.train.order'].tolist() == [0, 1, 2]
    assert 'learn.dls.train.rng' in begun['states']


ORDER = np.arange(3)


def test_a_global_order_that_the_learner_holds_too_is_part_of_how_a_pass_began():
    learn = holding(thing=Thing(order=ORDER))
    learn.dls.train.order_of = lambda: ORDER
    state, before = RunState(learn), ORDER.copy()
    try:
        ORDER[:] = 5
        state.begin_pass(learn)
        ORDER[:] = 9
        begun = state.take(learn, ['begun'])['begun']
        assert attributes(begun)[f'module {__name__}.ORDER'].tolist() == [5, 5, 5]
    finally: ORDER[:] = before


def test_the_whole_state_of_a_run_is_data():
    learn = holding(n=1, thing=Thing(rate=.1))
    assert {'learn.n', 'learn.thing.rate', 'learn.dls.train.batch_size'} <= attributes(run_state(learn)).keys()


# What no checkpoint can hold

def drawing():
    while True: yield 1


def advance(x): next(x)


@pytest.mark.parametrize(('make', 'change', 'kind'), [
    (drawing, advance, 'generator'), (lambda: iter([1, 2]), advance, 'list_iterator'), (count, advance, 'count'),
    (lambda: iter({1, 2}), advance, 'set_iterator'), (lambda: iter(range(3)), advance, 'range_iterator'),
    (lambda: string.Template('a'), lambda x: setattr(x, 'template', 'b'), 'Template')])
def test_a_change_in_an_object_that_is_not_entered_is_reported_once_by_path(make, change, kind):
    learn = holding(thing=Thing(inside=make()))
    state = RunState(learn)
    state.take(learn)
    change(learn.thing.inside)
    says = rf'cannot hold them: learn.thing.inside \({kind}\)'
    with pytest.warns(UserWarning, match=says): state.take(learn)
    change(learn.thing.inside)
    state.take(learn)


@pytest.mark.parametrize('x', [cycle([1, 2]), map(str, [1, 2]), zip([1, 2], [2, 3], strict=True)])
def test_an_iterator_that_does_not_tell_where_it_stands_is_reported_once_whether_or_not_it_moved(x):
    learn = holding(thing=Thing(inside=x))
    state = RunState(learn)
    says = rf'cannot hold them: learn.thing.inside \({type(x).__name__}\)'
    with pytest.warns(UserWarning, match=says): state.take(learn)
    next(x)
    state.take(learn)


def test_what_became_impossible_to_save_is_reported_once_by_path():
    learn = holding(thing=Thing(inside=None, rows=[1]))
    state = RunState(learn)
    learn.thing.inside, learn.thing.rows = np.array([object()]), [1, torch.ones(2, device='meta')]
    says = r'cannot hold them: learn.thing.inside \(ndarray\), learn.thing.rows\[1\] \(Tensor\)'
    with pytest.warns(UserWarning, match=says) as found: state.take(learn)
    assert len(found) == 1
    state.take(learn)


class Words:
    names = np.array(['cat', 'dog'])


@pytest.mark.parametrize('make', [
    lambda: tqdm(range(9), file=io.StringIO()), partial(open, os.devnull, 'w'), lambda: io.StringIO(), plt.figure,
    lambda: logging.getLogger('a'), threading.Lock, lambda: csv.writer(io.StringIO()), lambda: re.compile('a'),
    lambda: np.array(['cat', 'dog']), lambda: [Thing() for _ in range(1500)], Words,
    lambda: torch.ones(2, device='meta'),
    lambda: np.zeros(2, [('a', 'i4')]), lambda: torch.eye(2).to_sparse(), lambda: weakref.proxy(Thing()), lambda: Thing,
    lambda: print, lambda: np.mean, lambda: math, lambda: datetime.now(), lambda: Fraction(1, 3), lambda: drawing()])
@pytest.mark.filterwarnings('ignore:.*unclosed file:ResourceWarning')
def test_what_did_not_change_or_only_shows_is_not_reported(make):
    learn = holding(thing=Thing(inside=make()))
    state = RunState(learn)
    for _ in range(2): flatten(state.take(learn))
    kind = type(learn.thing.inside)  # isinstance would look through a weak reference
    if issubclass(kind, tqdm): learn.thing.inside.update(3)
    if issubclass(kind, io.IOBase): learn.thing.inside.write('a')
    if issubclass(kind, plt.Figure): learn.thing.inside.add_subplot().plot([1, 2])
    flatten(state.take(learn))

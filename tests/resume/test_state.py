"The state of a run: everything that later steps depend on is saved and restored to the bit."
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from miniai import ActivationStats, Callback, DataLoaders, TrainLearner
from miniai.accel import AccumulateCB
from miniai.callbacks.metrics import accuracy
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.state import ResumeError, _unpacked, generators_in_callbacks
from resuming import Quiet, StopCB, assert_resumes_exactly, fit_until_stopped, net, run
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
    says = "the checkpoint has the Learner's best_model, but .* this will not be restored"
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
    learn = make(tmp_path/'names')
    NoiseCB.before_fit(learn.cbs[0], learn)
    assert [nm for nm, _ in generators_in_callbacks(learn)] == ['NoiseCB.inside.moves.noise.rng']


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
    with pytest.raises(RuntimeError, match='size is inconsistent with indices'): _unpacked(g)


# Callbacks

class FussyCB(Callback):
    "Has a state, and may refuse a saved one."
    def __init__(self, refuses=False): self.word, self.refuses = 'new', refuses
    def before_fit(self, learn): self.word = 'begun'
    def after_batch(self, learn): self.word = 'saved'
    def state_dict(self): return dict(word=self.word)
    def load_state_dict(self, state):
        self.word = state['word']
        if self.refuses and self.word == 'saved': raise KeyError('flavour')


def test_if_one_callback_refuses_its_saved_state_all_keep_theirs(tmp_path):
    fit_until_stopped(run(tmp_path, cbs=[FussyCB(), FussyCB(), StopCB(0, 2)]), 1)
    first, second = FussyCB(), FussyCB(refuses=True)
    learn = run(tmp_path, cbs=[first, second])
    before = [p.tolist() for p in learn.model.parameters()]
    with pytest.raises(ResumeError, match="cannot resume: FussyCB 2 refuses its saved state: KeyError: 'flavour'"):
        learn.fit(1, resume=True)
    assert (first.word, second.word) == ('begun', 'begun')
    assert [p.tolist() for p in learn.model.parameters()] == before


def hooked(*kinds): return ActivationStats(lambda m: isinstance(m, kinds))


@pytest.mark.parametrize(('before', 'after', 'says'), [
    (lambda: Quiet(a=accuracy), lambda: Quiet(a=accuracy, b=accuracy), r"Quiet 2 .*metrics .*\['a', 'loss'\]"),
    (lambda: hooked(nn.Conv2d), lambda: hooked(nn.Conv2d, nn.Linear), 'ActivationStats 1 .*statistics of 1 modules'),
    (lambda: AccumulateCB(2), lambda: AccumulateCB(4), 'AccumulateCB 2 .*n was 2 in the checkpoint and is 4')])
def test_records_of_other_metrics_modules_or_steps_are_refused(before, after, says, tmp_path):
    fit_until_stopped(run(tmp_path, cbs=[before(), StopCB(0, 2)]))
    with pytest.raises(ResumeError, match=says): run(tmp_path, cbs=[after()]).fit(2, resume=True)

"What a run is made of: whatever a later step depends on is saved, and put back to the bit."
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from miniai import Callback, DataLoaders, TrainLearner
from miniai.accel import AccumulateCB
from miniai.resume import state as run_state
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.state import ResumeError
from resuming import StopCB, digest
from small import batches, learner


def wherever_it_stops_it_ends_the_same(make, tmp_path, stops=((0, 0), (0, 2), (1, 1))):
    "`make(folder, *cbs)` gives a Learner; it is stopped after a batch, and another goes on under another seed."
    alone = make(tmp_path/'alone')
    alone.fit(2)
    for at in stops:
        with pytest.raises(RuntimeError, match='stopped'): make(tmp_path/str(at), StopCB(*at)).fit(2)
        again = make(tmp_path/str(at))
        torch.manual_seed(99)
        again.fit(2, resume=True)
        if digest(again) != digest(alone): return False
    return True


def saved(folder, *cbs, **kwargs): return learner([*cbs, CheckpointCB(folder, batches=1, keep=100)], **kwargs)


class Sliding(nn.Module):
    "A loss that is weighed by a running mean of itself, in a buffer."
    def __init__(self, persistent):
        super().__init__()
        self.register_buffer('mean', torch.ones(()), persistent=persistent)

    def forward(self, preds, targets):
        loss = F.cross_entropy(preds, targets)
        self.mean.mul_(.7).add_(.3*loss.detach())
        return loss*self.mean

@pytest.mark.parametrize('form', [lambda m: m, lambda m: m.forward, lambda m: partial(m.forward)])
@pytest.mark.parametrize('persistent', [True, False])
def test_the_module_of_a_loss_goes_on_in_whatever_form_it_is_given(form, persistent, tmp_path):
    make = lambda folder, *cbs: saved(folder, *cbs, loss_func=form(Sliding(persistent)))  # noqa: E731
    assert wherever_it_stops_it_ends_the_same(make, tmp_path)


class Two(TrainLearner):
    "A second net with an optimizer of its own, which learns to guess the first one's loss and scales it."
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
        self.critic_opt.step()

    def zero_grad(self):
        super().zero_grad()
        self.critic_opt.zero_grad()


def test_modules_and_optimizers_that_a_learner_has_besides_go_on(tmp_path):
    assert wherever_it_stops_it_ends_the_same(partial(saved, cls=Two), tmp_path)


def test_their_gradients_wait_for_a_step_too(tmp_path):
    class Seldom(Two):
        def step(self):
            TrainLearner.step(self)
            if self.iter % 2: self.critic_opt.step()
        def zero_grad(self):
            TrainLearner.zero_grad(self)
            if self.iter % 2: self.critic_opt.zero_grad()
    assert wherever_it_stops_it_ends_the_same(partial(saved, cls=Seldom), tmp_path)


class Wider(Two):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.critic[2] = nn.Linear(8, 2)


class More(Two):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.critic_opt = optim.AdamW(self.critic.parameters(), .01)


class Fewer(Two):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.critic_opt = optim.Adam(self.critic[2].parameters(), .01)


@pytest.mark.parametrize(('cls', 'says'), [
    (Wider, r"the Learner's critic 2.weight was '\(1, 8\) float32' in the checkpoint and is '\(2, 8\) float32' here"),
    (More, r"the Learner's critic_opt was 'Adam' in the checkpoint and is 'AdamW' here"),
    (Fewer, r"the Learner's critic_opt parameters of groups was \[6\] in the checkpoint and is \[2\] here")])
def test_where_they_are_others_the_run_is_refused_with_both(cls, says, tmp_path):
    saved(tmp_path, cls=Two).fit(1)
    with pytest.raises(ResumeError, match=says): saved(tmp_path, cls=cls).fit(2, resume=True)


class BestCB(Callback):
    "Puts a copy of the model on the Learner after each epoch."
    def after_epoch(self, learn): learn.best_model = deepcopy(learn.model)


def test_one_that_came_on_the_way_is_told_and_left_out_and_one_that_is_new_stays(tmp_path):
    make = partial(learner, cls=Two)
    alone = make([BestCB(), CheckpointCB(tmp_path/'alone')])
    alone.fit(3)
    make([BestCB(), CheckpointCB(tmp_path/'run')]).fit(2)
    again = make([BestCB(), CheckpointCB(tmp_path/'run')])
    again.probe = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match='has not as its fit begins, and leaves out: best_model'):
        again.fit(3, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), alone.model.parameters(), strict=True))


class SwitchCB(Callback):
    "Ends the critic's training, and that of the loss's module, after the first epoch."
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


def test_modes_and_frozen_parameters_of_what_is_beside_the_model_go_on(tmp_path):
    make = lambda folder, *cbs: saved(folder, SwitchCB(), *cbs, cls=Judged, loss_func=Dropped())  # noqa: E731
    assert wherever_it_stops_it_ends_the_same(make, tmp_path, ((0, 2), (1, 0), (1, 2)))


def test_another_loss_module_is_refused_with_both(tmp_path):
    saved(tmp_path, loss_func=nn.CrossEntropyLoss(torch.ones(3))).fit(1)
    again = saved(tmp_path, loss_func=nn.CrossEntropyLoss())
    before = again.model[0].weight.tolist()
    with pytest.raises(ResumeError, match=r"the loss weight was '\(3,\) float32' .* and is nothing here"):
        again.fit(2, resume=True)
    assert again.model[0].weight.tolist() == before


class Noise:
    "An object of nobody's class that moves what it is given, by a generator of its own."
    def __init__(self): self.rng = np.random.default_rng(3)
    def __call__(self, x): return x + float(self.rng.standard_normal())


class Moves:
    def __init__(self): self.noise = Noise()
    def apply(self, x): return self.noise(x)


class NoiseCB(Callback):
    "Holds a generator deep inside, and the Learner and its loader, whose generators are not its own."
    def __init__(self): self.inside = dict(moves=Moves())
    def before_fit(self, learn): self.learn, self.dl, self.sampler = learn, learn.dls.train, learn.dls.train.sampler
    def before_batch(self, learn): learn.batch = self.inside['moves'].apply(learn.batch[0]), learn.batch[1]


def test_generators_that_callbacks_hold_however_deep_go_on_and_those_of_the_learner_are_not_theirs(tmp_path):
    def make(folder, *cbs):
        g = torch.Generator().manual_seed(1)
        ds = TensorDataset(torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()]))
        dl = DataLoader(ds, 6, sampler=RandomSampler(ds, True, generator=g))
        return saved(folder, NoiseCB(), *cbs, dls=DataLoaders(dl, dl))
    assert wherever_it_stops_it_ends_the_same(make, tmp_path)
    learn = make(tmp_path/'names')
    NoiseCB.before_fit(learn.cbs[0], learn)
    assert [nm for nm, _ in run_state.generators_in_callbacks(learn)] == ['NoiseCB.inside.moves.noise.rng']


def words(n=4, bs=6):
    g = torch.Generator().manual_seed(4)
    return [(torch.randint(0, 30, (bs, 5), generator=g), torch.randint(0, 3, (bs,), generator=g)) for _ in range(n)]


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(30, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x): return self.out(self.words(x).mean(1))


def test_sparse_gradients_that_wait_for_a_step_go_on(tmp_path):
    def make(folder, *cbs):
        torch.manual_seed(2)
        return saved(folder, AccumulateCB(2), *cbs, model=Bag(), dls=DataLoaders(words(), words(2)), opt_func=optim.SGD)
    assert wherever_it_stops_it_ends_the_same(make, tmp_path, ((0, 0), (0, 1), (1, 2)))


def test_a_sparse_gradient_with_an_index_beyond_its_shape_is_refused():
    g = dict(indices=torch.tensor([[10**9]]), values=torch.ones(1, 4), shape=[30, 4], coalesced=True)
    with pytest.raises(RuntimeError, match='size is inconsistent with indices'): run_state._unpacked(g)

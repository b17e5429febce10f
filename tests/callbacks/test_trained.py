"A loss that is a module trains, moves and resumes with the model, next to plain PyTorch; a frozen model says so."
import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from miniai import AccumulateCB, Callback, CheckpointCB, DeviceCB, TrainLearner
from miniai.accel import AccelerateCB
from miniai.callbacks.train_loss import LabelSmoothingCB, TrainLossCB
from miniai.learner import Learner, MomentumLearner
from miniai.optim import AdamW
from resuming import assert_resumes_exactly
from small import batches, equal, learner, loaders, mlp, same, weights


class CenterLoss(nn.Module):
    "Cross-entropy, and the distance to learned centers; counts its calls."
    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.linspace(-1, 1, 9).reshape(3, 3))
        self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer('calls', torch.zeros(()))

    def forward(self, preds, y):
        self.calls += 1
        return F.cross_entropy(preds, y) + .1*(preds - self.centers[y]).square().mean()*self.fixed.mean()

    def other_name(self, preds, y): return self(preds, y)


def plain_fit(n_epochs=2, opt_func=optim.AdamW, **kwargs):
    torch.manual_seed(3)
    model, loss = mlp(), CenterLoss()
    opt = opt_func([*model.parameters(), loss.centers], lr=.05, **kwargs)
    for _ in range(n_epochs):
        for xb, yb in batches():
            loss(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()
    return model.state_dict(), loss.centers


GIVEN = {'as it is': lambda loss: loss, 'in a partial': lambda loss: partial(partial(loss.forward)),
         'as a method': lambda loss: loss.other_name}


@pytest.mark.parametrize('given', GIVEN)
@pytest.mark.parametrize('opt_func', [optim.AdamW, AdamW])
def test_the_parameters_of_a_loss_train_with_those_of_the_model(given, opt_func):
    loss = CenterLoss()
    learn = learner(loss_func=GIVEN[given](loss), lr=.05, opt_func=opt_func)
    learn.fit(2)
    model, centers = plain_fit()
    torch.testing.assert_close(weights(learn), dict(model))
    torch.testing.assert_close(loss.centers, centers)


def test_the_parameters_of_a_training_loss_train():
    loss = CenterLoss()
    learner(TrainLossCB(loss), lr=.05, opt_func=optim.AdamW).fit(2)
    torch.testing.assert_close(loss.centers, plain_fit()[1])


def test_a_loss_that_shares_parameters_with_the_model_gives_each_once():
    class Tied(CenterLoss):
        def __init__(self, model):
            super().__init__()
            self.last, self.model = model[2], [model]
    model = mlp()
    given = []
    def opt_func(params, lr):
        given.extend(params)
        return optim.SGD(given, lr)
    loss = Tied(model)
    learner(TrainLossCB(loss), model=model, loss_func=loss, opt_func=opt_func).fit(1)
    assert [id(p) for p in given] == [id(p) for p in (*model.parameters(), loss.centers)]


def test_momentum_learner_keeps_mom_of_the_gradients_of_a_loss_too():
    learn = learner(loss_func=CenterLoss(), cls=MomentumLearner, lr=.05, mom=.7)
    learn.fit(2, valid=False)
    model, centers = plain_fit(opt_func=optim.SGD, momentum=.7)
    torch.testing.assert_close(learn.loss_func.centers, centers)
    torch.testing.assert_close(weights(learn), dict(model))


def test_accumulated_gradients_of_a_loss_are_those_of_one_large_batch():
    halves = [(x[i:i + 3], y[i:i + 3]) for x, y in batches() for i in (0, 3)]
    learn = learner(AccumulateCB(2), loss_func=CenterLoss(), dls=type(loaders())(halves, []), lr=.05,
                    opt_func=optim.SGD)
    learn.fit(2, valid=False)
    _, centers = plain_fit(opt_func=optim.SGD)
    torch.testing.assert_close(learn.loss_func.centers, centers)


@pytest.mark.parametrize('makes', [True, False])
def test_parameters_of_a_loss_that_the_optimizer_lacks_are_named(makes):
    model, loss = mlp(), CenterLoss()
    opt = optim.SGD(model.parameters(), lr=.1)
    learn = learner(model=model, loss_func=loss, opt_func=(lambda params, lr: opt) if makes else None)
    if not makes: learn.opt = opt
    with pytest.warns(UserWarning, match=r'does not have these parameters of the loss.*: loss_func\.centers\. Let'):
        learn.fit(1)
    loss.requires_grad_(False)
    learn.fit(1)


def test_parameters_of_a_loss_in_another_optimizer_of_the_learner_are_fine():
    class Two(TrainLearner):
        def step(self):
            super().step()
            self.opt_loss.step()
    model, loss = mlp(), CenterLoss()
    learn = learner(cls=Two, model=model, loss_func=loss, opt_func=lambda params, lr: optim.SGD(model.parameters(), lr))
    learn.opt_loss = optim.SGD(loss.parameters(), lr=.1)
    before = loss.centers.clone()
    learn.fit(1)
    assert not torch.equal(before, loss.centers)


class Gone(Callback):
    "Stops at the first batch, after noting where the loss is."
    only_shows = True
    def before_batch(self, learn):
        self.devices = {x.device.type for x in (*learn.loss_func.parameters(), *learn.loss_func.buffers())}
        raise KeyboardInterrupt


@pytest.mark.filterwarnings('ignore:the optimizer')  # a move to `meta` makes new parameters
@pytest.mark.parametrize('cls', [TrainLossCB, None])
def test_a_loss_moves_with_the_model(cls):
    loss, stop = CenterLoss(), Gone()
    own = loss if cls is None else CenterLoss()
    learn = learner([DeviceCB('meta'), stop, *([] if cls is None else [cls(loss)])], loss_func=own)
    with pytest.raises(KeyboardInterrupt): learn.fit(1)
    assert stop.devices == {'meta'}
    assert loss.calls.is_meta


def test_class_weights_of_a_smoothed_loss_move_with_the_model():
    learn = learner([DeviceCB('meta'), LabelSmoothingCB(), stop := Gone()],
                    loss_func=nn.CrossEntropyLoss(weight=torch.ones(3)))
    with pytest.raises(KeyboardInterrupt): learn.fit(1)
    assert learn.cbs[1].loss_func.weight.is_meta
    assert stop.devices == {'meta'}


def test_a_loss_moves_and_trains_with_accelerate():
    pytest.importorskip('accelerate')
    learn = learner(AccelerateCB(mixed_precision='no'), cls=Learner, loss_func=CenterLoss(), lr=.05,
                    opt_func=optim.AdamW)
    moved = []
    learn.loss_func.to = lambda device: moved.append(device)
    learn.fit(2)
    torch.testing.assert_close(learn.loss_func.centers, plain_fit()[1])
    assert moved == [learn.cbs[0].acc.device]


@pytest.mark.parametrize('opt_func', [optim.AdamW, AdamW])
def test_a_run_whose_loss_trains_resumes_exactly(tmp_path, opt_func):
    def make(folder, *cbs):
        torch.manual_seed(0)
        return TrainLearner(mlp(), loaders(), CenterLoss(), .05, [CheckpointCB(folder, batches=1, keep=1000), *cbs],
                            opt_func)
    assert_resumes_exactly(make, tmp_path)
    learn = make(tmp_path/'more')
    learn.fit(3)
    resumed = make(tmp_path/'whole')
    resumed.fit(3, resume=True)
    assert equal(learn.opt.state_dict(), resumed.opt.state_dict())
    assert same(learn.loss_func.state_dict(), resumed.loss_func.state_dict())


# Frozen models

def only_trainable(params, lr): return optim.SGD([p for p in params if p.requires_grad], lr)


@pytest.mark.parametrize('opt_func', [optim.SGD, AdamW, only_trainable])
def test_a_frozen_model_is_an_error_before_the_first_batch_and_may_validate(opt_func):
    learn = learner(model=mlp().requires_grad_(False), opt_func=opt_func)
    for run in (lambda: learn.fit(1), learn.lr_find):
        with pytest.raises(ValueError, match=r'nothing to train: no parameter .*unfreeze'): run()
        assert learn.iter is None
    learn.fit(1, train=False)
    assert len(learn.capture_preds()[0]) == 12
    assert learn.summary().params == 67


def test_a_frozen_model_whose_loss_trains_is_fine():
    learn = learner(model=mlp().requires_grad_(False), loss_func=CenterLoss())
    before = copy.deepcopy(learn.loss_func.centers)
    learn.fit(1)
    assert not torch.equal(before, learn.loss_func.centers)


@pytest.mark.parametrize('event', ['before_fit', 'before_epoch'])
def test_a_callback_may_thaw_a_frozen_model_before_the_first_batch(event):
    def thaw(learn): learn.model.requires_grad_(True)
    learn = learner(type('Thaw', (Callback,), {event: lambda self, learn: thaw(learn)})(),
                    model=mlp().requires_grad_(False))
    before = weights(learn)
    learn.fit(1)
    assert not same(before, weights(learn))


def test_an_error_of_the_optimizers_own_stays():
    with pytest.raises(ValueError, match='empty parameter list'):
        learner(model=nn.Flatten(), opt_func=optim.SGD).fit(1)
    with pytest.raises(ValueError, match='Invalid momentum'): learner(opt_func=partial(optim.SGD, momentum=-1)).fit(1)

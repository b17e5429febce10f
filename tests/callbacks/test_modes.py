"What stands in eval mode inside a model stays there, against plain PyTorch loops that put it back by hand."
import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from miniai import Callback, CheckpointCB
from miniai.accel import AccelerateCB
from miniai.learner import Learner, TrainLearner
from resuming import assert_resumes_exactly, digest
from small import batches, learner, loaders, same, weights


def net(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(.5), nn.Linear(8, 3))


def plain_fit(model, n_epochs, frozen=(), valid=True):
    opt = optim.SGD(model.parameters(), lr=.1)
    torch.manual_seed(3)
    for _ in range(n_epochs):
        model.train()
        for m in frozen: m.eval()
        for xb, yb in batches():
            F.cross_entropy(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()
        if valid: model.eval()


def start(model, **kwargs):
    "A Learner on `model`, and a copy of the model for a plain loop."
    torch.manual_seed(1)
    for p in model.parameters(): nn.init.normal_(p)
    return learner(model=model, **kwargs), copy.deepcopy(model)


def fit(learn, *args, **kwargs):
    torch.manual_seed(3)
    learn.fit(*args, **kwargs)


def seen_in_training(learn, *of):
    "The modes of modules, noted in every training batch from now on."
    seen = []
    def look(learn):
        if learn.model.training: seen.append(tuple(m.training for m in of))
    learn.cbs.append(SimpleNamespace(after_predict=look, only_shows=True))
    return seen


@pytest.mark.parametrize('valid', [True, False])
def test_a_frozen_batch_norm_keeps_its_statistics_over_epochs_and_fits(valid):
    learn, plain = start(net())
    learn.model[1].eval()
    for _ in range(2):
        fit(learn, 2, valid=valid)
        plain_fit(plain, 2, [plain[1]], valid)
        assert same(weights(learn), plain.state_dict())
    assert learn.model[1].num_batches_tracked == 0
    assert learn.model.training is not valid


def test_a_model_that_is_wholly_in_eval_mode_trains_wholly():
    learn, plain = start(net())
    learn.model.eval()
    for _ in range(2):
        fit(learn, 1)
        plain_fit(plain, 1)
    assert same(weights(learn), plain.state_dict())


def test_a_model_in_eval_mode_with_one_part_in_training_mode_trains_that_part():
    learn, _ = start(net())
    learn.model.eval()
    learn.model[3].train()
    seen = seen_in_training(learn, *learn.model)
    fit(learn, 2)
    assert set(seen) == {(False, False, False, True)}


def test_a_frozen_part_is_thawed_by_train_on_itself_or_on_the_model():
    for thaw in (lambda model: model[1].train(), lambda model: model.train()):
        learn, plain = start(net())
        learn.model[1].eval()
        fit(learn, 1)
        plain_fit(plain, 1, [plain[1]])
        thaw(learn.model)
        fit(learn, 2)
        plain_fit(plain, 2)
        assert same(weights(learn), plain.state_dict())


@pytest.mark.parametrize('valid', [True, False])
def test_a_callback_can_thaw_in_the_middle_of_a_fit(valid):
    class Thaw(Callback):
        def before_epoch(self, learn):
            if learn.epoch == 1 and learn.model.training: learn.model[1].train()
    learn, _ = start(net(), cbs=Thaw())
    learn.model[1].eval()
    seen = seen_in_training(learn, learn.model[1])
    fit(learn, 3, valid=valid)
    assert seen == [(False,)]*4 + [(True,)]*8


class FreezesItself(nn.Sequential):
    "A model whose own `train` keeps its BatchNorm in eval mode, as long as `frozen` is set."
    frozen = True
    def train(self, mode=True):
        super().train(mode)
        if self.frozen: self[1].eval()
        return self


@pytest.mark.parametrize('valid', [True, False])
def test_a_models_own_train_method_decides_and_may_change_its_mind(valid):
    learn, _ = start(FreezesItself(*net()))
    seen = seen_in_training(learn, learn.model[1], learn.model[2])
    fit(learn, 2, valid=valid)
    learn.model.frozen = False
    fit(learn, 2, valid=valid)
    assert seen == [(False, True)]*8 + [(True, True)]*8


def test_modes_inside_a_frozen_part_stay_as_they_are():
    learn, _ = start(nn.Sequential(net(), nn.Linear(3, 3)))
    learn.model[0].requires_grad_(False).eval()
    learn.model[0][2].train()
    seen = seen_in_training(learn, learn.model[0], *learn.model[0])
    fit(learn, 2)
    assert set(seen) == {(False, False, False, True, False)}


def test_a_model_replaced_by_another_is_looked_at_anew():
    learn, _ = start(net())
    learn.model[1].eval()
    fit(learn, 1)
    learn.model = net().eval()
    seen = seen_in_training(learn, *learn.model)
    fit(learn, 1)
    assert set(seen) == {(True,)*4}


class Wrapper(nn.Module):
    "A wrapper such as DistributedDataParallel: in training mode from the start, whatever it wraps."
    def __init__(self, module):
        super().__init__()
        self.module = module
    def forward(self, x): return self.module(x)


def test_a_wrapper_is_looked_through():
    learn, _ = start(net())
    learn.model = Wrapper(learn.model.eval())
    seen = seen_in_training(learn, *learn.model.module)
    fit(learn, 1)
    assert set(seen) == {(True,)*4}
    learn.model.module.train()
    learn.model.module[1].eval()
    fit(learn, 1)
    learn.model = Wrapper(learn.model.module)
    fit(learn, 1)
    assert seen[4:] == [(True, False, True, True)]*8


def test_with_accelerate_what_is_frozen_stays_frozen():
    pytest.importorskip('accelerate')
    learn, _ = start(net(), cls=Learner, cbs=[AccelerateCB(mixed_precision='no')])
    learn.model[1].eval()
    fit(learn, 2)
    fit(learn, 1)
    assert learn.model[1].num_batches_tracked == 0


@pytest.mark.parametrize('look', ['lr_find', 'summary', 'capture_preds', 'show_image_batch'])
def test_dry_runs_keep_what_is_frozen_and_leave_all_modes_as_they_were(look, monkeypatch):
    monkeypatch.setattr('miniai.diagnosis.capture.show_images', lambda *args, **kwargs: None)
    learn, plain = start(net())
    learn.model[1].eval()
    seen = seen_in_training(learn, learn.model[1])
    for _ in range(2):
        modes = [m.training for m in learn.model.modules()]
        getattr(learn, look)()
        assert [m.training for m in learn.model.modules()] == modes
        fit(learn, 1)
        plain_fit(plain, 1, [plain[1]])
    assert set(seen) == {(False,)}
    assert same(weights(learn), plain.state_dict())


def test_dropout_that_is_off_where_parameters_train_is_told():
    learn, _ = start(nn.Sequential(net().eval(), nn.Linear(3, 3)))
    says = r'^0 is in eval mode.*its dropout is off.*learn\.model\.train\(\)'
    with pytest.warns(UserWarning, match=says): fit(learn, 1)
    learn.model[0].requires_grad_(False)
    fit(learn, 1)


def test_a_body_left_in_eval_by_an_earlier_fit_is_told_and_a_norm_frozen_by_itself_is_not():
    body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    fit(start(body)[0], 1)  # which ends in eval mode
    learn, _ = start(nn.Sequential(body, nn.Linear(3, 3)))
    before = body[1].running_mean.clone()
    says = r'^0 is in eval mode.*stays so: its BatchNorm keeps its statistics, although its parameters train\. If you'
    with pytest.warns(UserWarning, match=says): fit(learn, 1)
    assert torch.equal(body[1].running_mean, before)
    learn.model.train()
    fit(learn, 1)
    assert not torch.equal(body[1].running_mean, before)
    learn.model.train()
    body[1].eval()
    fit(learn, 1)


def frozen_run(folder, *cbs, n_before=0):
    torch.manual_seed(0)
    learn = TrainLearner(net(), loaders(), F.cross_entropy, .1)
    learn.model[1].eval()
    if n_before: learn.fit(n_before)
    learn.cbs = [CheckpointCB(folder, batches=1, keep=1000), *cbs]
    return learn


@pytest.mark.parametrize('n_before', [0, 1])
def test_a_run_with_a_frozen_batch_norm_resumes_exactly(tmp_path, n_before):
    assert_resumes_exactly(partial(frozen_run, n_before=n_before), tmp_path, stops=((0, 2), (0, 1, False), (1, 1)))


def test_a_run_with_a_frozen_batch_norm_resumes_exactly_after_an_epoch(tmp_path):
    whole = frozen_run(tmp_path/'whole')
    whole.fit(2)
    frozen_run(tmp_path/'run').fit(1)
    resumed = frozen_run(tmp_path/'run')
    resumed.fit(2, resume=True)
    assert digest(resumed) == digest(whole)

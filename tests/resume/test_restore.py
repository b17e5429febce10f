"What must be the same for a run to resume: a difference is refused with both values, before anything is restored."
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as S

from miniai import BatchSchedCB, Callback, DataLoaders, MixUpCB, ProgressCB, RecorderCB
from miniai.init import BatchTransformCB
from miniai.learner import MomentumLearner
from miniai.optim import AdamW, Lion
from miniai.randomness import describe_states
from miniai.resume import placed, restore
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.restore import ResumeError
from resuming import Noisy, StopCB, assert_resumes_exactly, fit_until_stopped, run
from small import learner


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    "The folder of a run that was stopped in its first epoch."
    folder = tmp_path_factory.mktemp('run')
    fit_until_stopped(run(folder, cbs=[StopCB(0, 2)]))
    return folder


def weights(learn): return [x.tolist() for x in learn.model.state_dict().values()]


def refuses(learn, says, n_epochs=2):
    before = weights(learn)
    with pytest.raises(ResumeError, match=says): learn.fit(n_epochs, resume=True)
    assert weights(learn) == before


def test_a_refusal_names_what_changed_once_and_shows_no_digests(tmp_path):
    def make(loss=F.cross_entropy, n=20, tfm=lambda b: b):
        x = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
        dls = DataLoaders.from_arrays(x, torch.arange(n) % 3, valid=.2, bs=4)
        return learner([CheckpointCB(tmp_path), BatchTransformCB(tfm)], dls=dls, loss_func=loss)
    make().fit(1)
    refuses(make(F.mse_loss), r'^cannot resume: learn.loss_func was cross_entropy .* and is mse_loss now\n')
    refuses(make(tfm=lambda b: [*b]), r'the code of learn.cbs.BatchTransformCB.tfm \(<lambda>\) has changed\n')
    learn = make()
    learn.dls.train.tensors[0][0].zero_()
    values = r'\[\(20, 4\) float32, \(20,\) int64\]'
    refuses(learn, rf'^cannot resume: learn.dls.train.tensors has changed \({values}\); .*valid.tensors has changed')


class Shaped(nn.Sequential): "The same weights in another class."


class Idle(Callback): "Does nothing."


@pytest.mark.parametrize(('change', 'says'), [
    (lambda learn, mp: learn.model.__setitem__(5, nn.Linear(144, 4)),
     r"cannot resume: learn.model.5.weight was \(3, 144\) float32 in the checkpoint and is \(4, 144\) float32 now"),
    (lambda learn, mp: setattr(learn, 'model', nn.Sequential(*learn.model, nn.Dropout(.1))),
     "learn.model.6 was missing in the checkpoint and is Dropout now"),
    (lambda learn, mp: learn.model.__setitem__(2, nn.GELU()), "learn.model.2 was ReLU .* and is GELU now"),
    (lambda learn, mp: setattr(learn, 'model', Shaped(*learn.model)), "learn.model.* was Sequential .* and is Shaped"),
    (lambda learn, mp: learn.model.double(), "learn.model.0.weight was .*float32 .* and is .*float64 now"),
    (lambda learn, mp: setattr(learn.model[3], 'p', .3), r"learn.model.3.p was 0\.2 in the checkpoint and is 0\.3 now"),
    (lambda learn, mp: setattr(learn, 'dls', DataLoaders.from_arrays(Noisy(44).x, Noisy(44).y, valid=.2, bs=5, seed=3)),
     r'learn.dls.train.tensors was .* and is .* now'),
    (lambda learn, mp: learn.dls.train.tensors[0][0].zero_(), r'learn.dls.train.tensors has changed \('),
    (lambda learn, mp: setattr(learn.dls.train, 'bs', 6), 'learn.dls.train.bs was 5 in the checkpoint and is 6 now'),
    (lambda learn, mp: setattr(learn.dls.train, 'shuffle', False), 'learn.dls.train.shuffle was True .* and is False'),
    (lambda learn, mp: setattr(learn.dls.train, 'seed', 4), 'learn.dls.train.seed was 3 .* and is 4 now'),
    (lambda learn, mp: setattr(learn.dls.valid, 'bs', 3), 'learn.dls.valid.bs was 4 .* and is 3 now'),
    (lambda learn, mp: learn.cbs.remove(learn.cbs[2]), 'callbacks of miniai was .*BatchSchedCB.* and is AverageCB,'),
    (lambda learn, mp: setattr(learn.cbs[2], 'sched', lambda o: S.StepLR(o, 5)),
     'learn.opt.group 0.initial_lr was 0.0004 in the checkpoint and is 0.001 now'),
    (lambda learn, mp: setattr(learn.cbs[2], 'sched', partial(learn.cbs[2].sched.func, max_lr=1e-2, total_steps=15)),
     'BatchSchedCB.schedo.total_steps was 14 in the checkpoint and is 15 now'),
    (lambda learn, mp: setattr(learn, 'opt_func', partial(Lion, ema=.9)), "learn.opt.* was AdamW .* and is Lion now"),
    (lambda learn, mp: setattr(learn, 'opt_func', partial(AdamW, ema=.9, state='bf16', wd=.3)),
     r'learn.opt.group 0.weight_decay was 0\.01 .* and is 0\.3 now'),
    (lambda learn, mp: mp.setattr(torch, '__version__', '1.0'), "torch was .* in the checkpoint and is 1.0 now"),
    (lambda learn, mp: mp.setattr(torch, 'get_num_threads', lambda: 99), 'threads was .* and is 99 now'),
    (lambda learn, mp: mp.setattr(restore.platform, 'python_version_tuple', lambda: ('2', '7', '1')),
     'python was .* and is 2.7 now'),
    (lambda learn, mp: setattr(learn.cbs[5].crop, 'generator', None),
     r"learn.cbs.CropCB.crop.generator was Generator in the checkpoint and is None now"),
    (lambda learn, mp: setattr(learn.cbs[5].crop, 'generator', np.random.default_rng()),
     r"learn.cbs.CropCB.crop.generator was torch.Generator on cpu .* and is numpy's Generator of PCG64 now"),
    (lambda learn, mp: setattr(learn.cbs[4], 'n', 4), r"AccumulateCB.n was 3 in the checkpoint and is 4 now"),
    (lambda learn, mp: learn.cbs.append(MixUpCB()), "callbacks of miniai was .* and is .*, MixUpCB.* now"),
    (lambda learn, mp: setattr(learn, 'loss_func', F.mse_loss),
     "learn.loss_func was cross_entropy in the checkpoint and is mse_loss now")])
def test_another_model_data_optimizer_schedule_or_version_is_refused(change, says, stopped, monkeypatch):
    learn = run(stopped)
    change(learn, monkeypatch)
    refuses(learn, says)


@pytest.mark.parametrize(('change', 'says'), [
    (lambda learn, mp: mp.setattr(restore, 'version_of', lambda x: '9'), r'version of miniai was \d.* and is 9 now'),
    (lambda learn, mp: learn.cbs.append(Idle()), ' callbacks was .* and is .*, Idle, AccumulateCB now'),
    (lambda learn, mp: setattr(learn.cbs[5], 'strength', 1), r'learn.cbs.CropCB.strength was 0 and is 1 now')])
def test_what_may_change_the_result_is_warned_of(change, says, tmp_path, monkeypatch):
    def make(*cbs):
        learn = run(tmp_path, cbs=cbs)
        learn.cbs[5].strength = 0
        return learn
    fit_until_stopped(make(StopCB(0, 2)))
    learn = make()
    change(learn, monkeypatch)
    with pytest.warns(UserWarning, match=says): learn.fit(1, resume=True)


def test_callbacks_that_only_show_may_come_and_go(stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path/'run')
    learn = run(folder, cbs=[RecorderCB(x=lambda cb: 1.), ProgressCB()])
    learn.fit(2, resume=True)


@pytest.mark.parametrize(('saved', 'says'), [
    (dict(cuda=[torch.zeros(16, dtype=torch.uint8)]), 'cannot resume: CUDA generators was 1 .* and is 0 now'),
    (dict(numpy=dict(bit_generator='PCG64')), "cannot resume: numpy's generator was PCG64 .* and is MT19937 now"),
    (dict(torch=torch.zeros(3, dtype=torch.uint8)), "random states in the checkpoint do not fit: ")])
def test_random_states_of_other_generators_are_refused(saved, says, stopped, monkeypatch):
    def load(path, real=placed.load):
        state = real(path)
        state['random'] |= saved
        state['shapes']['run'] |= {nm: str(x) for nm, x in describe_states(state['random']).items()}
        return state
    monkeypatch.setattr(placed, 'load', load)
    refuses(run(stopped), says)


@pytest.mark.parametrize(('spoil', 'says'), [
    (lambda s: s['model'].pop('5.weight'), r'learn.model in the checkpoint does not fit: 5.weight differs'),
    (lambda s: s['model'].update({'5.weight': torch.zeros(2, 2)}), 'does not fit: 5.weight differs'),
    (lambda s: s['objects']['learn.model']['grads'].update({'5.weight': torch.zeros(2)}), 'gradient of 5.weight has'),
    (lambda s: s['objects']['learn.model']['grads'].update(nowhere=torch.zeros(2)), "fit: KeyError: 'nowhere'"),
    (lambda s: s['opt'].pop('state'), "learn.opt in the checkpoint does not fit: KeyError: 'state'"),
    (lambda s: s['opt']['param_groups'][0]['params'].pop(), r'its groups have \[5\] parameters, not \[6\]'),
    (lambda s: s['states']['learn.cbs.CropCB.crop.generator'].update(state=torch.zeros(3, dtype=torch.uint8)),
     'CropCB.crop.generator in the checkpoint does not fit: '),
    (lambda s: s.pop('history'), "is not a checkpoint of a run, which has 'history'")])
def test_a_checkpoint_with_false_content_is_refused_before_anything_changes(spoil, says, stopped, monkeypatch):
    def load(path, real=placed.load):
        state = real(path)
        spoil(state)
        return state
    monkeypatch.setattr(placed, 'load', load)
    refuses(run(stopped), says)


@pytest.mark.parametrize(('there', 'here', 'says'), [
    (dict(clip_norm=1.), {}, "learn.opt.clip_norm was 1.0 in the checkpoint and is None now"),
    (dict(cautious=True), {}, r'learn.opt.stages.cautious was True .* and is False now'),
    (dict(rounding='stochastic'), dict(rounding='stochastic', seed=1), "learn.opt.seed was 0 .* is 1")])
def test_another_option_of_the_optimizer_is_refused(tmp_path, there, here, says):
    def make(options):
        learn = run(tmp_path, batches=None)
        learn.opt_func = partial(learn.opt_func, **options)
        return learn
    make(there).fit(1)
    refuses(make(here), says)


def test_another_momentum_of_a_momentum_learner_is_refused(tmp_path):
    def make(mom): return learner([CheckpointCB(tmp_path)], MomentumLearner, mom=mom)
    make(.85).fit(1)
    refuses(make(.9), r'learn.mom was 0\.85 in the checkpoint and is 0\.9 now')
    make(.85).fit(2, resume=True)


def test_parameters_in_another_order_are_refused_by_name(tmp_path):
    def make(step):
        return learner([CheckpointCB(tmp_path)], opt_func=lambda ps, lr: torch.optim.Adam(list(ps)[::step], lr))
    make(1).fit(1)
    refuses(make(-1), r"learn.opt.group 0, parameter 0 was learn.model.*weight .* is learn.model.*bias now")


def test_a_run_with_validation_does_not_resume_without(tmp_path):
    run(tmp_path, batches=None).fit(1)
    with pytest.raises(ResumeError, match='validation was True in the checkpoint and is False now'):
        run(tmp_path).fit(2, valid=False, resume=True)


# The Learner's other modules and optimizers, and the loss's module

def with_critic(folder, critic=None, opt=torch.optim.Adam):
    learn = learner([CheckpointCB(folder)])
    learn.critic = critic or nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    learn.critic_opt = opt(learn.critic.parameters(), .01)
    return learn


@pytest.mark.parametrize(('kwargs', 'says'), [
    (dict(critic=nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))),
     r"learn.critic.1.weight was \(1, 8\) float32 in the checkpoint and is \(2, 8\) float32 now"),
    (dict(opt=torch.optim.AdamW), r"learn.critic_opt.* was Adam in the checkpoint and is AdamW now"),
    (dict(opt=lambda ps, lr: torch.optim.Adam(list(ps)[2:], lr)),
     r"learn.critic_opt.group 0, parameter 0 was learn.critic.0.weight .* and is learn.critic.1.weight now")])
def test_other_modules_and_optimizers_of_the_learner_are_compared(kwargs, says, tmp_path):
    with_critic(tmp_path).fit(1)
    refuses(with_critic(tmp_path, **kwargs), says)


def test_another_loss_module_is_refused(tmp_path):
    def make(weight=None): return learner([CheckpointCB(tmp_path)], loss_func=nn.CrossEntropyLoss(weight))
    make(torch.ones(3)).fit(1)
    refuses(make(), r"learn.loss_func.weight was \(3,\) float32 .* and is missing now")
    refuses(make(torch.tensor([1., 2, 1])), r"weight was .* \[1.0, 1.0, 1.0\] .* is .* \[1.0, 2.0, 1.0\] now")


# Changes during a run

class AddGroupCB(Callback):
    "Adds a group of parameters in the second epoch."
    def before_epoch(self, learn):
        if learn.training and learn.epoch == 1: learn.opt.add_param_group(dict(params=[learn.model[-1].bias]))


def test_a_parameter_group_added_during_the_run_is_warned_of_when_saved_and_refused_by_name(tmp_path):
    def weights_only(params, lr): return torch.optim.SGD([p for p in params if p.ndim > 1], lr)
    def make(*cbs): return learner([CheckpointCB(tmp_path, batches=1), *cbs], opt_func=weights_only)
    changed = r'group 1, parameter 0 was missing at the start and is .*bias now\. Make this change before the fit'
    with pytest.warns(UserWarning, match=changed): fit_until_stopped(make(AddGroupCB(), StopCB(1, 1)), 3)
    says = 'learn.opt.group 1, parameter 0 was .*bias in the checkpoint and is missing now'
    refuses(make(AddGroupCB()), says, 3)


def freezing(folder, names, *cbs):
    learn = learner([*cbs, CheckpointCB(folder, batches=1)])
    for nm, p in learn.model.named_parameters(): p.requires_grad_(nm not in names)
    return learn


@pytest.mark.parametrize(('before', 'after', 'says'), [
    ([], ['0.weight'], r"learn.model.frozen was \[\] and is \['0.weight'\] now"),
    (['2.bias'], [], r"learn.model.frozen was \['2.bias'\] and is \[\] now")])
def test_other_frozen_parameters_are_warned_of_and_the_checkpoints_are_restored(before, after, says, tmp_path):
    freezing(tmp_path, before).fit(1)
    learn = freezing(tmp_path, after)
    with pytest.warns(UserWarning, match=says): learn.fit(2, resume=True)
    assert {nm for nm, p in learn.model.named_parameters() if not p.requires_grad} == {*before}


class ThawCB(Callback):
    "Trains the first layer only from the second epoch on."
    def before_fit(self, learn): learn.model[0].requires_grad_(False)
    def before_epoch(self, learn):
        if learn.training and learn.epoch == 1: learn.model[0].requires_grad_(True)


def test_parameters_that_a_callback_freezes_and_thaws_are_no_difference(tmp_path):
    assert_resumes_exactly(lambda folder, *cbs: freezing(folder, (), ThawCB(), *cbs), tmp_path, ((1, 2),), 3)


# Schedules

def scheduled(folder, sched, *cbs): return learner([BatchSchedCB(sched), *cbs, CheckpointCB(folder)])


def warm_up(total): return lambda step: min(1, (step + 1)/total)


@pytest.mark.parametrize(('kind', 'one', 'other', 'says'), [
    (S.LambdaLR, warm_up(33), warm_up(66), r'schedo.lr_lambdas.0..total was 33 .* and is 66 now'),
    (S.MultiplicativeLR, warm_up(33), warm_up(66), r'schedo.lr_lambdas.0..total was 33 .* and is 66 now'),
    (S.LambdaLR, lambda step: 1., lambda step: 1. if step < 700_000 else .1,
     r'the code of learn\..* \(<lambda>\) has changed')])
def test_functions_of_schedules_that_differ_are_refused(kind, one, other, says, tmp_path):
    scheduled(tmp_path, partial(kind, lr_lambda=one)).fit(1)
    refuses(scheduled(tmp_path, partial(kind, lr_lambda=other)), says)


def test_more_epochs_than_a_schedule_was_made_for_are_refused_with_what_to_do(tmp_path):
    def make(total): return scheduled(tmp_path, partial(S.OneCycleLR, max_lr=.1, total_steps=total))
    make(4).fit(1)
    says = '^cannot resume: learn.cbs.BatchSchedCB.schedo.total_steps was 4 in the checkpoint and is '
    refuses(make(8), says + r'8 now. The fit had 1 epochs and has 2 now: .* call fit\(1, resume=True\)\n')
    refuses(make(5), says + r'5 now\n', n_epochs=1)


def test_schedules_inside_another_are_compared(tmp_path):
    def sequence(o, total, gamma):
        return S.SequentialLR(o, [S.ExponentialLR(o, gamma), S.LambdaLR(o, lambda i: i/total)], milestones=[2])
    def make(total, gamma=.9): return scheduled(tmp_path, lambda o: sequence(o, total, gamma))
    make(20).fit(1)
    refuses(make(30), 'total was 20 in the checkpoint and is 30 now')
    refuses(make(20, .8), r'gamma was 0\.9 in the checkpoint and is 0\.8 now')


def test_tensors_among_hyperparameters_are_compared(tmp_path):
    def make(x): return learner([CheckpointCB(tmp_path)], opt_func=lambda ps, lr: torch.optim.Adam(ps, torch.tensor(x)))
    make(.25).fit(1)
    refuses(make(.5), r'learn.opt.group 0.lr was .*0\.25.* and is .*0\.5.* now')

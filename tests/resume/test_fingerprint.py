"What must be the same for a run to resume: a difference is refused with both values, before anything is restored."
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as S

from miniai import BatchSchedCB, Callback, DataLoaders, RecorderCB
from miniai.learner import MomentumLearner
from miniai.optim import AdamW, Lion
from miniai.resume import fingerprint
from miniai.resume import start as resume
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.state import ResumeError
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


class Shaped(nn.Sequential): "The same weights in another class."


@pytest.mark.parametrize(('change', 'says'), [
    (lambda learn, mp: learn.model.__setitem__(5, nn.Linear(144, 4)),
     r"cannot resume: model 5.weight was '\(3, 144\) float32' in the checkpoint and is '\(4, 144\) float32' now"),
    (lambda learn, mp: setattr(learn, 'model', nn.Sequential(*learn.model, nn.Linear(3, 3))),
     "module 6 was missing in the checkpoint and is 'Linear' now"),
    (lambda learn, mp: learn.model.__setitem__(2, nn.GELU()), "module 2 was 'ReLU' in the checkpoint and is 'GELU'"),
    (lambda learn, mp: setattr(learn, 'model', Shaped(*learn.model)), "module was 'Sequential' .* and is 'Shaped'"),
    (lambda learn, mp: learn.model.double(), "model 0.weight was .*float32' .* and is .*float64'"),
    (lambda learn, mp: setattr(learn, 'dls', DataLoaders.from_arrays(Noisy(44).x, Noisy(44).y, valid=.2, bs=5, seed=3)),
     'training data: samples was 32 in the checkpoint and is 35 now'),
    (lambda learn, mp: setattr(learn.dls.train, 'bs', 6), 'training data: batches was 7 .* and is 6 now'),
    (lambda learn, mp: setattr(learn.dls.train, 'shuffle', False), 'training data: order was True .* and is False'),
    (lambda learn, mp: setattr(learn.dls.train, 'seed', 4), 'training data: seed was 3 .* and is 4 now'),
    (lambda learn, mp: setattr(learn.dls.valid, 'bs', 3), 'validation data: batches was 2 .* and is 3 now'),
    (lambda learn, mp: learn.cbs.remove(learn.cbs[2]), r"schedules was \['OneCycleLR'\] .* and is \[\] now"),
    (lambda learn, mp: setattr(learn.cbs[2], 'sched', lambda o: S.StepLR(o, 5)),
     r"schedules was \['OneCycleLR'\] .* and is \['StepLR'\] now"),
    (lambda learn, mp: setattr(learn, 'opt_func', partial(Lion, ema=.9)), "optimizer was 'AdamW' .* and is 'Lion' now"),
    (lambda learn, mp: setattr(learn, 'opt_func', partial(AdamW, ema=.9, state='bf16', wd=.3)),
     'group 0: weight_decay was 0.01 .* and is 0.3 now'),
    (lambda learn, mp: mp.setattr(torch, '__version__', '1.0'), "torch was '.*' .* and is '1.0' now"),
    (lambda learn, mp: mp.setattr(fingerprint, 'version_of', lambda x: '9'), r'saved by miniai \d.*, and this is 9'),
    (lambda learn, mp: mp.setattr(torch, 'get_num_threads', lambda: 99), 'threads was .* and is 99 now'),
    (lambda learn, mp: setattr(learn.cbs[5].crop, 'generator', None),
     r"random generators of callbacks was \['torch.Generator on cpu'\] .* and is \[\] now"),
    (lambda learn, mp: learn.cbs.append(RecorderCB(x=lambda cb: 1.)),
     r"stateful callbacks was \['Quiet 1', .*'RecorderCB 1', .*\] .* is \[.*'RecorderCB 2'\]"),
    (lambda learn, mp: setattr(learn, 'loss_func', F.mse_loss),
     "loss function was 'cross_entropy' in the checkpoint and is 'mse_loss' now")])
def test_another_model_data_optimizer_schedule_or_version_is_refused(change, says, stopped, monkeypatch):
    learn = run(stopped)
    change(learn, monkeypatch)
    refuses(learn, says)


@pytest.mark.parametrize(('saved', 'says'), [
    (dict(cuda=[torch.zeros(16, dtype=torch.uint8)]), 'random state: CUDA generators was 1 .* and is 0 now'),
    (dict(numpy=dict(bit_generator='PCG64')), "random state: numpy's generator was 'PCG64' .* and is 'MT19937' now"),
    (dict(python=[2, torch.zeros(1), None]), "random state: version of Python's generator was 2 .* and is 3 now")])
def test_random_states_of_other_generators_are_refused(saved, says, stopped, monkeypatch):
    def load(path, real=resume.load):
        state = real(path)
        state['random'] |= saved
        return state
    monkeypatch.setattr(resume, 'load', load)
    refuses(run(stopped), says)


@pytest.mark.parametrize(('there', 'here', 'says'), [
    (dict(clip_norm=1.), {}, "optimizer option clip_norm was '1.0' in the checkpoint and is 'None' now"),
    (dict(cautious=True), {}, 'optimizer option stages was .*cautious=True.* and is .*cautious=False'),
    (dict(rounding='stochastic'), dict(rounding='stochastic', seed=1), "option seed was '0' .* is '1'")])
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
    refuses(make(.9), r'mom was 0\.85 in the checkpoint and is 0\.9 now')
    make(.85).fit(2, resume=True)


def test_parameters_in_another_order_are_refused_by_name(tmp_path):
    def make(step):
        return learner([CheckpointCB(tmp_path)], opt_func=lambda ps, lr: torch.optim.Adam(list(ps)[::step], lr))
    make(1).fit(1)
    refuses(make(-1), r"group 0, parameter 0 was '.*weight' .* is '.*bias' now")


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
     r"the Learner's critic 1.weight was '\(1, 8\) float32' in the checkpoint and is '\(2, 8\) float32' now"),
    (dict(opt=torch.optim.AdamW), r"the Learner's critic_opt was 'Adam' in the checkpoint and is 'AdamW' now"),
    (dict(opt=lambda ps, lr: torch.optim.Adam(list(ps)[2:], lr)),
     r"the Learner's critic_opt parameters per group was \[4\] in the checkpoint and is \[2\] now")])
def test_other_modules_and_optimizers_of_the_learner_are_compared(kwargs, says, tmp_path):
    with_critic(tmp_path).fit(1)
    refuses(with_critic(tmp_path, **kwargs), says)


def test_another_loss_module_is_refused(tmp_path):
    def make(weight=None): return learner([CheckpointCB(tmp_path)], loss_func=nn.CrossEntropyLoss(weight))
    make(torch.ones(3)).fit(1)
    refuses(make(), r"the loss weight was '\(3,\) float32' .* and is missing now")


# Changes during a run

class AddGroupCB(Callback):
    "Adds a group of parameters in the second epoch."
    def before_epoch(self, learn):
        if learn.training and learn.epoch == 1: learn.opt.add_param_group(dict(params=[learn.model[-1].bias]))


def test_a_parameter_group_added_during_the_run_is_warned_of_when_saved_and_refused_by_name(tmp_path):
    def weights_only(params, lr): return torch.optim.SGD([p for p in params if p.ndim > 1], lr)
    def make(*cbs): return learner([CheckpointCB(tmp_path, batches=1), *cbs], opt_func=weights_only)
    changed = r'parameters in group 1 was missing at the start and is 1 now\. Make this change before the fit'
    with pytest.warns(UserWarning, match=changed): fit_until_stopped(make(AddGroupCB(), StopCB(1, 1)), 3)
    says = 'parameters in group 1 was 1 in the checkpoint and is missing now. The optimizer must have all its param'
    refuses(make(AddGroupCB()), says, 3)


def test_a_stateful_callback_that_leaves_during_the_run_is_warned_of_when_saved(tmp_path):
    class Leaving(Callback):
        def state_dict(self): return {}
        def load_state_dict(self, state): pass
        def after_epoch(self, learn): learn.cbs.remove(self)
    with pytest.warns(UserWarning, match=r"stateful callbacks was \[.*'Leaving 1'.* at the start and is \[.* now"):
        run(tmp_path, cbs=[Leaving()], batches=None).fit(1)


def freezing(folder, names, *cbs):
    learn = learner([*cbs, CheckpointCB(folder, batches=1)])
    for nm, p in learn.model.named_parameters(): p.requires_grad_(nm not in names)
    return learn


@pytest.mark.parametrize(('before', 'after', 'says'), [
    ([], ['0.weight'], "requires_grad of 0.weight was True when the run started and is False now: the checkpoint's"),
    (['2.bias'], [], 'requires_grad of 2.bias was False when the run started and is True now')])
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


def warm_up_and_cosine(total, warm=5):
    return lambda step: min(1, (step + 1)/warm) * (1 if step < warm else .5*(1 + math.cos(
        math.pi*(step - warm)/(total - warm))))


@pytest.mark.parametrize(('kind', 'one', 'other'), [
    (S.LambdaLR, warm_up_and_cosine(33), warm_up_and_cosine(66)),
    (S.MultiplicativeLR, warm_up_and_cosine(33), warm_up_and_cosine(66)),
    (S.LambdaLR, warm_up_and_cosine(1000, 600), warm_up_and_cosine(1010, 600)),
    (S.LambdaLR, lambda step: max(0, 1 - step/5000), lambda step: max(0, 1 - step/5500)),
    (S.LambdaLR, lambda step: 1., lambda step: 1. if step < 700_000 else .1)])
def test_functions_that_differ_anywhere_in_a_long_run_are_refused(kind, one, other, tmp_path):
    scheduled(tmp_path, lambda o: kind(o, one)).fit(1)
    refuses(scheduled(tmp_path, lambda o: kind(o, other)),
            r'schedule 0: value of function 0 at step \d+ was [\d.e-]+ in the checkpoint and is [\d.e-]+ now')


@pytest.mark.parametrize('f', [warm_up_and_cosine(33), lambda step: .9**step, lambda step: [1., .5, .2][step % 3],
                               lambda step: math.inf - math.inf if step > 100 else 1.,
                               lambda step: ([1.]*20)[step], lambda step: 1.1**(step if step > 20 else 1)])
def test_a_function_with_the_same_values_resumes(f, tmp_path):
    scheduled(tmp_path, lambda o: S.LambdaLR(o, lambda step: f(step))).fit(1)
    scheduled(tmp_path, lambda o: S.LambdaLR(o, f)).fit(2, resume=True)


def test_schedules_inside_another_are_compared(tmp_path):
    def make(folder, total, gamma=.9):
        return scheduled(tmp_path/folder, lambda o: S.SequentialLR(
            o, [S.ExponentialLR(o, gamma), S.LambdaLR(o, lambda step: step/total)], milestones=[2]))
    make('run', 20).fit(1)
    refuses(make('run', 30), 'value of function 0 at step 1 was 0.05 .* and is 0.033')
    refuses(make('run', 20, .8), r'schedule 0: _schedulers was .*0\.9.* and is .*0\.8')


def test_tensors_among_hyperparameters_are_compared(tmp_path):
    def make(x): return learner([CheckpointCB(tmp_path)], opt_func=lambda ps, lr: torch.optim.Adam(ps, torch.tensor(x)))
    make(.25).fit(1)
    refuses(make(.5), r'group 0: lr was 0\.25 .* and is 0\.5')


def test_one_function_for_many_groups_is_called_once(tmp_path):
    calls = []
    def f(step): return calls.append(step) or 1.
    learn = scheduled(tmp_path, lambda o: S.LambdaLR(o, f))
    learn.opt_func = lambda params, lr: torch.optim.SGD([dict(params=[p]) for p in params], lr)
    learn.fit(1)
    assert calls.count(max(calls)) == 1
    assert max(calls) > 10**6


class Counting:
    "A schedule that goes by its number of calls."
    def __init__(self): self.n = 0
    def __call__(self, step):
        self.n += 1
        return .9**self.n


def by_iterator():
    rates = iter([1., .5, .25, .125, .1]*3)
    return lambda step: next(rates)


def by_a_later_name():
    def rate(step): return later/2 if step > 9**9 else .5**step
    return rate
    later = 1.


class Uncopied(Counting):
    def __deepcopy__(self, memo): raise TypeError('there is only one')


@pytest.mark.parametrize('make', [Counting, by_iterator, by_a_later_name, Uncopied])
def test_functions_with_a_state_are_not_changed_by_being_compared(make, tmp_path):
    def lr_after(*cbs):
        learn = learner([BatchSchedCB(lambda o: S.LambdaLR(o, make())), *cbs])
        learn.fit(2)
        return learn.opt.param_groups[0]['lr']
    assert lr_after(CheckpointCB(tmp_path)) == lr_after()

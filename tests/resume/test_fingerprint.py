"What must be the same for a run to go on: what differs is refused with both, and what does not is not."
import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, LinearLR, MultiplicativeLR, SequentialLR

from miniai import BatchSchedCB, Callback
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.state import ResumeError
from resuming import StopCB
from small import learner


def stopped_then(tmp_path, before, after, to=3):
    "A run of three epochs by one Learner is stopped in the second; another goes on."
    with pytest.raises(RuntimeError, match='stopped'): before(tmp_path, StopCB(1, 1)).fit(3)
    after(tmp_path).fit(to, resume=True)


def refused(tmp_path, before, after, says):
    with pytest.raises(ResumeError, match=says): stopped_then(tmp_path, before, after)


# Schedules by functions

def warm_up_and_cosine(total, warm=5):
    return lambda step: min(1, (step + 1)/warm) * (1 if step < warm else .5*(1 + math.cos(
        math.pi*(step - warm)/(total - warm))))


def by(sched):
    return lambda folder, *cbs: learner([BatchSchedCB(sched), *cbs, CheckpointCB(folder, batches=1)])


@pytest.mark.parametrize('kind', [LambdaLR, MultiplicativeLR])
@pytest.mark.parametrize(('one', 'other'), [
    (warm_up_and_cosine(33), warm_up_and_cosine(66)), (warm_up_and_cosine(1000, 600), warm_up_and_cosine(1010, 600)),
    (lambda step: max(0, 1 - step/5000), lambda step: max(0, 1 - step/5500)),
    (lambda step: 1., lambda step: 1. if step < 700_000 else .1)])
def test_functions_that_differ_anywhere_in_a_long_run_are_refused(kind, one, other, tmp_path):
    refused(tmp_path, by(lambda o: kind(o, one)), by(lambda o: kind(o, other)),
            r'schedule 0: value of function 0 at step \d+ was [\d.e-]+ in the checkpoint and is [\d.e-]+ here')


@pytest.mark.parametrize('f', [warm_up_and_cosine(33), lambda step: .9**step, lambda step: [1., .5, .2][step % 3],
                               lambda step: math.inf - math.inf if step > 100 else 1.,
                               lambda step: ([1.]*20)[step], lambda step: 1.1**(step if step > 20 else 1)])
def test_the_same_function_written_anew_goes_on(f, tmp_path):
    stopped_then(tmp_path, by(lambda o: LambdaLR(o, lambda step: f(step))), by(lambda o: LambdaLR(o, f)))


def test_functions_of_schedules_within_others_are_looked_at(tmp_path):
    def within(total):
        return by(lambda o: SequentialLR(o, [LinearLR(o), LambdaLR(o, lambda step: step/total)], milestones=[2]))
    refused(tmp_path, within(20), within(30), 'value of function 0 at step 1 was 0.05 .* and is 0.033')


def test_one_function_for_many_groups_is_looked_at_once(tmp_path):
    calls = []
    def f(step): return calls.append(step) or 1.
    learn = by(lambda o: LambdaLR(o, f))(tmp_path)
    learn.opt_func = lambda params, lr: torch.optim.SGD([dict(params=[p]) for p in params], lr)
    learn.fit(1)
    assert calls.count(max(calls)) == 1
    assert max(calls) > 10**6


class Counting:
    "A schedule that goes by its calls, which torch saves with it."
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
    def __deepcopy__(self, memo): raise TypeError('there is but one')


@pytest.mark.parametrize('make', [Counting, by_iterator, by_a_later_name, Uncopied])
def test_functions_that_keep_something_are_not_used_up_by_being_looked_at(make, tmp_path):
    def lr_after(folder, *cbs):
        learn = learner([BatchSchedCB(lambda o: LambdaLR(o, make())), *cbs])
        learn.fit(2)
        return learn.opt.param_groups[0]['lr']
    assert lr_after(tmp_path, CheckpointCB(tmp_path)) == lr_after(tmp_path)


# Frozen parameters

def freezing(*names):
    def make(folder, *cbs):
        learn = learner([*cbs, CheckpointCB(folder, batches=1)])
        for nm, p in learn.model.named_parameters(): p.requires_grad_(nm not in names)
        return learn
    return make


@pytest.mark.parametrize(('before', 'after', 'says'), [
    (freezing(), freezing('0.weight'), 'is trained: 0.weight was True as the run began and is False here'),
    (freezing('2.bias'), freezing(), 'is trained: 2.bias was False as the run began and is True here')])
def test_another_choice_of_frozen_parameters_is_told_and_the_runs_own_is_put_back(before, after, says, tmp_path):
    with pytest.raises(RuntimeError, match='stopped'): before(tmp_path, StopCB(1, 1)).fit(3)
    learn, wanted = after(tmp_path), before(tmp_path).model
    with pytest.warns(UserWarning, match=says): learn.fit(3, resume=True)
    assert [p.requires_grad for p in learn.model.parameters()] == [p.requires_grad for p in wanted.parameters()]


class ThawCB(Callback):
    "Trains the head alone in the first epoch."
    def before_fit(self, learn): learn.model[0].requires_grad_(False)
    def before_epoch(self, learn):
        if learn.training and learn.epoch == 1: learn.model[0].requires_grad_(True)


def test_what_a_callback_freezes_and_thaws_goes_on(tmp_path):
    def make(folder, *cbs): return learner([ThawCB(), *cbs, CheckpointCB(folder, batches=1)])
    alone = make(tmp_path/'alone')
    alone.fit(3)
    with pytest.raises(RuntimeError, match='stopped'): make(tmp_path/'run', StopCB(1, 2)).fit(3)
    again = make(tmp_path/'run')
    again.fit(3, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), alone.model.parameters(), strict=True))

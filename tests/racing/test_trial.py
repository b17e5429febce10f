"A trial is a function of what it is: weights and batches of a seed are the same for all rules, and failures are data."
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import races
from miniai.optim import SGD
from miniai.racing.entrants import find_entrant
from miniai.racing.tasks import TaskError
from miniai.racing.trial import check_task, run_trial

TINY = races.tiny()


def trial(rule, lr=.1, seed=1, steps=16, tunes=False, **config):
    return run_trial(TINY, find_entrant(rule), dict(lr=lr, **config), seed, steps, tunes)


def by_hand(seed, lr, steps):
    "Gradient descent with the same weights, batches and schedule, written out: figures on each part."
    model, parts = TINY.model(seed), TINY.dls(seed)
    warm, done = round(.1*steps), 0
    while done < steps:
        for x, y in parts.train:
            if done == steps: break
            rate = (done + 1)/(warm + 1) if done < warm else (1 + math.cos(math.pi*(done - warm)/(steps - warm)))/2
            loss = F.mse_loss(model(x), y)
            for p, g in zip(model.parameters(), torch.autograd.grad(loss, [*model.parameters()]), strict=True):
                p.data -= lr*rate*g
            done += 1
    with torch.no_grad(): return {nm: F.mse_loss(*both([(model(x), y) for x, y in dl])).item()
                                  for nm, dl in parts._asdict().items()}


def both(pairs): return [torch.cat(ts) for ts in zip(*pairs, strict=True)]


def test_a_trial_is_the_plain_loop_and_its_figure_is_that_of_the_right_part():
    figures = by_hand(1, .1, 16)
    compared, tuned = trial(races.descent), trial(races.descent, tunes=True)
    assert compared['final'] == pytest.approx(figures['test'], rel=1e-4)
    assert compared['curve'][-1][2] == pytest.approx(figures['valid'], rel=1e-4)
    assert tuned['final'] == tuned['curve'][-1][2] == pytest.approx(figures['tuning'], rel=1e-4)
    assert len({round(x, 6) for x in figures.values()}) == 4


def test_the_curve_is_evenly_spaced_and_ends_at_the_end():
    assert [row[0] for row in trial(races.descent)['curve']] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert [row[0] for row in trial(races.descent, steps=10)['curve']] == [2, 4, 6, 8, 10]
    seconds = [row[1] for row in trial(races.descent)['curve']]
    assert seconds == sorted(seconds)


def test_the_same_trial_gives_the_same_numbers_and_leaves_the_users_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = trial('adamw', wd=.01)
    assert torch.equal(torch.rand(3), expected)
    again = trial('adamw', wd=.01)
    assert [first[k] for k in ('start', 'final')] == [again[k] for k in ('start', 'final')]
    assert trial('adamw', wd=.01, seed=2)['final'] != first['final']
    assert first['start'] == trial('nesterov')['start'] != trial('nesterov', seed=2)['start']


def test_state_bytes_are_those_of_the_optimizer():
    assert trial('adamw')['state_bytes'] == 4*2*4  # 4 parameters, two states, float32
    assert trial(races.descent)['state_bytes'] == 0


@pytest.mark.parametrize(('rule', 'lr', 'said'), [
    (races.raises, .1, 'RuntimeError: this rule is broken'), (races.nan, .1, 'diverged'),
    (races.FailsLater, .1, 'ValueError: not at step 5'), (races.descent, 1e30, 'diverged'),
    (races.descent, 3., 'diverged: the final figure is ')])
def test_a_failure_is_said_and_there_is_no_final_figure(rule, lr, said):
    out = trial(rule, lr)
    assert out['final'] is None
    assert said in out['failed']
    assert math.isfinite(out['start'])


def test_an_optimizer_that_cannot_be_made_is_a_failure_of_the_rule():
    def unmakeable(params, lr): raise TypeError('no such optimizer')
    assert trial(unmakeable)['failed'] == 'TypeError: no such optimizer'


def test_torchs_optimizers_race_too():
    ours = trial(SGD, wd=.01)['final']
    assert trial(torch.optim.SGD, wd=.01)['final'] == pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize('part', ['model', 'dls', 'loss', 'figure'])
def test_an_error_of_the_task_is_not_blamed_on_the_rule(part):
    broken = replace(TINY, **{part: lambda *args: 1/0})
    said = 'the task tiny fails before training(, on its part tuning)?: ZeroDivisionError'
    with pytest.raises(TaskError, match=said): run_trial(broken, find_entrant('adamw'), dict(lr=.1), 0, 4, True)


@pytest.mark.parametrize('part', ['train', 'tuning', 'valid', 'test'])
@pytest.mark.parametrize(('dl', 'said'), [
    ([(torch.ones(3, 3), torch.full((3, 1), math.nan))], ' is nan, which is no finite number'),
    ([(torch.ones(3, 5), torch.ones(3, 1))], ': RuntimeError'), ([], ''), (None, ': ')])
def test_a_part_that_is_broken_is_found_before_any_rule_runs(part, dl, said):
    broken = replace(TINY, dls=lambda seed: TINY.dls(seed)._replace(**{part: dl}))
    with pytest.raises(TaskError, match=f'the task tiny fails before training.* its part {part}{said}'):
        check_task(broken)


def test_a_task_that_works_passes_its_check_whatever_its_figure_needs():
    "As a figure of more than one batch, and parts that are read once and can be read no more."
    seen = []
    def figure(preds, targets):
        seen.append(len(preds))
        return F.mse_loss(preds, targets)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    check_task(replace(TINY, figure=figure, dls=lambda seed: [(b for b in dl) if i in (0, 3) else dl for i, dl
                                                              in enumerate(TINY.dls(seed))]))
    assert seen == [12, 12, 12]
    assert torch.equal(torch.rand(3), expected)


def test_a_part_that_is_read_many_times_cannot_be_a_generator():
    once = replace(TINY, dls=lambda seed: TINY.dls(seed)._replace(valid=(b for b in ())))
    with pytest.raises(TaskError, match='on its part valid: TypeError: generator can be read once only'):
        run_trial(once, find_entrant('adamw'), dict(lr=.1), 0, 4, False)


def test_data_of_three_parts_is_an_error_that_names_the_fourth():
    with pytest.raises(TaskError, match=r"training: TypeError: .*missing 1 required positional argument: 'test'"):
        check_task(replace(TINY, dls=lambda seed: TINY.dls(seed)[:3]))


def test_the_seconds_of_a_whole_trial_are_more_than_those_of_training():
    out = trial(races.descent)
    assert 0 < out['seconds'] < out['wall_seconds'] < 60


class Leaky(torch.optim.SGD):
    "Gradient descent that changes settings of torch."
    def step(self, closure=None):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().step(closure)


def settings(): return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()


def test_settings_of_torch_that_a_rule_changes_are_its_own():
    before, alone = settings(), trial(races.descent)['final']
    trial(Leaky, wd=0.)
    assert settings() == before
    assert trial(races.descent)['final'] == alone


class OddState(torch.optim.SGD):
    "Gradient descent whose `state` at the end is `odd`."
    def step(self, closure=None):
        self.state = {}
        super().step(closure)
        self.state = self.odd


@pytest.mark.parametrize('odd', [7, {'step': 1}, {'a': {'m': torch.zeros(2)}, 'step': 1}])
def test_a_state_that_is_no_dict_of_dicts_costs_what_can_be_counted(odd):
    out = trial(type('Odd', (OddState,), dict(odd=odd)), wd=0.)
    assert out['failed'] is None
    assert out['state_bytes'] == (8 if isinstance(odd, dict) and 'a' in odd else 0)


def test_a_rule_that_exits_has_failed():
    def exits(p, g, *, lr): raise SystemExit(3)
    exits.space = dict(lr=(1e-2, 1.))
    assert trial(exits)['failed'] == 'SystemExit: 3'


def test_a_figure_of_0_before_training_sets_no_limit():
    seen = []
    def figure(preds, targets):
        seen.append(1)
        return 0. if len(seen) == 1 else .5
    out = run_trial(replace(TINY, figure=figure), find_entrant(races.descent), dict(lr=.1), 0, 4, False)
    assert (out['start'], out['final'], out['failed']) == (0., .5, None)

"Races of a moment: the same table after any interruption and however many processes, and no run is done twice."
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch

import miniai
import races
from miniai.racing import budget, runs
from miniai.racing import race as module
from miniai.racing.answer import Answer
from miniai.racing.race import plan_race, race
from miniai.racing.tasks import TaskError
from races import descent, needs_1000, run


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A race that nothing interrupted, and its folder."
    folder = tmp_path_factory.mktemp('whole')
    return run(descent, out=folder), folder


def finished(folder): return {p.name: p.read_text() for p in (folder/'trials').glob('*.json')}


def test_every_rule_has_as_many_runs_and_the_folder_holds_each_once(whole):
    answer, folder = whole
    counted = {}
    for r in answer.record['runs']:
        key = r['rule'], r['steps'], r['tunes']
        counted[key] = counted.get(key, 0) + 1
    assert counted == {(nm, steps, tunes): 2 if tunes else 3 for nm in ('descent', 'nesterov') for steps in (4, 16)
                       for tunes in (True, False)}
    assert len(finished(folder)) == len(answer.record['runs']) == 20
    assert not [*(folder/'trials').glob('*.lock'), *(folder/'trials').glob('.*')]


def test_tuning_and_comparison_share_no_seed_and_all_rules_have_the_same_ones(whole):
    seeds = {}
    for r in whole[0].record['runs']: seeds.setdefault((r['tunes'], r['rule']), set()).add(r['seed'])
    assert seeds[True, 'descent'] == seeds[True, 'nesterov']
    assert seeds[False, 'descent'] == seeds[False, 'nesterov'] == {0, 1, 2}
    assert not seeds[True, 'descent'] & seeds[False, 'descent']


def test_the_best_configuration_of_tuning_is_the_one_compared(whole):
    runs = whole[0].record['runs']
    tuned = [r for r in runs if r['tunes'] and r['rule'] == 'descent' and r['steps'] == 16]
    best = sorted(tuned, key=lambda r: r['result']['final'])[0]['config']
    assert {json.dumps(r['config']) for r in runs if not r['tunes'] and r['rule'] == 'descent' and r['steps'] == 16} \
        == {json.dumps(best)}


def test_race_json_gives_the_answer_again_and_race_md_shows_it(whole):
    answer, folder = whole
    again = Answer.read(folder/'race.json')
    assert again.record == answer.record  # which holds nothing that JSON changes
    assert again.comparisons == answer.comparisons
    assert str(again) == str(answer) == (folder/'race.md').read_text()


@pytest.mark.parametrize('runs', [0, 3, 9, 15])
def test_an_interrupted_race_resumes_to_the_same_table_and_repeats_nothing(runs, whole, tmp_path, monkeypatch):
    real, done = module.run_trial, []
    def interrupted(*args, **kwargs):
        if len(done) == runs: raise KeyboardInterrupt
        done.append(args)
        return real(*args, **kwargs)
    monkeypatch.setattr(module, 'run_trial', interrupted)
    with pytest.raises(KeyboardInterrupt): run(descent, out=tmp_path)
    before = finished(tmp_path)
    assert len(before) == runs
    monkeypatch.setattr(module, 'run_trial', real)
    assert run(descent, out=tmp_path).table() == whole[0].table()
    assert {nm: finished(tmp_path)[nm] for nm in before} == before


def start(folder):
    paths = os.pathsep.join([str(Path(miniai.__file__).parents[1]), str(Path(races.__file__).parent)])
    return subprocess.Popen([sys.executable, races.__file__, folder], env=os.environ | dict(PYTHONPATH=paths))


def test_two_processes_one_of_them_killed_make_the_same_table_together(whole, tmp_path):
    first, second = start(tmp_path), start(tmp_path)
    deadline = time.monotonic() + 120
    while not finished(tmp_path) if (tmp_path/'trials').is_dir() else True:
        assert time.monotonic() < deadline
        time.sleep(.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(120) == 0
    assert Answer.read(tmp_path/'race.json').table() == whole[0].table()
    assert len(finished(tmp_path)) == 20


def test_rules_that_raise_give_nan_or_need_a_huge_rate_are_counted_and_the_race_ends(tmp_path):
    answer = run(races.raises, races.nan, races.FailsLater, needs_1000, out=tmp_path, trials=3)
    text = str(answer)
    assert 'raises: 6 of 6 runs of tuning and 6 of the comparison failed' in text
    assert 'RuntimeError: this rule is broken' in text
    assert 'nan: 6 of 6 runs of tuning and 6 of the comparison failed' in text
    assert 'FailsLater: 3 of 6 runs of tuning and 3 of the comparison failed' in text  # the short ones have 4 steps
    assert 'ValueError: not at step 5' in text
    assert re.search(r'needs_1000: the best lr is the highest that was tried on tiny at 4 steps, tiny at 16', text)
    worst = max(answer.figures['tiny', 16].values())
    assert answer.figures['tiny', 16]['raises'] == answer.figures['tiny', 16]['nan'] == worst
    assert min(answer.ranks, key=answer.ranks.get) == 'nesterov'


def test_a_rule_against_itself_is_never_told_apart_and_its_runs_are_shared(tmp_path):
    answer = run('nesterov', 'twin=nesterov', baselines=[], out=tmp_path)
    assert [(c['difference'], c['verdict']) for c in answer.comparisons] == [(0, 'cannot tell')]*2
    assert len(finished(tmp_path)) == 10


def test_a_folder_with_another_race_is_refused(whole):
    with pytest.raises(ValueError, match="holds a race with other seeds, 3 instead of 4"):
        run(descent, out=whole[1], seeds=4)


def test_a_folder_of_another_kind_of_device_is_refused(whole, monkeypatch):
    monkeypatch.setattr(runs, 'def_device', 'cuda')
    with pytest.raises(ValueError, match="holds a race with other device, 'cpu' instead of 'cuda'"):
        run(descent, out=whole[1])


def test_a_task_whose_test_part_is_broken_ends_the_race_before_any_rule_runs(tmp_path):
    ran = []
    def counted(params, lr): ran.append(lr)
    def data(seed): return races.data(seed)._replace(test=[(torch.zeros(2, 5), torch.zeros(2, 1))])
    with pytest.raises(TaskError, match='the task tiny fails before training, on its part test: RuntimeError'):
        run(counted, out=tmp_path/'race', tasks=[replace(races.tiny(), dls=data)])
    assert not ran
    assert not (tmp_path/'race').exists()


@pytest.mark.parametrize(('rules', 'options', 'said'), [
    ((), {}, 'needs a rule'), (('adamw',), dict(baselines=[]), 'two rules or more'),
    (('adamw', 'adamw'), {}, 'two rules are called adamw'), (('adamw',), dict(tasks=[]), 'needs a task'),
    (('adamw',), dict(seeds=None), 'both trials and seeds'), (('adamw',), dict(tasks=['mpl']), "unknown task 'mpl'")])
def test_what_cannot_be_raced_is_an_error(rules, options, said, tmp_path):
    with pytest.raises(ValueError, match=said): run(*rules, out=tmp_path, **options)


def test_a_plan_is_printed_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = plan_race(descent, tasks=[races.tiny()], baselines=['nesterov'], trials=4, seeds=5)
    assert text.startswith('36 runs, about ')
    assert 'tiny (4 and 16 steps)' in text
    assert not [*tmp_path.iterdir()]


def test_without_jinja2_the_race_ends_and_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    told = []
    run(descent, out=tmp_path, tell=told.append)
    assert told[-1] == "race.html was not written: the report needs Jinja2: pip install 'miniai-torch[report]'"
    assert (tmp_path/'race.md').is_file()
    assert not (tmp_path/'race.html').exists()


@pytest.fixture
def budgeted(monkeypatch, tmp_path):
    "Runs a race of 40 seconds whose runs claim to take half a second each; it stops before run `stop`."
    real = module.run_trial
    def race(stop=None, wall=.5, **options):
        done = []
        def timed(*args, **kwargs):
            if len(done) == stop: raise KeyboardInterrupt
            done.append(args)
            return real(*args, **kwargs) | dict(wall_seconds=wall)
        for m in (module, budget): monkeypatch.setattr(m, 'run_trial', timed)
        return run(descent, **dict(out=tmp_path, budget='40s') | options, trials=None, seeds=None)
    return race


def test_a_race_with_a_budget_has_the_seeds_that_its_recorded_seconds_leave(tmp_path, budgeted):
    "However often it is interrupted, and however quick its last runs are."
    for stop, wall in ((10, .5), (10, .7)):
        with pytest.raises(KeyboardInterrupt): budgeted(stop, wall)
    answer = budgeted(None, .6)
    plan, p, walls = json.loads((tmp_path/'plan.json').read_text()), answer.record['protocol'], {}
    for r in answer.record['runs']:
        if r['tunes']: walls.setdefault((r['rule'], r['steps']), []).append(r['result']['wall_seconds'])
    assert {w for found in walls.values() for w in found} == {.5, .6, .7}
    left = .92*40 - plan['measuring_seconds'] - sum(map(sum, walls.values()))
    assert p['seeds'] == max(4, int(left/sum(map(median, walls.values()))))
    assert p['trials'] == plan['protocol']['trials'] >= 4
    before = finished(tmp_path)
    assert budgeted(None, 9.).table() == answer.table()
    assert finished(tmp_path) == before


def test_a_budget_counts_the_runs_of_twins_once(tmp_path, budgeted):
    "Two names of one rule take no longer than one."
    alone, both = (budgeted(wall=5., budget='400s', baselines=nms, out=tmp_path/nms[-1]).record['protocol'] for nms in (
        ['nesterov'], ['nesterov', 'twin=nesterov']))
    assert both['trials'] == pytest.approx(alone['trials'], rel=.2)
    assert both['seeds'] == pytest.approx(alone['seeds'], rel=.2)


def test_a_race_says_its_plan_and_that_it_is_at_its_end(budgeted):
    said = []
    budgeted(tell=said.append)
    assert any('follows from how long tuning takes' in text for text in said[:2])
    assert re.fullmatch(r'comparison: (\d+) of \1 runs', said[-1])


def test_settings_of_torch_that_a_rule_changes_when_it_is_read_are_its_own(tmp_path):
    def leaky(p, g, *, lr):
        torch.set_default_dtype(torch.float64)
        return p - lr*g
    leaky.space = descent.space
    answer = run(leaky, descent, out=tmp_path)
    assert torch.get_default_dtype() == torch.float32
    assert not [r for r in answer.record['runs'] if r['result']['failed']]


@pytest.mark.parametrize('text', ['', '[1]', '{}', '{"asked'])
def test_a_damaged_plan_is_an_error_that_names_it(text, tmp_path):
    (tmp_path/'plan.json').write_text(text)
    with pytest.raises(ValueError, match=r'plan\.json is '): run(descent, out=tmp_path)


def test_a_rule_that_is_called_like_a_baseline_replaces_none(tmp_path):
    def nesterov(p, g, *, lr): return p - lr*g
    nesterov.space = descent.space
    with pytest.raises(ValueError, match='two rules are called nesterov; a rule may have a label, as in my_nesterov='):
        run(nesterov, out=tmp_path)
    assert run(descent, 'nesterov', out=tmp_path, trials=1, seeds=2).rules == ['descent', 'nesterov']


def test_a_refused_budget_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match='too small'):
        run(descent, out=tmp_path/'race', trials=None, seeds=None, budget=.001)
    assert not (tmp_path/'race').exists()


def test_names_may_be_text_with_commas_and_no_task_is_given_twice():
    with pytest.raises(ValueError, match='two tasks are called tiny: give each once, with'):
        plan_race(descent, tasks='races:tiny, races:tiny', baselines='nesterov')
    text = plan_race(descent, tasks='races:tiny', baselines='nesterov,adamw', trials=1, seeds=2, tell=lambda text: None)
    assert 'rules: descent against nesterov, adamw' in text


def test_the_public_name_is_the_function(): assert miniai.race is race

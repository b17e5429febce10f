"Races of a moment: the same table after any interruption and however many processes, and no run is done twice."
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import miniai
import races
from miniai.racing import race as module
from miniai.racing.answer import Answer
from miniai.racing.race import plan_race, race
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
    answer = run(races.raises, races.nan, needs_1000, out=tmp_path, trials=3)
    text = str(answer)
    assert 'raises: 6 of 6 runs of tuning and 6 of the comparison failed' in text
    assert 'RuntimeError: this rule is broken' in text
    assert 'nan: 6 of 6 runs of tuning and 6 of the comparison failed' in text
    assert re.search(r'needs_1000: the best lr is the highest that was tried on tiny at 4 steps, tiny at 16', text)
    worst = max(answer.figures['tiny', 16].values())
    assert answer.figures['tiny', 16]['raises'] == answer.figures['tiny', 16]['nan'] == worst
    assert answer.ranks['nesterov'][0] == 1


def test_a_rule_against_itself_is_never_told_apart_and_its_runs_are_shared(tmp_path):
    answer = run('nesterov', 'twin=nesterov', baselines=[], out=tmp_path)
    assert [(c['difference'], c['verdict']) for c in answer.comparisons] == [(0, 'cannot tell')]*2
    assert len(finished(tmp_path)) == 10


def test_a_folder_with_another_race_is_refused(whole):
    with pytest.raises(ValueError, match="holds a race with other seeds, 3 instead of 4"):
        run(descent, out=whole[1], seeds=4)


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


def test_the_public_name_is_the_function(): assert miniai.race is race

"Short versions of bench/race_proofs.py: its proofs hold on a task of a moment, and killed races give the same table."
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import miniai

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'bench'))

import killed_race
import race_proofs
import races
from miniai.racing.answer import Answer

TASK = replace(races.tiny(), steps=64)


def raced(folder, *line):
    "The exit code of a race in a process of its own, killed at `line`."
    paths = os.pathsep.join([str(Path(miniai.__file__).parents[1]), str(Path(races.__file__).parent)])
    return subprocess.run([sys.executable, killed_race.__file__, str(folder), *map(str, line)],
                          env=os.environ | dict(PYTHONPATH=paths), timeout=300).returncode


def test_a_race_killed_again_and_again_gives_the_table_of_an_uninterrupted_one(tmp_path):
    whole = races.run(races.descent, out=tmp_path/'whole').table()
    places = []
    for line, part in ((300, 'racing'), (60_000, 'miniai'), (300, 'store')):
        assert raced(tmp_path/'killed', line, part) == -signal.SIGKILL
        places.append((tmp_path/'killed'/'killed').read_text())
    assert not (tmp_path/'killed'/'race.json').exists()
    assert raced(tmp_path/'killed') == 0
    assert Answer.read(tmp_path/'killed'/'race.json').table() == whole
    made = [run for _, run in killed_race.executed(tmp_path/'killed')]
    assert len(set(made)) == 20
    assert len(made) <= 20 + len(places)


def test_rules_that_fail_in_any_way_are_counted_as_the_worst(tmp_path):
    text = race_proofs.broken(tmp_path, [TASK])
    assert '| cannot_be_built | 9 of 9 | RuntimeError: this optimizer cannot be built |' in text
    assert '| raises_at_step_5 | 9 of 9 | RuntimeError: this rule fails at step 5 |' in text
    assert '| gives_nan | 9 of 9 | diverged: the training loss is nan' in text
    assert '| diverges | 9 of 9 | diverged: ' in text
    assert '| needs_1000 | 0 of 9 |' in text


def test_a_baseline_is_worse_at_a_wrong_rate_and_not_when_it_is_tuned(tmp_path):
    rows = [line for line in race_proofs.untuned(tmp_path, [TASK]).split('\n') if '16 steps' in line]
    assert [line.split(' | ')[-1].strip(' |') for line in rows] == ['worse', 'cannot be told apart']*2


def test_equal_rules_whose_roundings_differ_are_not_told_apart(tmp_path):
    assert 'In 0 of 1 races' in race_proofs.same(tmp_path, 1, [replace(TASK, steps=600)], seeds=5)


def test_a_proof_that_fails_is_an_error():
    with pytest.raises(SystemExit, match='a proof fails: the rest'): race_proofs.check(False, 'the rest')

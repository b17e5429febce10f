"torchrun's store: who fails first, and what outlives a restart; and errors that one process raises for all."
import contextlib
import io
import os
import sys
import time

from miniai.cli import main
from miniai.distributed.ranks import close, of_first, rank, start, total
from miniai.distributed.torchrun import is_first_to_fail, kept, launched, meeting_place, show_first_error
from ranks import run_ranks


def asked():
    "Who fails first, before and after a restart; what is kept; what a function of the first process gives to all."
    firsts = [is_first_to_fail(), is_first_to_fail()]
    os.environ['TORCHELASTIC_RESTART_COUNT'] = '1'
    firsts.append(is_first_to_fail())
    before = of_first(lambda: kept('x'))
    of_first(lambda: kept('x', 'a b'))
    calls = []
    found = of_first(lambda: calls.append(1) or f'rank {rank()}')
    try: of_first(lambda: 1/0)
    except ZeroDivisionError as e: error = str(e)
    return firsts, before, kept('x'), launched(), found, len(calls), error


def test_one_process_is_the_first_to_fail_until_a_restart_and_all_see_what_is_kept_and_what_the_first_finds():
    (a, *others), (b, *same) = run_ranks(asked, 2)
    assert sorted([a[0], b[0]]) == [False, True]
    assert a[1] is b[1] is False
    assert sorted([a[2], b[2]]) == [False, True]
    assert others == [None, 'a b', (0, 2), 'rank 0', 1, 'division by zero']
    assert same == [None, 'a b', (1, 2), 'rank 0', 0, 'division by zero']


def test_without_torchrun_a_process_is_alone(capsys):
    assert is_first_to_fail()
    assert is_first_to_fail()
    assert launched() is None
    assert kept('x') is None
    assert of_first(lambda: 3) == 3
    show_first_error(*error())
    assert capsys.readouterr().err.endswith('ZeroDivisionError: division by zero\n')


def begun_twice():
    "The processes meet; then, as after a restart by torchrun, the second one is there before the first."
    start('cpu')
    close()
    if os.environ['RANK'] == '0': time.sleep(.3)
    start('cpu')
    return total([1.])


def test_processes_that_are_restarted_meet_each_other_and_not_those_before_them():
    assert run_ranks(begun_twice, 2, group=False, timeout=20) == [[2.], [2.]]


def test_another_launcher_has_no_store_to_ask(monkeypatch):
    for name, value in dict(RANK='0', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT='1').items():
        monkeypatch.setenv(name, value)
    assert kept('x') is None
    assert is_first_to_fail()
    assert meeting_place() == {}


def error():
    try: raise ZeroDivisionError('division by zero')
    except ZeroDivisionError: return sys.exc_info()


def said(args, home):
    "The exit code and the output of `miniai args` in a process of torchrun that has not joined the others."
    os.chdir(home)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(args)
        except SystemExit as e: return e.code, out.getvalue(), err.getvalue()


def said_of(home, *commands):
    results = []
    for i, command in enumerate(commands):
        os.environ['TORCHELASTIC_RESTART_COUNT'] = str(i)  # each fails anew
        results.append(said(command.split(), home))
    return results


def test_an_error_before_training_is_printed_once_and_other_jobs_run_in_the_first_process(tmp_path):
    wrong = ('train --epoch 3', 'train --data nothing', 'train --resume', 'predict')
    commands = [*wrong, '--version', 'script nothing a.py']
    first, second = run_ranks(said_of, 2, tmp_path, *commands, group=False)
    for command, a, b in zip(wrong, first, second, strict=False):
        assert a[0] == b[0] == (1 if 'resume' in command else 2), command
        assert [bool(a[2]), bool(b[2])].count(True) == 1, (command, a, b)
        assert b[1] == '', command
    assert first[-2][1].startswith('miniai ')
    assert second[-2] == (0, '', '')
    assert 'is not the folder of a finished run' in first[-1][2]
    assert second[-1] == (0, '', '')
    assert not list(tmp_path.iterdir())

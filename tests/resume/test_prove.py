"The proof that a Learner's runs resume: what it proves, what it finds and names, how it fails, and that it cleans up."
import multiprocessing
import os
import signal
import tempfile
from functools import partial

import pytest
import torch

import proving
from miniai.resume import prove as proof
from miniai.resume.prove import Proof, ProofError, prove_learner
from miniai.resume.signals import terminable
from miniai.resume.state import run_state


@pytest.fixture
def quick(monkeypatch):
    "Forks processes from one that has imported everything and trained nothing: as good as fresh ones, but quicker."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['miniai.resume.prove', 'torch._dynamo', 'pytest'])
    monkeypatch.setattr(proof, 'get_context', lambda kind: context)


@pytest.fixture
def said(): return []


def prove(make, said, **kwargs): return prove_learner(make, **(dict(batches=6) | kwargs), say=said.append)


def fitted(learn):
    learn.fit(1)
    return learn


# What it proves

@pytest.mark.skipif(multiprocessing.get_start_method() != 'fork', reason="the loader's workers can only be forked")
def test_a_learner_with_a_loader_with_two_workers_is_proved_and_no_file_is_left(quick, tmp_path, monkeypatch, said):
    monkeypatch.setattr(proof, 'TemporaryDirectory', partial(tempfile.TemporaryDirectory, dir=tmp_path))
    found = prove(proving.with_workers, said, n_epochs=1, batches=None)
    assert found.same, found
    assert (found.kills, found.differs) == ([(0, 2)], {})
    assert said == ['running 1 epoch(s) without interruption …', 'the same run, killed after 2 batches of epoch 0 …',
                    'resumed to the end …']
    assert os.listdir(tmp_path) == []


def test_it_says_what_was_compared_passes_on_rate_and_validation_and_kills_where_it_is_told_to(quick, said):
    kills = [(0, 0), (0, 4), (1, 0), (1, 1)]
    found = prove(proving.whole, said, batches=None, kills=kills, lr=1e-4, valid=False)
    assert found.same, found
    assert found.kills == kills
    assert said[1:-1] == ['the same run, killed before epoch 0 …', *(f'resumed, and killed {at} …' for at in (
        'after 4 batches of epoch 0', 'before epoch 1', 'after 1 batch of epoch 1'))]
    words, there = str(found), set(run_state(fitted(proving.whole())))
    assert words.startswith('identical to the bit: ')
    named = set(words.partition(' values in ')[2].partition(';')[0].split(', '))
    assert {'model', 'opt', 'history', 'states', 'attributes', 'random'} <= named <= there
    assert words.endswith('; left out: seconds')


@pytest.mark.parametrize(('batches', 'kills'), [(2, [(0, 1)]), (8, [(0, 4)]), (9, [(0, 4), (1, 0)]),
                                                (10, [(0, 4), (1, 1)]), (15, [(0, 4), (1, 3)])])
def test_it_kills_in_the_middle_of_the_first_epoch_and_in_the_last_or_before_it(batches, kills):
    places = [(e, b) for e in range(2) for b in range(9)]
    alone = [p for p in places if p[1]][:batches]
    assert proof._default_kills(places[:places.index(alone[-1]) + 1]) == kills


def test_only_values_that_are_left_out_may_differ(quick, said):
    other = prove(proving.notes_the_time, said, batches=2)
    assert list(other.differs) == ['states learn.cbs.RecorderCB 2 clock']
    assert prove(proving.notes_the_time, said, batches=2, leave_out=('seconds', 'clock')).same


# What it finds

def test_what_does_not_resume_exactly_is_found_and_named(quick, said):
    found = prove(proving.forgets, said)
    assert not found.same
    assert found.repeats
    assert {nm.split()[0] for nm in found.differs} >= {'model', 'opt', 'history'}
    at = next(iter(found.differs))
    assert f'NOT identical: {at} ({found.differs[at]}); ' in str(found)
    assert said[-1] == 'not identical; running once more without interruption, to see whether such runs agree …'


@pytest.mark.parametrize('make', [proving.counts, proving.counts_in_a_module, proving.with_an_odd_sampler])
def test_counters_and_samplers_of_any_kind_are_no_obstacle(quick, said, make):
    found = prove(make, said)
    assert found.same, found


def test_a_run_that_is_never_the_same_is_not_blamed_on_resuming(quick, said):
    found = prove(proving.is_never_the_same, said)
    assert (found.same, found.repeats) == (False, False)
    assert 'two uninterrupted runs differ too, so no run can be resumed exactly' in str(found)


@pytest.mark.parametrize('part', ['model', 'opt', 'history', 'states', 'attributes', 'random'])
def test_a_difference_in_any_part_of_a_run_is_found(monkeypatch, said, part):
    state = run_state(fitted(proving.whole()))
    def result(task, folder, name, ending, saves=False):
        ends = state if name == 'uninterrupted' else state | {part: spoilt(state[part])}
        return dict(state=ends, places=[(0, 0), (0, 1), (0, 2)])
    monkeypatch.setattr(proof, '_run', result)
    found = prove(proving.whole, said, batches=2)
    assert [nm.split()[0] for nm in found.differs] == [part]


def spoilt(x):
    "A copy with its last number changed, however deep, except times."
    if x is None: return 0
    if isinstance(x, str): return f'{x}!'
    if isinstance(x, torch.Tensor): return (x.double() + 1).to(x.dtype)
    if isinstance(x, dict):
        k = [k for k, v in x.items() if k != 'seconds' and v not in ([], {})][-1]
        return x | {k: spoilt(x[k])}
    return [*x[:-1], spoilt(x[-1])] if isinstance(x, list | tuple) else x + 1


def test_a_long_list_of_differences_is_cut_and_counted():
    said = str(Proof([(0, 1)], 'things', {f'model {i}': 'x' for i in range(1007)}))
    assert said == ('NOT identical: model 0 (x); model 1 (x); model 2 (x); model 3 (x); model 4 (x); and 1,002 more\n'
                    'compared: things')


# How it fails

@pytest.mark.parametrize(('make', 'words'), [
    (proving.fails, r'the uninterrupted run failed: OSError: the disk is\non fire\n'),
    (proving.ends_in_words, r'the uninterrupted run exited with code 3: half of it\nand the other half$'),
    (partial(proving.leaves, 0), '^the uninterrupted run exited with code 0: it printed nothing$'),
    (proving.is_shot, r'the uninterrupted run was ended by SIGSEGV: '),
    (proving.is_no_learner, r'TypeError: make\(\) must return a Learner, got Linear'),
    (proving.saves_by_itself, r'ValueError: make\(\) returns a Learner with a CheckpointCB: leave it out')])
def test_a_run_that_fails_is_an_error_with_its_last_output(quick, said, make, words):
    with pytest.raises(ProofError, match=words) as e: prove(make, said)
    if make is proving.fails: assert "in fails\n    def fails(): raise OSError(" in e.value.__notes__[0]


def test_a_run_that_should_have_been_killed_and_was_not_is_an_error(tmp_path):
    proof.save(tmp_path/'result', dict(state={}))
    assert str(proof._failure('first', 0, tmp_path/'result', tmp_path/'log')) == \
        'the first run failed: it ended before it could be killed'


def test_output_and_results_of_an_earlier_run_are_not_taken_for_those_of_a_later_one(tmp_path, monkeypatch):
    (tmp_path/'log').write_text('old words')
    proof.save(tmp_path/'result', dict(places=[]))
    monkeypatch.setattr(proof, '_exit_code_of', lambda process: 0)
    says = r"exited with code 0: it did not start; its output is above\. .* under `if __name__ == '__main__':`"
    with pytest.raises(ProofError, match=says): proof._run(b'', tmp_path, 'first', proof._EndCB())


@pytest.mark.parametrize('count', ['n_epochs', 'batches'])
@pytest.mark.parametrize('wrong', [0, -3, 1.5, True, '2'])
def test_wrong_counts_are_refused_before_any_process_starts(said, count, wrong):
    with pytest.raises(ValueError, match=f'{count} must be a whole number above 0, got {wrong!r}'):
        prove(proving.whole, said, **{count: wrong})
    assert said == []


@pytest.mark.parametrize('make', [lambda: None, partial(max, lambda: None), (i for i in ())])
def test_a_function_that_no_process_can_import_is_refused_before_any_starts(said, make):
    with pytest.raises(TypeError, match='must be able to import make'): prove(make, said)
    assert said == []


def test_more_batches_than_there_are_and_a_single_one_are_refused(quick, said):
    with pytest.raises(ValueError, match=r'9 batches were asked for, but 2 epoch\(s\) have only 8'):
        prove(proving.whole, said, batches=9)
    with pytest.raises(ValueError, match='a run of one training batch has no place to kill it'):
        prove(proving.has_one_batch, said, n_epochs=1, batches=None)


@pytest.mark.parametrize('kills', [[], [(1, 0), (0, 1)], [(0, 9)], [(0, 2), (0, 2)], [(1, 1)]])
def test_places_that_do_not_exist_or_are_out_of_order_are_refused(kills):
    places = [(e, b) for e in range(2) for b in range(9)][:11]
    with pytest.raises(ValueError, match=r'kills must be places of the run.*none after \(1, 0\); got'):
        proof._checked(kills, places, batches=9)


# How it cleans up

class Process:
    "A process during whose start, or while it is waited for, a signal comes."
    pid = None
    def __init__(self, number, starting): self.number, self.starting, self.killed = number, starting, False

    def start(self):
        if self.starting: signal.raise_signal(self.number)
        self.pid = 1

    def kill(self): self.killed = True

    def join(self):
        if not self.killed: signal.raise_signal(self.number)


@pytest.mark.parametrize('starting', [True, False])
@pytest.mark.parametrize(('number', 'raised'), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_ctrl_c_and_sigterm_leave_no_process_even_while_one_starts(number, raised, starting):
    process = Process(number, starting)
    with pytest.raises(raised), terminable(): proof._exit_code_of(process)
    assert process.killed


def test_a_process_that_cannot_be_started_is_not_killed():
    process = Process(0, False)
    process.start = lambda: 1/0
    with pytest.raises(ZeroDivisionError): proof._exit_code_of(process)
    assert not process.killed


def test_sigterm_leaves_no_folder_and_its_handler_is_restored(monkeypatch, tmp_path):
    monkeypatch.setattr(proof, 'TemporaryDirectory', partial(tempfile.TemporaryDirectory, dir=tmp_path))
    def say(words): signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit, match='143'): prove_learner(proving.whole, say=say)
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_kill_cannot_be_caught(monkeypatch):
    sent = []
    monkeypatch.setattr(os, 'kill', lambda *args: sent.append(args))
    with pytest.raises(proof.CancelFitException): proof._EndCB(None, (0, 0), kill=True)._arrive((0, 0))
    assert sent == [(os.getpid(), signal.SIGKILL)]

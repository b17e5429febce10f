"The proof of a resume for any Learner: what holds, what is found out and named, what fails, and that nothing is left."
import multiprocessing
import os
import signal
import tempfile
from functools import partial

import pytest
import torch

import proving
from miniai.resume import prove as proof
from miniai.resume import signals as interrupts
from miniai.resume.prove import Proof, ProofError, prove_learner
from miniai.resume.state import run_state


@pytest.fixture
def quick(monkeypatch):
    "Processes forked from one that has imported everything and trained nothing: as fresh as others, and sooner there."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['miniai.resume.prove', 'torch._dynamo', 'pytest'])
    monkeypatch.setattr(proof, 'get_context', lambda kind: context)


@pytest.fixture
def said(): return []


def prove(make, said, **kwargs): return prove_learner(make, **(dict(batches=6) | kwargs), say=said.append)


# What holds

@pytest.mark.skipif(multiprocessing.get_start_method() != 'fork', reason="the loader's workers can only be forked")
def test_a_learner_with_an_ordinary_loader_and_two_workers_is_proved(quick, tmp_path, monkeypatch, said):
    monkeypatch.setattr(proof, 'TemporaryDirectory', partial(tempfile.TemporaryDirectory, dir=tmp_path))
    found = prove(proving.with_workers, said, n_epochs=1, batches=None)
    assert found.same, found
    assert (found.kills, found.differs, found.suspects) == ([(0, 2)], {}, {})
    assert said == ['a run of 1 epoch(s), left alone …', 'the same, killed after 2 batches of epoch 0 …',
                    'gone on with to its end …']
    assert os.listdir(tmp_path) == []


def test_what_was_compared_is_said(quick, said):
    found = prove(proving.whole, said)
    there = set(run_state(fitted(proving.whole())))
    words = str(found)
    assert words.startswith('the same to the bit: ')
    assert {'model', 'opt', 'history', 'records', 'random', 'loaders', 'generators'} <= there
    named = set(words.partition(', of ')[2].partition(';')[0].split(', '))
    assert {'model', 'opt', 'history', 'records', 'random', 'loaders'} <= named <= there
    assert words.endswith('; left out: seconds')


def fitted(learn):
    learn.fit(1)
    return learn


@pytest.mark.parametrize(('batches', 'kills'), [(2, [(0, 1)]), (8, [(0, 4)]), (9, [(0, 4), (1, 0)]),
                                                (10, [(0, 4), (1, 1)]), (15, [(0, 4), (1, 3)])])
def test_it_kills_in_the_middle_of_the_first_epoch_and_in_the_last_or_before_it(batches, kills):
    places = [(e, b) for e in range(2) for b in range(9)]
    alone = [p for p in places if p[1]][:batches]
    assert proof._kills_among(places[:places.index(alone[-1]) + 1]) == kills


def test_it_kills_where_it_is_told_to_as_often_as_it_is(quick, said):
    found = prove(proving.whole, said, batches=None, kills=[(0, 0), (0, 4), (1, 0), (1, 1), (1, 4)])
    assert found.same, found
    assert len(found.kills) == 5
    assert said[1:-1] == ['the same, killed before epoch 0 …', *(f'gone on with, and killed {at} …' for at in (
        'after 4 batches of epoch 0', 'before epoch 1', 'after 1 batch of epoch 1', 'after 4 batches of epoch 1'))]


def test_the_rate_and_a_fit_without_validation_are_passed_on(quick, said):
    found = prove(proving.whole, said, lr=1e-4, valid=False)
    assert found.same, found


def test_figures_left_out_may_differ_and_no_others(quick, said):
    other = prove(proving.notes_the_time, said, batches=2)
    assert list(other.differs) == ['records RecorderCB 2 clock']
    assert prove(proving.notes_the_time, said, batches=2, leave_out=('seconds', 'clock')).same


# What is found out

@pytest.mark.parametrize(('make', 'who'), [
    (proving.forgets, ['DriftCB 1 n', 'DriftCB 2 n']), (proving.forgets_in_a_module, ['module 0 calls'])])
def test_what_cannot_be_gone_on_with_exactly_is_found_out_and_named(quick, said, make, who):
    found = prove(make, said)
    assert not found.same
    assert found.repeats
    assert {nm.split()[0] for nm in found.differs} >= {'model', 'opt', 'history'}
    at = next(iter(found.differs))
    assert f'NOT the same, left alone and gone on with: {at} ({found.differs[at]}); ' in str(found)
    assert found.suspects == dict.fromkeys(who, '6 and 1')
    assert f'kept by no checkpoint: {who[0]} (6 and 1)' in str(found)
    assert said[-1] == 'not the same; one more left alone, to see whether two of these are …'


def test_a_run_that_is_never_the_same_is_not_blamed_on_the_resume(quick, said):
    found = prove(proving.is_never_the_same, said)
    assert (found.same, found.repeats) == (False, False)
    assert 'two runs left alone differ as well, so that none can be gone on with exactly' in str(found)


@pytest.mark.parametrize('part', ['model', 'opt', 'history', 'records', 'random', 'loaders'])
def test_whatever_part_of_a_run_differs_is_told(monkeypatch, said, part):
    state = run_state(fitted(proving.whole()))
    other = state | {part: spoilt(state[part])}
    ends = dict(alone=state, resumed=other)
    def result(self, what, part, wanted=0):
        return dict(state=ends[part.result.name], places=[(0, 0), (0, 1), (0, 2)], unkept={})
    monkeypatch.setattr(proof._Runs, '_run', result)
    found = prove(proving.whole, said, batches=2)
    assert [nm.split()[0] for nm in found.differs] == [part]


def spoilt(x):
    "A copy with its last number changed, however deep, times aside."
    if x is None: return 0
    if isinstance(x, torch.Tensor): return (x.double() + 1).to(x.dtype)
    if isinstance(x, dict):
        k = [k for k, v in x.items() if k != 'seconds' and v not in ([], {})][-1]
        return x | {k: spoilt(x[k])}
    return [*x[:-1], spoilt(x[-1])] if isinstance(x, list | tuple) else x + 1


def test_a_long_list_of_differences_is_cut_and_counted():
    said = str(Proof([(0, 1)], 'things', {f'model {i}': 'x' for i in range(1007)}))
    assert said == ('NOT the same, left alone and gone on with: model 0 (x); model 1 (x); model 2 (x); model 3 (x); '
                    'model 4 (x); and 1,002 more\ncompared were things')


# What fails

@pytest.mark.parametrize(('make', 'words'), [
    (proving.fails, r'the run left alone failed: OSError: the disk is\non fire\n'),
    (proving.ends_in_words, r'ended by exit code 3: half of it\nand the other half$'),
    (proving.is_shot, r'the run left alone ended by signal SIGSEGV: '),
    (proving.is_no_learner, r'TypeError: make\(\) must give a Learner, and gave Linear'),
    (proving.saves_by_itself, r'ValueError: make\(\) gives a Learner with a CheckpointCB: leave it out'),
    (proving.with_an_odd_sampler, r'gone on with failed: UserWarning: passed over, .*within an epoch .* cannot .*Odd')])
def test_a_run_that_fails_by_itself_is_an_error_with_its_last_words(quick, said, make, words):
    with pytest.raises(ProofError, match=words): prove(make, said)


def test_the_traceback_is_a_note(quick, said):
    with pytest.raises(ProofError) as e: prove(proving.fails, said)
    assert "in fails\n    def fails(): raise OSError(" in e.value.__notes__[0]


def test_a_run_that_was_to_be_killed_and_was_not_is_told(tmp_path):
    proof.save(tmp_path/'result', dict(state={}))
    assert str(proof._failure('that is killed', 0, tmp_path/'result', tmp_path/'log')) == \
        'the run that is killed failed: it came to its end'


@pytest.mark.parametrize('code', [0, 3])
def test_a_run_that_began_and_ended_without_a_word_is_told_so_without_a_guess_at_the_script(quick, said, code):
    with pytest.raises(ProofError, match=f'^the run left alone ended by exit code {code}: it said nothing$'):
        prove(partial(proving.leaves, code), said)


def test_what_an_earlier_run_said_and_left_is_not_taken_for_a_later_ones(tmp_path, monkeypatch):
    runs = proof._Runs(b'', {}, None, tmp_path, print)
    (tmp_path/'log').write_text('old words')
    proof.save(tmp_path/'alone', dict(places=[]))
    monkeypatch.setattr(proof, '_exit_code_of', lambda process: 0)
    with pytest.raises(ProofError, match='ended by exit code 0: it never began'): runs.alone()


@pytest.mark.parametrize('count', ['n_epochs', 'batches'])
@pytest.mark.parametrize('wrong', [0, -3, 1.5, True, '2'])
def test_counts_that_are_no_whole_numbers_above_0_are_refused_before_any_process_starts(said, count, wrong):
    with pytest.raises(ValueError, match=f'{count} must be a whole number above 0, got {wrong!r}'):
        prove(proving.whole, said, **{count: wrong})
    assert said == []


def test_a_process_that_never_began_is_told_with_what_may_be_wrong(tmp_path):
    said = str(proof._failure('left alone', 1, tmp_path/'result', tmp_path/'log'))
    assert said.startswith("the run left alone ended by exit code 1: it never began; what it said is above.")
    assert "beneath if __name__ == '__main__'" in said


@pytest.mark.parametrize('make', [lambda: None, partial(max, lambda: None), (i for i in ())])
def test_a_function_that_no_process_can_import_is_refused_before_any_starts(said, make):
    with pytest.raises(TypeError, match='must be able to import make'): prove(make, said)
    assert said == []


def test_more_batches_than_there_are_and_a_single_one_are_refused(quick, said):
    with pytest.raises(ValueError, match=r'2 epoch\(s\) have 8 batches, and 9 were asked for'):
        prove(proving.whole, said, batches=9)
    with pytest.raises(ValueError, match='a run of one training batch has no place to be killed at'):
        prove(proving.has_one_batch, said, n_epochs=1, batches=None)


@pytest.mark.parametrize('kills', [[], [(1, 0), (0, 1)], [(0, 9)], [(0, 2), (0, 2)], [(1, 1)]])
def test_places_that_are_none_or_out_of_order_are_refused(kills):
    places = [(e, b) for e in range(2) for b in range(9)][:11]
    with pytest.raises(ValueError, match=r'kills must be places of the run.*none after \(1, 0\); got'):
        proof._checked(kills, places, batches=9)


class Process:
    "A process that gets a signal as it is started, or when it is waited for."
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
def test_ctrl_c_and_sigterm_leave_no_process_even_as_one_is_started(number, raised, starting):
    process = Process(number, starting)
    with pytest.raises(raised), interrupts.terminable(): proof._exit_code_of(process)
    assert process.killed


def test_a_process_that_cannot_be_started_is_not_killed():
    process = Process(0, False)
    process.start = lambda: 1/0
    with pytest.raises(ZeroDivisionError): proof._exit_code_of(process)
    assert not process.killed


def test_sigterm_leaves_no_folder_and_is_handled_as_before_after_it(monkeypatch, tmp_path):
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

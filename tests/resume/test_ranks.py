"Runs of several processes resume exactly on as many, and with the same samples and figures on any other number."
import os
import shutil
import signal

import pytest
import torch
from torchmetrics.classification import MulticlassF1Score

from miniai.checkpoint import FolderInUseError, FolderLock, load
from miniai.distributed import DistributedCB, rank
from miniai.distributed.ranks import from_first, is_first
from miniai.resume.files import files_of
from miniai.resume.restore import ResumeError
from numbered import SeenCB, assert_close, numbered, part_of_run
from ranks import run_ranks
from resuming import StopCB, Watcher, checkpoints, digest, fit_until_stopped, run

# As many processes

def resumed_from_each_checkpoint(folder):
    "As if all processes had been killed after each batch."
    whole, wrong = run(folder/'whole', cbs=[DistributedCB()], minutes=1e-9), []
    whole.fit(2)
    expected = digest(whole)
    names = from_first([p.name for p in files_of(folder/'whole')])
    for nm in names:
        if is_first():
            (folder/nm).mkdir()
            shutil.copy(folder/'whole'/nm, folder/nm)
        resumed = run(folder/nm, cbs=[DistributedCB()], batches=None)
        torch.manual_seed(99)
        resumed.fit(2, resume=True)
        if digest(resumed) != expected: wrong.append(nm)
    return wrong, len(names), expected


def test_a_run_on_two_processes_resumes_after_any_batch_with_the_same_bits(tmp_path):
    (wrong, n, one), (also_wrong, _, other) = run_ranks(resumed_from_each_checkpoint, 2, tmp_path, timeout=240)
    assert wrong == also_wrong == []
    assert n == 2*(7 + 1 + 2)  # after each batch, and as each validation begins
    assert one != other  # their random states and draws differ
    names = list(load(max((tmp_path/'whole').glob('checkpoint-*')))['model'])
    assert names == list(run().model.state_dict())


# Another number

@pytest.mark.parametrize(('first', 'second'), [((0, 2, True), (1, 0, False)), ((0, 1, False), (1, 0, True))])
def test_a_run_may_go_from_two_processes_to_one_and_to_four_with_the_same_samples_and_figures(first, second, tmp_path):
    whole, figures, weights, stats = part_of_run(tmp_path/'whole', None)
    a, *_ = run_ranks(part_of_run, 2, tmp_path/'run', first)[0]
    b, *_ = part_of_run(tmp_path/'run', second)
    for c, history, w, recorded in run_ranks(part_of_run, 4, tmp_path/'run', None):
        assert [*a, *b, *c] == whole
        for row, one in zip(history, figures, strict=True): assert_close(row, one)
        torch.testing.assert_close(w, weights, rtol=0, atol=1e-12)
        torch.testing.assert_close(recorded, stats, rtol=0, atol=1e-6)


def with_torchmetrics(folder, stop):
    return part_of_run(folder, stop, metrics=dict(f1=MulticlassF1Score(3)))[1]


def test_torchmetrics_see_the_epoch_that_one_process_began_and_a_warning_says_if_they_miss_batches(tmp_path):
    expected = with_torchmetrics(tmp_path/'whole', None)
    with_torchmetrics(tmp_path/'run', (0, 2))
    for history in run_ranks(with_torchmetrics, 2, tmp_path/'run', (1, 2)): assert_close(history[0], expected[0])
    with pytest.warns(match='on another number of processes: in that epoch, f1 will miss batches'):
        history = with_torchmetrics(tmp_path/'run', None)
    assert_close(history[-1], expected[-1])


# What all share

def resumed_from_the_first_one(folder):
    mine = folder/str(rank())
    fit_until_stopped(numbered(mine, DistributedCB(), StopCB(0, 2)), 1)
    learn, seen = numbered(mine, DistributedCB()), SeenCB()
    learn.fit(1, resume=True, cbs=seen)
    return seen.seen[0][2], checkpoints(mine), mine.exists()


def test_only_the_first_process_has_a_folder_and_all_resume_from_it(tmp_path):
    (first, names, _), (second, _, exists) = run_ranks(resumed_from_the_first_one, 2, tmp_path)
    assert first == second == 3
    assert '00000-1-00000003' in names
    assert not exists


class KillCB(Watcher):
    "Sends a signal to this process within one batch: before it, or in its cleanup after the processes have agreed."
    order = 1e9
    def __init__(self, event, batch):
        self.batch = batch
        setattr(self, event, self._kill)
    def _kill(self, learn):
        if learn.training and learn.iter == self.batch: os.kill(os.getpid(), signal.SIGTERM)


def signalled(folder, event):
    who = dict(before_batch=[('before_batch', 3), ('before_batch', 1)],
               cleanup_batch=[('before_batch', 2), ('cleanup_batch', 2)])[event]
    with pytest.raises(SystemExit) as e:
        numbered(folder, DistributedCB(), KillCB(*who[rank()]), minutes=None).fit(1)
    return e.value.code


@pytest.mark.parametrize(('event', 'batch'), [('before_batch', 2), ('cleanup_batch', 3)])
def test_signals_at_different_times_save_once_and_all_exit(event, batch, tmp_path):
    assert run_ranks(signalled, 2, tmp_path, event) == [143, 143]
    assert checkpoints(tmp_path) == [f'00000-1-{batch:08}']


def refused(folder):
    with pytest.raises(ResumeError, match=r'lr was 0.01 in the checkpoint and is 0.02 now'):
        numbered(folder, DistributedCB()).fit(2, resume=True, lr=0.02)
    with pytest.raises(ResumeError, match=r'checkpoint.* of an earlier run'): numbered(folder, DistributedCB()).fit(2)
    lock = FolderLock(folder) if is_first() else None
    with pytest.raises(FolderInUseError): numbered(folder, DistributedCB()).fit(2, resume=True)
    if lock: lock.release()


def due_in_the_second(folder):
    numbered(folder, DistributedCB(), minutes=1e-9 if rank() else None).fit(1)


def test_what_the_first_process_refuses_is_an_error_in_all_and_a_save_due_in_one_is_done(tmp_path):
    numbered(tmp_path).fit(1)
    run_ranks(refused, 2, tmp_path)
    run_ranks(due_in_the_second, 2, tmp_path/'due')
    assert checkpoints(tmp_path/'due') == [*(f'00000-1-{i:08}' for i in range(1, 6)),
                                           *(f'00000-2-{i:08}' for i in range(1, 4)), '00001-3-00000000']


# Killed

class DieCB(Watcher):
    "SIGKILL for the processes `whom` in their n-th batch of the fit, of training or validation."
    def __init__(self, n, whom): self.left, self.whom = n, whom
    def before_batch(self, learn):
        self.left -= 1
        if self.left < 0 and rank() in self.whom: os.kill(os.getpid(), signal.SIGKILL)


def killed_or_resumed(folder, how, n=None, whom=()):
    "The digest of a run, resumed if it has begun, unless it is killed."
    kills = [] if n is None else [DieCB(n, whom)]
    learn = run(folder, cbs=[DistributedCB(), *kills], **how)
    learn.fit(2, resume=True)
    return digest(learn)


@pytest.mark.parametrize('whom', [(1,), (0,), (0, 1)])
def test_a_run_of_which_processes_are_killed_ends_with_the_same_bits(whom, tmp_path):
    how = dict(keep=2, minutes=1e-9)
    expected = run_ranks(killed_or_resumed, 2, tmp_path/'whole', how)
    with pytest.raises(AssertionError, match='exit code -9'):
        run_ranks(killed_or_resumed, 2, tmp_path/'killed', how, 5 + 6*len(whom), whom)
    assert run_ranks(killed_or_resumed, 2, tmp_path/'killed', how) == expected

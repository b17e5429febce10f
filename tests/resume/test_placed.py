"Runs of sharded models resume with the same bits, and go from any kind of run to any other with the same samples."
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import torch

from miniai.distributed import DistributedCB
from miniai.distributed.dtensor import local
from miniai.distributed.ranks import from_first, is_first
from miniai.resume.files import files_of
from numbered import SeenCB, assert_close, numbered, part_of_run
from ranks import run_ranks
from resuming import StopCB, Watcher, fit_until_stopped


def own(learn):
    "What this process has of weights and optimizer state."
    states = [x for s in learn.opt.state.values() for x in s.values() if isinstance(x, torch.Tensor)]
    return [local(x).detach().clone() for x in (*learn.model.parameters(), *states)]


def equal(a, b): return len(a) == len(b) and all(x.equal(y) for x, y in zip(a, b, strict=True))


def resumed_from_some(folder):
    "As if all processes had been killed after each of some batches."
    whole, wrong = numbered(folder/'whole', DistributedCB('fsdp')), []
    whole.fit(2)
    expected = own(whole)
    names = from_first([p.name for p in files_of(folder/'whole')])
    for nm in (names[0], names[6], names[8]):
        if is_first(): shutil.copytree(folder/'whole'/nm, folder/nm/nm)
        resumed = numbered(folder/nm, DistributedCB('fsdp'))
        torch.manual_seed(99)
        resumed.fit(2, resume=True)
        if not equal(own(resumed), expected): wrong.append(nm)
    return len(names), wrong


def test_a_sharded_run_resumes_with_the_same_bits(tmp_path):
    assert run_ranks(resumed_from_some, 2, tmp_path) == [(18, [])]*2


# What cannot be used

def killed(folder):
    "The first process is killed when all have written their parts of the third checkpoint."
    numbered(folder, DistributedCB('fsdp'), KillCB(), minutes=None, batches=1, keep=2).fit(1)


class KillCB(Watcher):
    def after_batch(self, learn):
        if learn.iter == 2 and is_first(): os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def from_what_is_left(folder):
    "The batches at which runs resume, and what was skipped: after the kill; what a process lacks; what is damaged."
    at, said = [], []
    def resume(stop):
        seen, learn = SeenCB(), numbered('run', DistributedCB('fsdp'), minutes=None, batches=1, keep=3)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            fit_until_stopped(learn, 1, resume=True, cbs=[seen, StopCB(0, stop)])
        at.append(seen.seen[0][2])
        said.append([str(w.message) for w in found if 'skipped' in str(w.message)])
    os.chdir(folder)
    resume(3)
    left = from_first(sorted(p.name for p in Path('run').iterdir() if p.is_dir()))
    if not is_first():
        shutil.copytree('run', 'other/run', ignore=lambda *_: [left[-1]])
        os.chdir('other')
    resume(3)
    os.chdir(folder)
    if is_first(): damage(Path('run')/left[-1]/'__1_0.distcp')
    resume(4)
    return at, said, left


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data)//2] ^= 1
    path.write_bytes(data)


def test_what_is_incomplete_or_damaged_for_any_process_is_skipped_by_all(tmp_path):
    with pytest.raises(AssertionError, match='rank 0, exit code -9'): run_ranks(killed, 2, tmp_path/'run')
    assert any(p.suffix == '.part' for p in (tmp_path/'run').iterdir())
    (at, said, left), (also_at, _, _) = run_ranks(from_what_is_left, 2, tmp_path)
    newest = 'checkpoint-00000-1-00000004'
    assert left == [f'checkpoint-00000-1-0000000{i}' for i in (2, 3, 4)]
    assert at == also_at == [2, 3, 3]
    assert said == [[], [f'skipped run/{newest}: its part .metadata is missing'],
                    [f'skipped run/{newest}: damaged: the sha256 of its part __1_0.distcp is not as stated; use '
                     f'another checkpoint']]


KINDS = {'fsdp on 2, one process, fsdp on 4': [(2, 'fsdp'), (1, None), (4, 'fsdp')],
         'ddp on 2, fsdp on 2, one process': [(2, 'ddp'), (2, 'fsdp'), (1, None)]}


@pytest.mark.parametrize('kinds', KINDS.values(), ids=KINDS)
def test_a_run_may_go_on_in_another_way_with_the_same_samples_and_figures(kinds, tmp_path):
    whole, figures, weights, _ = part_of_run(tmp_path/'whole', None)
    seen = []
    for (n, how), stop in zip(kinds, [(0, 2), (1, 1, False), None], strict=True):
        found = run_ranks(part_of_run, n, tmp_path/'run', stop, how) if n > 1 else [part_of_run(tmp_path/'run', stop)]
        seen += found[0][0]
    assert seen == whole
    for _, history, w, _ in found:
        for row, one in zip(history, figures, strict=True): assert_close(row, one)
        torch.testing.assert_close(w, weights, rtol=0, atol=1e-12)

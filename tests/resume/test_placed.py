"Runs of sharded models resume with the same bits, and go from any kind of run to any other with the same samples."
import os
import shutil
import signal
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from miniai.checkpoint import gather
from miniai.data.loaders import DataLoaders
from miniai.data.memory import MemoryLoader
from miniai.distributed import DistributedCB
from miniai.distributed.dtensor import local
from miniai.distributed.ranks import from_first, is_first, rank
from miniai.distributed.whole import whole_copy
from miniai.inference.model_file import ModelFileError, load
from miniai.learner import TrainLearner
from miniai.metrics.accuracy import accuracy
from miniai.metrics.best import BestCB
from miniai.models.by_name import build_model
from miniai.optim import AdamW
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.files import files_of
from miniai.steps.average import AverageCB
from numbered import SeenCB, assert_close, numbered, part_of_run
from ranks import run_ranks
from resuming import Quiet, StopCB, Watcher, checkpoints, fit_until_stopped


def own(learn):
    "What this process has of weights and optimizer state."
    states = [x for s in learn.opt.state.values() for x in s.values() if isinstance(x, torch.Tensor)]
    return [local(x).detach().clone() for x in (*learn.model.parameters(), *states)]


def equal(a, b): return len(a) == len(b) and all(x.equal(y) for x, y in zip(a, b, strict=True))


def resumed_from_some(folder):
    "As if all processes had been killed after each of some batches."
    saves = dict(minutes=None, batches=3)  # in the middle of what AccumulateCB adds up, too
    whole, wrong = numbered(folder/'whole', DistributedCB('fsdp'), **saves), []
    whole.fit(2)
    expected = own(whole)
    names = from_first([p.name for p in files_of(folder/'whole')])
    for nm in names[:3]:
        if is_first(): shutil.copytree(folder/'whole'/nm, folder/nm/nm)
        resumed = numbered(folder/nm, DistributedCB('fsdp'), **saves)
        torch.manual_seed(99)
        resumed.fit(2, resume=True)
        if not equal(own(resumed), expected): wrong.append(nm)
    return names, wrong


def test_a_sharded_run_resumes_with_the_same_bits(tmp_path):
    at = '00000-1-00000003', '00001-1-00000000', '00001-1-00000003', '00002-3-00000000'
    names = [f'checkpoint-{place}' for place in at]
    assert run_ranks(resumed_from_some, 2, tmp_path) == [(names, [])]*2


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
    learn = numbered('signalled', DistributedCB('fsdp'), TermCB(), minutes=None)
    with pytest.raises(SystemExit, match='143'): learn.fit(1)
    return at, said, left


class TermCB(Watcher):
    "Sends SIGTERM to the processes in different batches."
    def before_batch(self, learn):
        if learn.iter == 1 + rank(): os.kill(os.getpid(), signal.SIGTERM)


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data)//2] ^= 1
    path.write_bytes(data)


def test_what_is_incomplete_or_damaged_for_any_process_is_skipped_by_all(tmp_path):
    with pytest.raises(AssertionError, match='rank 0, exit code -9'): run_ranks(killed, 2, tmp_path/'run')
    assert any(p.suffix == '.part' for p in (tmp_path/'run').iterdir())
    (at, said, left), (also_at, _, _) = run_ranks(from_what_is_left, 2, tmp_path)
    assert checkpoints(tmp_path/'signalled') == ['00000-1-00000002']
    newest = 'checkpoint-00000-1-00000004'
    assert left == [f'checkpoint-00000-1-0000000{i}' for i in (2, 3, 4)]
    assert at == also_at == [2, 3, 3]
    assert said == [[], [f'skipped run/{newest}: its part .metadata is missing'],
                    [f'skipped run/{newest}: damaged: the sha256 of its part __1_0.distcp is not as stated; use '
                     f'another checkpoint']]


# From one way to another

KINDS = {'fsdp on 2, one process, fsdp on 4': [(2, 'fsdp'), (1, None), (4, 'fsdp')],
         'ddp on 2, fsdp on 2, one process': [(2, 'ddp'), (2, 'fsdp'), (1, None)],
         'ZeRO on 2, one process, ZeRO on 2': [(2, 'zero'), (1, None), (2, 'zero')]}


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


# The best model

def named(folder):
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(48, 1, 8, 8, generator=g), torch.randint(3, (48,), generator=g)
    torch.manual_seed(0)
    model = build_model('simple', dict(channels=1, outputs=3))
    saver = CheckpointCB(folder, best='-loss', keep=1, background=True)
    cbs = [Quiet(accuracy), AverageCB(), BestCB(), saver, DistributedCB('fsdp')]
    dls = DataLoaders(MemoryLoader(x[:32], y[:32], bs=8, shuffle=True), MemoryLoader(x[32:], y[32:], bs=8))
    return TrainLearner(model, dls, F.cross_entropy, 0.1, cbs, partial(AdamW, ema=.5))


def best_of(folder):
    learn = named(folder)
    learn.fit(4)
    best = whole_copy(learn.model).state_dict()
    for p in learn.model.parameters(): torch.nn.init.zeros_(p)
    learn.load_best(folder)
    found = whole_copy(learn.model).state_dict()
    other = TrainLearner(torch.nn.Linear(2, 2), learn.dls)
    with pytest.raises(ModelFileError, match='the weights of another model'): other.load_best(folder)
    return best, found


def test_the_best_model_comes_back_sharded_or_in_one_file_that_load_reads(tmp_path):
    for best, found in run_ranks(best_of, 2, tmp_path): assert_same(found, best)
    folders = {p.name for p in tmp_path.iterdir() if p.is_dir()}
    target = os.readlink(tmp_path/'best')
    assert target != 'checkpoint-00004-3-00000000'  # else the next line says nothing
    assert folders == {'best', target, 'checkpoint-00004-3-00000000'}
    gather(tmp_path/'best', tmp_path/'model.safetensors')
    assert_same(load(tmp_path/'model.safetensors').model.state_dict(), best)


def assert_same(a, b):
    assert list(a) == list(b)
    for x, y in zip(a.values(), b.values(), strict=True): assert x.equal(y)

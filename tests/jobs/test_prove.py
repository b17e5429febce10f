"The proof of a resume, as the command line asks for it: of what `miniai train` runs, in processes of their own."
import signal
from dataclasses import fields, replace
from functools import partial
from tempfile import TemporaryDirectory

import pytest

from miniai.jobs import prove
from miniai.jobs import train as job
from miniai.jobs.config import ConfigError, ProveConfig, TrainConfig
from miniai.jobs.train import train
from miniai.resume.prove import Proof, ProofError
from tiny import write_tiny


@pytest.fixture
def config(tmp_path):
    return ProveConfig(data=str(write_tiny(tmp_path, 200, 40)), batch_size=64, batches=5, device='cpu', epochs=2)


def test_a_run_killed_in_two_epochs_and_gone_on_with_is_the_one_left_alone(config, capsys):
    assert prove.prove_resume(config)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith('Fashion-MNIST, 200 training')
    assert said[1:-1] == ['a run of 5 batches, left alone …', 'the same, killed after 2 batches of epoch 0 …',
                          'gone on with, and killed before epoch 1 …', 'gone on with to its end …']
    assert said[-1].startswith('the same to the bit: ')
    assert all(f' {part},' in said[-1] for part in ('model', 'opt', 'history', 'records', 'random'))


def test_it_proves_what_train_runs(config, monkeypatch, tmp_path, capsys):
    seen = []
    def note(config, dls, cbs, learner_of=job.learner_of):
        seen.append(learner_of(config, dls, cbs))
        return seen[-1]
    monkeypatch.setattr(job, 'learner_of', note)
    train(TrainConfig(**{f.name: getattr(config, f.name) for f in fields(config) if f.name != 'batches'},
                      out=str(tmp_path/'run')))
    proved = prove._learner(replace(config, lr=.06, layout='channels-last'), str(tmp_path))
    kinds = [type(cb).__name__ for cb in seen[0].cbs]
    assert [k for k in kinds if k not in ('CheckpointCB', 'BegunCB')] == [type(cb).__name__ for cb in proved.cbs]
    assert {'RecorderCB', 'ActivationStats', 'ProgressCB', 'HistoryFileCB'} < set(kinds)
    assert (proved.lr, proved.opt_func, proved.loss_func) == (seen[0].lr, seen[0].opt_func, seen[0].loss_func)


def test_what_differs_is_said_and_returned(config, capsys, monkeypatch):
    found = Proof([(0, 1)], 'things', {'model 0.weight': 'by much'})
    monkeypatch.setattr(prove, 'prove_learner', lambda *args: found)
    assert prove.prove_resume(replace(config, batches=4)) is False
    *_, first, second, third = capsys.readouterr().out.splitlines()
    assert first == 'NOT the same, left alone and gone on with: model 0.weight (by much)'
    assert second == 'compared were things'
    assert third == 'all batches were of one epoch: --batches 6 kills the run in a second one too'


def test_a_run_that_fails_is_an_error_with_what_it_said(config):
    with pytest.raises(ProofError, match='the run left alone failed: NonFiniteLossError: the training loss is '):
        prove.prove_resume(replace(config, lr=1e38))


def test_sigterm_before_or_after_the_proof_itself_leaves_no_folder_either(config, monkeypatch, tmp_path):
    (tmp_path/'tmp').mkdir()
    monkeypatch.setattr(prove, 'TemporaryDirectory', partial(TemporaryDirectory, dir=tmp_path/'tmp'))
    monkeypatch.setattr(prove, 'prove_learner', lambda *args: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit, match='143'): prove.prove_resume(config)
    assert list((tmp_path/'tmp').iterdir()) == []


def test_more_batches_than_the_epochs_have_are_refused_before_anything_runs(config):
    says = r'2 epoch\(s\) of this set have 8 batches, and 9 were asked for'
    with pytest.raises(ConfigError, match=says): prove.prove_resume(replace(config, batches=9))


def test_it_cannot_be_told_what_it_would_not_do():
    assert {f.name for f in fields(ProveConfig)}.isdisjoint(('out', 'resume', 'profile'))


def test_at_least_two_batches_are_needed():
    with pytest.raises(ConfigError, match='batches must be 2 or more, got 1'): ProveConfig(batches=1)

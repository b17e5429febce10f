"The job that proves that runs of `miniai train` resume exactly."
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


def test_a_run_that_is_killed_in_two_epochs_and_resumed_equals_an_uninterrupted_one(config, capsys):
    assert prove.prove_resume(config)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith('Fashion-MNIST, 200 training')
    assert len(said) == 6  # the data, four runs, the result
    assert all(f' {part},' in said[-1] for part in ('model', 'opt', 'history', 'attributes', 'states'))


def test_it_proves_what_train_runs(config, monkeypatch, tmp_path, capsys):
    seen = []
    def note(*args, build_learner=job.build_learner):
        seen.append(build_learner(*args))
        return seen[-1]
    monkeypatch.setattr(job, 'build_learner', note)
    train(TrainConfig(**{f.name: getattr(config, f.name) for f in fields(config) if f.name != 'batches'},
                      out=str(tmp_path/'run')))
    proved = prove._learner(replace(config, lr=.02, layout='channels-last'), str(tmp_path))
    kinds = [type(cb).__name__ for cb in seen[0].cbs]
    assert [k for k in kinds if k not in ('CheckpointCB', 'AcceptedCB')] == [type(cb).__name__ for cb in proved.cbs]
    assert {'RecorderCB', 'ActivationStats', 'ProgressCB', 'HistoryFileCB'} < set(kinds)
    assert (proved.lr, proved.opt_func.func, proved.loss_func) == (seen[0].lr, seen[0].opt_func.func, seen[0].loss_func)


def test_a_difference_is_printed_and_returned(config, capsys, monkeypatch):
    found = Proof([(0, 1)], 'things', {'model 0.weight': 'by much'})
    monkeypatch.setattr(prove, 'prove_learner', lambda *args: found)
    assert prove.prove_resume(replace(config, batches=4)) is False
    said = capsys.readouterr().out
    assert str(found) in said
    assert said.endswith('only one epoch was tested: --batches 6 also kills the run in a second one\n')


def test_a_run_that_fails_is_an_error_with_its_message(config):
    with pytest.raises(ProofError, match='NonFiniteLossError: the training loss is '):
        prove.prove_resume(replace(config, lr=1e38))


def test_sigterm_leaves_no_folder(config, monkeypatch, tmp_path):
    (tmp_path/'tmp').mkdir()
    monkeypatch.setattr(prove, 'TemporaryDirectory', partial(TemporaryDirectory, dir=tmp_path/'tmp'))
    monkeypatch.setattr(prove, 'prove_learner', lambda *args: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit, match='143'): prove.prove_resume(config)
    assert list((tmp_path/'tmp').iterdir()) == []


def test_more_batches_than_the_epochs_have_are_refused_before_anything_runs(config):
    with pytest.raises(ConfigError, match=r'batches is 9, but 2 epoch\(s\) of this data have only 8: use fewer'):
        prove.prove_resume(replace(config, batches=9))

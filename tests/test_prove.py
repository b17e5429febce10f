"The proof of a resume: it holds for a configuration as it is, and tells weights that differ and runs that fail."
from dataclasses import fields, replace

import pytest

from miniai.jobs import prove
from miniai.jobs.config import ConfigError, ProveConfig
from tiny import write_tiny


@pytest.fixture
def config(tmp_path):
    return ProveConfig(data=str(write_tiny(tmp_path, 200, 40)), batch_size=64, batches=4, device='cpu', epochs=2)


def test_a_run_killed_and_gone_on_with_has_the_weights_of_one_left_alone(config, capsys):
    assert prove.prove_resume(config)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith('Fashion-MNIST, 200 training')
    assert said[1] == 'a run of 4 batches …'
    assert said[2] == 'the same, killed after batch 2 …'
    assert said[-1].startswith('weights and optimizer state are the same to the bit: sha256 ')


def test_weights_that_differ_are_told(config, capsys, monkeypatch):
    ends = iter(['a'*64, '', 'b'*64])
    monkeypatch.setattr(prove, '_child', lambda *args: next(ends))
    assert not prove.prove_resume(config)
    said = capsys.readouterr().out
    assert f"state are NOT the same: sha256 {'a'*16}… left alone, {'b'*16}… gone on with" in said


def test_a_run_that_fails_is_an_error_with_what_it_said(tmp_path):
    with pytest.raises(RuntimeError, match='the whole run ended with 1, not 0'):
        prove._child(tmp_path/'none.toml', tmp_path, 'whole', 0)


def test_more_batches_than_the_epochs_have_are_refused_before_anything_runs(config):
    says = r'2 epoch\(s\) of this set have 8 batches, and 9 were asked for'
    with pytest.raises(ConfigError, match=says): prove.prove_resume(replace(config, batches=9))


def test_it_cannot_be_told_what_it_would_not_do():
    assert {f.name for f in fields(ProveConfig)}.isdisjoint(('out', 'resume', 'profile'))


def test_at_least_two_batches_are_needed():
    with pytest.raises(ConfigError, match='batches must be 2 or more, got 1'): ProveConfig(batches=1)

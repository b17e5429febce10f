"The jobs that verify, show and gather checkpoints: one line per file, safe to print, and clear errors."
import re

import pytest
import torch

from miniai.checkpoint import load, save
from miniai.jobs.checkpoint import GatherConfig, ShowConfig, VerifyConfig, gather_model, show_file, verify_files
from miniai.jobs.config import ConfigError
from sharded_folder import write_sharded


def test_verify_prints_a_line_per_file_and_returns_whether_all_are_intact(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('a', 'damaged'): save(name, dict(n=1))
    (tmp_path/'damaged').write_bytes((tmp_path/'damaged').read_bytes()[:-1])
    assert verify_files(VerifyConfig(('a',))) is True
    assert verify_files(VerifyConfig(('damaged', 'none', 'no\nfile', 'a'))) is False
    intact, damaged, none, escaped, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch('a: intact, sha256 [0-9a-f]{64}', intact)
    assert last == intact
    assert damaged.startswith('damaged: ')
    assert none == 'none: No such file or directory'
    assert escaped.startswith(r'no\nfile: ')


def test_verify_needs_a_file():
    with pytest.raises(ConfigError, match='name at least one checkpoint'): verify_files(VerifyConfig(()))


def test_show_prints_what_is_in_a_file_and_nothing_that_controls_a_terminal(tmp_path, capsys):
    save(tmp_path/'a', {'\x1b]0;owned\x07\nfile  forged': 1, 'emoji 😀': '\x1b[31m', 'n': 10**5000})
    show_file(ShowConfig(tmp_path/'a'))
    said = capsys.readouterr().out
    assert 'emoji 😀' in said
    assert all(c == '\n' or c.isprintable() for c in said)
    assert not any(line.startswith('file  forged') for line in said.splitlines())


def test_show_names_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError): show_file(ShowConfig(tmp_path/'none'))


def test_a_sharded_checkpoint_is_verified_shown_and_gathered_like_a_file(tmp_path, capsys):
    folder, out = tmp_path/'checkpoint-00001-3-00000000', tmp_path/'model.safetensors'
    write_sharded(folder, dict(w=torch.ones(3, 2)), file=dict(kind='model'))
    assert verify_files(VerifyConfig((folder,))) is True
    show_file(ShowConfig(folder))
    gather_model(GatherConfig(folder, out))
    said = capsys.readouterr().out
    assert f'{folder}: intact, sha256 ' in said
    assert re.search(r'model/w +float32 +3 x 2 +24 B', said)
    assert f'{out}: the whole model of {folder}' in said
    assert load(out)['model']['w'].equal(torch.ones(3, 2))
    with pytest.raises(FileExistsError, match='exists already: choose another name'):
        gather_model(GatherConfig(folder, out))

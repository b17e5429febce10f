"Damaged and hostile files: each is refused by one error that names it, and reading it does nothing else."
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import damage
import scripts
from miniai.checkpoint import CheckpointError, inspect, load, read, save, verify
from states import bits, everything, same

GOLDEN = Path(__file__).parents[1]/'golden'
HARMLESS = {  # plain data, if not what `save` would write
    'strides zero', 'device of code', 'py/object', 'dunder keys', 'config that names code', 'template', 'tag with more',
    'absurd exponent', 'tensor without a place', 'keys twice', 'tuple of text', 'floats of another type',
    'ints of another type', 'floats of numpy', 'floats twice', 'floats and a tensor', 'a tensor and floats'}


@pytest.fixture
def path(tmp_path):
    save(tmp_path/'a.safetensors', everything())
    return tmp_path/'a.safetensors'


# Damage

def test_every_damaged_file_is_refused_and_named(tmp_path):
    assert damage.damaged(str(tmp_path), 400) == dict(files=400, refused=400, other=0)


def test_every_truncation_is_refused(path):
    raw = path.read_bytes()
    for n in range(0, len(raw), 23):
        path.write_bytes(raw[:n])
        with pytest.raises(CheckpointError): verify(path)


def test_the_reason_says_what_is_wrong(path):
    raw = path.read_bytes()
    for bad, said in [(raw[:-1], 'truncated: '), (raw + b'\0', 'damaged: it has 1 bytes after its end'),
                      (raw[:-1] + b'\x55', 'damaged: its sha256'), (b'PK\x03\x04' + raw, 'a pickle or zip archive'),
                      (raw[:3], 'or truncated or damaged'), (raw[:200], 'or truncated or damaged')]:
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=said) as e: load(path)
        assert e.value.path == str(path)


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    for f in (load, verify, inspect):
        with pytest.raises(FileNotFoundError): f(tmp_path/'none')


@pytest.mark.parametrize('read', [load, verify, inspect])
def test_a_path_may_be_bytes_and_one_with_a_nul_is_a_checkpoint_error_that_names_it(path, read):
    assert bits(read(os.fsencode(path))) == bits(read(path))
    for bad in ('a\0b', b'a\0b', Path('a\0b')):
        with pytest.raises(CheckpointError, match='embedded null') as e: read(bad)
        assert e.value.path == 'a\0b'
    path.write_bytes(b'')
    with pytest.raises(CheckpointError, match=f'^{path}: '): read(os.fsencode(path))


def test_a_read_error_of_the_disk_is_a_checkpoint_error(path, monkeypatch):
    class Broken(io.BytesIO):
        def fileno(self): raise OSError(5, 'Input/output error')
    monkeypatch.setattr(read, 'open', lambda *args: Broken(), raising=False)
    with pytest.raises(CheckpointError, match='cannot be read: Input/output error'): load(path)


NOT_FILES = dict(pipe=(os.mkfifo, 'not a regular file'), folder=(os.mkdir, 'not a regular file'),
                 device=(lambda p: os.symlink('/dev/zero', p), 'not a regular file'),
                 broken_link=(lambda p: os.symlink('nowhere', p), "a link to 'nowhere', which does not exist"),
                 circle=(lambda p: os.symlink(p, p), 'cannot be read: Too many levels'))


@pytest.mark.parametrize('kind', NOT_FILES)
@pytest.mark.parametrize('f', [load, verify, inspect])
def test_anything_but_a_file_is_a_checkpoint_error_that_names_it_at_once(tmp_path, f, kind):
    make, said = NOT_FILES[kind]
    make(tmp_path/'x')
    with pytest.raises(CheckpointError, match=f'^{tmp_path}/x: {said}') as e: f(tmp_path/'x')
    assert (e.value.path, e.value.reason) == (f'{tmp_path}/x', str(e.value).removeprefix(f'{tmp_path}/x: '))
    assert isinstance(e.value, ValueError)


PEAK = """
import sys, torch
from damage import peak_of_reading
from miniai.checkpoint import save, load
save(sys.argv[1] + '.small', torch.zeros(3)), load(sys.argv[1] + '.small')
print(peak_of_reading(sys.argv[1]))
"""


@pytest.mark.parametrize('bad', [False, True])
def test_reading_takes_less_memory_than_twice_the_file(path, bad):
    save(path, [torch.randn(5_000_000), torch.randn(5_000_000)])
    if bad:
        with path.open('r+b') as f: f.seek(-5, os.SEEK_END), f.write(b'wrong')
    code, out, err = scripts.run(PEAK, path)
    assert code == 0, err
    assert 0.9 < float(out) < 2


# Looking into a file

def test_inspect_returns_what_the_head_says(path):
    save(path, everything())
    info = inspect(path)
    assert (info.version, info.torch, info.size, info.sha256) == ('1', torch.__version__, path.stat().st_size,
                                                                  verify(path))
    assert info.tensors['opt/0/avg'].shape == (2, 3, 4, 5)
    assert (info.tensors['opt/7/avg'].dtype, info.tensors['opt/7/avg'].nbytes) == ('bfloat16', 40)
    assert info.scalars == dict(scalar=np.float32(1.5), epoch=3)
    assert bits(info.scalars['scalar']) == bits(np.float32(1.5))


def test_inspect_reads_only_the_head(path):
    save(path, torch.zeros(1_000_000))
    with path.open('r+b') as f: f.seek(1_000_000), f.write(b'x')
    assert inspect(path).size == path.stat().st_size
    with pytest.raises(CheckpointError): verify(path)


# Hostile files

@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    "What reading each hostile file came to, and the control, see `damage.read_all`."
    folder = tmp_path_factory.mktemp('hostile')
    done = subprocess.run([sys.executable, damage.__file__, str(folder)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_hostile_files_are_refused_or_harmless(hostile):
    read = hostile['files']
    assert len(read) >= 50
    assert {nm for nm, r in read.items() if 'harmless' in r['results']} == HARMLESS
    assert {nm: r['results'] for nm, r in read.items() if set(r['results']) - {'refused', 'harmless'}} == {}


def test_hostile_files_execute_import_open_and_send_nothing(hostile):
    assert {nm: r['seen'] for nm, r in hostile['files'].items() if r['seen']} == {}
    assert not os.path.exists('/tmp/miniai-was-here')


def test_the_audit_hook_sees_what_a_pickle_does(hostile):
    assert {'pickle.find_class', 'compile', 'exec'} <= {event for event, _ in hostile['control']}


# Files of earlier versions

def test_golden_files_load_to_what_was_saved():
    assert same(load(GOLDEN/'format_1_everything.safetensors'), everything())
    state = load(GOLDEN/'format_1_training.safetensors')
    assert (state['epoch'], state['batch'], state['optimizer']['param_groups'][0]['lr']) == (2, 17, 0.01)
    assert state['model']['0.weight'].tolist() == [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]
    assert state['optimizer']['state'][0]['exp_avg'].dtype == torch.bfloat16
    assert state['model']['0.weight'] is state['model']['tied']
    assert same(load(GOLDEN/'format_1_records.safetensors'), records())


def records(): return dict(lr=[i/7 for i in range(70)], n=[i - 2**62 for i in range(70)], short=[.5, math.inf])


@pytest.mark.parametrize('name', ['everything', 'training', 'records'])
def test_golden_files_verify_and_are_small(name):
    path = GOLDEN/f'format_1_{name}.safetensors'
    assert verify(path) == inspect(path).sha256
    assert path.stat().st_size < 8000

"The folder of compiled kernels: whatever happens to it, a step works and gives the same result."
import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numba as numba_itself
import pytest
import torch

from miniai.kernels import cache, numba
from miniai.kernels.numba import compiled
from miniai.optim import Adam

STEP = '''
import torch
from miniai.optim import Adam
p = torch.nn.Parameter(torch.linspace(-1, 1, 50))
opt = Adam([p], lr=.1)
for t in range(3):
    p.grad = torch.linspace(-t, 1, 50)
    opt.step()
assert opt.path.startswith('fused'), opt.path
print(p.detach().view(torch.int32).sum().item())
'''


@pytest.fixture
def step(monkeypatch):
    "Take three steps with kernels from a folder, as a new process would: their bits, and how many were compiled."
    def three_steps(folder):
        monkeypatch.setenv('MINIAI_CACHE', str(folder))
        numba.step_kernel.cache_clear()
        before, p = sum(compiled.values()), torch.nn.Parameter(torch.linspace(-1, 1, 50))
        opt = Adam([p], lr=.1)
        for t in range(3):
            p.grad = torch.linspace(-t, 1, 50)
            opt.step()
        return p.detach().view(torch.int32).sum().item(), sum(compiled.values()) - before
    yield three_steps
    numba.step_kernel.cache_clear()


def test_kernels_are_compiled_once_into_a_private_folder_next_to_their_source(step, tmp_path):
    bits, misses = step(tmp_path/'kernels')
    assert (step(tmp_path/'kernels'), misses) == ((bits, 0), 1)
    assert stat.S_IMODE((tmp_path/'kernels').stat().st_mode) == 0o700
    source, code = sorted((tmp_path/'kernels').iterdir(), key=lambda x: x.suffix != '.py')
    assert source.stem == code.stem
    assert 'for j in range(n)' in source.read_text()


def process(code, **env):
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)) | env
    return subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE, text=True)


def output(code, **env):
    with process(code, **env) as running: out, _ = running.communicate(timeout=120)
    assert running.returncode == 0
    return out


def test_two_processes_may_fill_one_folder_at_once_and_others_compile_nothing(step, tmp_path):
    both = [process(STEP, MINIAI_CACHE=str(tmp_path)) for _ in range(2)]
    bits = [int(b.communicate(timeout=120)[0]) for b in both]
    assert bits[0] == bits[1] == int(output(STEP, MINIAI_CACHE=str(tmp_path)))
    assert step(tmp_path) == (bits[0], 0)


def flip(data): return data[:len(data)//2] + bytes([data[len(data)//2] ^ 1]) + data[len(data)//2 + 1:]
def empty(data): return b''
def cut(data): return data[:len(data)//2]


def damage_all(folder, damage):
    files = [x for x in folder.rglob('*') if x.is_file()]
    assert files
    for x in files: x.write_bytes(damage(x.read_bytes()))


@pytest.mark.parametrize('damage', [flip, empty, cut])
def test_a_damaged_file_is_found_and_made_again(step, tmp_path, damage):
    bits, _ = step(tmp_path)
    damage_all(tmp_path, damage)
    assert step(tmp_path) == (bits, 1)
    assert step(tmp_path) == (bits, 0)


@pytest.mark.parametrize('setting', ['NUMBA_CACHE_DIR', 'NUMBA_CACHE_LOCATOR_CLASSES'])
def test_settings_of_numbas_own_cache_change_nothing(step, tmp_path, setting):
    env = dict(MINIAI_CACHE=str(tmp_path/'ours'))
    env[setting] = str(tmp_path/'numba') if setting == 'NUMBA_CACHE_DIR' else 'ZipCacheLocator'
    bits = output(STEP, **env)
    assert [x.name for x in tmp_path.iterdir()] == ['ours']
    assert step(tmp_path/'ours') == (int(bits), 0)
    damage_all(tmp_path, flip)
    assert output(STEP, **env) == bits


@pytest.mark.parametrize(('setting', 'value'), [('OPT', 1), ('LOOP_VECTORIZE', 0), ('BOUNDSCHECK', 1)])
def test_kernels_compiled_with_other_settings_are_other_kernels(step, tmp_path, monkeypatch, setting, value):
    step(tmp_path)
    monkeypatch.setattr(numba_itself.config, setting, value)
    assert [step(tmp_path)[1] for _ in range(2)] == [1, 0]


FULL = '''
import resource, torch
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
'''
TALLY = '''
from miniai.kernels.histogram import tally
assert tally(torch.linspace(-1, 1, 5000))[2].sum() == 5000
'''


@pytest.mark.parametrize('limit', [0, 4096])
def test_on_a_full_disk_kernels_are_compiled_but_not_kept(step, tmp_path, limit):
    bits = output(FULL.format(limit=limit) + STEP + TALLY, MINIAI_CACHE=str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert step(tmp_path) == (int(bits), 1)


@pytest.mark.parametrize('blocked', [False, True])
def test_a_folder_that_is_removed_during_a_step_is_no_obstacle(step, tmp_path, monkeypatch, blocked):
    save, folder = cache.DiskCache.save_overload, tmp_path/'kernels'
    def removed(*args):
        shutil.rmtree(folder)
        if blocked: folder.write_text('not a folder')
        save(*args)
    monkeypatch.setattr(cache.DiskCache, 'save_overload', removed)
    assert step(folder)[1] == 1
    assert folder.is_file() == blocked


def test_a_file_that_cannot_be_read_is_compiled_again(step, tmp_path, monkeypatch):
    bits, _ = step(tmp_path)
    def broken(path): raise OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(Path, 'read_bytes', broken)
    assert step(tmp_path) == (bits, 1)


def test_a_folder_that_others_could_write_to_is_not_used(step, tmp_path):
    folder = tmp_path/'open'
    folder.mkdir()
    folder.chmod(0o777)
    assert step(folder)[1] == 1
    assert not list(folder.iterdir())


@pytest.mark.skipif(getattr(os, 'getuid', lambda: 1)() == 0, reason='root may write anywhere')
def test_a_folder_that_cannot_be_written_is_no_obstacle(step, tmp_path):
    folder = tmp_path/'shut'
    folder.mkdir(mode=0o500)
    assert step(folder)[1] == 1


def test_a_file_in_place_of_the_folder_is_no_obstacle(step, tmp_path):
    (tmp_path/'file').write_text('not a folder')
    assert step(tmp_path/'file'/'below')[1] == 1


def test_a_user_without_a_home_folder_can_step(step, monkeypatch):
    def nowhere(): raise RuntimeError('Could not determine home directory.')
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(Path, 'home', nowhere)
    assert step('')[1] == 1


def test_without_the_variable_kernels_are_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv('MINIAI_CACHE', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache.cache_folder() == tmp_path/'miniai'/'kernels'

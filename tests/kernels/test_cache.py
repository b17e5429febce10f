"The folder of compiled kernels: whatever happens to it, a step works and gives the same result."
import os
import stat
import subprocess
import sys

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


@pytest.fixture
def own(monkeypatch, tmp_path):
    "A temporary folder of this process that nothing has been compiled into."
    monkeypatch.setattr(cache, '_process_folder', lambda: tmp_path)
    return tmp_path


def test_kernels_are_compiled_once_into_a_private_folder_by_a_readable_name(step, tmp_path):
    bits, misses = step(tmp_path/'kernels')
    assert (step(tmp_path/'kernels'), misses) == ((bits, 0), 1)
    assert stat.S_IMODE((tmp_path/'kernels').stat().st_mode) == 0o700
    source, = (tmp_path/'kernels').glob('*.py')
    assert source.stem[:2] == 'k_'
    assert 'for j in range(n)' in source.read_text()
    assert not list((tmp_path/'kernels').glob('*.part'))


def test_two_processes_that_fill_one_folder_at_once_both_step_and_a_third_compiles_nothing(step, tmp_path):
    env = os.environ | dict(MINIAI_CACHE=str(tmp_path), PYTHONPATH=os.pathsep.join(sys.path))
    command, given = [sys.executable, '-c', STEP], dict(env=env, stdout=subprocess.PIPE, text=True)
    both = [subprocess.Popen(command, **given) for _ in range(2)]
    bits = [int(b.communicate(timeout=120)[0]) for b in both]
    assert bits[0] == bits[1]
    assert step(tmp_path) == (bits[0], 0)


def flip(data):
    data = bytearray(data)
    for i in range(len(data)//3, len(data), max(1, len(data)//7)): data[i] ^= 0x55
    return bytes(data)


def empty(data): return b''
def cut(data): return data[:len(data)//2]


@pytest.mark.parametrize(('ending', 'damage'), [
    ('nbc', flip), ('nbc', empty), ('nbc', cut), ('nbi', flip), ('nbi', cut), ('sums', flip), ('sums', empty),
    ('py', flip)])
def test_a_damaged_file_is_found_and_made_again(step, tmp_path, ending, damage):
    bits, _ = step(tmp_path)
    files = [x for x in tmp_path.rglob(f'*.{ending}') if x.is_file()]
    assert files
    for x in files: x.write_bytes(damage(x.read_bytes()))
    assert step(tmp_path)[0] == bits
    assert step(tmp_path) == (bits, 0)


def test_a_folder_that_others_could_write_to_is_not_used(step, tmp_path, own):
    folder = tmp_path/'open'
    folder.mkdir()
    folder.chmod(0o777)
    assert step(folder)[1] == 1
    assert not list(folder.iterdir())
    assert list(own.glob('*.py'))


@pytest.mark.skipif(getattr(os, 'getuid', lambda: 1)() == 0, reason='root may write anywhere')
def test_a_folder_that_cannot_be_written_is_not_used(step, tmp_path, own):
    folder = tmp_path/'shut'
    folder.mkdir(mode=0o500)
    assert step(folder)[1] == 1


def test_a_file_in_place_of_the_folder_is_no_obstacle(step, tmp_path, own):
    (tmp_path/'file').write_text('not a folder')
    assert step(tmp_path/'file'/'below')[1] == 1


def test_an_unwritable_folder_is_replaced_by_one_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setenv('MINIAI_CACHE', str(tmp_path/'kernels'))
    assert cache.cache_folder() == tmp_path/'kernels'
    monkeypatch.setattr(cache.os, 'access', lambda *_: False)
    own = cache.cache_folder()
    assert own == cache.cache_folder() != tmp_path/'kernels'
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


def test_without_the_variable_kernels_are_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv('MINIAI_CACHE', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache.cache_folder() == tmp_path/'miniai'/'kernels'


def test_if_the_cache_fails_kernels_are_compiled_without_it(step, tmp_path, monkeypatch, own):
    real, asked = numba.load_module, []
    def failing(source, afresh=False):
        asked.append(afresh)
        if not afresh: raise OSError('no space left on device')
        return real(source, afresh=True)
    monkeypatch.setattr(numba, 'load_module', failing)
    assert step(tmp_path/'kernels')[1] == 1
    assert asked == [False, True]

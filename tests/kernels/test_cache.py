"The kernels' folder: whatever becomes of it, a step works and gives the same result."
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from miniai.kernels import cache
from miniai.kernels.kernel import compiled
from miniai.optim import AdamW

STEP = '''
import torch
from miniai.optim import Adam
from miniai.kernels.kernel import compiled
p = torch.nn.Parameter(torch.linspace(-1, 1, 50))
opt = Adam([p], lr=.1)
for t in range(3):
    p.grad = torch.linspace(-t, 1, 50)
    opt.step()
assert opt.path.startswith('fused'), opt.path
print(p.detach().view(torch.int32).sum().item(), sum(compiled.values()))
'''


def step_in_a_process(folder, **env):
    env = os.environ | dict(MINIAI_CACHE=str(folder), PYTHONPATH=os.pathsep.join(sys.path)) | env
    out = subprocess.run([sys.executable, '-c', STEP], env=env, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    bits, misses = out.stdout.split()
    return int(bits), int(misses)


@pytest.fixture(scope='module')
def warm(tmp_path_factory):
    "A folder that one process has filled, and the bits that it found."
    folder = tmp_path_factory.mktemp('warm')/'kernels'
    bits, misses = step_in_a_process(folder)
    assert misses == 1
    return folder, bits


def test_the_folder_is_made_private_and_a_second_process_compiles_nothing(warm):
    folder, bits = warm
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert step_in_a_process(folder) == (bits, 0)
    assert not list(folder.glob('*.part'))


DAMAGE = STEP + """
import sys
from pathlib import Path
from miniai.kernels import kernel
def flipped(data):
    data = bytearray(data)
    for i in range(len(data)//3, len(data), max(1, len(data)//7)): data[i] ^= 0x55
    return bytes(data)
HOWS = dict(flip=flipped, empty=lambda data: b'', cut=lambda data: data[:len(data)//2])
def again():
    kernel.kernel_of.cache_clear()
    q = torch.nn.Parameter(torch.linspace(-1, 1, 50))
    opt = Adam([q], lr=.1)
    for t in range(3):
        q.grad = torch.linspace(-t, 1, 50)
        opt.step()
    assert torch.equal(p, q)
for case in sys.argv[2:]:
    ending, how = case.split(':')
    files = [x for x in Path(sys.argv[1]).rglob('*.' + ending) if x.is_file()]
    assert files, case
    for x in files: x.write_bytes(HOWS[how](x.read_bytes()))
    again()
    before = sum(compiled.values())
    again()
    assert sum(compiled.values()) == before, case
    print(case)
"""


def test_a_damaged_file_is_found_and_made_anew(warm):
    folder, bits = warm
    cases = ['nbc:flip', 'nbc:empty', 'nbc:cut', 'nbi:flip', 'nbi:cut', 'sums:flip', 'sums:empty', 'py:flip']
    env = os.environ | dict(MINIAI_CACHE=str(folder), PYTHONPATH=os.pathsep.join(sys.path))
    out = subprocess.run([sys.executable, '-c', DAMAGE, str(folder), *cases], env=env, capture_output=True, text=True,
                         timeout=120)
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == [str(bits), '0', *cases]


def test_a_folder_where_a_file_should_be_or_the_reverse_is_done_without(warm, tmp_path):
    _, bits = warm
    (tmp_path/'file').write_text('no folder')
    assert step_in_a_process(tmp_path/'file'/'below')[0] == bits


def test_a_folder_that_others_could_write_to_is_not_used(warm, tmp_path):
    folder = tmp_path/'open'
    folder.mkdir()
    folder.chmod(0o777)
    assert step_in_a_process(folder) == (warm[1], 1)
    assert not list(folder.iterdir())


@pytest.mark.skipif(getattr(os, 'getuid', lambda: 1)() == 0, reason='root may write anywhere')
def test_a_folder_that_cannot_be_written_is_done_without(warm, tmp_path):
    folder = tmp_path/'shut'
    folder.mkdir(mode=0o500)
    assert step_in_a_process(folder) == (warm[1], 1)


def test_an_unwritable_folder_is_replaced_by_one_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setenv('MINIAI_CACHE', str(tmp_path/'kernels'))
    assert cache.cache_folder() == tmp_path/'kernels'
    monkeypatch.setattr(cache.os, 'access', lambda *_: False)
    own = cache.cache_folder()
    assert own == cache.cache_folder() != tmp_path/'kernels'
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


def test_without_the_variable_kernels_live_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv('MINIAI_CACHE', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache.cache_folder() == tmp_path/'miniai'/'kernels'


def test_two_processes_filling_one_folder_at_once_both_step(warm, tmp_path):
    env = os.environ | dict(MINIAI_CACHE=str(tmp_path/'shared'), PYTHONPATH=os.pathsep.join(sys.path))
    command, given = [sys.executable, '-c', STEP], dict(env=env, stdout=subprocess.PIPE, text=True)
    both = [subprocess.Popen(command, **given) for _ in range(2)]
    assert [int(b.communicate(timeout=120)[0].split()[0]) for b in both] == [warm[1]]*2


def test_a_cache_that_fails_while_loading_is_done_without(monkeypatch):
    from miniai.kernels import kernel
    real, asked = kernel.load_module, []
    def failing(source, afresh=False):
        asked.append(afresh)
        if not afresh: raise OSError('no space left on device')
        return real(source, afresh=True)
    monkeypatch.setattr(kernel, 'load_module', failing)
    kernel.kernel_of.cache_clear()
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    before, opt = sum(compiled.values()), AdamW([p], lr=.5)
    opt.step()
    assert asked == [False, True]
    assert sum(compiled.values()) == before + 1
    assert p[0].item() == pytest.approx(1 - .5*.01 - .5)


def test_the_source_is_a_readable_file_named_by_its_content(warm):
    folder, _ = warm
    names = [p.stem for p in folder.glob('*.py')]
    assert len(names) == 1
    assert names[0][:2] == 'k_'
    assert 'for j in range(n)' in Path(folder/f'{names[0]}.py').read_text()

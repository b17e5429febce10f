"What stops a save: a kill, a call that fails, a full disk, the power. The old file or the new one is there, whole."
import ast
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import crash
from miniai.checkpoint import SaveError, disk, durable, load, save


@pytest.fixture
def path(tmp_path): return tmp_path/crash.NAME


def killed(n, *control):
    done = subprocess.run([sys.executable, crash.__file__, str(n), *control], capture_output=True, text=True,
                          check=True)
    return ast.literal_eval(done.stdout)


def test_no_kill_corrupts_a_checkpoint_or_loses_an_acknowledged_save_or_leaves_anything():
    out = killed(60)
    assert (out['corrupt'], out['lost'], out['left_over']) == (0, 0, 0)
    assert out['acknowledged'] > 10
    assert out['temporaries'] > 5


def test_kills_find_a_save_that_writes_in_place(): assert killed(25, 'in place')['corrupt'] > 0


def test_a_call_that_fails_once_or_for_good_leaves_the_old_file_one_error_and_nothing_else(tmp_path):
    outcomes, cases = {}, list(crash.fault_cases(str(tmp_path)))
    for case in cases:
        outcome, right = crash.try_fault(str(tmp_path), *case)
        assert right, (case, outcome)
        outcomes.setdefault(case[0], set()).add(outcome)
    assert all('error' in outcomes[nm] for nm in crash.CALLS if nm not in ('link', 'unlink', 'close_dir'))
    assert len(cases) > 150


def test_a_disk_that_fails_for_good_at_any_call_leaves_an_old_or_new_file_that_loads(path):
    real = {nm: getattr(disk, nm) for nm in crash.CALLS}
    for k in range(60):
        save(path, crash.version(1, 3000))
        left = [k]
        def dying(nm, left=left):
            def f(*args):
                left[0] -= 1
                if left[0] < 0: raise OSError(5, 'Input/output error')
                return real[nm](*args)
            return f
        with crash.patched(**{nm: dying(nm) for nm in crash.CALLS}), suppress(SaveError):
            save(path, crash.version(2, 3000))
        assert crash.read_version(path) in (1, 2)


@pytest.fixture
def full_disk():
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_disk_that_is_really_full_leaves_the_old_file_and_says_how_far_it_came(path, request):
    save(path, 'old')
    request.getfixturevalue('full_disk')
    with pytest.raises(SaveError, match='File too large') as e: save(path, torch.zeros(1_000_000))
    assert (e.value.written, e.value.path) == (1_000_000, str(path))
    assert e.value.wanted > 4_000_000
    assert (load(path), os.listdir(path.parent)) == ('old', [path.name])


@pytest.mark.parametrize('background', [False, True])
def test_after_power_loss_at_any_point_the_old_or_the_new_file_is_whole(background):
    out = crash.power_loss(background=background)
    assert out['wrong'] == 0
    assert out['disks'] > 200


@pytest.mark.parametrize('without', ['fsync', 'fsync_dir'])
def test_power_loss_finds_a_save_that_does_not_sync(without):
    assert crash.power_loss(1, without=(without,))['wrong'] > 0


def test_power_loss_finds_a_save_that_writes_in_place(monkeypatch):
    def in_place(self, head, memories):
        if self.written: return
        fd = disk.create(self.path) if not Path(self.path).exists() else fds[0]
        fds.append(fd)
        self._stream(fd, head, memories)
        disk.fsync(fd)
        disk.fsync_dir(fd)
    fds = []
    monkeypatch.setattr(durable._Writing, 'run', in_place)
    assert crash.power_loss(saves=1)['wrong'] > 0
    os.close(fds[0])


def test_a_file_that_is_read_back_otherwise_than_it_was_written_is_no_save(path, monkeypatch):
    save(path, 'old')
    real = disk.read_into
    def flipped(fd, buffer):
        n = real(fd, buffer)
        if len(buffer) > 100_000: buffer[77] ^= 1
        return n
    monkeypatch.setattr(disk, 'read_into', flipped)
    with pytest.raises(SaveError, match='read back otherwise'): save(path, torch.zeros(100_000))
    monkeypatch.undo()
    assert (load(path), os.listdir(path.parent)) == ('old', [path.name])


def test_where_files_have_one_name_and_the_folder_cannot_be_synced_the_error_says_what_stands(path, monkeypatch):
    save(path, 'old')
    for nm in ('link', 'fsync_dir'):
        monkeypatch.setattr(disk, nm, lambda *args: (_ for _ in ()).throw(PermissionError(1, 'Not permitted')))
    with pytest.raises(SaveError, match='what stands there is the new file'): save(path, 'new')
    assert load(path) == 'new'

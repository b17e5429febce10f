"A folder is for one run at a time; leftovers of ended processes are removed; the newest whole checkpoint is found."
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings

import pytest
import torch

import crash
import scripts
from miniai.checkpoint import FolderInUseError, FolderLock, load, newest_valid, remove_stale, save
from miniai.checkpoint.folder import first_whole, place_of

NOT_FOLDERS = dict(file=lambda p: p.write_text('x'), pipe=os.mkfifo, broken_link=lambda p: p.symlink_to('nowhere'),
                   device=lambda p: p.symlink_to('/dev/null'))


@pytest.mark.parametrize('kind', NOT_FOLDERS)
@pytest.mark.parametrize('f', [FolderLock, remove_stale, newest_valid])
def test_anything_but_a_folder_is_an_error_that_names_it(tmp_path, f, kind):
    NOT_FOLDERS[kind](tmp_path/'x')
    with pytest.raises(NotADirectoryError, match=f"this is not a folder: '{tmp_path}/x'"): f(tmp_path/'x')


def test_in_a_missing_folder_there_is_no_checkpoint_and_nothing_to_lock(tmp_path):
    assert newest_valid(tmp_path/'x') is None
    for f in (FolderLock, remove_stale):
        with pytest.raises(FileNotFoundError, match='x'): f(tmp_path/'x')


# The lock

HOLD = """
import sys, time
from miniai.checkpoint import FolderLock
lock = FolderLock(sys.argv[1])
print('held', flush=True)
time.sleep(60)
"""


def test_a_second_lock_is_an_error_that_names_process_and_host(tmp_path):
    pid, host = str(os.getpid()), socket.gethostname()
    with FolderLock(tmp_path), pytest.raises(FolderInUseError) as e: FolderLock(tmp_path)
    assert (e.value.pid, e.value.host, e.value.folder) == (pid, host, str(tmp_path))
    assert str(e.value) == f'{tmp_path} is in use by process {pid} on {host}: wait for it to end, or use another folder'
    FolderLock(tmp_path).release()


def test_another_process_holds_it_until_it_is_killed(tmp_path):
    p = scripts.Script(HOLD, tmp_path)
    p.wait_for('held')
    with pytest.raises(FolderInUseError, match=f'process {p.pid} on'): FolderLock(tmp_path)
    os.kill(p.pid, signal.SIGKILL)
    assert p.ended()[0] == -signal.SIGKILL
    FolderLock(tmp_path).release()


FORK = """
import os, sys, time
from miniai.checkpoint import FolderLock
os.setsid()
lock = FolderLock(sys.argv[1])
if os.fork() == 0:
    print('worker', flush=True); time.sleep(60)
time.sleep(60)
"""


def test_a_forked_worker_that_outlives_its_parent_does_not_keep_the_lock(tmp_path):
    p = scripts.Script(FORK, tmp_path)
    p.wait_for('worker')
    os.kill(p.pid, signal.SIGKILL)
    p.ended()
    FolderLock(tmp_path).release()
    os.killpg(p.pid, signal.SIGKILL)


def test_a_lock_released_twice_or_not_kept_is_free(tmp_path):
    held = FolderLock(tmp_path)
    held.release(), held.release()
    FolderLock(tmp_path)  # not kept
    FolderLock(tmp_path).release()


@pytest.mark.parametrize('change', [os.unlink, lambda p: os.rename(p, f'{p}.old')], ids=['deleted', 'renamed'])
def test_the_folder_stays_locked_if_the_lock_file_goes(tmp_path, change):
    with FolderLock(tmp_path):
        change(tmp_path/'.miniai.lock')
        with pytest.raises(FolderInUseError, match='process of unknown number on an unknown host'): FolderLock(tmp_path)


def test_a_link_in_the_place_of_the_lock_file_is_refused_and_not_followed(tmp_path):
    (tmp_path/'precious').write_text('mine')
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'.miniai.lock').symlink_to(tmp_path/'precious')
    with pytest.raises(OSError, match=r'this is a link and not a lock file: remove it: .*run/\.miniai\.lock'):
        FolderLock(tmp_path/'run')
    assert (tmp_path/'precious').read_text() == 'mine'


READ_ONLY = """
import os, sys
from miniai.checkpoint import FolderLock
if not os.getuid(): os.setuid(65534)  # root may write anywhere
FolderLock(sys.argv[1])
"""


@pytest.mark.parametrize('used', [False, True])
def test_a_read_only_folder_is_an_error_that_names_it(used):
    with crash.folder_in_memory() as folder:
        if used: FolderLock(folder).release()
        if used: os.chmod(os.path.join(folder, '.miniai.lock'), 0o666)
        os.chmod(folder, 0o555)
        assert f"this folder is read-only: '{folder}'" in scripts.run(READ_ONLY, folder)[2]
        os.chmod(folder, 0o755)


def refusing(monkeypatch, code, *kinds):
    "Let flock refuse folders or files or both."
    import fcntl
    def flock(fd, how, real=fcntl.flock):
        if os.path.isdir(f'/proc/self/fd/{fd}') in kinds: raise OSError(code, os.strerror(code))
        return real(fd, how)
    monkeypatch.setattr(fcntl, 'flock', flock)


@pytest.mark.parametrize('is_folder', [True, False])
def test_where_only_files_or_only_folders_can_be_locked_one_lock_is_enough(tmp_path, monkeypatch, is_folder):
    refusing(monkeypatch, errno.EBADF, is_folder)
    with FolderLock(tmp_path), pytest.raises(FolderInUseError): FolderLock(tmp_path)


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    refusing(monkeypatch, errno.ENOLCK, True, False)
    with pytest.warns(UserWarning, match=rf'{tmp_path} cannot be locked \(No locks available\): another run can write'):
        FolderLock(tmp_path).release()


# Leftovers


def dead_pid():
    p = subprocess.Popen([sys.executable, '-c', ''])
    p.wait()
    return p.pid


def test_temporaries_of_ended_processes_are_removed_and_all_other_files_stay(tmp_path):
    dead = dead_pid()
    stale = [f'.a.safetensors.{dead}.0123abcd.part', f'.a.safetensors.{dead}.0123abcd.old.part',
             f'.b c.{os.getpid()}.00000000.part']
    living = [f'.a.safetensors.{os.getppid()}.0123abcd.part', '.a.safetensors.1.0123abcd.part',
              f'a.safetensors.{dead}.0123abcd.part',
              f'.a.safetensors.{dead}.part', f'.a.{dead}.0123abcd.partly', 'a.safetensors', '.miniai.lock',
              f'.x.{dead}.0123ABCD.part']
    for nm in stale + living: (tmp_path/nm).write_text('x')
    assert sorted(p.name for p in remove_stale(tmp_path)) == sorted(stale)
    assert sorted(os.listdir(tmp_path)) == sorted(living)
    assert remove_stale(tmp_path) == []


def test_with_the_lock_temporaries_are_removed_even_if_their_process_number_is_in_use(tmp_path):
    parts = [f'.a.safetensors.{pid}.0123abcd{old}.part' for pid in (os.getppid(), 1, os.getpid(), dead_pid(), 10**30)
             for old in ('', '.old')]
    others = ['a.safetensors', '.miniai.lock', f'.a.{os.getppid()}.part', f'a.{os.getppid()}.0123abcd.part']
    for nm in parts + others: (tmp_path/nm).write_text('x')
    with FolderLock(tmp_path):
        assert sorted(p.name for p in remove_stale(tmp_path, locked=True)) == sorted(parts)
    assert sorted(os.listdir(tmp_path)) == sorted(others)


@pytest.mark.parametrize('locked', [False, True])
def test_the_temporary_of_a_save_in_progress_stays(tmp_path, locked):
    writing, go_on = threading.Event(), threading.Event()
    def write(fd, data):
        writing.set()
        assert go_on.wait(60)
        return os.write(fd, data)
    with crash.patched(write=write):
        pending = save(tmp_path/'a', 1, background=True)
        assert writing.wait(60)
        assert remove_stale(tmp_path, locked) == []
        go_on.set()
        pending.wait()
    assert load(tmp_path/'a') == 1


def test_the_folder_of_a_save_that_was_killed_is_removed_with_all_that_is_in_it(tmp_path):
    part = tmp_path/f'.checkpoint-00000-1-00000003.{dead_pid()}.12345678.part'
    part.mkdir()
    (part/'__0_0.distcp').write_text('x')
    assert remove_stale(tmp_path) == [part]
    assert not part.exists()


def test_links_and_pipes_stay(tmp_path):
    name = f'.y.{dead_pid()}.12345678.part'
    (tmp_path/'whole').write_text('x')
    for make in (os.mkfifo, lambda p: os.symlink('whole', p)):
        make(tmp_path/name)
        assert remove_stale(tmp_path) == remove_stale(tmp_path, locked=True) == []
        assert os.path.lexists(tmp_path/name)
        (tmp_path/name).unlink()


def test_a_temporary_that_cannot_be_removed_is_a_warning_and_the_others_are_removed(tmp_path, monkeypatch):
    kept, gone = (tmp_path/f'.{nm}.{dead_pid()}.12345678.part' for nm in 'ab')
    for p in (kept, gone): p.write_text('x')
    real = type(kept).unlink
    def unlink(self):
        if self == kept: raise PermissionError(1, 'Operation not permitted')
        real(self)
    monkeypatch.setattr(type(kept), 'unlink', unlink)
    said = f'^could not remove the temporary file {kept}: Operation not permitted$'
    with pytest.warns(UserWarning, match=said): assert remove_stale(tmp_path) == [gone]
    assert os.listdir(tmp_path) == [kept.name]


def test_the_temporary_of_a_long_name_is_found(tmp_path):
    seen = []
    with crash.patched(open=lambda p, *args: seen.append(p) or os.open(p, *args)): save(tmp_path/('n'*250), 1)
    part = str(seen[0]).replace(f'.{os.getpid()}.', f'.{dead_pid()}.')
    open(part, 'w').close()
    assert [str(p) for p in remove_stale(tmp_path)] == [part]
    assert os.listdir(tmp_path) == ['n'*250]


# The newest

def saved(folder, *names):
    for i, nm in enumerate(names): save(folder/nm, [i, torch.ones(3)])


def name(epoch, phase, batch): return f'checkpoint-{epoch:05}-{phase}-{batch:08}.safetensors'


IN_ORDER = [name(0, 1, 7), name(0, 2, 0), name(1, 3, 0), name(1, 1, 2), name(1, 1, 10), name(1, 2, 3), name(2, 1, 0),
            name(100_000, 1, 0)]  # a run of one epoch has ended at the third, and was extended


@pytest.mark.parametrize('n', range(1, len(IN_ORDER) + 1))
def test_the_newest_of_a_run_is_the_one_furthest_into_it_whatever_the_clock_says(tmp_path, n):
    saved(tmp_path, *reversed(IN_ORDER[:n]), 'best.safetensors')
    assert newest_valid(tmp_path) == tmp_path/IN_ORDER[n - 1]
    assert sorted(IN_ORDER, key=place_of) == IN_ORDER


def test_of_files_with_other_names_the_newest_is_the_one_saved_last_whatever_its_name_and_file_time(tmp_path):
    saved(tmp_path, 'c.safetensors', 'a.safetensors', 'b.safetensors')
    os.utime(tmp_path/'b.safetensors', (1, 1))
    assert newest_valid(tmp_path) == tmp_path/'b.safetensors'
    assert newest_valid(tmp_path, '[ac]*') == tmp_path/'a.safetensors'
    assert newest_valid(tmp_path, '*.pt') is None
    assert place_of('a.safetensors') is place_of('checkpoint-1-1-1.safetensors') is None


def test_newer_files_that_do_not_verify_are_skipped_with_a_warning_each(tmp_path):
    saved(tmp_path, *(f'{i}.safetensors' for i in range(4)))
    with (tmp_path/'3.safetensors').open('ab') as f: f.write(b'x')
    raw = (tmp_path/'2.safetensors').read_bytes()
    (tmp_path/'2.safetensors').write_bytes(raw[:-1] + b'\x55')
    (tmp_path/'9.safetensors').mkdir()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        assert newest_valid(tmp_path) == tmp_path/'1.safetensors'
    said = sorted(str(w.message) for w in heard)
    assert [s.split('/')[-1].split(':')[0] for s in said] == ['2.safetensors', '3.safetensors', '9.safetensors']
    assert 'damaged: its sha256' in said[0]
    assert 'after its end' in said[1]
    assert 'not a regular file' in said[2]


def test_older_files_are_not_read(tmp_path, monkeypatch):
    saved(tmp_path, 'a.safetensors', 'b.safetensors')
    raw = (tmp_path/'a.safetensors').read_bytes()
    (tmp_path/'a.safetensors').write_bytes(raw[:-1] + b'\x55')
    assert newest_valid(tmp_path) == tmp_path/'b.safetensors'
    (tmp_path/'b.safetensors').unlink()
    with pytest.warns(UserWarning, match='skipped'): assert newest_valid(tmp_path) is None


@pytest.fixture
def in_order(tmp_path):
    "Paths of a folder, a truncated file, a missing one, and two whole ones."
    paths = [tmp_path/nm for nm in ('folder', 'cut', 'none', 'whole', 'later')]
    paths[0].mkdir()
    saved(tmp_path, 'cut', 'whole', 'later')
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    return paths


def test_the_first_whole_file_is_returned_with_its_content_and_a_warning_for_each_before_it(in_order):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        path, (i, ones) = first_whole(in_order, load)
    assert (path, i, ones.tolist()) == (in_order[3], 1, [1, 1, 1])
    said = [str(w.message) for w in heard]
    assert all(s.startswith(f'skipped {p}: ') for s, p in zip(said, in_order, strict=False))
    reasons = 'not a regular file', 'truncated: ', 'No such file'
    assert all(why in s for s, why in zip(said, reasons, strict=True))


def test_if_no_file_is_whole_the_result_is_none(in_order):
    with pytest.warns(UserWarning, match='skipped'): assert first_whole(in_order[:3], load) is None
    assert first_whole([], load) is None


def test_the_first_whole_file_is_read_once_and_those_after_it_never(in_order):
    seen = []
    first_whole(in_order[3:], lambda p: seen.append(p) or load(p))
    assert seen == in_order[3:4]


def test_any_other_error_of_the_reader_is_raised(in_order):
    with pytest.raises(ZeroDivisionError): first_whole(in_order, lambda p: 1/0)

"A locked folder is for one run at a time, until the process ends in any way."
import errno
import os
import signal
import socket

import pytest

import scripts
from miniai.checkpoint import FolderInUseError, FolderLock, lock

HOLD = """
import sys, time
from miniai.checkpoint import FolderLock
lock = FolderLock(sys.argv[1])
print('held', flush=True)
time.sleep(60)
"""


def test_a_second_lock_is_an_error_that_names_process_and_host(tmp_path):
    said = f'in use by process {os.getpid()} on '
    with FolderLock(tmp_path), pytest.raises(FolderInUseError, match=said) as e: FolderLock(tmp_path)
    assert (e.value.pid, e.value.host, e.value.folder) == (str(os.getpid()), socket.gethostname(), str(tmp_path))
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


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def no_locks(fd): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(lock, '_flock', no_locks)
    with pytest.warns(UserWarning, match=r'without locks \(No locks available\): another run can write to it'):
        FolderLock(tmp_path).release()


def test_a_system_without_flock_is_a_warning_too(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, 'fcntl', None)
    with pytest.warns(UserWarning, match='this system has no flock'): FolderLock(tmp_path).release()


def test_any_other_failure_is_an_error(tmp_path, monkeypatch):
    def broken(fd): raise OSError(errno.EIO, 'Input/output error')
    monkeypatch.setattr(lock, '_flock', broken)
    with pytest.raises(OSError, match='Input/output'): FolderLock(tmp_path)
    with pytest.raises(FileNotFoundError): FolderLock(tmp_path/'none')

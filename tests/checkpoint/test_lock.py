"A locked folder: one run at a time, let go by the end of the process, however it comes."
import errno
import os
import socket
import subprocess
import sys

import pytest

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
    with subprocess.Popen([sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE) as p:
        assert p.stdout.readline() == b'held\n'
        with pytest.raises(FolderInUseError, match=f'process {p.pid} on'): FolderLock(tmp_path)
        p.kill()
    FolderLock(tmp_path).release()


FORK = """
import os, sys, time
from miniai.checkpoint import FolderLock
lock = FolderLock(sys.argv[1])
if os.fork() == 0:
    print('worker', flush=True); time.sleep(60)
time.sleep(60)
"""


def test_a_forked_worker_that_outlives_its_parent_does_not_keep_it(tmp_path):
    p = subprocess.Popen([sys.executable, '-c', FORK, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True)
    assert p.stdout.readline() == b'worker\n'
    p.kill(), p.wait()
    FolderLock(tmp_path).release()
    os.killpg(p.pid, 9)
    p.stdout.close()


def test_released_twice_or_forgotten_it_is_free(tmp_path):
    held = FolderLock(tmp_path)
    held.release(), held.release()
    FolderLock(tmp_path)  # nobody keeps it
    FolderLock(tmp_path).release()


def test_a_file_system_without_locks_is_a_warning_and_the_run_goes_on(tmp_path, monkeypatch):
    def no_locks(fd): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(lock, '_flock', no_locks)
    with pytest.warns(UserWarning, match='without locks .No locks available.: nothing keeps another run out'):
        FolderLock(tmp_path).release()


def test_a_system_without_flock_is_a_warning_too(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, 'fcntl', None)
    with pytest.warns(UserWarning, match='this system has no flock'): FolderLock(tmp_path).release()


def test_another_failure_is_an_error(tmp_path, monkeypatch):
    def broken(fd): raise OSError(errno.EIO, 'Input/output error')
    monkeypatch.setattr(lock, '_flock', broken)
    with pytest.raises(OSError, match='Input/output'): FolderLock(tmp_path)
    with pytest.raises(FileNotFoundError): FolderLock(tmp_path/'none')



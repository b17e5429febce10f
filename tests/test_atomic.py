"Whatever ends a write, the old content or the new is at the path, complete, and a living process leaves nothing else."
import os
import signal
from pathlib import Path

import pytest

import crash
from miniai import atomic
from miniai.atomic import atomic_write
from miniai.checkpoint import remove_stale


@pytest.fixture
def path(tmp_path):
    (tmp_path/'a.txt').write_text('old')
    return tmp_path/'a.txt'


def write(path, text='new', **how):
    with atomic_write(path, **how) as part: part.write_text(text)


def names(path): return sorted(os.listdir(path.parent))


def test_a_reader_sees_the_old_content_until_the_block_has_ended(path):
    with atomic_write(path) as part:
        assert part.parent == path.parent
        part.write_text('new')
        assert path.read_text() == 'old'
    assert (path.read_text(), names(path)) == ('new', ['a.txt'])


def test_two_writers_of_one_file_do_not_disturb_each_other(path):
    with atomic_write(path) as one, atomic_write(str(path)) as two:
        one.write_text('one')
        two.write_text('two')
    assert (path.read_text(), names(path)) == ('one', ['a.txt'])


def killed_at(call):
    "A function that kills the process instead of making this call of `os`."
    return {call: lambda *_: os.kill(os.getpid(), signal.SIGKILL)}


@pytest.mark.parametrize(('call', 'there', 'left'), [(None, 'old', 2), ('replace', 'old', 2), ('unlink', 'new', 1)])
def test_a_kill_leaves_the_old_content_or_the_new_and_a_name_that_is_known_as_stale(path, call, there, left):
    pid = os.fork()
    if not pid:
        try:
            atomic.os = crash.system(**killed_at(call) if call else {})
            with atomic_write(path) as part:
                part.write_text('new' if call else 'ne')
                if not call: os.kill(os.getpid(), signal.SIGKILL)
        finally: os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert (path.read_text(), len(names(path))) == (there, left)
    remove_stale(path.parent)
    assert names(path) == ['a.txt']


@pytest.mark.parametrize('error', [ValueError('why'), KeyboardInterrupt(), OSError('no number')])
def test_an_error_in_the_block_leaves_the_old_content_and_is_raised_as_it_is(path, error):
    def fail():
        with atomic_write(path) as part:
            part.write_text('half')
            raise error
    with pytest.raises(type(error)) as e: fail()
    assert (str(e.value), path.read_text(), names(path)) == (str(error), 'old', ['a.txt'])


def test_a_full_disk_leaves_the_old_content_and_an_error_that_names_the_file(path):
    with crash.full_disk(1000), pytest.raises(OSError, match='File too large') as e: write(path, 'x'*5000)
    assert (e.value.filename, path.read_text(), names(path)) == (str(path), 'old', ['a.txt'])


@pytest.mark.skipif(os.getuid() == 0, reason='root may write anywhere')
def test_a_read_only_folder_is_an_error_that_names_the_file(path):
    path.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError) as e: write(path)
    finally: path.parent.chmod(0o700)
    assert (e.value.filename, path.read_text()) == (str(path), 'old')


def test_an_error_names_the_file_and_not_its_temporary_name(path):
    with pytest.raises(FileNotFoundError) as e: write(path.parent/'no'/'a.txt')
    assert str(e.value) == f"[Errno 2] No such file or directory: '{path.parent}/no/a.txt'"
    (path.parent/'folder').mkdir()
    with pytest.raises(IsADirectoryError) as e: write(path.parent/'folder')
    assert str(e.value) == f"[Errno 21] Is a directory: '{path.parent}/folder'"


def test_an_error_about_another_file_names_that_one(path):
    with pytest.raises(FileNotFoundError, match="'elsewhere'"), atomic_write(path): Path('elsewhere').read_text()


def test_a_link_is_replaced_and_what_it_leads_to_stays(path):
    (path.parent/'link').symlink_to(path)
    write(path.parent/'link')
    assert (path.read_text(), (path.parent/'link').read_text()) == ('old', 'new')
    assert not (path.parent/'link').is_symlink()


@pytest.mark.parametrize('umask', [0o022, 0o077])
def test_the_mode_follows_the_umask(path, umask):
    old = os.umask(umask)
    try: write(path)
    finally: os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize('synced', [False, True])
def test_synced_content_is_on_the_disk_before_it_has_its_name(path, monkeypatch, synced):
    calls = []
    def fsync(fd): calls.append(os.fstat(fd).st_size)
    def replace(*paths):
        calls.append('replace')
        os.replace(*paths)
    monkeypatch.setattr(atomic, 'os', crash.system(fsync=fsync, replace=replace))
    write(path, 'whole', synced=synced)
    assert calls == [5, 'replace'][not synced:]

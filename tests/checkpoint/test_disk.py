"The calls to the system: only regular files are opened or replaced, and new files are really new."
import os
import socket

import pytest

from miniai.checkpoint import disk, save


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as s: s.bind(path)


OTHERS = dict(fifo=os.mkfifo, folder=os.mkdir, socket=a_socket, device=lambda p: os.symlink('/dev/null', p))


@pytest.mark.parametrize('kind', OTHERS)
def test_anything_but_a_regular_file_is_neither_opened_nor_replaced(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    OTHERS[kind]('x')
    assert disk.open_regular('x') is None
    assert not disk.is_replaceable('x')


def test_a_regular_file_is_opened_and_may_be_replaced_as_may_nothing(tmp_path):
    path = str(tmp_path/'x')
    assert disk.is_replaceable(path)
    with pytest.raises(FileNotFoundError): disk.open_regular(path)
    fd = disk.create(path)
    assert disk.write(fd, b'abc') == 3
    assert disk.pwrite(fd, b'B', 1) == 1
    disk.fsync(fd)
    disk.close(fd)
    assert disk.is_replaceable(path)
    fd, buffer = disk.open_regular(path), bytearray(5)
    assert (disk.fstat(fd).st_size, disk.read_into(fd, memoryview(buffer))) == (3, 3)
    assert disk.read_into(fd, memoryview(buffer)) == 0
    disk.close(fd)
    assert buffer == b'aBc\0\0'


def test_a_new_file_must_not_exist_yet(tmp_path):
    (tmp_path/'x').write_text('old')
    with pytest.raises(FileExistsError): disk.create(str(tmp_path/'x'))


def test_the_mode_of_the_file_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try: save(tmp_path/'a', 1)
    finally: os.umask(old)
    assert (tmp_path/'a').stat().st_mode & 0o777 == 0o640

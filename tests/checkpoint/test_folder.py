"Temporary files of ended processes are removed and nothing else is; the newest whole checkpoint is found."
import os
import subprocess
import sys
import threading
import warnings

import pytest
import torch

from miniai.checkpoint import FolderLock, disk, load, newest_valid, remove_stale, save
from miniai.checkpoint.folder import first_whole


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
def test_the_temporary_of_a_save_in_progress_stays(tmp_path, monkeypatch, locked):
    writing, go_on, real = threading.Event(), threading.Event(), disk.write
    def write(fd, data):
        writing.set()
        assert go_on.wait(60)
        return real(fd, data)
    monkeypatch.setattr(disk, 'write', write)
    pending = save(tmp_path/'a', 1, background=True)
    assert writing.wait(60)
    assert remove_stale(tmp_path, locked) == []
    go_on.set()
    pending.wait()
    assert load(tmp_path/'a') == 1


def test_anything_but_a_regular_file_stays(tmp_path):
    name = f'.y.{dead_pid()}.12345678.part'
    (tmp_path/'whole').write_text('x')
    for make in (os.mkdir, os.mkfifo, lambda p: os.symlink('whole', p)):
        make(tmp_path/name)
        assert remove_stale(tmp_path) == remove_stale(tmp_path, locked=True) == []
        assert os.path.lexists(tmp_path/name)
        (tmp_path/name).rmdir() if make is os.mkdir else (tmp_path/name).unlink()


def test_a_temporary_that_cannot_be_removed_is_a_warning_and_the_others_are_removed(tmp_path, monkeypatch):
    kept, gone, lost = (tmp_path/f'.{nm}.{dead_pid()}.12345678.part' for nm in 'abc')
    for p in (kept, gone, lost): p.write_text('x')
    real = type(kept).unlink
    def unlink(self):
        if self == kept: raise PermissionError(1, 'Operation not permitted')
        real(self)
        if self == lost: raise FileNotFoundError(2, 'removed by another process')
    monkeypatch.setattr(type(kept), 'unlink', unlink)
    said = f'^could not remove the temporary file {kept}: Operation not permitted$'
    with pytest.warns(UserWarning, match=said) as heard:
        assert remove_stale(tmp_path) == [gone]
    assert [w.filename for w in heard] == [__file__]
    assert os.listdir(tmp_path) == [kept.name]


def test_the_temporary_of_a_long_name_is_found(tmp_path, monkeypatch):
    seen, real = [], disk.create
    monkeypatch.setattr(disk, 'create', lambda p: seen.append(p) or real(p))
    save(tmp_path/('n'*250), 1)
    part = seen[0].replace(f'.{os.getpid()}.', f'.{dead_pid()}.')
    for p in (part, f'{part[:-5]}.old.part'): open(p, 'w').close()
    assert [str(p) for p in remove_stale(tmp_path)] == sorted([part, f'{part[:-5]}.old.part'])
    assert os.listdir(tmp_path) == ['n'*250]


def saved(folder, *names):
    for i, nm in enumerate(names): save(folder/nm, [i, torch.ones(3)])


def test_the_newest_is_the_one_saved_last_whatever_its_name_and_file_time(tmp_path):
    saved(tmp_path, 'c.safetensors', 'a.safetensors', 'b.safetensors')
    os.utime(tmp_path/'b.safetensors', (1, 1))
    assert newest_valid(tmp_path) == tmp_path/'b.safetensors'
    assert newest_valid(tmp_path, '[ac]*') == tmp_path/'a.safetensors'
    assert newest_valid(tmp_path, '*.pt') is None


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


def test_the_first_whole_file_is_read_once_and_those_after_it_never(in_order, monkeypatch):
    opened, real = [], disk.open_regular
    monkeypatch.setattr(disk, 'open_regular', lambda p: opened.append(p) or real(p))
    first_whole(in_order[3:], load)
    assert opened == [str(in_order[3])]


def test_any_other_error_of_the_reader_is_raised(in_order):
    with pytest.raises(ZeroDivisionError): first_whole(in_order, lambda p: 1/0)

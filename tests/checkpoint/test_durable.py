"After a kill, a failing call, a full disk or a power loss, the old file or the new one is there, whole."
import ast
import errno
import io
import os
import socket
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import crash
import scripts
from miniai import atomic
from miniai.checkpoint import SaveError, Saver, durable, load, save, saving
from miniai.checkpoint.durable import in_thread


@pytest.fixture
def path(tmp_path): return tmp_path/crash.NAME


KILLS = """
import sys
import torch
import crash
import scripts
from miniai.checkpoint import saving
torch.set_num_threads(1)
if sys.argv[2:]: saving.write_durably = crash.in_place
print(crash.kills(int(sys.argv[1])))
"""


def killed(*args):
    code, out, err = scripts.run(KILLS, *args, timeout=300)
    assert code == 0, err
    return ast.literal_eval(out)


def test_no_kill_corrupts_a_checkpoint_loses_an_acknowledged_save_or_leaves_a_file():
    out = killed(40)
    assert (out['corrupt'], out['lost'], out['left_over']) == (0, 0, 0)
    assert out['acknowledged'] > 10
    assert out['temporaries'] > 5
    assert out['between'] > 0


def test_kills_find_a_save_that_writes_in_place(): assert killed(15, 'in place')['corrupt'] > 0


@pytest.mark.parametrize(('way', 'many', 'never'), [
    ('alone', 130, {'unlink'}), ('linked', 250, {'link', 'unlink'}), ('copied', 400, {'unlink'})],
    ids=['alone', 'linked', 'copied'])
def test_a_call_that_fails_once_or_for_good_leaves_the_old_file_one_error_and_nothing_else(way, many, never):
    outcomes = {}
    with crash.folder_in_memory() as folder:
        cases = list(crash.fault_cases(folder, ways=[way]))
        for case in cases:
            outcome, right = crash.try_fault(folder, *case)
            assert right, (case, outcome)
            outcomes.setdefault(case[1], set()).add(outcome)
    assert {nm for nm in outcomes if 'error' not in outcomes[nm]} == never
    assert len(cases) > many


@pytest.mark.parametrize('way', crash.WAYS)
def test_a_disk_that_fails_for_good_at_any_call_leaves_old_or_new_files_that_load(way):
    names, lacks = crash.WAYS[way]
    left = [0]
    def dying(nm):
        def f(*args):
            left[0] -= 1
            if left[0] < 0: raise OSError(5, 'Input/output error')
            return lacks.get(nm, crash.real(nm))(*args)
        return f
    with crash.folder_in_memory() as folder:
        for k in range(150):
            crash.save_as(folder, 1)
            left[0] = k
            with crash.patched(**{nm: dying(nm) for nm in crash.CALLS}), suppress(SaveError):
                crash.save_as(folder, 2, names)
            assert crash.versions(folder, names) in [[2]*i + [1]*(len(names) - i) for i in range(len(names) + 1)]
            if left[0] > 0: break
    assert left[0] > 0  # the last save was complete, so every call has failed once


def test_a_disk_that_is_really_full_leaves_the_old_file_and_the_error_says_what_the_new_one_takes(path):
    save(path, 'old')
    said = r'File too large \(the file takes 4,000,\d+ bytes\)'
    with crash.full_disk(1_000_000), pytest.raises(SaveError, match=said) as e:
        save(path, torch.zeros(1_000_000))
    assert 4_000_000 < e.value.wanted < 4_001_000
    assert (load(path), os.listdir(path.parent)) == ('old', [path.name])


@pytest.mark.parametrize('background', [False, True])
@pytest.mark.parametrize('way', crash.WAYS)
def test_after_power_loss_at_any_point_the_old_or_the_new_file_is_whole_under_every_name(way, background):
    out = crash.power_loss(saves=2, background=background, way=way)
    assert out['wrong'] == 0
    assert out['disks'] > 100


@pytest.mark.parametrize('without', ['fsync', 'fsync_dir'])
@pytest.mark.parametrize('way', crash.WAYS)
def test_power_loss_finds_a_save_that_does_not_sync(way, without):
    assert crash.power_loss(1, without=(without,), way=way, stop_at_wrong=True)['wrong'] > 0


def test_power_loss_finds_a_save_that_writes_in_place(monkeypatch):
    def in_place(paths, head, memories, stop=None):
        fd = durable.os.open(paths[0], os.O_WRONLY | os.O_CREAT)
        for piece in (head, *memories): durable.os.write(fd, piece)
        durable.os.fsync(fd)
        os.close(fd)
        atomic.sync_folder(os.path.dirname(paths[0]))
    monkeypatch.setattr(saving, 'write_durably', in_place)
    assert crash.power_loss(saves=1, way='alone')['wrong'] > 0


@pytest.mark.parametrize('at', [100, -1])
def test_a_file_that_reads_back_different_is_a_save_error(path, at):
    save(path, 'old')
    def flipped(part, mode):
        raw = bytearray(Path(part).read_bytes())
        raw[at] ^= 1
        return io.BytesIO(raw)
    with crash.patched(read=flipped), pytest.raises(SaveError, match='reads back different'):
        save(path, ['a word', torch.zeros(100_000)])
    assert (load(path), os.listdir(path.parent)) == ('old', [path.name])


def test_an_error_while_syncing_the_folder_says_that_the_new_file_is_there(path):
    def refuses_folders(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode): raise OSError(5, 'Input/output error')
    save(path, 'old')
    said = 'the new file is at this path and complete, but may not survive a power loss'
    with crash.patched(fsync=refuses_folders), pytest.raises(SaveError, match=said): save(path, 'new')
    assert load(path) == 'new'


@pytest.mark.parametrize(('cause', 'said'), [(OSError(28, 'No space'), 'No space'), (ValueError('why'), 'why'),
                                             (MemoryError(), 'MemoryError')])
def test_a_save_error_gives_the_reason_in_words(cause, said):
    e = SaveError('a', 2000, cause, 'the old file stays')
    assert str(e) == f'a was not saved: {said} (the file takes 2,000 bytes); the old file stays'
    assert (e.path, e.wanted, e.cause, e.errno) == ('a', 2000, cause, getattr(cause, 'errno', None))


@pytest.mark.parametrize('umask', [0o022, 0o027, 0o077])
def test_the_mode_of_the_file_follows_the_umask(path, umask):
    old = os.umask(umask)
    try: save(path, 1)
    finally: os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_link_under_the_name_of_the_temporary_is_not_followed(path, monkeypatch):
    (path.parent/'precious').write_text('mine')
    monkeypatch.setattr(atomic.secrets, 'token_hex', lambda n: '0123abcd')
    (path.parent/f'.{path.name}.{os.getpid()}.0123abcd.part').symlink_to('precious')
    with pytest.raises(SaveError, match='File exists'): save(path, 1)
    assert (path.parent/'precious').read_text() == 'mine'


# In a thread

def test_a_call_in_a_thread_gives_its_result_or_its_error():
    assert in_thread(threading.get_ident).result() != threading.get_ident()
    with pytest.raises(ZeroDivisionError): in_thread(lambda: 1/0).result()


def test_where_no_thread_can_start_the_call_is_made_here(monkeypatch):
    def refuse(self): raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, 'start', refuse)
    assert in_thread(threading.get_ident).result() == threading.get_ident()
    with pytest.raises(ZeroDivisionError): in_thread(lambda: 1/0).result()


# Further names

@pytest.fixture
def names(tmp_path):
    (tmp_path/'there').mkdir()
    return [tmp_path/nm for nm in crash.NAMES]


def written(monkeypatch):
    "The bytes of each write to come."
    out = []
    monkeypatch.setattr(durable, 'os', crash.system(write=lambda fd, data: out.append(len(data)) or os.write(fd, data)))
    return out


def test_a_large_state_is_written_in_one_pass_in_small_pieces(path, monkeypatch):
    sizes = written(monkeypatch)
    save(path, torch.zeros(5_000_000))
    assert sum(sizes) == path.stat().st_size
    assert max(sizes) <= 1 << 21


@pytest.mark.parametrize('background', [False, True])
def test_further_names_are_one_file_written_once(names, monkeypatch, background):
    for p in names[1:]: save(p, 'old')
    path, *also = names
    sizes = written(monkeypatch)
    pending = save(path, torch.arange(3000), also=also, background=background)
    if pending: pending.wait()
    assert sum(sizes) == path.stat().st_size
    assert {p.stat().st_ino for p in names} == {path.stat().st_ino}
    assert crash.files_in(path.parent) == set(crash.NAMES)


@pytest.mark.parametrize('code', ['EPERM', 'ENOTSUP', 'EMLINK', 'EXDEV', 'ENOSYS', 'EACCES'])
def test_without_links_the_contents_are_written_again(names, code):
    path, *also = names
    def link(*_): raise OSError(getattr(errno, code), code)
    with crash.patched(link=link): save(path, torch.arange(3000), also=also)
    assert len({p.stat().st_ino for p in names}) == 3
    assert len({p.read_bytes() for p in names}) == 1
    assert load(also[1]).tolist() == list(range(3000))


def test_a_file_replaced_or_removed_under_one_name_stays_under_the_others(names):
    path, *also = names
    save(path, 'new', also=also)
    save(path, 'newer'), also[0].unlink()
    assert [load(p) for p in (path, also[1])] == ['newer', 'new']


def test_a_path_given_twice_or_through_a_link_is_one_name(names, monkeypatch):
    (names[0].parent/'link').symlink_to(names[0].name)
    sizes = written(monkeypatch)
    save(names[0], 1, also=[names[0], names[0].parent/'link', names[0].parent/'there'/'..'/names[0].name])
    assert sum(sizes) == names[0].stat().st_size
    assert names[0].stat().st_nlink == 1
    assert crash.files_in(names[0].parent) == {crash.NAME, 'link'}


def test_a_further_name_that_is_a_link_is_followed(names):
    names[1].symlink_to('there/c.safetensors')
    save(names[0], 1, also=[names[1]])
    assert names[1].is_symlink()
    assert names[2].stat().st_ino == names[0].stat().st_ino


@pytest.mark.parametrize('background', [False, True])
def test_an_error_names_the_first_name_that_failed_and_those_before_it_have_the_new_file(names, background):
    path, no = names[0], names[0].parent/'no'/'a'
    for p in names: save(p, 'old')
    said = f'^{no} was not saved: No such file .*nothing has changed at this path, and {path} is saved'
    with pytest.raises(SaveError, match=said) as e, Saver() as saver:
        saver.save(path, 'new', also=[names[1], no, names[2]], background=background)
    assert (e.value.path, type(e.value.cause)) == (str(no), FileNotFoundError)
    assert [load(p) for p in names] == ['new', 'new', 'old']


# Something else at the path

def a_socket(path):
    with socket.socket(socket.AF_UNIX) as s: s.bind(str(path))


OTHERS = dict(fifo=os.mkfifo, folder=os.mkdir, socket=a_socket, loop=lambda p: os.symlink(p, p))


@pytest.mark.parametrize('kind', OTHERS)
@pytest.mark.parametrize('background', [False, True])
@pytest.mark.parametrize('further', [False, True])
def test_anything_but_a_file_is_refused_before_anything_is_written(names, monkeypatch, kind, background, further):
    monkeypatch.chdir(names[0].parent)  # a socket's path is short
    OTHERS[kind](names[1].name)
    mode, said = os.lstat(names[1]).st_mode, 'at this path is a folder, pipe, device or broken link'
    path, also = (names[0], [names[2], names[1]]) if further else (names[1], [names[0]])
    monkeypatch.setattr(durable, 'os', crash.system(open=lambda *_: pytest.fail('something was written')))
    with pytest.raises(SaveError, match=f'^{names[1]} was not saved: {said}') as e, Saver() as saver:
        saver.save(path, 1, also=also, background=background)
    assert e.value.path == str(names[1])
    assert stat.S_IFMT(os.lstat(names[1]).st_mode) == stat.S_IFMT(mode)
    assert crash.files_in(names[0].parent) - {names[1].name} == set()


def test_a_device_is_refused_also_through_a_link(path):
    path.symlink_to('/dev/null')
    for p in (path, '/dev/null'):
        with pytest.raises(SaveError, match=r'^/dev/null was not saved: at this path is a folder'): save(p, 1)
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)


# Names

@pytest.mark.parametrize('name', ['n'*255, 'n'*238 + '.safetensors', 'é'*127, '\U0001F40B'*63, 'a\nb'],
                         ids=['255', 'suffix', '2 bytes', '4 bytes', 'line'])
def test_every_name_that_the_file_system_allows_can_be_saved(tmp_path, name):
    for i in range(2): save(tmp_path/name, i, also=[tmp_path/name[1:]])
    assert (load(tmp_path/name), load(tmp_path/name[1:])) == (1, 1)
    assert sorted(os.listdir(tmp_path)) == sorted([name, name[1:]])


@pytest.mark.parametrize('background', [False, True])
def test_a_path_may_be_bytes(path, background):
    with Saver() as saver: saver.save(os.fsencode(path), 1, also=[os.fsencode(path) + b'2'], background=background)
    assert (load(path), load(f'{path}2')) == (1, 1)
    no = path.parent/'no'/'a'
    with pytest.raises(SaveError, match=f'^{no} was not saved'): save(os.fsencode(no), 1)

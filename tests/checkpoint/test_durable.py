"What stops a save: a kill, a call that fails, a full disk, the power. The old file or the new one is there, whole."
import ast
import errno
import os
import resource
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import crash
from miniai.checkpoint import SaveError, Saver, disk, durable, load, save


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
    assert out['between'] > 0


def test_kills_find_a_save_that_writes_in_place(): assert killed(25, 'in place')['corrupt'] > 0


SOME = [e for e in crash.ERRORS if e == 'short' or isinstance(e, KeyboardInterrupt) or e.errno == 28]


@pytest.mark.parametrize(('way', 'errors', 'many', 'never'), [
    ('alone', crash.ERRORS, 150, {'link', 'unlink', 'close_dir'}),
    ('linked', SOME, 150, {'link', 'unlink', 'close_dir'}), ('copied', SOME, 300, {'unlink', 'close_dir'})],
    ids=['alone', 'linked', 'copied'])
def test_a_call_that_fails_once_or_for_good_leaves_the_old_file_one_error_and_nothing_else(tmp_path, way, errors, many,
                                                                                           never):
    outcomes, cases = {}, list(crash.fault_cases(str(tmp_path), errors, [way]))
    for case in cases:
        outcome, right = crash.try_fault(str(tmp_path), *case)
        assert right, (case, outcome)
        outcomes.setdefault(case[1], set()).add(outcome)
    assert {nm for nm in outcomes if 'error' not in outcomes[nm]} == never
    assert len(cases) > many


@pytest.mark.parametrize('way', crash.WAYS)
def test_a_disk_that_fails_for_good_at_any_call_leaves_old_or_new_files_that_load(tmp_path, way):
    real, (names, lacks) = {nm: getattr(disk, nm) for nm in crash.CALLS}, crash.WAYS[way]
    for k in range(150):
        crash.save_as(tmp_path, 1)
        left = [k]
        def dying(nm, left=left):
            def f(*args):
                left[0] -= 1
                if left[0] < 0: raise OSError(5, 'Input/output error')
                return lacks.get(nm, real[nm])(*args)
            return f
        with crash.patched(**{nm: dying(nm) for nm in crash.CALLS}), suppress(SaveError):
            crash.save_as(tmp_path, 2, names)
        assert crash.versions(tmp_path, names) in [[2]*i + [1]*(len(names) - i) for i in range(len(names) + 1)]
        if left[0] > 0: break
    assert left[0] > 0  # it was whole in the end: every call had its turn


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
@pytest.mark.parametrize('way', crash.WAYS)
def test_after_power_loss_at_any_point_the_old_or_the_new_file_is_whole_under_every_name(way, background):
    out = crash.power_loss(background=background, way=way)
    assert out['wrong'] == 0
    assert out['disks'] > 200


@pytest.mark.parametrize('without', ['fsync', 'fsync_dir'])
@pytest.mark.parametrize('way', crash.WAYS)
def test_power_loss_finds_a_save_that_does_not_sync(way, without):
    assert crash.power_loss(1, without=(without,), way=way)['wrong'] > 0


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
    assert crash.power_loss(saves=1, way='alone')['wrong'] > 0
    os.close(fds[0])


@pytest.mark.parametrize('part', ['head', 'data'])
def test_a_file_that_is_read_back_otherwise_than_it_was_written_is_no_save(path, monkeypatch, part):
    save(path, 'old')
    real = disk.read_into
    def flipped(fd, buffer):
        n = real(fd, buffer)
        if part == 'data' and len(buffer) > 100_000: buffer[77] ^= 1
        if part == 'head' and (at := bytes(buffer).find(b'a word')) >= 0: buffer[at] ^= 1
        return n
    monkeypatch.setattr(disk, 'read_into', flipped)
    with pytest.raises(SaveError, match=f'{part} .* read back otherwise'): save(path, ['a word', torch.zeros(100_000)])
    monkeypatch.undo()
    assert (load(path), os.listdir(path.parent)) == ('old', [path.name])


def test_where_files_have_one_name_and_the_folder_cannot_be_synced_the_error_says_what_stands(path, monkeypatch):
    save(path, 'old')
    for nm in ('link', 'fsync_dir'):
        monkeypatch.setattr(disk, nm, lambda *args: (_ for _ in ()).throw(PermissionError(1, 'Not permitted')))
    with pytest.raises(SaveError, match='what stands there is the new file'): save(path, 'new')
    assert load(path) == 'new'


# Further names

@pytest.fixture
def names(tmp_path):
    (tmp_path/'there').mkdir()
    return [tmp_path/nm for nm in crash.NAMES]


def written(monkeypatch):
    "The bytes of each write to come."
    out, real = [], disk.write
    monkeypatch.setattr(disk, 'write', lambda fd, data: out.append(len(data)) or real(fd, data))
    return out


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
def test_where_a_file_can_have_no_second_name_the_contents_are_written_again(names, monkeypatch, code):
    path, *also = names
    monkeypatch.setattr(disk, 'link', lambda *_: (_ for _ in ()).throw(OSError(getattr(errno, code), code)))
    save(path, torch.arange(3000), also=also)
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
    monkeypatch.setattr(disk, 'link', crash.no_links)
    save(names[0], 1, also=[names[0], names[0].parent/'link', names[0].parent/'there'/'..'/names[0].name])
    assert sum(sizes) == names[0].stat().st_size
    assert crash.files_in(names[0].parent) == {crash.NAME, 'link'}


def test_a_further_name_through_a_link_is_given_where_the_link_points(names):
    names[1].symlink_to('there/c.safetensors')
    save(names[0], 1, also=[names[1]])
    assert names[1].is_symlink()
    assert names[2].stat().st_ino == names[0].stat().st_ino


@pytest.mark.parametrize('background', [False, True])
def test_a_name_that_cannot_be_given_is_told_and_those_before_it_stand(names, background):
    path, no = names[0], names[0].parent/'no'/'a'
    for p in names: save(p, 'old')
    said = f'^{no} was not saved, what stood there before stays, and {path} is saved: No such file'
    with pytest.raises(SaveError, match=said) as e, Saver() as saver:
        saver.save(path, 'new', also=[names[1], no, names[2]], background=background)
    assert (e.value.path, type(e.value.cause)) == (str(no), FileNotFoundError)
    assert [load(p) for p in names] == ['new', 'new', 'old']


@pytest.mark.parametrize('one', ['best.safetensors', Path('best.safetensors')])
def test_a_single_path_where_several_belong_is_a_type_error_before_any_writing(path, one):
    with pytest.raises(TypeError, match='also takes several paths: give'): save(path, 1, also=one)
    assert os.listdir(path.parent) == []


# What stands there and is no file

def a_socket(path):
    with socket.socket(socket.AF_UNIX) as s: s.bind(str(path))


OTHERS = dict(fifo=os.mkfifo, folder=os.mkdir, socket=a_socket, loop=lambda p: os.symlink(p, p))


@pytest.mark.parametrize('kind', OTHERS)
@pytest.mark.parametrize('background', [False, True])
@pytest.mark.parametrize('further', [False, True])
def test_what_is_no_regular_file_is_never_replaced_and_refused_before_anything_is_written(names, monkeypatch, kind,
                                                                                          background, further):
    monkeypatch.chdir(names[0].parent)  # a socket's path is short
    OTHERS[kind](names[1].name)
    mode, said = os.lstat(names[1]).st_mode, 'Too many levels' if kind == 'loop' else 'it is no regular file'
    path, also = (names[0], [names[2], names[1]]) if further else (names[1], [names[0]])
    monkeypatch.setattr(disk, 'create', lambda *_: pytest.fail('something was written'))
    with pytest.raises(SaveError, match=f'^{names[1]} was not saved, what stood there before stays: {said}') as e, \
            Saver() as saver:
        saver.save(path, 1, also=also, background=background)
    assert (e.value.path, e.value.written) == (str(names[1]), 0)
    assert stat.S_IFMT(os.lstat(names[1]).st_mode) == stat.S_IFMT(mode)
    assert crash.files_in(names[0].parent) - {names[1].name} == set()


# Names

@pytest.mark.parametrize('name', ['n'*255, 'n'*238 + '.safetensors', 'é'*127, '\U0001F40B'*63, 'a\nb'],
                         ids=['255', 'suffix', '2 bytes', '4 bytes', 'line'])
def test_any_name_that_the_file_system_takes_can_be_saved(tmp_path, name):
    for i in range(2): save(tmp_path/name, i, also=[tmp_path/name[1:]])
    assert (load(tmp_path/name), load(tmp_path/name[1:])) == (1, 1)
    assert sorted(os.listdir(tmp_path)) == sorted([name, name[1:]])


@pytest.mark.parametrize('background', [False, True])
def test_a_path_in_bytes_is_the_same_path(path, background):
    with Saver() as saver: saver.save(os.fsencode(path), 1, also=[os.fsencode(path) + b'2'], background=background)
    assert (load(path), load(f'{path}2')) == (1, 1)
    no = path.parent/'no'/'a'
    with pytest.raises(SaveError, match=f'^{no} was not saved'): save(os.fsencode(no), 1)

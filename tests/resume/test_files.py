"A run's folder: names sort as the run went, other files are left alone, old files go when new ones are safe."
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

import crash
from miniai import atomic
from miniai.checkpoint import SaveError
from miniai.resume.files import RunFiles, file_name, files_of, place_of
from resuming import Watcher, checkpoints, run


def at(epoch, phase, batch): return file_name(dict(epoch=epoch, phase=phase, batch=batch))


@given(st.lists(st.tuples(st.integers(0, 10**7), st.booleans(), st.integers(0, 10**9)), min_size=2))
def test_names_sort_as_the_run_went(steps):
    names = [at(e, 'valid' if valid else 'train', 0 if valid else b) for e, valid, b in steps]
    went = [(e, valid, 0 if valid else b) for e, valid, b in steps]
    assert [place_of(nm)[:3] for nm in names] == went


def test_a_finished_run_comes_before_the_batches_of_more_epochs():
    order = [at(1, 'train', 9), at(1, 'valid', 0), at(2, 'train', 0), at(2, 'done', 0), at(2, 'train', 1),
             at(99_999, 'done', 0), at(100_000, 'train', 0)]
    assert sorted(set(order), key=place_of) == order
    assert order[3] == 'checkpoint-00002-3-00000000.safetensors'


def test_files_with_other_names_are_ignored(tmp_path):
    for nm in ('checkpoint-keep.safetensors', 'best.safetensors', 'checkpoint-00001-1-00000000.safetensors.bak',
               'checkpoint-00001-4-00000000.safetensors', 'checkpoint-1-1-00000000.safetensors', at(0, 'train', 7)):
        (tmp_path/nm).write_text('x')
    assert files_of(tmp_path) == [tmp_path/at(0, 'train', 7)]
    assert files_of(tmp_path/'none') == []


def test_a_run_removes_temporary_files_of_earlier_processes_even_if_the_pid_is_in_use_again(tmp_path):
    (tmp_path/f'.{at(0, "train", 7)}.{os.getppid()}.0123abcd.part').write_text('x')
    RunFiles(tmp_path, keep=1, background=False).close()
    assert os.listdir(tmp_path) == ['.miniai.lock']


@pytest.mark.parametrize('make', [lambda p: p.write_text(''), os.mkfifo, lambda p: p.symlink_to('nowhere')],
                         ids=['file', 'pipe', 'broken link'])
def test_anything_but_a_folder_is_an_error_that_names_it(tmp_path, make):
    make(tmp_path/'x')
    with pytest.raises(NotADirectoryError, match=f'but {tmp_path}/x is a file, pipe or broken link'):
        RunFiles(tmp_path/'x', keep=1, background=False)


# Old checkpoints stay until the new one is safe

def is_folder(fd): return stat.S_ISDIR(os.fstat(fd).st_mode)


def test_an_old_checkpoint_stays_if_the_new_one_may_not_be_on_disk(tmp_path, monkeypatch):
    def unsure(fd):
        if is_folder(fd): raise OSError(5, 'input/output error')
    class FailSync(Watcher):
        def before_batch(self, learn):
            if learn.iter == 3: monkeypatch.setattr(atomic, 'os', crash.system(fsync=unsure))
    with pytest.raises(SaveError, match='input/output error'): run(tmp_path, cbs=[FailSync()], keep=1).fit(1)
    assert checkpoints(tmp_path) == ['00000-1-00000003', '00000-1-00000004']


def test_an_old_checkpoint_stays_until_the_new_one_is_on_disk(tmp_path, monkeypatch):
    seen = []
    def watched(fd):
        if is_folder(fd): seen.append(sum(p.stat().st_size > 0 for p in tmp_path.glob('checkpoint-*')))
        return os.fsync(fd)
    monkeypatch.setattr(atomic, 'os', crash.system(fsync=watched))
    run(tmp_path, keep=1, background=True).fit(1)
    assert min(seen[2:-1]) >= 2
    assert len(checkpoints(tmp_path)) == 1

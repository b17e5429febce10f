"The order of a run's checkpoints is that of the run, by names alone; what else lies in the folder is left out."
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from miniai.resume.files import RunFiles, file_name, files_of, is_between_epochs, place_of


def at(epoch, phase, batch): return file_name(dict(epoch=epoch, phase=phase, batch=batch))


@given(st.lists(st.tuples(st.integers(0, 10**7), st.booleans(), st.integers(0, 10**9)), min_size=2))
def test_names_order_as_the_run_went(steps):
    names = [at(e, 'valid' if valid else 'train', 0 if valid else b) for e, valid, b in steps]
    went = [(e, valid, 0 if valid else b) for e, valid, b in steps]
    assert [place_of(nm)[:3] for nm in names] == went


def test_a_run_that_was_done_stands_before_the_batches_of_more_epochs():
    order = [at(1, 'train', 9), at(1, 'valid', 0), at(2, 'train', 0), at(2, 'done', 0), at(2, 'train', 1),
             at(99_999, 'done', 0), at(100_000, 'train', 0)]
    assert sorted(set(order), key=place_of) == order
    assert order[3] == 'checkpoint-00002-3-00000000.safetensors'


def test_files_of_other_names_are_left_out(tmp_path):
    for nm in ('checkpoint-keep.safetensors', 'best.safetensors', 'checkpoint-00001-1-00000000.safetensors.bak',
               'checkpoint-00001-4-00000000.safetensors', 'checkpoint-1-1-00000000.safetensors', at(0, 'train', 7)):
        (tmp_path/nm).write_text('x')
    assert files_of(tmp_path) == [tmp_path/at(0, 'train', 7)]
    assert files_of(tmp_path/'none') == []


def test_a_run_removes_what_an_earlier_life_left_though_another_process_has_its_number_now(tmp_path):
    (tmp_path/f'.{at(0, "train", 7)}.{os.getppid()}.0123abcd.part').write_text('x')
    RunFiles(tmp_path, keep=1, between=False, background=False).close()
    assert os.listdir(tmp_path) == ['.miniai.lock']


def test_between_epochs_is_no_batch_done():
    files = [Path(at(*p)) for p in ((1, 'train', 0), (1, 'valid', 0), (1, 'train', 3))]
    assert [is_between_epochs(p) for p in files] == [True, True, False]

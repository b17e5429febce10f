"Pictures in files: which count, what their classes are, and what is said about those that cannot be read."
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from miniai.data.picture_files import PictureError, labelled_files, opened, picture_files
from picture_folders import drawn, in_classes, write, write_folder


def found(folder): return [p.relative_to(folder).as_posix() for p in picture_files(folder)]


def test_pictures_are_found_in_all_subfolders_and_sorted_whatever_the_case_of_their_extension(tmp_path):
    names = ['b/2.PNG', 'b/10.png', 'a/deep/er/1.jpg', 'a/1.bmp', 'ä/日本.Jpeg']
    write_folder(tmp_path, names)
    assert [tmp_path/nm for nm in found(tmp_path)] == sorted(tmp_path/nm for nm in names)


@pytest.mark.parametrize('name', ['a/.hidden.png', '.hidden/1.png', 'a/.ipynb_checkpoints/1.png', 'a/notes.txt',
                                  'a/paper.pdf', 'a/Thumbs.db', 'a/png', 'a/._1.jpg'])
def test_hidden_files_and_files_of_other_kinds_do_not_count(tmp_path, name):
    write_folder(tmp_path, ['a/1.png'])
    (tmp_path/name).parent.mkdir(exist_ok=True)
    (tmp_path/name).write_bytes(b'')
    assert found(tmp_path) == ['a/1.png']


def test_pictures_count_in_a_hidden_folder_that_was_named(tmp_path):
    write_folder(tmp_path, ['.data/a/1.png'])
    assert found(tmp_path/'.data') == ['a/1.png']


def test_linked_folders_and_files_count(tmp_path):
    write_folder(tmp_path, ['there/1.png', 'other/2.png'])
    here = tmp_path/'here'
    (here/'b').mkdir(parents=True)
    (here/'a').symlink_to(tmp_path/'there', target_is_directory=True)
    (here/'b'/'2.png').symlink_to(tmp_path/'other'/'2.png')
    assert found(here) == ['a/1.png', 'b/2.png']


def test_every_extension_that_counts_is_of_a_format_that_pillow_opens(tmp_path):
    for ext in Image.registered_extensions(): (tmp_path/f'1{ext}').write_bytes(b'')
    formats = Image.registered_extensions()
    assert {formats[p.suffix] for p in picture_files(tmp_path)} <= set(Image.OPEN)
    assert {'.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp', '.tif'} <= {p.suffix for p in picture_files(tmp_path)}


def test_the_class_of_a_picture_is_the_first_folder(tmp_path):
    write_folder(tmp_path, ['cat/1.png', 'cat/more/2.png', 'süß/3.png'])
    found = [(p.name, nm) for p, nm in labelled_files(tmp_path)]
    assert found == [('1.png', 'cat'), ('2.png', 'cat'), ('3.png', 'süß')]


@pytest.mark.parametrize('make', [Path, str, lambda p: io.BytesIO(p.read_bytes())])
def test_an_opened_picture_is_that_of_the_path_or_file(tmp_path, make):
    a = drawn(4, 5, 3)
    with opened(make(write(tmp_path/'1.png', a))) as im:
        np.testing.assert_array_equal(im, a)


@pytest.mark.parametrize(('content', 'said'), [
    (b'', 'it is empty'), (b'hello', 'its content is not a picture'), (None, 'truncated')])
def test_a_picture_that_cannot_be_read_is_named_with_the_reason(tmp_path, content, said):
    p = write(tmp_path/'1.png', drawn(64, 64, 3))
    p.write_bytes(p.read_bytes()[:2000] if content is None else content)
    with pytest.raises(PictureError, match=f'1.png: .*{said}'), opened(p) as im: im.load()


def test_a_picture_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PictureError, match=r'no picture at .*1.png'), opened(tmp_path/'1.png'): pass


@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='root reads everything')
def test_a_picture_without_permission_is_named(tmp_path):
    p = write(tmp_path/'1.png', drawn(4, 4))
    p.chmod(0)
    with pytest.raises(PictureError, match=r'1.png: .*[Pp]ermission'), opened(p): pass


@pytest.mark.parametrize('error', [KeyError('x'), RuntimeError('x'), IndexError('x')])
def test_whatever_a_decoder_raises_becomes_a_picture_error(tmp_path, error):
    p = write(tmp_path/'1.png', drawn(4, 4))
    with pytest.raises(PictureError, match=r'1.png') as e, opened(p): raise error
    assert e.value.__cause__ is error


def test_a_folder_without_pictures_is_an_error_that_names_what_is_there(tmp_path):
    with pytest.raises(PictureError, match=r'no pictures .* in .*$'): picture_files(tmp_path)
    (tmp_path/'1.heic').write_bytes(b'')
    with pytest.raises(PictureError, match=r'but files such as 1.heic'): labelled_files(tmp_path)


def test_pictures_outside_of_class_folders_are_an_error_that_counts_them(tmp_path):
    write_folder(tmp_path, [*in_classes(), '1.png', '2.png'])
    with pytest.raises(PictureError, match=r'such as 1.png.*move 2 of them'): labelled_files(tmp_path)

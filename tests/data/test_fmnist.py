"Fashion-MNIST from every source, and the errors for files that are missing, damaged or of another data set."
import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai.data import DataLoaders, ImageSet, MemoryLoader, fashion_mnist, fmnist, image_loaders
from miniai.data.fmnist import CLASSES, DEBIAN, MEAN, STD, read_idx

NAMES = ['train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz',
         't10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz']
FIELDS = ['x_train', 'y_train', 'x_valid', 'y_valid']
shapes = st.lists(st.integers(0, 5), max_size=4)


def idx(array):
    "The bytes of an IDX file (yann.lecun.com/exdb/mnist): 0, 0, type 8, number of dimensions, big-endian sizes, data."
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()


def small_set(seed=0, n=12, m=5):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 256, (n + m, 28, 28), np.uint8), rng.integers(0, 10, n + m, np.uint8)
    return dict(zip(NAMES, (x[:n], y[:n], x[n:], y[n:]), strict=True))


def written(folder, arrays, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, a in arrays.items():
        (folder/(name if zipped else name[:-3])).write_bytes(gzip.compress(idx(a), 1) if zipped else idx(a))
    return folder


def same(data, arrays):
    return all(np.array_equal(getattr(data, f).numpy(), arrays[n]) for f, n in zip(FIELDS, NAMES, strict=True))


@pytest.fixture
def no_debian(monkeypatch, tmp_path): monkeypatch.setattr(fmnist, 'DEBIAN', tmp_path/'not installed')


# Reading one file

@pytest.fixture(scope='module')
def idx_file(tmp_path_factory): return tmp_path_factory.mktemp('idx')/'some-file'


@given(shapes, st.booleans(), st.randoms(use_true_random=False))
def test_an_idx_file_of_any_shape_is_read_as_it_was_written(idx_file, shape, zipped, rnd):
    array = np.frombuffer(rnd.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
    idx_file.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    back = read_idx(idx_file)
    assert (back.dtype, back.shape) == (np.uint8, tuple(shape))
    assert np.array_equal(back, array)
    assert back.flags.writeable


def damage(data, draw):
    raw = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at, what = draw(st.integers(0, len(raw))), draw(st.binary(max_size=6))
        raw[at:at + draw(st.integers(0, 6))] = what
    return bytes(raw)


@settings(max_examples=150)
@given(st.data(), shapes, st.randoms(use_true_random=False))
def test_a_damaged_gzipped_idx_file_gives_its_array_or_a_valueerror_that_names_it(idx_file, data, shape, rnd):
    array = np.frombuffer(rnd.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
    idx_file.write_bytes(damage(gzip.compress(idx(array)), data.draw))
    try: back = read_idx(idx_file)
    except ValueError as e: assert str(idx_file) in str(e)  # noqa: PT017
    else: assert np.array_equal(back, array)


@settings(max_examples=150)
@given(st.data(), shapes, st.randoms(use_true_random=False))
def test_a_damaged_plain_file_gives_the_array_of_its_bytes_or_a_valueerror_that_names_it(idx_file, data, shape, rnd):
    raw = damage(idx(np.frombuffer(rnd.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)), data.draw)
    idx_file.write_bytes(raw)
    try: back = read_idx(idx_file)
    except ValueError as e: assert str(idx_file) in str(e)  # noqa: PT017
    else: assert idx(back) == raw


@pytest.mark.parametrize('shape', [(1,)*70, (2**32 - 1,)*3 + (0,)], ids=['70 dimensions', 'none of very many'])
def test_a_shape_that_no_array_can_have_is_an_error_that_names_the_file(tmp_path, shape):
    path = tmp_path/'odd-idx'
    path.write_bytes(bytes([0, 0, 8, len(shape)]) + struct.pack(f'>{len(shape)}I', *shape) + b'\0'*(0 not in shape))
    with pytest.raises(ValueError, match='odd-idx'): read_idx(path)


@pytest.mark.parametrize(('raw', 'said'), [
    (b'', r'wrong magic number \(empty file\)'), (b'\0\0\x08', 'wrong magic number 000008'),
    (b'\0\0\x0d\1\0\0\0\0', 'wrong magic number 00000d01: an IDX file of bytes starts with 000008'),
    (b'PNG!....', 'wrong magic number 504e4721'), (gzip.compress(b'PNG!....', mtime=0), 'wrong magic number 504e4721'),
    (idx(np.zeros((2, 3), np.uint8)) + b'x', r'shape \(2, 3\) in its header means 18 bytes in all, and it has 19'),
    (idx(np.zeros((1000, 3), np.uint8))[:-5], r'means 3,012 bytes in all, and it has 3,007'),
    (b'\0\0\x08\3\0\0', 'and it has 6'),
    (gzip.compress(idx(np.zeros(99, np.uint8)), mtime=0)[:-9], 'damaged gzip file: '),
    (b'\x1f\x8bnothing', 'damaged gzip file: ')])
def test_a_wrong_magic_number_or_size_is_an_error_that_names_the_file(tmp_path, raw, said):
    path = tmp_path/'bad-idx'
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f'bad-idx: .*{said}'): read_idx(path)


# Every source

@pytest.mark.parametrize('zipped', [True, False], ids=['gzipped', 'plain'])
def test_the_folder_argument_is_read_gzipped_or_not(tmp_path, zipped, capsys):
    arrays = small_set()
    data = fashion_mnist(written(tmp_path/'mine', arrays, zipped))
    assert same(data, arrays)
    assert [getattr(data, f).dtype for f in FIELDS] == [torch.uint8, torch.int64]*2
    assert data.classes == CLASSES
    assert data.source == str(tmp_path/'mine')
    assert capsys.readouterr().out == f'Fashion-MNIST, 12 training and 5 test images, from {tmp_path/"mine"}\n'


def test_quiet_says_nothing_and_a_folder_may_be_a_string(tmp_path, capsys):
    assert same(fashion_mnist(str(written(tmp_path, small_set())), quiet=True), small_set())
    assert capsys.readouterr().out == ''


def test_the_argument_comes_before_the_variable_before_debian_before_the_sample(tmp_path, monkeypatch):
    mine, named, debian = (written(tmp_path/n, small_set(i)) for i, n in enumerate(('mine', 'named', 'debian'), 1))
    monkeypatch.setattr(fmnist, 'DEBIAN', debian)
    monkeypatch.setenv('MINIAI_DATA', str(named))
    assert same(fashion_mnist(mine, quiet=True), small_set(1))
    data = fashion_mnist(quiet=True)
    assert same(data, small_set(2))
    assert data.source == str(named)
    monkeypatch.delenv('MINIAI_DATA')
    data = fashion_mnist(quiet=True)
    assert same(data, small_set(3))
    assert data.source == str(debian)
    (debian/NAMES[3]).unlink()
    assert 'sample inside miniai' in fashion_mnist(quiet=True).source


def test_source_sample_takes_the_sample_whatever_else_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv('MINIAI_DATA', str(written(tmp_path, small_set())))
    data = fashion_mnist(source='sample', quiet=True)
    assert len(data.x_train) == 10_000
    assert data.source == 'the sample inside miniai'


@pytest.mark.usefixtures('no_debian')
def test_the_sample_says_how_to_get_the_full_set(capsys):
    data = fashion_mnist()
    assert data.source == 'the sample inside miniai (the full set: apt install dataset-fashion-mnist)'
    assert capsys.readouterr().out == f'Fashion-MNIST, 10,000 training and 2,000 test images, from {data.source}\n'


def test_a_missing_folder_is_an_error_that_says_where_its_name_came_from(tmp_path, monkeypatch):
    said = r"no folder '.*nowhere': give one that holds train-images-.*t10k-labels"
    with pytest.raises(FileNotFoundError, match=said): fashion_mnist(tmp_path/'nowhere')
    monkeypatch.setenv('MINIAI_DATA', str(tmp_path/'nowhere'))
    said = r"nowhere' \(from the environment variable MINIAI_DATA\)"
    with pytest.raises(FileNotFoundError, match=said): fashion_mnist()
    (tmp_path/'nowhere').write_text('a file')
    with pytest.raises(FileNotFoundError, match='no folder'): fashion_mnist()


@pytest.mark.parametrize('name', NAMES)
def test_a_missing_file_is_an_error_that_names_it(tmp_path, name):
    written(tmp_path, small_set())
    (tmp_path/name).unlink()
    said = rf'no file .*{name}, with or without \.gz: the folder needs train-images'
    with pytest.raises(FileNotFoundError, match=said):
        fashion_mnist(tmp_path)


def test_an_unknown_source_or_two_at_once_is_an_error(tmp_path):
    said = "source must be 'hub', 'sample' or None, got 'web'"
    with pytest.raises(ValueError, match=said): fashion_mnist(source='web')
    for source in ('hub', 'sample'):
        with pytest.raises(ValueError, match=f"give folder or source, not both: .*source='{source}'"):
            fashion_mnist(tmp_path, source=source)


@pytest.mark.parametrize(('name', 'array', 'said'), [
    (NAMES[0], np.zeros((12, 28, 27)), r'images must be 28 by 28 pixels, got shape \(12, 28, 27\)'),
    (NAMES[2], np.zeros((0, 28, 28)), r'images must be 28 by 28 pixels, got shape \(0, 28, 28\)'),
    (NAMES[0], np.zeros(12), r'images must be 28 by 28 pixels, got shape \(12,\)'),
    (NAMES[1], np.zeros(11), f'needs 12 labels, one for each image in {NAMES[0]}, got shape \\(11,\\)'),
    (NAMES[3], np.zeros((5, 1)), f'needs 5 labels, one for each image in {NAMES[2]}, got shape \\(5, 1\\)'),
    (NAMES[3], np.array([1, 9, 0, 10, 2]), 'labels must be from 0 to 9, and label 3 is 10')])
def test_a_file_of_another_data_set_is_an_error_that_names_it(tmp_path, name, array, said):
    written(tmp_path, {**small_set(), name: array.astype(np.uint8)})
    with pytest.raises(ValueError, match=f'{name}: {said}'): fashion_mnist(tmp_path)


def test_a_damaged_file_in_a_folder_is_named(tmp_path):
    written(tmp_path, small_set())
    (tmp_path/NAMES[2]).write_bytes(b'<html>not found</html>')
    with pytest.raises(ValueError, match=f'{tmp_path/NAMES[2]}: wrong magic number 3c68746d'): fashion_mnist(tmp_path)


# The sample inside the package

@pytest.fixture(scope='module')
def sample(): return fashion_mnist(source='sample', quiet=True)


def test_the_sample_is_10_000_and_2_000_images_of_near_balanced_classes(sample):
    assert sample.x_train.shape == (10_000, 28, 28)
    assert sample.x_valid.shape == (2_000, 28, 28)
    for y, n in ((sample.y_train, 1000), (sample.y_valid, 200)):
        assert ((y.bincount(minlength=10) - n).abs() < .15*n).all()


def test_the_sample_s_images_are_real_ones_all_different_with_the_set_s_mean_and_deviation(sample):
    x = torch.cat([sample.x_train, sample.x_valid])
    assert len(np.unique(x.flatten(1).numpy(), axis=0)) == len(x)
    assert abs((x/255).mean().item() - MEAN) < .005
    assert abs((x/255).std().item() - STD) < .005


def test_the_sample_names_its_licence():
    text = (Path(fmnist.__file__).parent/'sample'/'LICENSE').read_text()
    assert 'MIT' in text
    assert 'Zalando' in text


@pytest.mark.skipif(not DEBIAN.is_dir(), reason='the package dataset-fashion-mnist is not installed')
def test_the_sample_is_the_beginning_of_the_full_set_whose_mean_and_deviation_are_stated(sample):
    full = fashion_mnist(DEBIAN, quiet=True)
    assert (len(full.x_train), len(full.x_valid)) == (60_000, 10_000)
    for field in FIELDS:
        part = getattr(sample, field)
        assert torch.equal(getattr(full, field)[:len(part)], part)
    counts = full.x_train.flatten().bincount(minlength=256).double()
    levels = torch.arange(256).double()/255
    mean = (counts*levels).sum() / counts.sum()
    std = ((counts*(levels - mean)**2).sum() / counts.sum()).sqrt()
    assert (round(mean.item(), 4), round(std.item(), 4)) == (MEAN, STD)


def test_an_image_set_cannot_be_changed_and_shows_its_sizes_and_source():
    data = ImageSet(torch.zeros(1234, 1), torch.zeros(1234), torch.zeros(5, 1), torch.zeros(5), CLASSES, 'here')
    assert repr(data) == 'Fashion-MNIST, 1,234 training and 5 test images, from here'
    with pytest.raises(AttributeError): data.source = 'there'


# The hub, offline: a local folder of the dataset's name stands in for it

@pytest.fixture
def hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path/'cache')
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    folder, arrays = Path('zalando-datasets/fashion_mnist'), small_set(4)
    folder.mkdir(parents=True)
    features = datasets.Features(dict(image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES))))
    for split, x, y in (('train', *NAMES[:2]), ('test', *NAMES[2:])):
        rows = dict(image=list(arrays[x]), label=arrays[y].tolist())
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder/f'{split}-00000-of-00001.parquet')
    yield arrays
    datasets.enable_progress_bars()


def test_source_hub_reads_the_hub(hub, capsys):
    data = fashion_mnist(source='hub')
    assert same(data, hub)
    assert [getattr(data, f).dtype for f in FIELDS] == [torch.uint8, torch.int64]*2
    assert 'from the Hugging Face hub, zalando-datasets/fashion_mnist' in capsys.readouterr().out


def test_the_hub_s_set_is_cached(hub):
    fashion_mnist(source='hub', quiet=True)
    cached = list(Path('cache').rglob('*.arrow'))
    assert len(cached) == 2
    before = [p.stat().st_mtime_ns for p in cached]
    assert same(fashion_mnist(source='hub', quiet=True), hub)
    assert [p.stat().st_mtime_ns for p in cached] == before


def test_the_hub_s_labels_are_read_as_one_column_not_one_by_one(hub, monkeypatch):
    from datasets.arrow_dataset import Column
    reads, get = [], Column.__getitem__
    monkeypatch.setattr(Column, '__getitem__', lambda self, i: (reads.append(i), get(self, i))[1])
    fashion_mnist(source='hub', quiet=True)
    assert len([i for i in reads if isinstance(i, int)]) < len(hub[NAMES[1]])


def test_the_hub_is_not_asked_unless_the_user_says_so(hub, monkeypatch):
    import datasets
    monkeypatch.setattr(datasets, 'load_dataset', lambda *a, **k: pytest.fail('asked the hub'))
    fashion_mnist(quiet=True)


def test_without_the_package_datasets_the_hub_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(ImportError, match=r"source='hub' needs the package datasets: pip install 'miniai-torch\[hf\]'"):
        fashion_mnist(source='hub')


def labels(loader): return [y.tolist() for _, y in loader]


def test_image_loaders_shuffle_training_by_seed_and_keep_validation_in_order_twice_as_large():
    x, y = torch.randint(0, 256, (30, 28, 28), dtype=torch.uint8), torch.arange(30)
    dls = image_loaders(ImageSet(x, y, x[:20], y[:20], CLASSES, 'here'), 8, seed=3)
    assert isinstance(dls, DataLoaders)
    assert labels(dls.valid) == [list(range(16)), list(range(16, 20))]
    assert labels(dls.train) == labels(MemoryLoader(x, y, bs=8, shuffle=True, seed=3))
    for dl in (dls.train, dls.valid):
        assert dl.source == 'here'
        xb, yb = next(iter(dl))
        torch.testing.assert_close(xb, (x[yb][:, None]/255 - MEAN)/STD)

"Pictures as rows: decoded once or each time, by threads, some batches ahead, never more."
import pickle
import threading
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniai.data.memory import MemoryLoader
from miniai.data.picture_files import PictureError
from miniai.data.picture_rows import PictureRows
from picture_folders import drawn


class Decoder:
    "Makes a picture from the number in a file's name, and counts."
    def __init__(self, shape=(3, 4, 5), bad=()): self.shape, self.bad, self.seen = shape, bad, []
    def __call__(self, f):
        self.seen.append(int(f.stem))
        if int(f.stem) in self.bad: raise PictureError(f'cannot read {f.name}')
        return self.picture(int(f.stem))
    def picture(self, i): return drawn(*self.shape, seed=i)
    def stack(self, order): return torch.from_numpy(np.stack([self.picture(i) for i in order]))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    for i in range(20): (folder/f'{i}.png').write_bytes(b'x')
    return [folder/f'{i}.png' for i in range(20)]


def made(files, keep=True, workers=2, **kwargs):
    decoder = Decoder(**kwargs)
    return PictureRows(files, decoder, decoder.shape, keep, workers), decoder


def got(rows, order, bs): return list(rows.gathered(torch.tensor(order, dtype=torch.long), bs))


@pytest.mark.parametrize('shape', [(3, 4, 5), (4, 5)])
@given(order=st.lists(st.integers(0, 19), min_size=1, max_size=25, unique=True), bs=st.integers(1, 9),
       keep=st.booleans(), workers=st.integers(1, 4))
def test_batches_hold_the_pictures_of_the_order_kept_or_not(files, shape, order, bs, keep, workers):
    rows, decoder = made(files, keep, workers, shape=shape)
    for _ in range(2):
        batches = got(rows, order, bs)
        assert [len(b) for b in batches] == [len(order[i:i + bs]) for i in range(0, len(order), bs)]
        assert torch.equal(torch.cat(batches), decoder.stack(order))
    assert sorted(decoder.seen) == sorted(order*(1 if keep else 2))


@pytest.mark.parametrize('keep', [True, False])
def test_changes_to_a_batch_do_not_change_the_pictures(files, keep):
    rows, decoder = made(files, keep)
    for batch in rows.gathered(torch.arange(20), 4): batch.zero_()
    assert torch.equal(got(rows, [7], 1)[0], decoder.stack([7]))


def test_it_stands_for_a_tensor(files):
    rows, _ = made(files)
    assert (rows.shape, rows.ndim, len(rows), rows.numel()) == ((20, 3, 4, 5), 4, 20, 1200)
    assert (rows.dtype, rows.device) == (torch.uint8, torch.device('cpu'))


@pytest.mark.parametrize('keep', [True, False])
@pytest.mark.parametrize('shuffle', [True, False])
def test_a_loader_gives_the_batches_of_the_pictures_in_a_tensor_from_any_batch_on(files, keep, shuffle):
    rows, decoder = made(files, keep)
    part = torch.tensor([3, 1, 4, 15, 9, 2, 6, 5, 8, 7])
    loaders = [MemoryLoader(x, torch.arange(20), bs=3, shuffle=shuffle, rows=part, mean=[.1, .2, .3], std=[1., .5, 2.])
               for x in (rows, decoder.stack(range(20)))]
    for epoch, start in ((0, 0), (1, 2), (5, 4)):
        pairs = list(zip(*(dl.batches(epoch, start) for dl in loaders), strict=True))
        assert len(pairs) == 4 - start
        for a, b in pairs: assert all(map(torch.equal, a, b))


@pytest.mark.parametrize('keep', [True, False])
def test_a_pass_that_is_cut_decodes_no_more_than_some_batches_ahead(files, keep):
    rows, decoder = made(files, keep, workers=1)
    batches = rows.gathered(torch.arange(20), 2)
    next(batches)
    batches.close()
    rows._pool.shutdown()
    assert len(decoder.seen) <= 2*4


def test_a_pass_that_is_cut_cancels_what_no_thread_has_begun(files):
    go, begun = threading.Event(), []
    def decode(f):
        begun.append(int(f.stem))
        if int(f.stem) >= 2: go.wait(10)
        return drawn(4, 5)
    rows = PictureRows(files, decode, (4, 5), workers=1)
    batches = rows.gathered(torch.arange(20), 2)
    next(batches)
    batches.close()
    go.set()
    rows._pool.shutdown()
    assert begun in ([0, 1], [0, 1, 2])


@pytest.mark.parametrize('keep', [True, False])
def test_a_picture_that_cannot_be_read_ends_the_pass_at_its_batch_and_a_later_pass_without_it_goes_on(files, keep):
    rows, decoder = made(files, keep, bad=(5,))
    batches = rows.gathered(torch.arange(20), 2)
    assert torch.equal(torch.cat([next(batches), next(batches)]), decoder.stack(range(4)))
    with pytest.raises(PictureError, match=r'cannot read 5.png'): next(batches)
    order = [i for i in range(20) if i != 5]
    assert torch.equal(torch.cat(got(rows, order, 3)), decoder.stack(order))


@pytest.mark.parametrize('keep', [True, False])
def test_a_check_names_every_picture_that_cannot_be_read_and_keeps_the_others(files, keep):
    rows, decoder = made(files, keep, bad=(5, 11))
    assert rows.check() == {5: 'cannot read 5.png', 11: 'cannot read 11.png'}
    decoder.seen.clear()
    assert torch.equal(got(rows, [0, 12], 2)[0], decoder.stack([0, 12]))
    assert sorted(decoder.seen) == ([] if keep else [0, 12])
    assert set(rows.check()) == {5, 11}


def test_a_check_that_is_interrupted_decodes_no_more(files):
    go = threading.Event()
    def decode(f):
        if f.stem == '0': raise KeyboardInterrupt
        go.wait(10)
        seen.append(f)
        return drawn(4, 5)
    seen, rows = [], PictureRows(files, decode, (4, 5), workers=1)
    with pytest.raises(KeyboardInterrupt): rows.check()
    go.set()
    rows._pool.shutdown()
    assert len(seen) <= 1


@pytest.mark.parametrize('copied', [deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize('keep', [True, False])
def test_a_copy_gives_the_same_pictures_and_leaves_the_original_as_it_was(files, keep, copied):
    rows, decoder = made(files, keep)
    got(rows, [1, 2], 2)
    new = copied(rows)
    assert torch.equal(torch.cat(got(new, list(range(20)), 6)), decoder.stack(range(20)))
    assert torch.equal(got(rows, [19, 1], 2)[0], decoder.stack([19, 1]))
    if keep: assert sorted(decoder.seen).count(1) == 1


def test_contents_differ_where_names_or_sizes_of_files_do_and_not_where_the_folder_lies(tmp_path):
    def contents(folder, **sizes):
        for nm, n in sizes.items():
            (tmp_path/folder/'a').mkdir(parents=True, exist_ok=True)
            (tmp_path/folder/'a'/nm).write_bytes(b'x'*n)
        return PictureRows([tmp_path/folder/'a'/nm for nm in sizes], Decoder(), (4, 5)).contents
    assert contents('here', x=1, y=2) == contents('there', x=1, y=2)
    assert len({contents('1', x=1, y=2), contents('2', x=1, y=3), contents('3', x=1, z=2), contents('4', x=1)}) == 4

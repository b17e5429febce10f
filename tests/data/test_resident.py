"Copies of arrays that a GPU keeps. Here the CPU stands in for the GPU."
import gc

import numpy as np
import pytest
import torch

from miniai import DataLoaders
from miniai.data import MemoryLoader, resident

X, Y = torch.arange(40.).reshape(20, 2), torch.arange(20)


@pytest.fixture
def room(monkeypatch):
    "A device with that much free memory, in a list."
    room = [10**6]
    monkeypatch.setattr(resident, 'DEVICES', ('cpu',))
    monkeypatch.setattr(resident, '_free', lambda device: room[0])
    return room


def kept(dl): return [a is not b for a, b in zip(resident.near(dl), dl.tensors, strict=True)]


def same(a, b):
    return all(torch.equal(p, q) for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True))


def test_batches_are_those_without_copies(room):
    def batches(device):
        dls = DataLoaders.from_arrays(X, Y, bs=4, normalize=True, device=device)
        return [*dls.train, *dls.valid, *dls.train]
    assert same(batches('cpu'), batches(None))


def test_rows_come_from_the_copy(room):
    dl = MemoryLoader(X, Y, bs=4, device='cpu')
    resident.near(dl)[0].zero_()
    xb, yb = next(iter(dl))
    assert not xb.any()
    assert yb.tolist() == [0, 1, 2, 3]


def test_loaders_of_rows_of_the_same_array_share_one_copy_that_goes_with_them(room):
    x = np.ones((20, 2), np.float32)
    dls = DataLoaders.from_arrays(x, np.arange(20), bs=4, device='cpu')
    first, second = resident.near(dls.train), resident.near(dls.valid)
    assert all(a is b for a, b in zip(first, second, strict=True))
    before = len(resident._COPIES)
    del dls, first, second
    gc.collect()
    assert len(resident._COPIES) == before - 2


def test_a_tensor_that_changes_is_copied_again(room):
    x = X.clone()
    dl = MemoryLoader(x, bs=4, device='cpu')
    next(iter(dl))
    x += 100
    assert torch.equal(next(iter(dl))[0], X[:4] + 100)


def test_tensors_of_inference_mode_are_copied_too(room):
    with torch.inference_mode(): x = X + 1
    assert kept(MemoryLoader(x, bs=4, device='cpu')) == [True]


def test_only_what_fits_in_a_quarter_of_the_free_memory_is_copied(room):
    dl = MemoryLoader(X, Y, bs=4, device='cpu')
    assert kept(dl) == [True, True]
    other = MemoryLoader(X.clone(), Y.clone(), bs=4, device='cpu')
    room[0] = 4*160 - 1  # both have 160 bytes
    assert kept(other) == [False, False]
    room[0] += 1
    assert kept(other) == [True, True]


def test_arrays_that_change_their_dtype_in_batches_are_not_copied(room):
    assert kept(MemoryLoader(np.ones((20, 2)), np.arange(20), bs=4, device='cpu')) == [False, True]


@pytest.mark.parametrize('device', ['cpu', None])
def test_without_a_gpu_nothing_is_copied(device):
    assert kept(MemoryLoader(X, Y, bs=4, device=device)) == [False, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_on_cuda_batches_are_those_of_the_cpu():
    dls = [DataLoaders.from_arrays(X, Y, bs=4, normalize=True, device=device) for device in ('cuda', None)]
    ours, plain = ([(x.cpu(), y.cpu()) for x, y in dl.train] for dl in dls)
    assert {t.device.type for t in resident.near(dls[0].train)} == {'cuda'}
    for (x, y), (x2, y2) in zip(ours, plain, strict=True):
        assert torch.equal(y, y2)
        torch.testing.assert_close(x, x2)

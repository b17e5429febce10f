"Tensors and arrays keep their bytes, shapes and strides, and take no more room than the memory that they span."
import numpy as np
import pytest
import torch

from miniai.checkpoint import save
from states import DTYPES, back, same


@pytest.fixture
def path(tmp_path): return tmp_path/'a.safetensors'


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_every_dtype_comes_back_with_its_bytes(path, dtype):
    t = torch.arange(48, dtype=torch.uint8).view(torch.uint8 if dtype == torch.bool else dtype)
    t = t > 20 if dtype == torch.bool else t
    assert same(back(path, t), t)


@pytest.mark.parametrize('layout', ['channels_last', 'permuted', 'gaps', 'expanded', 'windows', 'empty', 'point'])
def test_a_layout_comes_back_with_its_strides(path, layout):
    t = torch.arange(120.).view(2, 3, 4, 5)
    t = dict(channels_last=t.contiguous(memory_format=torch.channels_last), permuted=t.permute(3, 1, 0, 2), empty=t[:0],
             gaps=t[:, ::2, 1], expanded=t[0, 0, 0].expand(7, 5), windows=t.view(-1).unfold(0, 5, 2),
             point=t.sum())[layout]
    got = back(path, t)
    assert got.stride() == t.stride()
    assert torch.equal(got, t)


def test_a_dense_layout_takes_no_more_space_than_its_elements(path):
    t = torch.zeros(8, 16, 32, 32).contiguous(memory_format=torch.channels_last)
    save(path, t)
    assert t.nbytes < path.stat().st_size < t.nbytes + 1000


def test_arrays_keep_their_strides_except_reversed_and_read_only_ones_which_come_back_as_copies(path):
    x = np.arange(10.)
    read_only = x[::2]
    read_only.setflags(write=False)
    arrays = [x[1::3], x.reshape(5, 2).T, x[::-1], read_only]
    got = back(path, arrays)
    assert [a.strides for a in got] == [(24,), (8, 16), (8,), (8,)]
    assert all(map(np.array_equal, got, arrays))


def test_negated_and_conjugated_views_come_back_as_copies(path):
    z = torch.randn(4, dtype=torch.complex64)
    got = back(path, dict(conj=z.conj(), neg=z.conj().imag, z=z))
    assert torch.equal(got['conj'], z.conj())
    assert torch.equal(got['neg'], -z.imag)
    assert torch.equal(got['z'], z)

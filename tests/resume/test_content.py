"Different data have different digests, whichever of the sampled numbers differ; equal data have equal ones."
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from miniai.data import DataLoaders, Dataset, MemoryLoader, SeededSamples
from miniai.resume.content import describe_content
from resuming import Noisy

X, Y = torch.arange(700.).reshape(100, 7), torch.arange(100) % 3
LOADERS = dict(
    memory=lambda x, y: MemoryLoader(x, y, bs=4), tensors=lambda x, y: DataLoader(TensorDataset(x, y), 4),
    pairs=lambda x, y: DataLoader(Dataset(x, y), 4), arrays=lambda x, y: DataLoader(Dataset(x.numpy(), y.numpy()), 4),
    subset=lambda x, y: DataLoader(Subset(SeededSamples(TensorDataset(x, y)), [3, 2, 1]), 4),
    split=lambda x, y: DataLoaders.from_arrays(x, y, valid=.2, bs=4).train)


def content(dl): return describe_content(dl)['content']


@pytest.mark.parametrize('kind', LOADERS)
def test_another_order_dtype_or_shape_changes_the_digest_and_a_copy_does_not(kind):
    make = LOADERS[kind]
    one = content(make(X, Y))
    assert len(one) == 16
    assert int(one, 16) >= 0
    assert content(make(X.clone(), Y.clone())) == one
    others = [make(X.flip(0), Y), make(X, Y.flip(0)), make(X.double(), Y), make(X[:, None], Y), make(X[:99], Y[:99])]
    assert len({one, *map(content, others)}) == len(others) + 1


def test_looking_at_the_data_draws_and_advances_nothing():
    dl = LOADERS['memory'](X, Y)
    before = dl.epoch, torch.get_rng_state()
    content(dl)
    assert dl.epoch == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_another_selection_or_scaling_changes_the_digest():
    def rows(*rows): return content(MemoryLoader(X, Y, bs=4, rows=torch.tensor(rows)))
    assert len({rows(1, 2), rows(2, 1), content(MemoryLoader(X, Y, bs=4))}) == 3
    assert content(MemoryLoader(X, bs=4, mean=1., std=2.)) != content(MemoryLoader(X, bs=4, mean=1., std=3.))
    def part(*rows): return content(DataLoader(Subset(TensorDataset(X), rows)))
    assert part(1, 2) != part(2, 1)


@pytest.mark.parametrize('n', [1, 2, 63, 64, 65, 1000])
def test_the_first_and_last_number_count_and_all_of_small_arrays(n):
    def changed(i, k):
        x = torch.zeros(n, 3000)
        x[i, k] = 1
        return content(MemoryLoader(x, bs=4))
    same = content(MemoryLoader(torch.zeros(n, 3000), bs=4))
    for at in ((0, 0), (n - 1, -1)): assert changed(*at) != same
    small = [content(MemoryLoader(torch.arange(60).eq(i), bs=4)) for i in range(60)]
    assert len(set(small)) == 60


@pytest.mark.parametrize('x', [torch.zeros(3, 0), torch.ones(5, dtype=torch.bool), torch.ones(5, 2).t(),
                               torch.ones(4, dtype=torch.complex64), torch.ones(4, dtype=torch.bfloat16),
                               np.arange(9)[::-1]])
def test_arrays_of_any_kind_have_a_digest(x): assert len(content(MemoryLoader(x, bs=4))) == 16


def test_data_whose_samples_must_be_made_have_no_digest():
    class Mine(TensorDataset):
        def __getitem__(self, i): raise AssertionError('a sample was asked for')
    for dl in (DataLoader(Noisy(4)), DataLoader(Mine(X)), DataLoader(Subset(Noisy(4), [1])), [1, 2], iter([1]), None,
               DataLoader(Dataset(['a', 'b'], [1, 2])), DataLoader(Dataset(np.array(['a', 'b']), np.ones(2)))):
        assert content(dl) is None

"Loaders and samplers that keep something from pass to pass: a run goes on with it."
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Sampler, SubsetRandomSampler, TensorDataset

from miniai import CheckpointCB, DataLoaders, TrainLearner
from miniai.resume.loader import sampler_state, set_sampler_state
from resuming import StopCB, digest
from small import mlp

X, Y = torch.randn(24, 4, generator=torch.Generator().manual_seed(3)), torch.arange(24) % 3


class Loader:
    "Six batches of four in the order of `indices()`."
    def __len__(self): return 6
    def __iter__(self):
        order = torch.tensor([*self.indices()])
        for i in range(6): yield X[order[4*i:4*i + 4]], Y[order[4*i:4*i + 4]]


class ByCount(Loader):
    def __init__(self): self.passes = 0
    def indices(self):
        self.passes += 1
        return torch.randperm(24, generator=torch.Generator().manual_seed(self.passes)).tolist()


class ByList(Loader):
    def __init__(self): self.order = list(range(24))
    def indices(self):
        random.shuffle(self.order)
        return self.order


class ByTensor(Loader):
    def __init__(self): self.order = torch.arange(24)
    def indices(self):
        self.order = self.order[torch.randperm(24)]
        return self.order


class Shuffler(Sampler):
    def __init__(self): self.generator, self.order = np.random.default_rng(1), np.arange(24)
    def __len__(self): return 24
    def __iter__(self):
        self.generator.shuffle(self.order)
        return iter(self.order.tolist())


class OneMore(DataLoader):
    "A DataLoader of another class, which counts its passes and leaves them out in turns."
    passes = 0
    def __iter__(self):
        self.passes = self.passes + 1
        for xb, yb in super().__iter__(): yield xb*self.passes, yb


def by_sampler(**kwargs): return DataLoader(TensorDataset(X, Y), 4, sampler=Shuffler(), **kwargs)


@pytest.mark.parametrize('make', [ByCount, ByList, ByTensor, by_sampler, lambda: by_sampler(num_workers=1),
                                  lambda: OneMore(TensorDataset(X, Y), 4)])
def test_what_is_kept_from_pass_to_pass_goes_on(make, tmp_path):
    def learner(folder, *cbs):
        torch.manual_seed(1)
        random.seed(1)
        saves = [CheckpointCB(folder, batches=1)]
        return TrainLearner(mlp(), DataLoaders(make(), [(X, Y)]), F.cross_entropy, .1, [*saves, *cbs])
    alone = learner(tmp_path/'alone')
    alone.fit(3)
    for at in ((0, 3), (1, 1), (1, 5)):
        with pytest.raises(RuntimeError, match='stopped'): learner(tmp_path/str(at), StopCB(*at)).fit(3)
        again = learner(tmp_path/str(at))
        again.fit(3, resume=True)
        assert digest(again) == digest(alone), at


class Holder: "Has attributes."


def holding(**kwargs):
    x = Holder()
    vars(x).update(kwargs)
    return x


ORDERS = st.lists(st.integers(0, 50), min_size=2, max_size=9, unique=True)


@given(ORDERS, st.sampled_from([list, np.array, torch.tensor]), st.data())
def test_an_order_comes_back_in_its_own_memory(order, kind, data):
    there = kind(order)
    x = holding(order=there)
    kept = sampler_state(x)
    moved = data.draw(st.permutations(order))
    there[:] = kind(moved)
    assert [int(i) for i in kept['order']] == order
    set_sampler_state(x, kept)
    assert x.order is there
    assert [int(i) for i in there] == order
    there[:] = kind(moved)
    assert [int(i) for i in kept['order']] == order


def test_plain_values_and_orders_are_kept_and_labels_data_and_users_choices_are_not():
    x = holding(n=3, rate=.5, root='/here', done=True, none=None, order=[2, 0, 1], labels=[1, 1, 0], words=['a', 'b'],
                flags=[True, False], y=torch.tensor([1, 1]), images=np.eye(3, dtype=int), weights=torch.rand(3),
                z=torch.tensor([1j, 2]), empty=[], loader=DataLoader([1]), num_workers=4, batch_size=7,
                sparse=torch.eye(3, dtype=torch.int64).to_sparse(),
                meta=torch.ones(3, dtype=torch.int64, device='meta'), pixels=torch.ones(2, 3, dtype=torch.uint8),
                nested=torch.nested.nested_tensor([torch.arange(2)], layout=torch.jagged), point=torch.tensor(3))
    assert {*sampler_state(x)} == {'n', 'rate', 'done', 'none', 'order'}


def test_what_torchs_samplers_were_given_stays():
    assert 'indices' not in sampler_state(SubsetRandomSampler([3, 1, 2]))


def test_an_order_that_cannot_be_written_is_replaced():
    ids = np.array([3, 1, 2])
    ids.flags.writeable = False
    x = holding(ids=ids)
    set_sampler_state(x, dict(ids=np.array([1, 2, 3])))
    assert x.ids.tolist() == [1, 2, 3]
    assert ids.tolist() == [3, 1, 2]


def test_an_order_of_another_length_or_kind_is_put_in_the_old_ones_place():
    x = holding(order=np.arange(3), other=[1, 2], third=torch.arange(2))
    set_sampler_state(x, dict(order=np.arange(5), other=[3, 1, 2], third=[1, 0]))
    assert (x.order.tolist(), x.other, x.third) == ([0, 1, 2, 3, 4], [3, 1, 2], [1, 0])


# Batches made ahead

class Ahead:
    "Makes four batches at once, with random numbers in them."
    def __len__(self): return 6
    def __iter__(self):
        made = []
        for i in range(6):
            if not made: made = [X[4*k:4*k + 4] + torch.randn(1) for k in range(i, min(i + 4, 6))]
            yield made.pop(0), Y[4*i:4*i + 4]


class Lazily:
    def __len__(self): return 6
    def __iter__(self): return ((X[4*i:4*i + 4] + torch.randn(1), Y[4*i:4*i + 4]) for i in range(6))


@pytest.mark.parametrize('dl', [Ahead(), Lazily()])
def test_a_loader_that_may_have_drawn_ahead_is_told_of_as_its_pass_is_taken_up(dl, tmp_path):
    def learner(*cbs): return TrainLearner(mlp(), DataLoaders(dl, [(X, Y)]), F.cross_entropy, .1,
                                           [CheckpointCB(tmp_path, batches=1), *cbs])
    with pytest.raises(RuntimeError, match='stopped'): learner(StopCB(0, 5)).fit(1)
    with pytest.warns(UserWarning, match='exactly only if it draws for each batch when that is asked for'):
        learner().fit(1, resume=True)

"DistributedCB: names, devices and options; in one process it changes nothing."
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai.callbacks.freeze import FreezeCB
from miniai.data.loaders import DataLoaders
from miniai.data.memory import MemoryLoader
from miniai.distributed import DistributedCB, rank
from miniai.learner import TrainLearner
from ranks import run_ranks


def learner(*cbs):
    torch.manual_seed(0)
    x, y = torch.randn(40, 4), torch.randn(40, 1)
    return TrainLearner(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), DataLoaders.from_arrays(x, y, bs=8),
                        F.mse_loss, 0.1, list(cbs))


def names_and_draws():
    learn = learner(DistributedCB())
    learn.fit(1)
    return list(learn.model.state_dict()), torch.rand(1).item()


class Hidden(nn.Linear):
    "Returns its output in an object that FSDP2 does not look into."
    def forward(self, x): return SimpleNamespace(y=super().forward(x))


def with_norm(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def statistics():
    learn = learner(DistributedCB('fsdp'))
    learn.model = with_norm()
    learn.fit(2)
    return learn.model[1].running_mean, learn.model[1].running_var


def refused():
    with pytest.raises(ValueError, match=r'sync_batchnorm=True needs GPUs.* nn\.GroupNorm'):
        DistributedCB(sync_batchnorm=True)
    learn = learner(DistributedCB('fsdp'))
    learn.model, learn.loss_func = Hidden(4, 1), lambda out, y: F.mse_loss(out.y, y)
    with pytest.raises(ValueError, match='after backward no weight has a gradient'): learn.fit(1)
    learn = learner(DistributedCB())
    learn.model, learn.dls = with_norm(), DataLoaders(MemoryLoader(torch.randn(18, 4), torch.randn(18, 1), bs=8), ())
    with pytest.raises(ValueError, match='the last of the 3 training batches has 1 sample in a process'):
        learn.fit(1, valid=False)


def thawed():
    learn = learner(DistributedCB(), FreezeCB('0', until_epoch=1))
    learn.fit(3)
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def everything():
    refused()
    return names_and_draws(), thawed(), statistics()


@pytest.fixture(scope='module')
def found():
    return dict(zip(('names', 'thawed', 'statistics'), zip(*run_ranks(everything, 2), strict=True), strict=True))


def test_after_the_fit_no_name_has_module_and_each_process_draws_its_own_numbers(found):
    (names, first), (_, second) = found['names']
    assert names == ['0.weight', '0.bias', '2.weight', '2.bias']
    assert first != second


def test_weights_that_thaw_during_the_fit_stay_equal_in_all_processes(found):
    first, second = found['thawed']
    assert first.equal(second)


def test_statistics_of_batchnorm_under_fsdp_are_the_same_in_all_processes(found):
    first, second = found['statistics']
    for a, b in zip(first, second, strict=True): assert a.equal(b)
    assert first[0].any()


def test_in_one_process_it_changes_nothing():
    plain, with_cb = learner(), learner(DistributedCB('fsdp', device='cpu', sync_batchnorm=True))
    for learn in (plain, with_cb): learn.fit(2)
    for p, q in zip(plain.model.parameters(), with_cb.model.parameters(), strict=True): assert p.equal(q)
    assert rank() == 0


def test_only_known_ways_are_taken():
    with pytest.raises(ValueError, match="how must be 'ddp' or 'fsdp', got 'zero'"): DistributedCB('zero')

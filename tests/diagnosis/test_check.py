"The check before training: what is healthy is ok, each planted fault is found by name, and nothing stays."
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from miniai import AccumulateCB, DataLoaders, MetricsCB, MixUpCB, TrainCB
from miniai.diagnosis import check as module
from miniai.diagnosis.check import Check, CheckRow
from miniai.learner import Learner, ProgressCB, TrainLearner
from miniai.sgd import BatchSchedCB
from ranks import needs_distributed, run_ranks
from small import Heard, TwoInputs, copied, equal, everything, hooks_on, learner, mlp, raising, two_inputs

g = torch.Generator().manual_seed(0)
X = torch.randn(64, 4, generator=g)
Y = (X @ torch.randn(4, 3, generator=g)).argmax(1)


def dls(x=X, y=Y, bs=16): return DataLoaders.from_arrays(x, y, bs=bs, valid=.25)
def healthy(*cbs, **kwargs): return learner(list(cbs), **dict(dls=dls(), lr=.02, opt_func=torch.optim.Adam) | kwargs)
def rows(found): return {row.name.strip(): row for row in found.rows}


def test_a_healthy_learner_is_ok(capsys):
    found = healthy().check(epochs=3)
    assert found.ok, str(found)
    assert capsys.readouterr().out == f'{found}\n'
    assert [row.name.strip() for row in found.rows] == [
        'training batch', 'outputs', 'loss', 'validation batch', 'outputs', 'loss', 'gradients', 'overfits a batch',
        'uses its inputs', 'time of a step', 'memory of a step', 'time of the fit']
    assert repr(found) == '<Check: 12 rows, 0 need attention>'
    assert len(found.values['overfit']) == len(found.values['zeros']) == 50
    assert found.values['overfit'][0] != found.values['zeros'][0]
    assert json.loads(json.dumps(found.values))['train']['n'] == 16


def attention(learn, **kwargs): return {row.name.strip(): row.text for row in learn.check(**kwargs).attention}


def test_inputs_that_do_not_reach_the_model():
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(1, 3))

        def forward(self, x): return self.w.expand(len(x), 3)
    found = attention(healthy(model=Blind()))
    assert 'the inputs do not help' in found['uses its inputs']
    assert 'the same for all samples' in found['outputs']


def test_a_rate_that_is_too_high_and_one_that_is_too_low():
    assert 'lower the rate' in attention(healthy(lr=1e4, opt_func=torch.optim.SGD))['overfits a batch']
    assert 'try learn.lr_find()' in attention(healthy(lr=1e-6))['overfits a batch']


def test_more_steps_let_a_low_rate_learn():
    slow = healthy(lr=2e-3)
    assert 'overfits a batch' in attention(slow, steps=10)
    assert 'overfits a batch' not in attention(slow, steps=300)
    assert 'overfits a batch' not in attention(healthy(lr=1e-6), lr=.02)


def test_inputs_that_are_not_normalized_and_layers_that_do_not_train():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    model[0].unused = nn.Parameter(torch.ones(1))
    found = attention(healthy(dls=dls(X*50 + 200), model=model))
    assert 'not normalized: pass normalize=True' in found['training batch']
    assert found['gradients'].endswith('none, so these do not train: 0.unused')


def test_a_loss_that_is_not_finite_ends_the_check_with_what_is_known():
    learn = healthy(loss_func=lambda p, y: p.sum()*float('nan'))
    found = learn.check()
    assert 'the loss is not finite' in rows(found)['loss'].text
    assert 'overfits a batch' not in rows(found)
    assert rows(found)['time of the fit'].text.startswith('unknown')
    assert learn.check_finite is True


def test_a_slow_loader_needs_attention_and_the_fit_is_estimated(monkeypatch):
    seen = dict(train=[9., .01, .01], valid=[.004])
    monkeypatch.setattr(module.ProbeCB, 'cleanup_fit', lambda self, learn: (
        self.seconds.update(seen), self.few.waits.update(train=[5., .03, .03], valid=[1., .001])), raising=False)
    found = healthy().check(epochs=10)
    assert '75% of the time goes to waiting for data' in rows(found)['time of a step'].text
    assert found.values['estimate'] == pytest.approx(10*(3*(.01 + .03) + 1*(.004 + .001)))
    assert rows(found)['time of the fit'].text == 'about 1.2 s for 10 epochs of 3 batches'


def test_a_wait_that_is_short_needs_no_attention(monkeypatch):
    seen = dict(train=[9., .001, .001], valid=[.001])
    monkeypatch.setattr(module.ProbeCB, 'cleanup_fit', lambda self, learn: (
        self.seconds.update(seen), self.few.waits.update(train=[5., .0015, .0015], valid=[1., .001])), raising=False)
    assert healthy().check().ok


class Slopes(nn.Module):
    "A model that takes gradients within its forward pass, around which torch allows no hooks."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        slopes = torch.func.vmap(torch.func.grad(lambda v: self.a(v).tanh().sum()))(x)
        return self.b(self.a(x).relu()) + slopes[:, :3]


def test_a_model_with_gradients_in_forward_is_checked_without_the_memory_of_activations():
    learn = healthy(model=Slopes())
    before, found = everything(learn), learn.check()
    assert equal(before, everything(learn))
    assert found.values['memory']['activations'] is None
    assert rows(found)['memory of a step'].text.endswith('; not activations, because of torch.func.grad in forward')
    assert 'estimate' in found.values


@pytest.mark.parametrize(('seconds', 'text'), [(.123, '0.12 s'), (99, '99 s'), (300, '5 min'), (9000, '2.5 h')])
def test_durations(seconds, text): assert module._duration(seconds) == text


def test_a_stream_has_no_length_so_the_fit_is_not_estimated():
    class Stream(IterableDataset):
        def __iter__(self): return zip(X, Y, strict=True)
    found = healthy(dls=DataLoaders(DataLoader(Stream(), 16), [])).check(steps=5)
    assert rows(found)['time of the fit'].text == 'unknown, because a loader has no length'
    assert 'validation batch' not in rows(found)


def test_several_inputs_dict_batches_and_phases_of_ones_own():
    found = Learner(TwoInputs(), two_inputs(), F.cross_entropy, cbs=TrainCB(n_inp=2)).check(steps=5)
    assert 'float32 (6, 4) and float32 (6, 4) from' in rows(found)['training batch'].text
    b = dict(x=X, y=Y)
    named = Learner(mlp(), DataLoaders([b], [b]), F.cross_entropy, cbs=TrainCB(inputs=lambda b: b['x'], targets='y'))
    assert rows(named.check(steps=5))['uses its inputs'].ok is not None
    class Own(TrainLearner):
        def predict(self): self.preds = self.model(self.batch['x'])
        def get_loss(self): self.loss = F.cross_entropy(self.preds, self.batch['y'])
    own = rows(Own(mlp(), DataLoaders([b], [b])).check(steps=5))
    assert own['uses its inputs'] == CheckRow('uses its inputs', None, 'not checked: TrainCB(inputs=…, targets=…) says '
                                                                       'which part of a batch they are')
    assert own['overfits a batch'].text.endswith('in 5 steps') or own['overfits a batch'].ok is False


def test_one_batch_is_learned_without_schedules_mixing_and_accumulation():
    cb = Heard()
    warm = BatchSchedCB(lambda opt: torch.optim.lr_scheduler.LinearLR(opt, 1e-9, 1e-9))
    plain = healthy().check().values['overfit']
    assert healthy(warm, MixUpCB(), AccumulateCB(4), cb).check().values['overfit'] == pytest.approx(plain)
    assert cb.log.count('after_step') == 100 + 1  # 6 probed batches in groups of 4; the other fits step each time


@pytest.mark.parametrize('own_optimizer', [False, True])
@pytest.mark.parametrize('fails', [False, True])
def test_everything_is_restored_to_the_bit(own_optimizer, fails):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 3))
    learn = healthy(MetricsCB(), ProgressCB(), model=model)
    learn.fit(1)
    if own_optimizer: learn.opt_func = None
    before, attributes, epoch = copied(everything(learn)), dict(vars(learn)), learn.dls.train.epoch
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    if fails:
        learn.cbs.append(Heard({'after_step': raising(ValueError('oh'))}))
        with pytest.raises(ValueError, match='oh'): learn.check()
        learn.cbs.pop()
    else: learn.check(steps=5)
    assert equal(everything(learn), before)
    assert vars(learn) == attributes
    assert (learn.dls.train.epoch, hooks_on(model)) == (epoch, 0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_later_training_is_as_if_it_had_not_been_called():
    def fitted(checks):
        data, order = TensorDataset(X, Y), torch.Generator().manual_seed(1)
        train = DataLoader(data, 16, sampler=RandomSampler(data, generator=order))
        learn = healthy(MetricsCB(), dls=DataLoaders(train, DataLoader(data, 32)))
        if checks: learn.check(steps=5)
        learn.fit(2)
        return [{k: v for k, v in row.items() if k != 'seconds'} for row in learn.history]
    assert fitted(True) == fitted(False)


def test_the_table_has_a_line_for_each_row():
    found = Check([CheckRow('a', True, 'fine'), CheckRow('b', False, 'bad'), CheckRow('c', None, '3 MB')])
    lines = [line.split() for line in str(found).split('\n')]
    assert lines == [['ok', 'a', 'fine'], ['attention', 'b', 'bad'], ['-', 'c', '3', 'MB']]
    assert len({line.index(row.text) for line, row in zip(str(found).split('\n'), found.rows, strict=True)}) == 1
    assert (found.ok, found.attention) == (False, found.rows[1:2])


def checked_in_parts():
    "A check and an explanation of a model that FSDP2 shards, and its weights before and after."
    from torch.distributed.fsdp import fully_shard
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    for m in (model[0], model[2], model): fully_shard(m)
    learn = healthy(model=model)
    before = [p.full_tensor().clone() for p in model.parameters()]
    found, explained = learn.check(steps=20), learn.explain()
    same = all(torch.equal(a, b.full_tensor()) for a, b in zip(before, model.parameters(), strict=True))
    judged = [rows(found)[nm].ok for nm in ('uses its inputs', 'overfits a batch')]
    return same, judged, {r['event'] for r in explained.rows}


@needs_distributed
def test_an_fsdp_model_is_checked_explained_and_restored_on_each_rank():
    for same, judged, events in run_ranks(checked_in_parts, 2):
        assert (same, judged) == (True, [True, True])
        assert {'predict', 'backward', 'step', 'after_fit'} <= events


def test_sparse_gradients_are_checked_and_explained():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.EmbeddingBag(9, 3, sparse=True)
        def forward(self, x): return self.rows(x)
    dls = [(torch.arange(8).reshape(4, 2), torch.tensor([0, 1, 2, 0]))]*2
    learn = TrainLearner(Sums(), DataLoaders(dls, dls), F.cross_entropy, 0.1, opt_func=torch.optim.SGD)
    assert learn.check(steps=2).values['gradients'] == dict(n=1, missing=[], not_finite=[], zero=[])
    assert any(c['name'] == 'gradients' for row in learn.explain().rows for c in row['changes'])

"Fits on several processes give the weights, figures and decisions of one process with the same batches."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from miniai import AverageCB, BatchSchedCB, BestCB, EarlyStoppingCB, FreezeCB, PlateauCB
from miniai.callbacks.passes import MaxBatchesCB
from miniai.callbacks.together import _until_all_end
from miniai.data.loaders import DataLoaders
from miniai.data.memory import MemoryLoader
from miniai.distributed import DistributedCB, rank
from miniai.distributed.ranks import split_data_over
from miniai.events import Callback, CancelBatchException, CancelEpochException, CancelFitException
from miniai.learner import Learner, MetricsCB, NonFiniteLossError, TrainCB
from miniai.metrics.accuracy import accuracy
from miniai.optim import AdamW
from ranks import run_ranks


def data(n=37, n_valid=23, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n + n_valid, 6, generator=g).to(dtype), torch.randint(0, 3, (n + n_valid,), generator=g)
    y[::7] = -100  # ignored targets: parts of a batch weigh differently
    return DataLoaders(MemoryLoader(x[:n], y[:n], bs=8, shuffle=True),
                       MemoryLoader(x[n:], y[n:], bs=10))


def learner(how='ddp', cbs=(), dls=None, dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)
    return Learner(model, dls or data(dtype=dtype), F.cross_entropy, 0.01, [TrainCB(), MetricsCB(accuracy), *cbs,
                   *([DistributedCB(how, **options)] if how else [])], AdamW)


def weights(model):
    full = [p.full_tensor() if hasattr(p, 'full_tensor') else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in full])


def figures(history): return [{k: v for k, v in row.items() if k != 'seconds'} for row in history]


def trained(how='ddp', epochs=2, dtype=torch.float64):
    learn = learner(how, dtype=dtype)
    learn.fit(epochs)
    preds, _targs = learn.capture_preds()
    return weights(learn.model), figures(learn.history), preds, learn.evaluate()


def trained_both_ways(): return trained('ddp'), trained('fsdp')


@pytest.mark.parametrize('n', [2, 4])
def test_weights_and_figures_are_those_of_one_process(n):
    expected, history, preds, evaluated = trained(None)
    for w, h, p, e in [result for results in run_ranks(trained_both_ways, n) for result in results]:
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-12)
        for row, one in zip(h, history, strict=True):
            assert {k: v if isinstance(v, str) else pytest.approx(v, abs=1e-12) for k, v in one.items()} == row
        torch.testing.assert_close(p, preds, rtol=0, atol=1e-12)
        assert e == pytest.approx(evaluated, abs=1e-12)


class Raises(Callback):
    "Raises an exception at one event, in one process."
    order = 50
    def __init__(self, event, kind, at=0, who=1):
        setattr(self, event, self._raise)
        self._kind, self._at, self._who, self._count = kind, at, who, 0

    def _raise(self, learn):
        self._count += 1
        if rank() == self._who and self._count == self._at + 1: raise self._kind('by this process')


class Seen(Callback):
    order = 1e7
    def __init__(self): self.seen = []
    def after_batch(self, learn): self.seen.append((learn.epoch, learn.training, learn.iter, 'done'))


CASES = [(event, at, kind) for kind in (CancelBatchException, CancelEpochException, CancelFitException)
         for event, at in (('before_batch', 2), ('after_predict', 2), ('after_loss', 2), ('after_batch', 2),
                           ('after_batch', 4), ('after_batch', 6), ('cleanup_batch', 2), ('before_epoch', 1),
                           ('before_epoch', 2), ('after_epoch', 0), ('after_epoch', 1), ('cleanup_epoch', 0))
         if kind is not CancelBatchException or 'epoch' not in event]


def cancelled():
    found = []
    for event, at, kind in CASES:
        seen = Seen()
        learn = learner(cbs=[Raises(event, kind, at), seen])
        learn.fit(2)
        found.append((seen.seen, figures(learn.history), weights(learn.model)))
    return found


def test_what_one_process_cancels_is_cancelled_in_all():
    for case, first, second in zip(CASES, *run_ranks(cancelled, 2, timeout=120), strict=True):
        assert first[1] == second[1], case
        assert first[2].equal(second[2]), case
        others = [batch for batch in second[0] if batch not in first[0]]
        assert others == [], case
        assert len(first[0]) - len(second[0]) <= (case[0] == 'after_batch'), case


def with_nan():
    dls = data()
    if rank() == 1: dls.train.tensors[0] = torch.full_like(dls.train.tensors[0], float('nan'))
    learn = learner(dls=dls)
    before = weights(learn.model).clone()
    with pytest.raises(NonFiniteLossError) as e: learn.fit(1)
    return str(e.value), weights(learn.model).equal(before)


def unwrapped():
    with pytest.raises(ValueError, match=r"2 processes train together, but the model is not wrapped.*DistributedCB"):
        learner(None).fit(1)


def test_a_loss_that_is_not_finite_in_one_process_stops_all_before_the_step():
    (first, same), (second, same_too) = run_ranks(with_nan, 2)
    assert first == second
    assert 'the training loss is nan in epoch 0, batch 0' in first
    assert same
    assert same_too


def test_a_model_that_is_not_wrapped_is_refused(): run_ranks(unwrapped, 2)


def hybrid(names):
    "Four processes, as two parts of the data and two of each weight: tensor parallel, or copies."
    mesh = init_device_mesh('cpu', (2, 2), mesh_dim_names=names)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    if 'tp' in names:
        parallelize_module(model, mesh['tp'], {'0': ColwiseParallel(), '2': RowwiseParallel()})
        fully_shard(model, mesh=mesh['dp'])
        cb = DistributedCB(None, data=mesh['dp'])
    else: cb = DistributedCB('fsdp', mesh=mesh)
    learn = Learner(model, data(), F.cross_entropy, 0.01, [TrainCB(), MetricsCB(accuracy), cb],
                    partial(AdamW, clip_norm=0.5))
    learn.fit(2)
    result = weights(learn.model), figures(learn.history), learn.capture_preds()[0]
    split_data_over(None)
    return result


def both_hybrids(): return hybrid(('dp', 'tp')), hybrid(('copies', 'parts'))


def test_tensor_parallel_and_hybrid_sharded_models_give_the_results_of_one_process():
    learn = learner(None)
    learn.opt_func = partial(AdamW, clip_norm=0.5)
    learn.fit(2)
    preds = learn.capture_preds()[0]
    for w, h, p in [result for results in run_ranks(both_hybrids, 4) for result in results]:
        torch.testing.assert_close(w, weights(learn.model), rtol=0, atol=1e-12)
        for row, one in zip(h, figures(learn.history), strict=True):
            assert {k: v if isinstance(v, str) else pytest.approx(v, abs=1e-12) for k, v in one.items()} == row
        torch.testing.assert_close(p, preds, rtol=0, atol=1e-12)


# Loaders of other kinds

class Stream(torch.utils.data.IterableDataset):
    "Rows of the data; `world_size` says that each process has rows of its own."
    def __init__(self, rows, world_size=None): self.rows, self.world_size = rows, world_size
    def __iter__(self): return iter(TensorDataset(*(t[self.rows] for t in DATA)))


DATA = [data().train.tensors[0], data().train.tensors[1].clamp(min=0)]


def as_dict(samples): return dict(zip(('input', 'y'), torch.utils.data.default_collate(samples), strict=True))


def fitted(dl, how, fit=None, cbs=(), phases=None):
    "Weights, history and predictions of a fit, on one process or several."
    learn = learner(how, cbs, DataLoaders(dl, ()))
    if phases: learn.cbs[0] = phases
    learn.dls.valid = DataLoader(TensorDataset(*DATA), 7, collate_fn=as_dict if phases else None)
    learn.fit(**fit or dict(n_epochs=2))
    return weights(learn.model), figures(learn.history), learn.capture_preds()[0]


def all_loaders(how=None):
    "Fits over loaders of every kind, in epochs of all batches, of the first ones, and of steps."
    ds, named = TensorDataset(*DATA), lambda: TrainCB(inputs=lambda b: b['input'], targets='y')
    def shuffled(**kwargs): return DataLoader(ds, 8, shuffle=True, **kwargs)
    return [fitted(shuffled(), how), fitted(shuffled(collate_fn=as_dict), how, phases=named()),
            fitted([as_dict([ds[i], ds[i + 1], ds[i + 2]]) for i in range(0, 36, 3)], how, phases=named()),
            fitted(shuffled(), how, cbs=[MaxBatchesCB(3, 2)]), fitted(shuffled(), how, dict(steps=12, valid_every=4)),
            fitted(DataLoader(Stream(slice(37)), 4), how), fitted(DataLoader(Stream(slice(33)), 8), how, dict(steps=9))]


def all_loaders_by_ddp(): return all_loaders('ddp')


@pytest.mark.parametrize('n', [2, 4])
def test_fits_over_loaders_of_every_kind_are_those_of_one_process(n):
    for expected, *found in zip(all_loaders(), *run_ranks(all_loaders_by_ddp, n, timeout=120), strict=True):
        for w, h, p in found:
            torch.testing.assert_close(w, expected[0], rtol=0, atol=1e-12)
            for row, one in zip(h, expected[1], strict=True):
                assert {k: v if isinstance(v, str) else pytest.approx(v, abs=1e-12) for k, v in one.items()} == row
            torch.testing.assert_close(p, expected[2], rtol=0, atol=1e-12)


def of_unequal_lengths(): return fitted(DataLoader(Stream([slice(10), slice(10, 37)][rank()], world_size=2), 4), 'ddp')


def test_no_data_is_left_out_if_a_process_runs_out_early():
    rows = [[*range(4*i, min(4*i + 4, 10)), *range(10 + 4*i, min(14 + 4*i, 37))] for i in range(7)]
    expected = fitted([(DATA[0][r], DATA[1][r]) for r in rows], None)
    for w, h, _ in run_ranks(of_unequal_lengths, 2):
        torch.testing.assert_close(w, expected[0], rtol=0, atol=1e-12)
        assert [row['loss'] for row in h] == pytest.approx([row['loss'] for row in expected[1]], abs=1e-12)


def refuse():
    with pytest.raises(ValueError, match='the batch size, 1, is that of all 2 processes'):
        fitted(DataLoader(TensorDataset(*DATA), 1), 'ddp')
    if rank():
        with pytest.raises(ValueError, match='no batch for process 1'): next(_until_all_end(iter([])))
    else: assert next(_until_all_end(iter([(5, True)]))) == (5, True)


def test_batches_smaller_than_processes_and_processes_without_data_are_refused(): run_ranks(refuse, 2)


WITH = dict(
    best=lambda: dict(cbs=[BestCB('-loss')], lr=.3),  # a rate at which the last epoch is not the best
    early=lambda: dict(cbs=[EarlyStoppingCB('-loss', patience=1, restore=True)], lr=.3),
    average=lambda: dict(cbs=[AverageCB(keep=True)], opt_func=partial(AdamW, ema=.9)),
    schedule=lambda: dict(cbs=[BatchSchedCB(lambda opt, steps: OneCycleLR(opt, .05, steps))]),
    plateau=lambda: dict(cbs=[PlateauCB('-loss', factor=.1, patience=0)], lr=.3),
    frozen=lambda: dict(cbs=[FreezeCB('0', until_epoch=2)]),
    steps=lambda: dict(fit=dict(steps=13, valid_every=4)),
    clipped=lambda: dict(opt_func=partial(AdamW, clip_norm=.1, skip_nonfinite=True)),
    lbfgs=lambda: dict(opt_func=lambda params, lr: torch.optim.LBFGS(params, lr, max_iter=3), ways=('ddp',),
                       fit=dict(n_epochs=2)),  # its steps enlarge differences of rounding
    loss=lambda: dict(loss_func=nn.CrossEntropyLoss(weight=torch.tensor([1., 2., .5]).double())),
    summed=lambda: dict(loss_func=nn.CrossEntropyLoss(reduction='sum')))


def fit_with(name, how):
    options = WITH[name]()
    if how and how not in options.pop('ways', ('ddp', 'fsdp')): return None
    options.pop('ways', None)
    learn = learner(how, options.pop('cbs', ()))
    fit = options.pop('fit', dict(n_epochs=5))
    for nm, x in options.items(): setattr(learn, nm, x)
    learn.fit(**fit)
    return weights(learn.model), figures(learn.history)


def fit_with_all(): return {(nm, how): fit_with(nm, how) for nm in WITH for how in ('ddp', 'fsdp')}


def test_callbacks_that_train_give_the_weights_of_one_process():
    alone = {nm: fit_with(nm, None) for nm in WITH}
    for results in run_ranks(fit_with_all, 2):
        for (nm, how), found in results.items():
            if found is None: continue
            torch.testing.assert_close(found[0], alone[nm][0], rtol=0, atol=1e-11, msg=f'{nm} with {how}')
            for row, one in zip(found[1], alone[nm][1], strict=True):
                assert {k: v if isinstance(v, str) else pytest.approx(v, abs=1e-9) for k, v in one.items()} == row

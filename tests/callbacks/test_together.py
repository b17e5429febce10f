"Fits on several processes give the weights, figures and decisions of one process with the same batches."
from collections import namedtuple
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from miniai import (
    ActivationStats,
    AverageCB,
    BatchSchedCB,
    BatchTransformCB,
    BestCB,
    EarlyStoppingCB,
    EpochSchedCB,
    FreezeCB,
    MixUpCB,
    PlateauCB,
    RecorderCB,
)
from miniai.accel import ChannelsLastCB, CompileCB, MixedPrecision
from miniai.augment import CutMixCB, LabelSmoothingCB, TrainLossCB
from miniai.callbacks.hf import HFCB
from miniai.callbacks.passes import MaxBatchesCB
from miniai.callbacks.together import _until_all_end
from miniai.data.loaders import DataLoaders
from miniai.data.memory import MemoryLoader
from miniai.distributed import DistributedCB, rank
from miniai.distributed.ranks import gathered, split_data_over
from miniai.events import Callback, CancelBatchException, CancelEpochException, CancelFitException
from miniai.learner import Learner, MetricsCB, MomentumLearner, NonFiniteLossError, SingleBatchCB, TrainCB, TrainLearner
from miniai.metrics.accuracy import accuracy
from miniai.optim import AdamW
from ranks import run_ranks


def data(n=37, n_valid=23, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n + n_valid, 6, generator=g).to(dtype), torch.randint(0, 3, (n + n_valid,), generator=g)
    y[::7] = -100  # ignored targets: parts of a batch weigh differently
    return DataLoaders(MemoryLoader(x[:n], y[:n], bs=8, shuffle=True),
                       MemoryLoader(x[n:], y[n:], bs=10))


def learner(how='ddp', cbs=(), dls=None, dtype=torch.float64, kind=TrainLearner, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)
    return kind(model, dls or data(dtype=dtype), F.cross_entropy, 0.01, [MetricsCB(accuracy), *cbs,
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
    def __init__(self, event, kind, at=0, who=1, order=50):
        setattr(self, event, self._raise)
        self.order = order
        self._kind, self._at, self._who, self._count = kind, at, who, 0

    def _raise(self, learn):
        self._count += 1
        if rank() == self._who and self._count == self._at + 1: raise self._kind('by this process')


class Seen(Callback):
    order = 1e7
    def __init__(self): self.seen = []
    def after_batch(self, learn): self.seen.append((learn.epoch, learn.training, learn.iter, 'done'))


CASES = [(event, at, kind, 50) for kind in (CancelBatchException, CancelEpochException, CancelFitException)
         for event, at in (('before_batch', 2), ('after_predict', 2), ('after_loss', 2), ('after_batch', 2),
                           ('after_batch', 4), ('after_batch', 6), ('cleanup_batch', 2), ('before_epoch', 1),
                           ('before_epoch', 2), ('after_epoch', 0), ('after_epoch', 1), ('cleanup_epoch', 0))
         if kind is not CancelBatchException or 'epoch' not in event]
CASES += [('after_epoch', i, kind, -1) for kind in (CancelEpochException, CancelFitException) for i in (0, 1)]


def cancelled():
    found = []
    for event, at, kind, order in CASES:
        seen = Seen()
        learn = learner(cbs=[Raises(event, kind, at, order=order), seen])
        learn.fit(2)
        found.append((seen.seen, figures(learn.history), weights(learn.model)))
    return found


def test_what_one_process_cancels_is_cancelled_in_all():
    for case, first, second in zip(CASES, *run_ranks(cancelled, 2, timeout=120), strict=True):
        if case[3] > 0: assert first[1] == second[1], case  # else MetricsCB has added the row in one and not the other
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
    learn = learner('ddp')
    learn.model.requires_grad_(False)
    with pytest.raises(ValueError, match='nothing to train: no parameter'): learn.fit(1)
    learn = learner(None)
    fully_shard(learn.model)  # whose root keeps whole weights after validation
    learn.fit(2)
    return weights(learn.model)


def test_a_loss_that_is_not_finite_in_one_process_stops_all_before_the_step():
    (first, same), (second, same_too) = run_ranks(with_nan, 2)
    assert first == second
    assert 'the training loss is nan in epoch 0, batch 0' in first
    assert same
    assert same_too


def test_a_model_is_refused_if_it_is_not_wrapped_and_taken_if_the_user_has_sharded_it():
    expected = trained(None)[0]
    for found in run_ranks(unwrapped, 2): torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


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
    learn = learner(how, [phases or TrainCB(), *cbs], DataLoaders(dl, ()), kind=Learner)
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


class Mixes(Callback):
    "MixUp and CutMix as the papers have them, with proportions, partners and rectangles that are given."
    order = 5
    def __init__(self, drawn): self._drawn = iter(drawn)
    def after_loss(self, learn):
        if learn.training: learn.loss = self._lam*learn.loss + (1 - self._lam)*learn.loss_func(learn.preds, self._other)

    def before_batch(self, learn):
        if not learn.training: return
        (x, y), (self._lam, perm, place) = learn.batch, next(self._drawn)
        mixed = self._lam*x + (1 - self._lam)*x[perm] if place is None else x.clone()
        if place is not None: mixed[place] = x[perm][place]
        learn.batch, self._other = (mixed, y), y[perm]


class Drawn(Callback):
    "Keeps what a mixer draws."
    order = 50
    def __init__(self, mixer): self.mixer, self.drawn = mixer, []
    def after_batch(self, learn):
        place = getattr(self.mixer, '_place', None)
        if learn.training: self.drawn.append((self.mixer.lam, self.mixer.perm, place and (..., *place)))


class Cancels(Callback):
    "Cancels a batch, and an epoch, as all processes do."
    def before_batch(self, learn):
        if learn.training and learn.iter == 1: raise CancelBatchException
    def after_step(self, learn):
        if learn.iter == 3 and learn.epoch == 1: raise CancelEpochException
    def after_batch(self, learn):
        if not learn.training and learn.iter == 1 and learn.epoch == 2: raise CancelEpochException


def mixed(mixer, **options):
    drawn = Drawn(mixer)
    def of_whole_batches(learn):
        for (lam, perm, place), *others in zip(*gathered(drawn.drawn), strict=True):
            for other, more, where in others:
                assert (other, where) == (lam, place)
                perm = torch.cat([perm, len(perm) + more])
            yield lam, perm, place
    return dict(cbs=[mixer, drawn], then=lambda learn: list(of_whole_batches(learn)), **options)


def on_images(dtype=torch.float64):
    "Options of a fit of a convolution on images."
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    x = torch.randn(40, 2, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = (x[:, 0, 0, 0] > 0).long()
    return dict(model=model, dls=DataLoaders(MemoryLoader(x[:30], y[:30], bs=7), MemoryLoader(x[30:], y[30:], bs=7)))


Output = namedtuple('Output', 'logits loss')


class ModelWithLoss(nn.Module):
    "Computes its own loss, as models of Hugging Face do."
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3).double()
    def forward(self, input, y):
        logits = self.layer(input)
        return Output(logits, F.cross_entropy(logits, y))


def with_own_loss():
    torch.manual_seed(1)
    dl = DataLoader(TensorDataset(*DATA), 7, collate_fn=as_dict)
    return dict(kind=Learner, cbs=[HFCB('y')], model=ModelWithLoss(), dls=DataLoaders(dl, dl))


def statistics():
    stats = ActivationStats(gradients=True, every=2)
    def found(learn): return [[torch.stack(column).float() for column in getattr(h, nm)]
                              for h in stats for nm in ('stats', 'gradient_stats')]
    return dict(cbs=[stats, Cancels()], then=found)


def recorded():
    recorder = RecorderCB(loss=lambda learn: learn.loss, lr=lambda cb: cb.pg['lr'])
    schedule = EpochSchedCB(lambda opt, steps: CosineAnnealingLR(opt, steps))
    square = BatchTransformCB(lambda b: (b[0].square(), b[1]))
    return dict(cbs=[recorder, schedule, square, LabelSmoothingCB(.2)], then=lambda learn: recorder.recs, **DDP)


def predictions(learn):
    return learn.tta(lambda x: -x), learn.results(MemoryLoader(*DATA, bs=7)).as_dict(), learn.capture_preds(inps=True)


DDP, LONG = dict(ways=('ddp',)), dict(fit=dict(n_epochs=5))
WITH = dict(
    best=lambda: dict(cbs=[BestCB('-loss')], lr=.3, **LONG),  # a rate at which the last epoch is not the best
    early=lambda: dict(cbs=[EarlyStoppingCB('-loss', patience=1, restore=True)], lr=.3, **LONG),
    average=lambda: dict(cbs=[AverageCB(keep=True)], opt_func=partial(AdamW, ema=.9)),
    schedule=lambda: dict(cbs=[BatchSchedCB(lambda opt, steps: OneCycleLR(opt, .05, steps))]),
    plateau=lambda: dict(cbs=[PlateauCB('-loss', factor=.1, patience=0)], lr=.3, **LONG),
    frozen=lambda: dict(cbs=[FreezeCB('0', until_epoch=2)]),
    steps=lambda: dict(fit=dict(steps=13, valid_every=4)),
    clipped=lambda: dict(opt_func=partial(AdamW, clip_norm=.1, skip_nonfinite=True)),
    lbfgs=lambda: dict(opt_func=lambda params, lr: torch.optim.LBFGS(params, lr, max_iter=3), ways=('ddp',),
                       fit=dict(n_epochs=2)),  # its steps enlarge differences of rounding
    loss=lambda: dict(loss_func=nn.CrossEntropyLoss(weight=torch.tensor([1., 2., .5]).double())),
    summed=lambda: dict(loss_func=nn.CrossEntropyLoss(reduction='sum')),
    train_loss=lambda: dict(cbs=[TrainLossCB(nn.CrossEntropyLoss(weight=torch.tensor([1., 2., .5]).double()))], **DDP),
    momentum=lambda: dict(kind=MomentumLearner), recorded=recorded, statistics=statistics, with_own_loss=with_own_loss,
    mixup=lambda: mixed(MixUpCB()), cutmix=lambda: mixed(CutMixCB()) | on_images() | DDP,
    channels_last=lambda: dict(cbs=[ChannelsLastCB()]) | on_images() | DDP,
    compiled=lambda: dict(cbs=[CompileCB(backend='eager')]) | on_images() | DDP,
    precision=lambda: dict(cbs=[MixedPrecision(dtype=torch.bfloat16)], kind=Learner) | on_images(torch.float32) | DDP,
    single=lambda: dict(cbs=[SingleBatchCB()], then=lambda learn: learn.capture_preds(cbs=SingleBatchCB()), **DDP),
    finder=lambda: dict(then=lambda learn: (learn.lr_find(start_lr=1e-3), learn.fit_one_cycle(2, lr=.02)), **DDP),
    predictions=lambda: dict(then=predictions, **DDP),
    one_for_validation=lambda: dict(dls=data(n_valid=1), then=lambda learn: (learn.capture_preds(), learn.evaluate())))


MIXED = 'mixup', 'cutmix'


def fit_with(name, how, **others):
    "Weights, history, and what `then` returns."
    options = WITH[name]() | others
    if how and how not in options.pop('ways', ('ddp', 'fsdp')): return None
    fit, then = options.pop('fit', dict(n_epochs=3)), options.pop('then', lambda learn: None)
    learn = learner(how, options.pop('cbs', ()), kind=options.pop('kind', TrainLearner))
    for nm, x in options.items(): setattr(learn, nm, x)
    learn.fit(**fit)
    found = then(learn)
    return weights(learn.model), figures(learn.history), found


def fit_with_all(): return {(nm, how): fit_with(nm, how) for nm in WITH for how in ('ddp', 'fsdp')}


def same(x, y, name, atol=1e-11):
    "Two nests of numbers are equal but for rounding."
    if isinstance(x, dict): assert x.keys() == y.keys(), name
    if isinstance(x, dict): x, y = list(x.values()), list(y.values())
    if isinstance(x, list | tuple):
        assert len(x) == len(y), name
        for a, b in zip(x, y, strict=True): same(a, b, name, atol)
    elif isinstance(x, torch.Tensor):
        rounding = max(atol, 1e-6*(x.dtype == torch.float32))
        torch.testing.assert_close(x, y, rtol=0, atol=rounding, equal_nan=True, msg=lambda m: f'{name}: {m}')
    else: assert x == (pytest.approx(y, abs=max(atol, 1e-9), nan_ok=True) if isinstance(y, float) else y), name


def test_callbacks_that_train_or_show_give_the_weights_and_figures_of_one_process():
    of_all = run_ranks(fit_with_all, 2)
    for nm, how in of_all[0]:
        first, second = (results[nm, how] for results in of_all)
        if first is None: continue
        if nm in MIXED: assert [lam for lam, *_ in fit_with(nm, None)[2]] == [lam for lam, *_ in first[2]]
        alone = (*fit_with(nm, None, cbs=[Mixes(first[2])])[:2], first[2]) if nm in MIXED else fit_with(nm, None)
        for found in (first, second): same(found, alone, f'{nm} with {how}', .01 if nm == 'precision' else 1e-11)

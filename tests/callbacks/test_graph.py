"""GraphCB: training with replayed batches equals training without, to the bit. A stand-in replays on the CPU: it keeps
the function that launches a batch, and its results in memory that stays where it is, as a CUDA graph does."""
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import (
    AccumulateCB,
    Adam,
    AdamW,
    AverageCB,
    BatchSchedCB,
    BatchTransformCB,
    Callback,
    CancelBatchException,
    CheckpointCB,
    DataLoaders,
    DeviceCB,
    Learner,
    MixUpCB,
    RecorderCB,
    StepInBackwardCB,
    TrainCB,
    TrainLearner,
    accuracy,
    warmup_cosine,
)
from miniai.accel import CompileCB, GraphCB, MixedPrecision
from miniai.activations import ActivationStats
from miniai.callbacks.freeze import FreezeCB
from miniai.callbacks.train_loss import LabelSmoothingCB
from miniai.device import tensors_in
from miniai.diagnosis.health import HealthCB
from miniai.learner import MomentumLearner
from miniai.randomness import host_states, same_states, set_host_states
from miniai.steps.sharpness import SAMCB
from resuming import Quiet, StopCB, Stopped, Watcher

X, Y = torch.randn(64, 6), torch.randint(3, (64,))  # 48 to train on: 4 batches of 10 and one of 8


class OnCPU(GraphCB):
    "Replays by calling what was captured. What is in its memory before the first replay is NaN."
    devices = ('cpu',)
    def __init__(self):
        super().__init__()
        self.captures = 0

    @contextmanager
    def _aside(self): yield

    def _record(self, f):
        self.captures += 1
        states, before = host_states(), [x.detach().clone() for x in self._tensors]
        out = f()
        set_host_states(states)
        for x, old in zip(self._tensors, before, strict=True): x.data.copy_(old)
        for x in tensors_in(out): x.fill_(torch.nan)
        learn, = (x for x in f.args if hasattr(x, 'batch'))
        def replay():
            batch, learn.batch = learn.batch, None  # a graph does not see it
            for x, new in zip(tensors_in(out), tensors_in(f()), strict=True): x.copy_(new)
            learn.batch = batch
            return out
        return replay


class Net(nn.Module):
    "BatchNorm, dropout, a matrix that is used twice and a parameter that is never used."
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.mid = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.last, self.never = nn.Linear(8, 3), nn.Parameter(torch.ones(2))

    def forward(self, x):
        h = F.dropout(F.relu(self.norm(self.first(x))), .3, self.training)
        return self.last(self.mid(F.relu(self.mid(h))))


def learner(cbs=(), opt_func=Adam, cls=TrainLearner, model=None, data=(X, Y), device='cpu'):
    torch.manual_seed(1)
    dls = DataLoaders.from_arrays(*data, bs=10, valid=.25, device=device)
    cbs = [DeviceCB(device), Quiet(accuracy), BatchSchedCB(warmup_cosine()), *cbs]
    return cls(model or Net(), dls, F.cross_entropy, .01, cbs, opt_func)


def outcome(learn):
    "All that a fit leaves behind: weights and buffers, the optimizer's state, figures, random numbers."
    history = [{k: v for k, v in row.items() if k != 'seconds'} for row in learn.history]
    return dict(model=dict(learn.model.state_dict()), opt=learn.opt.state_dict(), history=history, random=host_states())


def check_same(a, b):
    assert len(a['history']) == 8
    assert a['history'] == b['history']
    assert a['model'].keys() == b['model'].keys()
    for nm, x in a['model'].items(): assert torch.equal(x, b['model'][nm]), nm
    for x, y in zip(tensors_in(a['opt']), tensors_in(b['opt']), strict=True): assert torch.equal(x, y)
    assert same_states(a['random'], b['random'])


def fitted(cb=Callback, graph=None, **kwargs):
    learn = learner([cb(), *([graph] if graph else [])], **kwargs)
    learn.fit(4)
    return outcome(learn)


class MoveCB(Callback):
    "Gives weights new memory in the middle of an epoch."
    def after_step(self, learn):
        if (learn.epoch, learn.iter) == (1, 1):
            for p in learn.model.parameters(): p.data = p.data.clone()


class SkipCB(Callback):
    "Cancels a batch after its forward pass."
    only_shows = True
    def after_predict(self, learn):
        if learn.training and (learn.epoch, learn.iter) == (2, 1): raise CancelBatchException()


class HalveCB(Callback):
    "Changes gradients."
    def after_backward(self, learn):
        for p in learn.model.parameters():
            if p.grad is not None: p.grad /= 2


def noisy(batch): return batch[0] + torch.randn_like(batch[0]), batch[1]


ALL = 4*4 - 3  # full batches of 4 epochs, without the first three


# To the bit

@pytest.mark.parametrize('opt_func', [Adam, partial(AdamW, clip_norm=.1, ema=.9), torch.optim.AdamW,
                                      partial(torch.optim.SGD, momentum=.9)])
def test_weights_buffers_states_figures_and_random_numbers_are_those_without_the_graph(opt_func):
    graph = OnCPU()
    check_same(fitted(opt_func=opt_func, graph=graph), fitted(opt_func=opt_func))
    assert (graph.replayed, graph.captures) == (ALL, 1)


@pytest.mark.parametrize(('cb', 'replayed', 'captures'), [
    (SAMCB, ALL, 1), (LabelSmoothingCB, ALL, 1), (HalveCB, ALL, 1), (SkipCB, ALL, 1), (MoveCB, ALL - 3, 2),
    (partial(BatchTransformCB, noisy, on_val=False), ALL, 1), (partial(FreezeCB, 'first', until_epoch=2), ALL - 3, 2)])
def test_callbacks_work_as_without_the_graph(cb, replayed, captures):
    graph = OnCPU()
    check_same(fitted(cb, graph), fitted(cb))
    assert (graph.replayed, graph.captures) == (replayed, captures)


def test_half_precision_is_the_same():
    kwargs = dict(cb=partial(MixedPrecision, dtype=torch.bfloat16), cls=Learner)
    check_same(fitted(graph=OnCPU(), **kwargs), fitted(**kwargs))


class ZeroLearner(TrainLearner):
    "Gradients stay where they are and become zero."
    def zero_grad(self): self.opt.zero_grad(set_to_none=False)


def test_gradients_that_are_zeroed_in_place_are_the_same():
    check_same(fitted(graph=OnCPU(), cls=ZeroLearner), fitted(cls=ZeroLearner))


def test_averages_of_weights_and_buffers_are_those_without_the_graph():
    kwargs = dict(cb=partial(AverageCB, keep=True), opt_func=partial(Adam, ema=.9))
    check_same(fitted(graph=OnCPU(), **kwargs), fitted(**kwargs))


def test_an_optimizer_that_evaluates_a_batch_again_gets_replays():
    graph, opt_func = OnCPU(), partial(torch.optim.LBFGS, max_iter=3)
    check_same(fitted(opt_func=opt_func, graph=graph), fitted(opt_func=opt_func))
    assert graph.replayed == ALL


@pytest.mark.parametrize(('first', 'second'), [(OnCPU, OnCPU), (OnCPU, Watcher), (Watcher, OnCPU)])
def test_a_run_resumes_in_the_middle_of_an_epoch_with_and_without_the_graph(tmp_path, first, second):
    def run(cls, *cbs): return learner([CheckpointCB(tmp_path, batches=4, epochs=None), cls(), *cbs])
    with suppress(Stopped): run(first, StopCB(1, 3)).fit(4)
    learn = run(second)
    learn.fit(4, resume=True)
    check_same(outcome(learn), fitted())


class Dicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x, scale): return dict(logits=self.net(x)*scale)


def test_batches_and_predictions_may_be_nested():
    def run(*graph):
        torch.manual_seed(1)
        data = [dict(x=X[i:i + 8], scale=2., y=Y[i:i + 8]) for i in range(0, 64, 8)]
        learn = Learner(Dicts(), DataLoaders(data, data[:2]), lambda out, y: F.cross_entropy(out['logits'], y), .01,
                        [Quiet(), TrainCB(inputs=('x', 'scale'), targets='y'), *graph], Adam)
        learn.fit(4)
        return outcome(learn)
    graph = OnCPU()
    check_same(run(graph), run())
    assert graph.replayed == 4*8 - 3


# What callbacks see

def test_predictions_and_losses_can_be_kept():
    def kept(*graph):
        recorder = RecorderCB(preds=lambda learn: learn.preds, loss=lambda learn: learn.loss)
        learner([recorder, *graph]).fit(4)
        return recorder.recs
    ours, plain = kept(OnCPU()), kept()
    assert ours['loss'] == plain['loss']
    assert all(map(torch.equal, ours['preds'], plain['preds']))


def test_nothing_is_left_after_a_fit():
    learn = learner([OnCPU()])
    learn.fit(2)
    assert not {'predict', 'get_loss', 'backward'} & set(vars(learn))
    assert all(p.grad is None for p in learn.model.parameters())
    graph = learn.cbs[-1]
    assert graph.replayed == 2*4 - 3
    assert (graph._step, graph._params) == (None, [])
    deepcopy(learn).fit(1)


# What cannot be replayed

class NotCompiledCB(CompileCB):
    def before_fit(self, learn): "Importing the compiler would take seconds."


@pytest.mark.parametrize(('cb', 'message'), [
    (partial(AccumulateCB, 2), 'AccumulateCB adds up'), (MixUpCB, 'MixUpCB mixes'),
    (StepInBackwardCB, 'StepInBackwardCB steps'),
    (ActivationStats, 'ActivationStats looks'), (HealthCB, 'HealthCB looks'),
    (partial(NotCompiledCB, mode='reduce-overhead'), 'CompileCB captures')])
def test_callbacks_that_must_act_in_every_batch_are_refused_by_name(cb, message):
    with pytest.raises(ValueError, match=message): learner([cb(), OnCPU()]).fit(1)
    learner([cb(), OnCPU()]).fit(1, train=False)


def test_a_callback_that_may_change_the_loss_is_refused_unless_it_only_shows():
    class PenaltyCB(Callback):
        def after_loss(self, learn): learn.loss = learn.loss*2
    with pytest.raises(ValueError, match=r'PenaltyCB.after_loss .* set only_shows = True'):
        learner([PenaltyCB(), OnCPU()]).fit(1)


def test_hooks_on_modules_are_refused_but_for_those_of_torch():
    model = Net()
    nn.utils.spectral_norm(model.mid)
    learner([OnCPU()], model=model).fit(1)
    model.last.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="hooks on 'last'"): learner([OnCPU()], model=model).fit(1)


def test_a_learner_that_keeps_gradients_is_refused_in_its_second_batch():
    with pytest.raises(ValueError, match='MomentumLearner, whose zero_grad keeps'):
        learner([OnCPU()], cls=MomentumLearner, opt_func=torch.optim.SGD).fit(1)


@pytest.mark.parametrize('odd', [object(), X.double().to_sparse()], ids=['object', 'sparse'])
def test_a_fit_without_equal_batches_is_trained_without_the_graph_and_a_warning(odd):
    learn = learner([OnCPU()])
    learn.dls = DataLoaders([(X, Y, odd)]*5, [])
    learn.cbs.append(BatchTransformCB(lambda b: b))
    with pytest.warns(UserWarning, match='3 items and TrainLearner uses 2'), \
         pytest.warns(UserWarning, match='replayed no batch: there were no 4 training batches of one shape'):
        learn.fit(1, valid=False)


def test_without_cuda_it_says_once_that_it_does_nothing():
    graph = GraphCB()
    with pytest.warns(UserWarning, match='GraphCB does nothing on cpu'): learner([graph]).fit(1)
    learner([graph]).fit(1)  # warnings are errors
    check_same(fitted(graph=graph), fitted())


# On a GPU

class NoWaitCB(Callback):
    "From the first replay of an epoch to its last batch, waiting for the GPU is an error."
    order, only_shows = float('inf'), True
    def before_batch(self, learn):
        if learn.training and learn.iter == 0 and learn.epoch: torch.cuda.set_sync_debug_mode('error')
    def after_batch(self, learn):
        if learn.iter == 4: torch.cuda.set_sync_debug_mode('default')
    def cleanup_fit(self, learn): torch.cuda.set_sync_debug_mode('default')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize('half', [None, torch.bfloat16])
@pytest.mark.parametrize('on', ['cpu', 'cuda'])
def test_on_cuda_replays_equal_a_run_without_them_and_nothing_waits_for_the_gpu(half, on):
    def run(*graph):
        cbs = [MixedPrecision(dtype=half)] if half else []
        learn = learner([*cbs, *graph], cls=Learner if half else TrainLearner, device='cuda')
        if on == 'cpu':
            pairs = [(X[i:i + 10], Y[i:i + 10]) for i in range(0, 48, 10)]
            learn.dls = DataLoaders(pairs, pairs[:1])
        learn.check_finite = False
        learn.fit(4)
        return outcome(learn)
    graph = GraphCB()
    ours, plain = run(graph, NoWaitCB()), run()
    assert graph.replayed == ALL
    check_same(ours, plain)

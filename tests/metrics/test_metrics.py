"Figures of an epoch, against numpy's averages and torchmetrics."
import json
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics import MeanSquaredError, MetricCollection, MinMaxMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassF1Score

from miniai.data.memory import MemoryLoader
from miniai.datasets import DataLoaders
from miniai.distributed import DistributedCB
from miniai.learner import CancelEpochException, Learner, MetricsCB, ProgressCB, TrainCB, TrainLearner
from miniai.metrics.metrics import FunctionMetric, Mean, takes_learner
from miniai.metrics.whole import Whole
from miniai.resume.checkpoint import CheckpointCB
from miniai.sgd import RecorderCB
from miniai.training import accuracy
from ranks import run_ranks
from resuming import assert_resumes_exactly
from small import Heard, OffCPU, batches, learner, off_cpu, raising, two_inputs


class Quiet(MetricsCB):
    "Keeps what it logs."
    def __init__(self, *ms, **metrics):
        super().__init__(*ms, **metrics)
        self.logged = []

    def _log(self, d): self.logged.append(d)


def uneven(): return [(x[:n], y[:n]) for (x, y), n in zip(batches(3), (6, 5, 2), strict=True)]


# Mean

@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(1, 50), st.sampled_from(['float', 'cpu', 'off'])), min_size=1))
def test_a_mean_is_numpys_weighted_average_wherever_the_numbers_live(rows):
    m = Mean()
    for x, w, source in rows:
        t = torch.tensor(x, dtype=torch.double)
        m.update(x if source == 'float' else t if source == 'cpu' else off_cpu(t), w)
    expected = np.average([x for x, _, _ in rows], weights=[w for _, w, _ in rows])
    assert float(m.compute()) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_mean_of_nothing_is_nan_and_reset_forgets():
    m = Mean()
    assert m.compute().isnan()
    m.update(3., 2)
    m.reset()
    assert m.compute().isnan()
    m.update(5.)
    assert m.compute() == 5


@pytest.mark.parametrize('where', [off_cpu, lambda x: x, torch.Tensor.item])
def test_what_has_no_weight_may_be_nan_wherever_it_lives(where):
    m = Mean()
    for value, weight in ((2., 3), (math.nan, 0), (6., 1)): m.update(*map(where, map(torch.tensor, (value, weight))))
    assert m.compute() == 3


def test_a_mean_is_a_0d_tensor_on_the_cpu():
    m = Mean()
    m.update(off_cpu(torch.ones(1)))
    assert (m.compute().shape, m.compute().device.type, type(m.compute())) == ((), 'cpu', torch.Tensor)


def test_a_mean_keeps_no_graph():
    m = Mean()
    m.update(off_cpu(torch.ones((), requires_grad=True)*2))
    assert not m.total.requires_grad


def test_a_function_is_a_metric_weighted_by_the_number_of_targets_however_deep():
    m = FunctionMetric(lambda p, y: p.mean())
    m.update(torch.tensor([1.]), torch.zeros(1))
    m.update(torch.tensor([4.]*3), dict(a=[torch.zeros(3)]))
    assert float(m.compute()) == pytest.approx((1*1 + 3*4)/4)
    m.reset()
    assert m.compute().isnan()


# In a fit

def test_loss_and_metrics_are_means_over_samples_not_over_batches():
    learn = learner(Quiet(acc=accuracy), dls=DataLoaders([], uneven()))
    learn.fit(train=False)
    x, y = (torch.cat(t) for t in zip(*uneven(), strict=True))
    preds = learn.model(x)
    row, = learn.history
    assert row['loss'] == pytest.approx(F.cross_entropy(preds, y).item(), rel=1e-5)
    assert row['acc'] == pytest.approx((preds.argmax(1) == y).float().mean().item(), rel=1e-5)


def test_the_weight_of_a_batch_is_the_length_of_its_first_tensor_however_deep():
    def nested(b): return ((b[0],), b[1])
    class Unpacks(TrainCB):
        def predict(self, learn): learn.preds = learn.model(learn.batch[0][0])
    dls = DataLoaders([], list(map(nested, uneven())))
    cb, plain = Quiet(), Quiet()
    learner([Unpacks(), cb], cls=Learner, dls=dls).fit(train=False)
    learner(plain, dls=DataLoaders([], uneven())).fit(train=False)
    assert cb.logged == plain.logged


def test_torchs_metrics_give_the_figure_over_all_batches():
    ours, m = Quiet(f1=MulticlassF1Score(3), acc=MulticlassAccuracy(3, average='micro')), MulticlassF1Score(3)
    learn = learner(ours, dls=DataLoaders([], uneven()))
    learn.fit(train=False)
    x, y = (torch.cat(t) for t in zip(*uneven(), strict=True))
    assert learn.history[0]['f1'] == pytest.approx(m(learn.model(x), y).item(), rel=1e-5)
    assert learn.history[0]['acc'] == pytest.approx((learn.model(x).argmax(1) == y).float().mean().item(), rel=1e-5)


def test_every_epoch_and_phase_starts_afresh():
    class Counts:
        def __init__(self): self.n = 0
        def update(self, p, y): self.n += 1
        def compute(self): return self.n
        def reset(self): self.n = 0
    cb = Quiet(n=Counts())
    learner(cb).fit(2)
    assert [d['n'] for d in cb.logged] == ['4.000', '2.000']*2


def test_log_gets_every_metric_to_3_places_then_epoch_and_phase():
    cb = Quiet(third=lambda p, y: 1/3)
    learner(cb).fit(1)
    assert [(d['third'], d['epoch'], d['train']) for d in cb.logged] == [('0.333', 0, 'train'), ('0.333', 0, 'eval')]
    assert list(cb.logged[0]) == ['third', 'loss', 'epoch', 'train']
    assert len(cb.logged[0]['loss'].split('.')[1]) == 3


def test_log_prints_a_plain_line_by_default_and_may_be_replaced_on_the_instance(capsys):
    cb = MetricsCB()
    learn = learner(cb)
    learn.fit(1, valid=False)
    row = learn.history[0]
    assert capsys.readouterr().out == f"epoch 1  phase train  loss {row['loss']:.3f}  seconds {row['seconds']:.1f}\n"
    seen = []
    cb._log = seen.append
    learner(cb).fit(1)
    assert [d['train'] for d in seen] == ['train', 'eval']
    assert capsys.readouterr().out == ''


def test_history_is_a_row_of_numbers_per_epoch_and_phase():
    learn = learner(Quiet(acc=accuracy))
    learn.fit(2)
    assert [(r['epoch'], r['phase']) for r in learn.history] == [(e, p) for e in (0, 1) for p in ('train', 'eval')]
    assert all(isinstance(r[k], float) for r in learn.history for k in ('loss', 'acc', 'seconds'))
    assert all(r['seconds'] >= 0 for r in learn.history)


@pytest.mark.parametrize(('metric', 'shown'), [
    (MetricCollection([MulticlassAccuracy(3), MulticlassF1Score(3)]), 'MulticlassAccuracy'),
    (MulticlassAccuracy(3, average=None), ' '),
])
def test_history_is_data_for_metrics_of_many_figures_too(metric, shown):
    cb = Quiet(m=metric)
    learn = learner(cb)
    learn.fit(1)
    assert json.loads(json.dumps(learn.history)) == learn.history
    assert shown in cb.logged[0]['m']


def test_a_figure_that_is_text_is_shown_as_it_is():
    text = SimpleNamespace(update=lambda p, y: None, compute=lambda: 'fine', reset=lambda: None)
    cb = Quiet(m=text)
    learner(cb).fit(1)
    assert cb.logged[0]['m'] == 'fine'


def test_the_learner_has_the_callback_as_its_metrics_and_all_metrics_holds_loss():
    cb = Quiet(acc=accuracy)
    learn = learner(cb)
    learn.fit(1)
    assert learn.metrics is cb
    assert list(cb.all_metrics) == ['acc', 'loss']
    assert cb.all_metrics['loss'] is cb.loss


def test_metrics_without_a_name_go_by_that_of_their_class_or_function():
    cb = MetricsCB(MulticlassAccuracy(3), accuracy, f=accuracy)
    assert list(cb.metrics) == ['MulticlassAccuracy', 'accuracy', 'f']


def test_a_cancelled_epoch_leaves_no_row():
    cb = Quiet()
    learn = learner([cb, Heard({'after_batch': raising(CancelEpochException())})])
    learn.fit(1)
    assert learn.history == cb.logged == []


def test_metrics_see_predictions_without_graph_and_in_full_precision():
    class Half:
        def after_loss(self, learn): learn.preds = [learn.preds.half(), learn.preds]
    seen = []
    m = Keeps()
    m.update = lambda p, y: seen.append((p[0].dtype, p[0].requires_grad))
    learner([Half(), Quiet(m=m)]).fit(1, valid=False)
    assert set(seen) == {(torch.float32, False)}


def test_a_loss_that_is_no_number_is_left_out():
    cb = Quiet()
    learner(cb, loss_func=lambda p, y: F.cross_entropy(p, y, reduction='none')).fit(train=False)
    assert cb.logged[0]['loss'] == 'nan'


def test_metrics_get_all_targets_as_the_loss_does_or_predictions_alone():
    seen = []
    def both(preds, a, b): return seen.append((a, b)) or 0.
    def alone(preds): return preds.mean()
    def loss(preds, a, b): return preds.mean() + 0*a.mean()
    dls = two_inputs()
    learn = learner([TrainCB(), Quiet(both=both, alone=alone, acc=lambda p, a, b: accuracy(p, b))], Learner, dls=dls,
                    loss_func=loss)
    learn.fit(train=False)
    (x, x2, y), = dls.valid
    assert torch.equal(seen[0][0], x2)
    assert torch.equal(seen[0][1], y)
    assert learn.history[0]['alone'] == pytest.approx(learn.model(x).mean().item(), rel=1e-5)
    assert learn.history[0]['acc'] == pytest.approx((learn.model(x).argmax(1) == y).float().mean().item())


@pytest.mark.parametrize(('metric', 'says'), [
    (MulticlassAccuracy(3), "metric 'm' takes .*, but the batch has 2 target.s., which all metrics get"),
    (accuracy, 'dim must be a whole number or None, got a Tensor. It takes one target')])
def test_a_metric_of_one_target_does_not_silently_get_the_first_of_two(metric, says):
    with pytest.raises(TypeError, match=says):
        learner([TrainCB(), Quiet(m=metric)], Learner, dls=two_inputs(), loss_func=lambda p, a, b: p.mean()
                ).fit(train=False)


def test_predictions_alone_need_no_targets():
    only_inputs = [(x,) for x, _ in uneven()]
    learn = learner(Quiet(top=lambda preds: preds.max(1)[0].mean()), dls=DataLoaders([], only_inputs))
    learn.fit(train=False)
    expected = learn.model(torch.cat([x for x, in only_inputs])).max(1)[0].mean().item()
    assert learn.history[0]['top'] == pytest.approx(expected, rel=1e-5)


def test_figures_of_the_learner_are_means_over_batches_in_table_history_and_recorder():
    class Adversary(TrainLearner):
        def get_loss(self):
            super().get_loss()
            self.d_loss = self.preds.pow(2).mean() if self.training else None
    cb, rec = Quiet(d_loss=lambda learn: learn.d_loss), RecorderCB(d_loss=lambda learn: learn.d_loss)
    learn = learner([cb, rec], Adversary, dls=DataLoaders(uneven(), uneven()), lr=0.)
    learn.fit(1)
    x = torch.cat([x for x, _ in uneven()])
    assert learn.history[0]['d_loss'] == pytest.approx(learn.model(x).pow(2).mean().item(), rel=1e-5)
    assert math.isnan(learn.history[1]['d_loss'])
    assert cb.logged[0]['d_loss'] == f"{learn.history[0]['d_loss']:.3f}"
    assert rec.recs['d_loss'] == pytest.approx([learn.model(x).pow(2).mean().item() for x, _ in uneven()], rel=1e-5)


def test_the_users_weight_is_that_of_functions_and_figures_too():
    def size(preds, y): return float(len(y))
    learn = learner(Quiet(size=size, figure=lambda learn: len(learn.batch[1]), weight=lambda learn: learn.iter + 1),
                    dls=DataLoaders([], uneven()))
    learn.fit(train=False)
    assert learn.history[0]['size'] == learn.history[0]['figure'] == pytest.approx((6 + 2*5 + 3*2)/6)


def test_a_function_of_the_learner_is_one_whose_first_parameter_is_called_learn():
    assert takes_learner(lambda learn: 1)
    assert not takes_learner(lambda preds, learn: 1)
    assert not takes_learner(max)


def test_a_capture_without_targets_leaves_out_the_metrics_that_need_them():
    learn = learner(Quiet(acc=accuracy, m=MulticlassAccuracy(3), top=lambda preds: preds.max()))
    with warnings.catch_warnings(action='error'): preds, targets = learn.capture_preds(dl=[(x,) for x, _ in uneven()])
    assert (len(preds), targets) == (13, None)


# Metrics go to where the predictions are

class Elsewhere(OffCPU):
    "A tensor that says it is on a GPU until it is brought to the CPU."
    device = torch.device('cuda')
    def cpu(self): return self.as_subclass(torch.Tensor)


class Keeps:
    "A metric that notes what it gets."
    def __init__(self): self.moved, self.seen = [], []
    def update(self, preds, targets): self.seen += [type(preds), type(targets)]
    def compute(self): return 0
    def reset(self): pass


class Moves(Keeps):
    def to(self, device): self.moved.append(torch.device(device).type)


def test_a_metric_that_can_move_goes_to_the_predictions_and_one_that_cannot_gets_them_on_the_cpu():
    class OnGPU:
        def after_loss(self, learn):
            learn.preds = learn.preds.as_subclass(Elsewhere)
            learn.batch = tuple(x.as_subclass(Elsewhere) for x in learn.batch)
    moves, stays, seen = Moves(), Keeps(), []
    def f(preds, targets): return seen.append(type(preds)) or 1.
    learner([OnGPU(), Quiet(moves=moves, stays=stays, f=f)]).fit(1)
    assert set(moves.moved) == {'cuda'}
    assert set(moves.seen) == set(seen) == {Elsewhere}
    assert set(stays.seen) == {torch.Tensor}


# Bad metrics

@pytest.mark.parametrize(('metric', 'says'), [
    (3, r"metric 'm' must be a function of \(preds, targets\) or have update, compute and reset; got 3"),
    ('accuracy', r"metric 'm' must be a function"),
    (MulticlassAccuracy, r"metric 'm' is the class MulticlassAccuracy; pass an instance of it: MulticlassAccuracy\(\)"),
    (SimpleNamespace(update=print), r"a SimpleNamespace, has update but no compute and no reset"),
    (SimpleNamespace(update=print, compute=print), r"has update but no reset"),
])
def test_what_is_no_metric_is_refused_at_once_with_what_it_should_be(metric, says):
    with pytest.raises(TypeError, match=says): MetricsCB(m=metric)


def test_what_is_no_metric_is_refused_without_a_name_too():
    with pytest.raises(TypeError, match=r"metric 'int' must be a function"): MetricsCB(3)


def test_metrics_without_targets_say_so():
    only_inputs = [(x,) for x, _ in batches()]
    says = r"metric 'acc' needs targets, but the batch has none: all of its 1 item\(s\) are inputs"
    with pytest.raises(ValueError, match=says):
        learner(Quiet(acc=accuracy), dls=DataLoaders([], only_inputs)).fit(train=False)


def test_two_metrics_of_one_name_are_not_silently_one():
    try: cb = MetricsCB(MulticlassAccuracy(3), MulticlassAccuracy(3, average='micro'))
    except (ValueError, TypeError): return
    assert len(cb.metrics) == 2


@pytest.mark.parametrize('name', ['loss', 'epoch', 'train'])
def test_a_metric_by_a_name_that_the_row_has_already_does_not_silently_vanish(name):
    try: cb = Quiet(**{name: lambda p, y: 7.})
    except (ValueError, TypeError): return
    learner(cb).fit(1)
    assert cb.logged[0][name] == '7.000'


def test_squared_error_of_torchmetrics_is_the_loss_of_a_regression():
    bs = [(x, x[:, :3]*2) for x, _ in batches()]
    learn = learner(Quiet(mse=MeanSquaredError()), dls=DataLoaders(bs, bs), loss_func=F.mse_loss)
    learn.fit(2)
    for r in learn.history: assert r['mse'] == pytest.approx(r['loss'], rel=1e-4)


class Largest:
    "A user's metric, without a state_dict."
    def __init__(self): self.reset()
    def reset(self): self.seen = []
    def update(self, preds, targets): self.seen.append(preds.max().item())
    def compute(self): return max(self.seen)


@pytest.mark.parametrize('make', [
    lambda: MulticlassAccuracy(3), lambda: MulticlassAccuracy(3) + 1, lambda: MinMaxMetric(MulticlassAccuracy(3)),
    lambda: MetricCollection([MulticlassAccuracy(3), MulticlassF1Score(3)]), Largest])
def test_metrics_resume_in_the_middle_of_an_epoch(make, tmp_path):
    def run(folder, *cbs): return learner([Quiet(m=make()), CheckpointCB(folder, batches=1), *cbs])
    assert_resumes_exactly(run, tmp_path, ((1, 1), (1, 0, False)))


# On several processes

class OfOrder:
    "Depends on the order of all that it got, and on where batches end."
    def __init__(self): self.reset()
    def reset(self): self.x = 0.
    def update(self, p, y): self.x = self.x/2 + float((p.argmax(1)*(1 + y)).sum()) + len(p)
    def compute(self): return self.x


def shared_metrics(how, n_valid):
    torch.manual_seed(0)
    x, y = torch.randn(37 + n_valid, 6).double(), torch.randint(0, 3, (37 + n_valid,))
    dls = DataLoaders(MemoryLoader(x[:37], y[:37], bs=8), MemoryLoader(x[37:], y[37:], bs=8))
    cb = Quiet(auc=MulticlassAUROC(3), f1=MulticlassF1Score(3), both=MetricCollection([MulticlassAccuracy(3)]),
               whole=Whole(lambda p, y: float((p.softmax(1)[:, 0]*y).cumsum(0).std())), order=OfOrder(),
               mean=accuracy, figure=lambda learn: learn.preds.mean())
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3), nn.Softmax(1)).double()
    recorder = RecorderCB(loss=lambda learn: learn.loss, lr=lambda cb: cb.pg['lr'])
    progress = ProgressCB()
    cbs = [TrainCB(), cb, recorder, progress, *([DistributedCB(how)] if how else [])]
    learn = Learner(model, dls, nn.CrossEntropyLoss(reduction='sum'), 1e-4, cbs, torch.optim.SGD)
    learn.fit(2)
    rows = [{k: v for k, v in row.items() if k != 'seconds'} for row in learn.history]
    return [*rows, learn.evaluate(), recorder.recs, dict(losses=progress.losses, valid=progress.val_losses)]


def shared_both_ways(): return [shared_metrics(how, n) for how in ('ddp', 'fsdp') for n in (23, 9, 17)]


@pytest.mark.parametrize('n', [2, 4])
def test_on_several_processes_figures_of_all_kinds_are_those_of_one(n):
    expected = [shared_metrics(None, n_valid) for _ in ('ddp', 'fsdp') for n_valid in (23, 9, 17)]
    first, *others = run_ranks(shared_both_ways, n)
    assert all(other == first for other in others)
    for found, one in zip(first, expected, strict=True):
        for row, row_of_one in zip(found, one, strict=True):
            assert row.keys() == row_of_one.keys()
            for nm, value in row_of_one.items():
                assert row[nm] == (value if nm == 'phase' else pytest.approx(value, rel=1e-6)), nm

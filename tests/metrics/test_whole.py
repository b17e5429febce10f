"Metrics of a whole epoch, against torchmetrics and formulas over all samples; and how batches are joined."
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import binary_auroc, multiclass_f1_score

from miniai import MetricsCB, Whole
from miniai.datasets import DataLoaders
from miniai.learner import Learner, TrainCB
from miniai.metrics.whole import joined
from miniai.resume.checkpoint import CheckpointCB
from resuming import Quiet, assert_resumes_exactly
from small import batches, learner, two_inputs


def uneven(): return [(x[:n], y[:n]) for (x, y), n in zip(batches(3), (6, 5, 2), strict=True)]
def everything_of(dl): return tuple(torch.cat(t) for t in zip(*dl, strict=True))
def rmse(preds, y): return F.mse_loss(preds, y).sqrt()


def test_figures_that_are_no_means_over_batches_are_those_of_all_samples_together():
    f1 = lambda p, y: multiclass_f1_score(p, y, 3, average='macro')  # noqa: E731
    auc = lambda p, y: binary_auroc(p[:, 0], (y == 0).long())  # noqa: E731
    learn = learner(Quiet(f1=Whole(f1), auc=Whole(auc), batch_means=f1), dls=DataLoaders([], uneven()))
    learn.fit(train=False)
    x, y = everything_of(uneven())
    with torch.no_grad(): preds = learn.model(x)
    row, = learn.history
    assert row['f1'] == pytest.approx(f1(preds, y).item(), abs=1e-6)
    assert row['auc'] == pytest.approx(auc(preds, y).item(), abs=1e-6)
    assert abs(row['batch_means'] - row['f1']) > .01  # which is why Whole is there


def test_the_root_of_a_mean_is_taken_once_in_every_epoch_and_phase():
    data = [(x, x[:, :3]*2) for x, _ in uneven()]
    learn = learner(Quiet(rmse=Whole(rmse)), dls=DataLoaders(data, data), loss_func=F.mse_loss)
    learn.fit(2)
    preds, y = learn.capture_preds()
    assert learn.history[-1]['rmse'] == pytest.approx(math.sqrt(((preds - y).double()**2).mean()), rel=1e-6)
    assert learn.history[-1]['rmse'] == pytest.approx(math.sqrt(learn.history[-1]['loss']), rel=1e-5)


def test_it_gets_the_cpus_float32_all_targets_or_predictions_alone():
    class Half(TrainCB):
        def predict(self, learn): learn.preds = learn.model(learn.batch[0]).half()
        def get_loss(self, learn): learn.loss = learn.preds.float().sum()
    seen = []
    def both(preds, a, b): seen.append((preds, a, b))
    def alone(preds): seen.append((preds,))
    def nan(*args): return float('nan')
    dls = two_inputs()
    learner([Half(), Quiet(both=Whole(lambda p, a, b: both(p, a, b) or nan()), alone=Whole(lambda p: alone(p) or 0.))],
            Learner, dls=dls).fit(train=False)
    (preds, a, b), (same,) = seen
    x, x2, y = everything_of(dls.valid)
    assert preds.dtype == torch.float32
    assert preds.device.type == 'cpu'
    assert torch.equal(preds, same)
    assert torch.equal(a, x2)
    assert torch.equal(b, y)
    assert len(x) == len(preds)


def test_it_is_named_after_its_function_and_needs_one():
    assert list(MetricsCB(Whole(rmse)).metrics) == ['rmse']
    with pytest.raises(TypeError, match='Whole needs a function'): Whole(3)
    assert math.isnan(Whole(rmse).compute())


def test_it_resumes_in_the_middle_of_an_epoch(tmp_path):
    def f1(p, y): return multiclass_f1_score(p, y, 3)
    def run(folder, *cbs): return learner([Quiet(f1=Whole(f1)), CheckpointCB(folder, batches=1), *cbs])
    assert_resumes_exactly(run, tmp_path, ((1, 1), (1, 0, False)))


def test_its_state_is_what_it_has_gathered():
    a, b = Whole(rmse), Whole(rmse)
    a.update(torch.ones(2), torch.zeros(2))
    b.load_state_dict(a.state_dict())
    b.update(torch.full((2,), 7.), torch.zeros(2))
    assert b.compute().item() == pytest.approx(5.)  # sqrt((1 + 1 + 49 + 49)/4)


# Joining

def test_what_differs_in_other_dimensions_than_the_first_becomes_a_list_per_sample():
    a, b = torch.rand(2, 5), torch.rand(3, 7)
    with warnings.catch_warnings(action='error'): rows = joined([a, b])
    assert all(torch.equal(r, x) for r, x in zip(rows, [*a, *b], strict=True))


def test_lists_with_an_item_per_sample_stay_so_and_several_outputs_are_joined_one_by_one():
    boxes = [[dict(boxes=torch.rand(n, 4)) for n in ns] for ns in ((2, 0), (1, 3))]
    assert joined(boxes, [2, 2]) == [*boxes[0], *boxes[1]]
    maps = [[torch.rand(2, 3), torch.rand(2, 5)] for _ in range(2)]
    assert [tuple(t.shape) for t in joined(maps, [2, 2])] == [(4, 3), (4, 5)]

"What HealthCB sees of batches: codes of rows, ranges, tasks and nearest neighbors."
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from miniai.diagnosis import data_verdicts  # noqa: F401 (it registers its rules)
from miniai.diagnosis.data_watch import DataWatch, find_task, neighbors
from miniai.diagnosis.verdict import Facts, judge


def state(batch, preds=None, loss=None, training=True, epoch=0, n=4):
    return SimpleNamespace(batch=batch, preds=preds, loss=loss, cbs=[], epoch=epoch, iter=0,
                           dls=SimpleNamespace(train=[None]*n), model=SimpleNamespace(training=training))


def test_equal_rows_are_counted_in_training_and_found_in_validation():
    x, watch = torch.randn(10, 300), DataWatch()
    watch.look_at_rows(state((torch.cat([x, x[:3]]), None)))
    watch.look_at_rows(state((torch.cat([x[5:], torch.randn(5, 300)]), None), training=False))
    found = watch.summary()
    assert found['repeats'] == dict(pairs=3, seen=13, different=10)
    assert found['valid_repeats'] == dict(pairs=0, seen=10, different=10)
    assert found['overlap'] == dict(shared=5, train=10, valid=10)
    assert found['rows'] == 4*13


@pytest.mark.parametrize('kind', [torch.uint8, torch.int64, torch.float16, torch.float64])
def test_rows_of_any_type_have_codes(kind):
    watch, x = DataWatch(), torch.arange(40).reshape(5, 8).to(kind)
    watch.look_at_rows(state((x.repeat(2, 1),)))
    assert watch.summary()['repeats'] == dict(pairs=5, seen=10, different=5)


def test_the_task_is_what_the_loss_equals():
    p, y, t = torch.randn(8, 3), torch.randint(0, 3, (8,)), torch.rand(8, 3)
    assert find_task(state((p, y), p, F.cross_entropy(p, y))) == dict(task='classes', outputs=3)
    assert find_task(state((p, t), p, F.mse_loss(p, t))) == dict(task='numbers', outputs=3)
    assert find_task(state((p, t), p, F.binary_cross_entropy_with_logits(p, t))) == dict(task='labels', outputs=3)
    assert find_task(state((p, t), p, F.l1_loss(p, t))) == {}
    assert find_task(state((p, y), p, 100*F.cross_entropy(p, y))) == {}
    assert find_task(state(dict(x=p), p, p.sum())) == {}


def test_the_baseline_is_the_entropy_of_the_labels_or_the_variance_of_the_targets():
    p, y = torch.zeros(8, 2), torch.tensor([0]*6 + [1]*2)
    watch = DataWatch()
    watch.look_at_batch(state((p, y), p, F.cross_entropy(p, y)))
    assert watch.summary()['baseline'] == pytest.approx(-0.75*math.log(0.75) - 0.25*math.log(0.25))
    t, watch = torch.randn(50, 1) + 3, DataWatch()
    watch.look_at_batch(state((t, t), 0*t, F.mse_loss(0*t, t)))
    assert watch.summary()['baseline'] == pytest.approx(t.var(correction=0).item(), rel=1e-4)


def test_neighbors_are_right_about_clusters_and_wrong_about_shuffled_labels():
    g = torch.Generator().manual_seed(1)
    y = torch.arange(200) % 4
    x = 5*torch.randn(4, 6, generator=g)[y] + torch.randn(200, 6, generator=g)
    assert neighbors(x, y, 'classes')['score'] > 0.9
    shuffled = neighbors(x, y[torch.randperm(200, generator=g)], 'classes')
    assert abs(shuffled['score'] - shuffled['chance']) < 0.12
    assert neighbors(x, x[:, :1].squeeze(), 'numbers')['score'] > 0.7


def test_classes_in_the_last_dimension_as_language_models_have_them():
    p, y = torch.randn(4, 6, 9), torch.randint(0, 9, (4, 6))
    y[0, 0] = 8
    now, watch = state((y, y), p, F.cross_entropy(p.flatten(0, 1), y.flatten())), DataWatch()
    watch.look_at_batch(now)
    assert [watch.facts[nm] for nm in ('task', 'outputs', 'classes', 'high')] == ['classes', 9, 9, 8]
    assert watch.right_share(now) == pytest.approx((p.argmax(-1) == y).float().mean().item())


@pytest.mark.parametrize('y', [torch.randint(0, 2, (4, 8, 8)), torch.randint(0, 2, (4, 5))], ids=['resized', 'shorter'])
def test_predictions_of_another_size_than_the_targets_are_no_classes(y):
    p, watch = torch.randn(4, 3, 7, 7)[(...,) + (0,)*(3 - y.ndim)], DataWatch()
    watch.look_at_batch(state((p, y), p, p.sum()))
    assert not {'task', 'classes'} & {*watch.facts}


def test_labels_that_the_loss_leaves_out_or_takes_otherwise_are_not_out_of_range():
    p, y, one = torch.randn(8, 3), torch.tensor([0, 1, 2, 255]*2), torch.randn(8, 1)
    watch = DataWatch()
    watch.look_at_batch(state((p, y), p, F.cross_entropy(p, y, ignore_index=255)))
    assert (watch.facts['low'], watch.facts['high']) == (0, 2)
    watch.look_at_labels(state((p, y), p), failed=True)
    assert watch.facts['high'] == 255
    watch = DataWatch()
    watch.look_at_batch(state((one, y), one, one.sum()))
    assert 'classes' not in watch.facts


def test_inputs_without_plain_memory_and_empty_ones_are_left_out():
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged)
    for x in (nested, torch.eye(5).to_sparse(), torch.randn(0, 5)):
        watch = DataWatch()
        watch.look_at_rows(state((x, None)))
        assert watch.summary()['repeats']['seen'] == 0


@pytest.mark.parametrize(('shape', 'names'), [((90,), ['unbalanced labels']), ((9, 10), [])])
def test_letters_of_a_text_are_not_unbalanced_labels(shape, names):
    y, watch = torch.tensor([0]*85 + [1]*5).reshape(shape), DataWatch()
    p = torch.zeros(*shape, 2)
    watch.look_at_batch(state((y, y), p, F.cross_entropy(p.flatten(0, -2), y.flatten())))
    found, _ = judge(Facts(data=watch.summary()))
    assert [v.name for v in found if v.name == 'unbalanced labels'] == names

"Accuracy, against numpy and torchmetrics."
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_accuracy as tm_binary_accuracy

from miniai.datasets import DataLoaders
from miniai.metrics.accuracy import accuracy, binary_accuracy, counts_of
from resuming import Quiet
from small import batches, learner, mlp


def uneven(): return [(x[:n], y[:n]) for (x, y), n in zip(batches(3), (6, 5, 2), strict=True)]


@given(st.lists(st.tuples(st.permutations(range(4)), st.integers(0, 3)), min_size=1, max_size=20))
def test_accuracy_is_the_share_of_rows_whose_largest_entry_is_at_the_target(rows):
    out, targets = torch.tensor([r for r, _ in rows]).float(), torch.tensor([t for _, t in rows])
    acc = accuracy(out, targets)
    expected = sum(r.index(max(r)) == t for r, t in rows) / len(rows)
    assert acc.shape == ()
    assert acc.dtype == torch.float32
    assert abs(acc.item() - expected) < 1e-6


def numpy_accuracy(out, y, dim, ignored=-100):
    hits = (np.asarray(out).argmax(dim) == np.asarray(y))[np.asarray(y) != ignored]
    return hits.mean() if hits.size else math.nan


@settings(max_examples=60)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(2, 5), st.integers(0, 2), st.integers(0, 99),
       st.sampled_from([-100, 0, 1]))
def test_accuracy_is_numpys_for_classes_in_any_dimension_that_fits(shape, classes, at, seed, ignored):
    g = torch.Generator().manual_seed(seed)
    dim = 1 + at % len(shape)
    out = torch.randn(*shape[:dim], classes, *shape[dim:], generator=g)
    y = torch.randint(0, classes, shape, generator=g)
    y[torch.rand(shape, generator=g) < .3] = ignored
    expected = numpy_accuracy(out, y, dim, ignored)
    fits = [i for i in range(1, out.ndim) if out.shape[:i] + out.shape[i + 1:] == y.shape]
    assert accuracy(out, y, dim=dim, ignore_index=ignored).item() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    if len(fits) == 1:
        assert accuracy(out, y, ignore_index=ignored).item() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    else:
        with pytest.raises(ValueError, match=r'could each be the classes: say which, as in partial\(accuracy, dim='):
            accuracy(out, y)


def test_accuracy_of_tokens_counts_tokens_over_the_whole_epoch():
    bs = [(torch.randn(2, t, 4), torch.randint(0, 3, (2, t))) for t in (5, 9, 2)]
    for _, y in bs: y[:, 1:2] = -100
    model, loss = mlp(), lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten())
    learn = learner(Quiet(acc=accuracy), model=model, dls=DataLoaders([], bs), loss_func=loss)
    learn.fit(train=False)
    hits = torch.cat([(model(x).argmax(-1) == y)[y != -100] for x, y in bs])
    assert learn.history[0]['acc'] == pytest.approx(hits.double().mean().item())


@pytest.mark.parametrize(('out', 'y', 'says'), [
    ((6, 3), (6, 1), 'in the shape of the outputs without the class dimension'),
    ((6, 1), (6,), 'use binary_accuracy'),
    ((6,), (6,), 'use binary_accuracy'), ((6, 3), (6, 3), 'use binary_accuracy'),
    ((6, 3), (5,), 'in the shape of the outputs'),
    ((6, 4, 4), (6, 4), r'dimensions \[1, 2\] could each be the classes')])
def test_accuracy_refuses_other_shapes(out, y, says):
    with pytest.raises(ValueError, match=says): accuracy(torch.randn(out), torch.zeros(y).long())


def test_accuracy_refuses_a_dim_that_does_not_fit():
    with pytest.raises(ValueError, match='in the shape of the outputs'):
        accuracy(torch.randn(6, 3, 4), torch.zeros(6, 3), 1)
    for dim in (0, 3, -2):
        with pytest.raises(ValueError, match='in the shape of the outputs'):
            accuracy(torch.zeros(4, 2), torch.zeros(4), dim)
    assert accuracy(torch.eye(4)[None], torch.arange(4)[None], dim=-1) == 1


@pytest.mark.parametrize(('out', 'y'), [((7,), (7,)), ((7, 1), (7,)), ((7,), (7, 1)), ((7, 1), (7, 1)),
                                        ((7, 5), (7, 5))])
def test_binary_accuracy_is_torchmetrics(out, y):
    preds, targets = torch.randn(out), torch.randint(0, 2, y)
    expected = tm_binary_accuracy(preds.flatten().sigmoid(), targets.flatten()).item()
    assert binary_accuracy(preds, targets).item() == pytest.approx(expected)
    assert binary_accuracy(preds, targets.float()).item() == pytest.approx(expected)


def test_binary_accuracy_ignores_what_is_ignored_and_refuses_other_shapes():
    preds, y = torch.tensor([1., -1., 2., -2.]), torch.tensor([1, 1, -100, -100])
    assert binary_accuracy(preds, y) == .5
    with pytest.raises(ValueError, match='needs one logit per target'): binary_accuracy(torch.randn(4, 2), y)


def test_an_accuracy_over_an_epoch_is_that_of_the_targets_that_count():
    bs = [(x, torch.where(torch.arange(len(y)) < n, y, -100)) for (x, y), n in zip(uneven(), (1, 5, 0), strict=True)]
    learn = learner(Quiet(accuracy, b=lambda p, y: 1.), dls=DataLoaders([], bs))
    learn.fit(train=False)
    x, y = (torch.cat(t) for t in zip(*bs, strict=True))
    assert learn.history[0]['accuracy'] == pytest.approx(numpy_accuracy(learn.model(x).detach(), y, 1))


def test_accuracy_of_pixel_predictions_counts_pixels():
    out = torch.zeros(1, 3, 2, 2)
    out[0, 2] = 1.
    assert accuracy(out, torch.tensor([[[2, 2], [2, 0]]])).item() == .75


def test_the_options_of_an_accuracy_count_over_an_epoch_too():
    bs = [(torch.randn(n, 5, 4), torch.randint(0, 3, (n, 5))) for n in (3, 1)]
    loss = lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten())  # noqa: E731
    acc, binary = partial(accuracy, dim=2, ignore_index=1), lambda p, y: binary_accuracy(p[..., 0], y > 0)
    learn = learner(Quiet(acc=acc, b=binary), dls=DataLoaders([], bs), loss_func=loss)
    learn.fit(train=False)
    preds, y = torch.cat([learn.model(x) for x, _ in bs]).detach(), torch.cat([y for _, y in bs])
    assert learn.history[0]['acc'] == pytest.approx(numpy_accuracy(preds, y, 2, ignored=1))
    assert learn.history[0]['b'] == pytest.approx(((preds[..., 0] > 0) == (y > 0)).double().mean().item())


def test_only_accuracies_have_counts():
    assert counts_of(max) is None
    assert counts_of(partial(max, default=1)) is None
    assert counts_of(binary_accuracy)(torch.tensor([1., -1., 3.]), torch.tensor([1, 1, -100])) == (1, 2)


@pytest.mark.parametrize('out', [(torch.zeros(4, 3), torch.zeros(4)), dict(logits=torch.zeros(4, 3))])
def test_predictions_that_are_no_tensor_are_refused_with_what_to_write(out):
    with pytest.raises(TypeError, match=rf'must be a tensor, got a {type(out).__name__}: write .* accuracy\(out\[0\]'):
        accuracy(out, torch.zeros(4).long())

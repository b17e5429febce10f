"Shapes and ranges of batches, and what in them needs attention."
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai.diagnosis.ranges import (
    about_data,
    about_gradients,
    about_loss,
    about_outputs,
    data_text,
    kind_of,
    of_outputs,
)

X, Y = torch.tensor([[0., 1.], [2., 3.]]), torch.tensor([0, 2])


def seen(x=X, y=Y): return dict(n=len(x), inputs=kind_of(x), targets=kind_of(y))


def test_a_batch_in_a_line():
    assert data_text(seen()) == 'inputs float32 (2, 2) from 0 to 3, mean 1.5, std 1.12, targets int64 (2,) from 0 to 2'
    nested = kind_of(dict(a=X, b=(Y, 'text')))
    assert nested['text'] == 'float32 (2, 2) and int64 (2,) from 0 to 3, mean 1.33, std 1.11'
    assert data_text(dict(inputs=kind_of('text'), targets={})) == 'inputs str'


@pytest.mark.parametrize(('x', 'y', 'problem'), [
    (X, Y, ''), (X/3, Y, ''), (X.int(), Y, ''), (X*100, Y, 'inputs are not normalized'),
    (X + 50, Y, 'subtract 51.5 and divide by 1.12'), (X*1e-3, Y, 'not normalized'),
    (X*math.nan, Y, 'inputs are not finite'),
    (torch.ones(2, 2), Y, 'all inputs are the same number'), (X, torch.tensor([1, 1]), 'all targets are the same'),
    (X, torch.tensor([1., math.inf]), 'targets are not finite'), (X*0 + torch.inf, Y, 'inputs are not finite')])
def test_what_needs_attention_in_a_batch(x, y, problem):
    found = about_data(seen(x, y), None)
    assert problem in found
    assert bool(found) == bool(problem)


@pytest.mark.parametrize(('x', 'problem'), [(X, ''), (X*2, ''), (X*3.2, 'another range'), (X/4, 'another range'),
                                            (X + 3, 'another range'), (X.double(), 'other dtypes or shapes'),
                                            (X[:, :1], 'other dtypes or shapes')])
def test_where_validation_differs_from_training(x, problem):
    found = about_data(seen(x), seen())
    assert problem in found
    assert bool(found) == bool(problem)


def test_outputs_that_are_equal_or_not_finite():
    assert about_outputs(dict(outputs=of_outputs(X))) == ''
    assert about_outputs(dict(outputs=of_outputs(X[:1].repeat(3, 1)))) == 'outputs are the same for all samples'
    assert about_outputs(dict(outputs=of_outputs(X[:1]))) == ''
    assert about_outputs(dict(outputs=of_outputs(X/0))) == 'outputs are not finite'


@pytest.mark.parametrize(('loss_func', 'loss', 'problem'), [
    (F.cross_entropy, math.log(2), ''), (nn.CrossEntropyLoss(), 3., 'guessing gives 0.693'), (F.mse_loss, 2., ''),
    (nn.MSELoss(), 4.1, 'guessing gives 2'), (F.l1_loss, 99., ''), (F.l1_loss, math.nan, 'the loss is not finite')])
def test_the_loss_before_training_is_near_that_of_guessing(loss_func, loss, problem):
    class Learn: pass
    learn = Learn()
    learn.loss_func = loss_func
    found = about_loss(learn, seen() | dict(outputs=of_outputs(X), loss=loss), 'train')
    assert problem in found
    assert bool(found) == bool(problem)


def test_gradients_that_are_missing_zero_or_not_finite_are_named():
    fine = dict(n=6, missing=[], not_finite=[], zero=[])
    assert about_gradients(fine) == ('', '6 of 6 parameters have one')
    missing, text = about_gradients(fine | dict(missing=list('abcdef')))
    assert missing == 'none, so these do not train: a, b, c, d and 2 more'
    assert text == '0 of 6 parameters have one'
    assert about_gradients(fine | dict(zero=['w']))[0] == 'only zeros: w'
    assert about_gradients(fine | dict(not_finite=['w']))[0] == 'not finite: w'


def test_numbers_of_sparse_and_nested_tensors_are_those_they_hold():
    dense = torch.tensor([[0., 2., 0.], [4., 0., 6.]])
    nested = torch.nested.nested_tensor([torch.tensor([2.]), torch.tensor([4., 6.])], layout=torch.jagged)
    for x in (dense.to_sparse(), nested):
        found = kind_of(x)
        assert (found['low'], found['high'], found['mean']) == (2, 6, 4)

"Memory of a training step, counted in bytes."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai.diagnosis.memory import bytes_of, in_bytes, kept_for_backward, state_bytes


def test_each_memory_is_counted_once_and_parameters_not_at_all():
    lin, x = nn.Linear(4, 3), torch.randn(5, 4)
    with kept_for_backward() as kept: lin(x).relu()
    assert kept == [4*(5*4 + 5*3)]
    with kept_for_backward() as kept: (lin(x[:2]) + lin(x[2:4])).sum()
    assert kept == [4*5*4]  # parts of one tensor


def test_what_needs_no_gradient_keeps_nothing():
    with torch.no_grad(), kept_for_backward() as kept: nn.Linear(4, 3)(torch.randn(5, 4))
    assert kept == [0]


def test_gradients_are_the_same_and_nothing_is_kept_alive():
    x = torch.randn(5, 4, requires_grad=True)
    want, = torch.autograd.grad(x.exp().sum(), x)
    with kept_for_backward(): y = x.exp().sum()
    y.backward()
    assert torch.equal(x.grad, want)


def test_second_derivatives_still_work():
    x = torch.tensor(2., requires_grad=True)
    with kept_for_backward(): y = x**3
    first, = torch.autograd.grad(y, x, create_graph=True)
    assert torch.autograd.grad(first, x)[0] == 12


def test_state_is_counted_and_an_object_without_one_is_unknown():
    p = nn.Parameter(torch.randn(4, 3))
    opt = torch.optim.SGD([p], lr=.1, momentum=.9)
    assert state_bytes(opt) == 0
    F.mse_loss(p, torch.zeros(4, 3)).backward()
    opt.step()
    assert state_bytes(opt) == bytes_of([p]) == 48
    assert state_bytes(object()) is None


@pytest.mark.parametrize(('n', 'text'), [(0, '0 bytes'), (999, '999 bytes'), (1000, '1 kB'), (3140, '3.1 kB'),
                                         (123_456, '123 kB'), (2.5e9, '2.5 GB'), (7e15, '7000 TB')])
def test_bytes_as_text(n, text): assert in_bytes(n) == text


def test_what_is_kept_in_transforms_and_sparse_tensors_is_passed_over():
    w = torch.ones(3, 2, requires_grad=True)
    with kept_for_backward() as kept:
        a = torch.func.vmap(lambda x: (x@w).square())(torch.ones(4, 3))
        b = torch.sparse.mm(torch.eye(3).to_sparse(), w)
    (a.sum() + b.sum()).backward()
    assert w.grad.shape == w.shape
    assert kept[0] >= 0

"Values as text: nothing differs unseen."
from collections import Counter, OrderedDict, deque
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from miniai.resume.packing import Packer
from miniai.resume.values import ALL, NONE, SOME, brief
from nests import Color, Odd, Point, any_nests, known, text, told
from states import DTYPES


@given(any_nests, any_nests, st.data())
def test_text_differs_where_values_do_and_a_copy_has_the_same(x, y, data):
    assert text(deepcopy(x)) == text(x)
    assert len(text(x)) <= 200
    assert (text(x) == text(y)) == (known(x) == known(y))
    if isinstance(x, list | deque) and x:
        other, i = deepcopy(x), data.draw(st.integers(0, len(x) - 1))
        other[i] = data.draw(any_nests)
        assert (text(other) == text(x)) == (known(other) == known(x))


@pytest.mark.parametrize(('x', 'y'), [
    (1, True), (1, 1.), (0., -0.), ('1', 1), ([1], (1,)), ([1], {1}), ({1}, frozenset([1])), (b'a', 'a'),
    (dict(a=1), OrderedDict(a=1)), (dict(a=1), Counter(a=1)), (Path('a'), 'a'), (Color.RED, 'RED'),
    (['a, b'], ['a', 'b']),
    (Point(1, 2), (1, 2)), (dict(a=1, b=2), dict(b=2, a=1)), (deque([1], 3), deque([1], 4)), (range(3), range(4)),
    (int, float), (list(range(2000)), list(range(1999))), ([0]*2000, [0]*1999 + [1]), ([0]*2000, [1] + [0]*1999)])
def test_values_that_look_alike_have_different_texts(x, y): assert text(x) != text(y)


@pytest.mark.parametrize('n', [2, 1000, 1001, 3000])
def test_the_text_of_a_set_does_not_depend_on_its_order_in_memory(n):
    items = [i << 40 for i in range(n)]  # all in one place of the set's table, so that the first to come is first
    x, y = set(items), set()
    for i in reversed(items): y.add(i)
    assert list(x) != list(y)
    assert text(x) == text(y)
    assert text(frozenset(x)) == text(frozenset(y))
    assert len({text(x), text(x - {0}), text(x - {0} | {1})}) == 3


@pytest.mark.parametrize('dtype', DTYPES)
def test_any_element_dtype_or_shape_of_a_small_tensor_changes_its_text(dtype):
    for n in (1, 5, 24):
        x = torch.zeros(n, dtype=torch.uint8)
        others = [*(x.index_fill(0, torch.tensor([i]), 1) for i in range(n)), x[:, None], x[1:], x.char()]
        texts = {text(other.to(dtype) if other.dtype == x.dtype else other) for other in others}
        assert len({text(x.to(dtype)), *texts}) == len(texts) + 1 - (dtype == torch.int8)
        assert len(texts) == len(others)


def test_an_array_of_any_layout_has_the_text_of_its_numbers():
    x = np.arange(24.).reshape(4, 6)
    for y in (x.copy('F'), np.ascontiguousarray(x.T).T, np.flip(np.flip(x, 0).copy(), 0)): assert text(y) == text(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    assert text(frozen) == text(x)
    t = torch.arange(24.).reshape(4, 6)
    assert text(t.t().contiguous().t()) == text(torch._neg_view(-t)) == text(t)


@pytest.mark.parametrize('dtype', ['>i4', '>f8', 'g', 'U3', 'M8[s]', 'O', [('a', 'i4')]])
def test_arrays_of_unusual_dtypes_have_a_text(dtype): assert '(9,)' in text(np.zeros(9, dtype))


@pytest.mark.parametrize('shape', [(2**19,), (2**19, 1), (3, 2**18), (2, 2**9, 2**9), (2**19, 2)])
def test_of_large_arrays_the_first_and_last_number_count(shape):
    x = torch.zeros(shape)
    first, last = x.clone(), x.clone()
    first.view(-1)[0] = last.view(-1)[-1] = 1
    assert len({text(y) for y in (x, first, last, x[:, None], x.int())}) == 5
    assert text(x.numpy()) == text(x) == text(x.clone())


@pytest.mark.parametrize(('x', 'much'), [
    ([1, 'a', dict(b=(2,))], ALL), (torch.zeros(9), ALL), (torch.zeros(2**18), ALL), (torch.zeros(2**18 + 1), SOME),
    (torch.zeros(1000, 1000), SOME), (list(range(1000)), ALL), (list(range(1001)), SOME), ([[0]*1001], SOME),
    (nn.Parameter(torch.zeros(2)), NONE), ([1, dict(a=nn.Parameter(torch.zeros(2)))], NONE), (Odd(), ALL),
    (np.array([Odd()]), SOME), (torch.eye(2).to_sparse(), SOME), (torch.ones(2, device='meta'), SOME)])
def test_how_much_the_text_tells(x, much): assert told(x) == much


def test_tensors_of_modules_and_objects_have_their_names():
    w = torch.zeros(3)
    assert brief([w, Odd()], lambda x: 'model.weight' if x is w else 'odd') == ('[model.weight, odd]', ALL)


def test_a_container_that_contains_itself_has_a_text():
    x = dict(children=[])
    x['children'].append(dict(parent=x))
    assert 'children' in text(x)


@given(any_nests)
def test_looking_at_a_value_neither_changes_it_nor_draws(x):
    before, state = known(x), torch.get_rng_state()
    text(x)
    Packer({}, {}).pack(x, 'x')
    assert known(x) == before
    assert torch.equal(torch.get_rng_state(), state)

"Differences of nests: none if both are the same to the bit, else each of them, by name."
import copy
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniai.resume.differences import differences, leaves

values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
tensors = st.lists(st.floats(width=32), max_size=4).map(torch.tensor)
keys = st.text(max_size=3) | st.integers()
nests = st.recursive(values | tensors, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) |
                     st.dictionaries(keys, inner, max_size=3), max_leaves=12)


@given(nests)
def test_a_copy_does_not_differ(x): assert differences(x, copy.deepcopy(x)) == {}


def bits(x):
    "What tells any two leaves apart, computed independently."
    if isinstance(x, torch.Tensor): return 'tensor', str(x.dtype), tuple(x.shape), x.numpy().tobytes()
    return type(x), struct.pack('d', x) if isinstance(x, float) else x


def turned(x):
    "The same nest, with the keys of its mappings in reverse order."
    if isinstance(x, dict): return {k: turned(x[k]) for k in reversed(x)}
    return type(x)(map(turned, x)) if isinstance(x, list | tuple) else x


@given(st.tuples(nests, nests) | nests.map(lambda x: (x, turned(x))))
def test_nests_that_do_not_differ_have_the_same_leaves_to_the_bit(pair):
    a, b = (sorted((bits(x) for x in leaves(nest)), key=repr) for nest in pair)
    if not differences(*pair): assert a == b


@given(nests)
def test_the_order_of_keys_does_not_matter(x): assert differences(x, turned(x)) == {}


@given(values | tensors, values | tensors)
def test_two_leaves_differ_if_their_bits_do(a, b):
    assert bool(differences(dict(x=a), dict(x=b))) == (bits(a) != bits(b))


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=5), st.data())
def test_the_first_item_of_a_list_that_differs_is_named(xs, data):
    at = data.draw(st.integers(0, len(xs) - 1))
    ys = [*xs[:at], 'other', *(['more'] if at + 1 < len(xs) else []), *xs[at + 2:]]
    assert differences(dict(records=dict(lr=xs)), dict(records=dict(lr=ys))) == {
        'records lr': f"item {at}: {xs[at]!r} and 'other'"}


def test_a_place_is_named_by_its_keys_and_indices():
    a = dict(model={'0.weight': torch.zeros(2, 3), '0.bias': torch.ones(3)}, history=[dict(loss=1.), dict(loss=2.)],
             opt=dict(state={0: dict(step=3)}), same=(1, [2]))
    b = copy.deepcopy(a)
    b['model']['0.weight'][1, 2], b['history'][1]['loss'], b['opt']['state'][0]['step'] = -.25, 2.5, 4
    assert differences(a, b) == {'model 0.weight': '1 of 6 numbers differ, by up to 0.25',
                                 'opt state 0 step': '3 and 4', 'history 1 loss': '2.0 and 2.5'}


@pytest.mark.parametrize(('a', 'b', 'said'), [
    (torch.zeros(2), torch.zeros(3), '(2,) torch.float32 and (3,) torch.float32'),
    (torch.zeros(2), torch.zeros(2, dtype=torch.int64), '(2,) torch.float32 and (2,) torch.int64'),
    (torch.tensor([0.]), torch.tensor([-0.]), 'zeros differ in sign'),
    (torch.tensor([1., math.nan]), torch.tensor([1., 2.]), '1 of 2 numbers differ, by up to nan'),
    (torch.tensor([3 + 4j]), torch.tensor([0j]), '1 of 1 numbers differ, by up to 5'),
    (torch.tensor([True, False]), torch.tensor([True, True]), '1 of 2 numbers differ, by up to 1'),
    (np.float64(1), 1., 'np.float64(1.0) and 1.0'), (np.ones(2), np.zeros(2), '(2,) float64 and (2,) float64'),
    (1, True, '1 and True'), (1, 1., '1 and 1.0'), (0., -0., '0.0 and -0.0'), ([1, 2], [1], '2 entries and 1 entries'),
    ([[1], 2], [[1]], '2 entries and 1 entries'), ((1,), [1], '1 entries and 1 entries'),
    ({}, [], '0 entries and 0 entries'),
    ('x'*100, 'y', "'" + 'x'*58 + "… and 'y'"), (torch.zeros(1), 0., "(1,) torch.float32 and 0.0")])
def test_both_values_are_described(a, b, said): assert differences(dict(k=a), dict(k=b)) == {'k': said}


@pytest.mark.parametrize('part', [torch.tensor([]), torch.ones(2), np.ones(2), [1], {}])
def test_a_value_in_one_list_and_a_nest_or_tensor_in_the_other_differ(part):
    said = 'False and ' + differences(part, None)[''].removesuffix(' and None')
    assert differences((None, False), (None, part)) == {'1': said}
    assert list(differences([part, 1], [False, 1])) == ['0']


def test_a_key_that_only_one_has_is_described_with_nothing_for_the_other():
    assert differences(dict(a=1), dict(b=torch.ones(2))) == {'a': '1 and nothing',
                                                             'b': 'nothing and (2,) torch.float32'}


def test_names_are_left_out_at_any_depth():
    a, b = (dict(rows=[dict(loss=1., seconds=s)], seconds=s) for s in (1., 2.))
    assert differences(a, b, ['seconds']) == {}
    assert len(differences(a, b)) == 2
    assert list(leaves(a, ['seconds'])) == [1.]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool])
def test_tensors_of_any_dtype_and_strides_are_compared_by_value(dtype):
    x = torch.tensor([[1, 0], [1, 1]]).to(dtype)
    assert differences(x, x.T.contiguous().T) == {}
    assert differences(dict(x=x), dict(x=x.T)) == {'x': '2 of 4 numbers differ, by up to 1'}
    assert differences(x[0, 0], x[1, 0].clone()) == {}

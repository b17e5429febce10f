"States come back bit for bit, with their types, order and shared tensors."
import json
import math
import struct
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from miniai.checkpoint import save, verify
from miniai.checkpoint.tree import flatten
from states import aliases, back, everything, same, states, ties, views

LAX = dict(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def path(tmp_path): return tmp_path/'a.safetensors'


def check_comes_back(path, state):
    got = back(path, state)
    assert same(got, state)
    assert aliases(got) == ties(state)


@given(states())
@settings(max_examples=80, **LAX)
def test_any_nest_comes_back_bit_for_bit_with_types_order_strides_and_shared_tensors(path, state):
    check_comes_back(path, state)


@given(views())
@settings(max_examples=100, **LAX)
def test_views_of_one_memory_come_back_bit_for_bit_and_only_equal_views_are_one_again(path, seen):
    check_comes_back(path, seen)


def test_one_of_everything_comes_back_bit_for_bit(path): assert same(back(path, everything()), everything())


X = np.arange(10.)
READ_ONLY = X[::2]
READ_ONLY.setflags(write=False)


@pytest.mark.parametrize(('a', 'b'), [(X[4::-1], X[4:9]), (np.broadcast_to(X[1:2], 5), X[1:6]), (READ_ONLY, X[:5]),
                                      (X[::-1], X[9:]), (X[::2], X[:5]), (X[:2], torch.from_numpy(X[:2]))])
def test_views_that_differ_are_not_merged(path, a, b):
    for state in ([a, b], [b, a]): assert same(back(path, state), state)


ints = st.integers(-2**63, 2**63 - 1)


@given(st.one_of(*(st.lists(x, min_size=60, max_size=70) for x in (
    st.floats(), ints, st.integers(), st.one_of(st.floats(), ints), st.one_of(st.booleans(), ints)))))
@settings(max_examples=60, **LAX)
def test_a_long_list_of_numbers_comes_back_bit_for_bit_with_its_types(path, xs):
    state = dict(a=xs, b=[xs, tuple(xs)], c=xs)
    assert same(back(path, state), state)
    assert verify(path)


def test_long_lists_of_extreme_numbers_come_back_bit_for_bit(path):
    nans = [struct.unpack('>d', bytes.fromhex(h))[0] for h in ('7ff8000000000001', 'fff8000000000000')]
    floats, ints = [*nans, math.inf, -math.inf, -0.0, 5e-324]*20, [2**63 - 1, -2**63, 0]*30
    for state in (floats, ints, [*ints, 2**63], [*ints, True], [*floats, 1], floats[:63], ints[:63]):
        assert same(back(path, state), state)


def test_a_long_list_of_numbers_is_stored_as_a_tensor_named_by_its_path_and_a_short_one_as_text(path):
    save(path, dict(recs=dict(lr=[i/7 for i in range(64)], n=list(range(64)), short=[0.5]*63)))
    with safe_open(str(path), 'pt') as f:
        assert torch.equal(f.get_tensor('recs/lr'), torch.arange(64, dtype=torch.float64)/7)
        assert torch.equal(f.get_tensor('recs/n'), torch.arange(64))
        assert json.loads(f.metadata()['state'])['recs'] == dict(lr={'$floats': 'recs/lr'}, n={'$ints': 'recs/n'},
                                                                 short=[0.5]*63)


def test_tied_weights_are_written_once_and_tied_again(path):
    layer = nn.Linear(300, 300)
    got = back(path, dict(encoder=layer.weight, decoder=layer.weight, alias=layer.weight.detach()))
    assert got['encoder'] is got['decoder'] is got['alias']
    assert path.stat().st_size < 1.1*layer.weight.nbytes


def test_equal_tensors_with_memory_of_their_own_are_not_tied(path):
    got = back(path, [torch.zeros(3), torch.zeros(3)])
    got[0].add_(1)
    assert got[1].sum() == 0


def test_arrays_over_the_same_bytes_are_written_once_and_are_one_again(path):
    raw = bytes(8)
    got = back(path, dict(a=np.frombuffer(raw, 'i2'), b=np.frombuffer(raw, 'i2'), c=np.frombuffer(raw, 'i4')))
    assert got['a'] is got['b']
    assert got['c'].tolist() == [0, 0]


def test_loaded_tensors_and_arrays_are_writable(path):
    got = back(path, dict(t=torch.ones(3), a=np.broadcast_to(np.ones(1), 3)))
    got['t'].add_(1), got['a'].__iadd__(1)
    assert got['t'].tolist() == got['a'].tolist() == [2, 2, 2]


def test_a_module_s_state_dict_loads_again(path):
    a, b = (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
            for _ in range(2))
    b.load_state_dict(back(path, a.state_dict()))
    assert same(dict(a.state_dict()), dict(b.state_dict()))


def test_names_that_collide_or_cannot_be_printed_are_made_unique_and_printable(path):
    state = {'a/b': torch.zeros(1), 'a': {'b': torch.ones(1)}, '__metadata__': torch.ones(2),
             'x\ud800\n': torch.ones(3)}
    assert same(back(path, state), state)
    with safe_open(str(path), 'pt') as f: assert sorted(f.keys()) == ['__metadata__~2', 'a/b', 'a/b~2', 'x\ufffd\ufffd']


@pytest.mark.parametrize(('state', 'said'), [
    ({'opt': {'state': {3: {'avg': object()}}}}, r"state\['opt'\]\['state'\]\[3\]\['avg'\] is a builtins.object"),
    ([1, {2}], r"state\[1\] is a builtins.set"), ({1.5: 0}, 'state has the key 1.5; keys must be str or int'),
    ({True: 0}, 'state has the key True'), (namedtuple('P', 'x')(1), 'state is a .*P, which'),
    (torch.float32, 'is a torch.dtype'), (np.array(['a']), r"state is a ndarray of <U1, not a plain array"),
    (np.arange(3, dtype='>i4'), 'not a plain array of native'), ([torch.eye(2).to_sparse()],
                                                                 r'state\[0\] is a tensor that is sparse'),
    (torch.zeros(2, device='meta'), 'meta device'), (np.longdouble(1), 'longdouble'), (len, 'builtin_function'),
    (nn.Linear(1, 1), 'Linear')])
def test_a_value_that_a_checkpoint_cannot_hold_is_a_type_error_with_its_path(state, said):
    with pytest.raises(TypeError, match=said): flatten(state)


def test_a_state_that_contains_itself_is_a_type_error():
    state = []
    state.append(state)
    with pytest.raises(TypeError, match='contains itself'): flatten(state)

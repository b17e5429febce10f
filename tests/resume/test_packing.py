"Values as plain data, and back in place: nothing is lost unreported."
from collections import Counter, OrderedDict, defaultdict, deque
from copy import deepcopy
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from miniai.checkpoint.tree import flatten, unflatten
from miniai.resume.packing import Packer, Unpacker, memory_of
from miniai.resume.values import is_plain
from nests import Color, Odd, Point, any_nests, known, plain_nests
from states import ARRAYS


def through_file(x, names=None, memory=None):
    "`x` packed, in a file and back; the paths that were lost."
    packer = Packer(names or {}, memory or {})
    json, leaves = flatten(packer.pack(x, 'x'))
    found = {nm: leaf[1].clone() for nm, leaf in leaves.items()}
    found = {nm: t.numpy() if leaves[nm][0].numpy else t for nm, t in found.items()}
    return unflatten(json, found), packer.lost


def restored(x, live, objects=None, taken=(), **kwargs):
    packed, lost = through_file(x, **kwargs)
    unpacker = Unpacker(dict(objects or {}), set(taken), 'cpu')
    return unpacker.unpack(packed, live, 'x'), [*lost, *unpacker.lost]


@given(plain_nests, st.one_of(st.none(), plain_nests))
def test_any_nest_of_plain_values_is_the_same_after_a_round_trip_whatever_is_there(x, live):
    got, lost = restored(deepcopy(x), live)
    assert known(got) == known(x)
    assert not lost


@given(any_nests)
def test_any_nest_is_the_same_after_a_round_trip_into_its_copy(x):
    got, lost = restored(x, deepcopy(x))
    assert known(got) == known(x)
    assert not lost


@settings(max_examples=25)
@given(st.sampled_from(ARRAYS), st.integers(0, 3), st.integers(0, 3))
def test_arrays_and_tensors_that_fit_keep_their_memory(dtype, n, m):
    x, live = np.ones((n, m), dtype), np.zeros((n, m), dtype)
    got, _ = restored(x, live)
    assert got is live
    assert known(got) == known(x)
    got, _ = restored(torch.from_numpy(x), there := torch.from_numpy(np.zeros((n, m), dtype)))
    assert got is there
    assert torch.equal(got, torch.from_numpy(x))
    for other in (np.zeros((n, m + 1), dtype), np.zeros((n, m), 'V1'), torch.zeros(n, m), None):
        got, _ = restored(x, other)
        assert known(got) == known(x)


def test_a_value_that_cannot_be_written_in_place_is_replaced():
    fixed = np.zeros(3)
    fixed.flags.writeable = False
    assert restored(np.ones(3), fixed)[0].tolist() == [1, 1, 1]
    assert restored(torch.ones(3), torch.zeros(1).expand(3))[0].tolist() == [1, 1, 1]
    assert fixed.tolist() == [0, 0, 0]


@pytest.mark.parametrize(('x', 'live'), [
    ([1, 2], [3]), ([1, [2]], []), ({1, 2}, set()), (dict(a=1), dict(b=2)), ({1: 2}, {}),
    (OrderedDict(a=1), OrderedDict()),
    (defaultdict(list, a=[1]), defaultdict(list)), (Counter('aab'), Counter()), (deque([1], 3), deque([2, 3], 3))])
def test_containers_that_fit_are_filled_in_place(x, live):
    got, lost = restored(deepcopy(x), live)
    assert got is live
    assert known(got) == known(x)
    assert not lost


def test_items_of_a_container_are_put_back_in_place():
    inner = [torch.zeros(2), np.zeros(2), []]
    live = dict(a=list(inner), b=tuple(inner))
    new = [torch.ones(2), np.ones(2), [1]]
    got, _ = restored(dict(a=new, b=tuple(deepcopy(new))), dict(a=list(inner), b=()))
    assert all(x is y for x, y in zip(got['a'], inner, strict=True))
    assert known(got['a']) == known(new)
    got, _ = restored(tuple(new), live['b'])
    assert all(x is y for x, y in zip(got, inner, strict=True))


@pytest.mark.parametrize('x', [[1], {1}, dict(a=1), {1: 2}, deque([1]), torch.ones(9), np.ones(9), (1, [2]),
                               Counter('a')])
def test_what_is_in_two_places_stays_one(x):
    for live in (None, [deepcopy(x), deepcopy(x), []], [0]):
        got, lost = restored([x, dict(again=x), [x]], live)
        assert got[0] is got[1]['again'] is got[2][0]
        assert known(got[0]) == known(x)
        assert not lost


@pytest.mark.parametrize('kind', [
    lambda i: [i], lambda i: {i}, lambda i: {i: i}, lambda i: dict(a=i), lambda i: deque([i]), lambda i: [[i]],
    lambda i: torch.full((9,), float(i)), lambda i: np.full(9, i), lambda i: nn.Parameter(torch.full((2,), float(i)))])
def test_what_was_one_at_the_start_and_two_when_saved_becomes_two(kind):
    one = kind(0)
    got, _ = restored(dict(a=kind(1), b=kind(2)), dict(a=one, b=one))
    assert known(got['a']) == known(kind(1))
    assert known(got['b']) == known(kind(2))


@pytest.mark.parametrize('make', [list, deque, lambda: dict(down=[])])
@pytest.mark.parametrize('anew', [False, True])
def test_a_container_that_contains_itself_does_so_again(make, anew):
    x = make()
    (x['down'] if isinstance(x, dict) else x).append(x)
    got, lost = restored(x, None if anew else make())
    assert (got['down'] if isinstance(x, dict) else got)[0] is got
    assert not lost


def test_a_key_that_is_a_value_too_stays_one():
    got, _ = restored({k: [k] for k in [(1, 2), (3, 4), ()]}, None)
    assert got == {(1, 2): [(1, 2)], (3, 4): [(3, 4)], (): [()]}


@pytest.mark.parametrize('x', [{Color.RED: 1, Color.BLUE: 2}, {Color.RED}, {torch.float32: 3}, {int: 'a'}])
def test_constants_as_keys_and_in_sets_are_kept_if_they_are_there(x):
    got, lost = restored(deepcopy(x), deepcopy(x))
    assert got == x
    assert not lost


# Tensors of modules, and objects

def test_objects_of_the_run_are_saved_as_references():
    a, b = Odd(), Odd()
    got, lost = restored([a, dict(b=b), a], None, dict(first=a, second=b), names={id(a): 'first', id(b): 'second'})
    assert got == [a, dict(b=b), a]
    assert not lost


@pytest.mark.parametrize('live', [None, torch.ones(2, 2), nn.Parameter(torch.ones(2, 2))])
@pytest.mark.parametrize(('alias', 'itself'), [(lambda m: m.weight, True), (lambda m: m.weight.detach(), False),
                                               (lambda m: m.state_dict()['weight'], False)])
def test_a_modules_parameter_comes_back_as_itself_and_an_alias_as_an_alias(alias, itself, live):
    here, there = nn.Linear(2, 2), nn.Linear(2, 2)
    params = dict(here.named_parameters()).items()
    names, memory = {id(p): nm for nm, p in params}, memory_of(dict(params))
    got, lost = restored([alias(here)], [live], dict(there.named_parameters()), names=names, memory=memory)
    assert (got[0] is there.weight) == itself
    assert got[0].data_ptr() == there.weight.data_ptr()
    assert got[0].requires_grad == itself
    assert not lost


@pytest.mark.parametrize('alias', [lambda w: w.detach(), lambda w: w.detach()[0], lambda w: w.detach().numpy(),
                                   lambda w: nn.Parameter(w.detach())])
def test_memory_of_a_module_is_not_written_to_by_a_value_that_was_an_alias_at_the_start(alias):
    m = nn.Linear(2, 2)
    live, before = alias(m.weight), m.weight.tolist()
    saved = live.copy() if isinstance(live, np.ndarray) else live.detach().clone()
    saved[:] = 7
    got, _ = restored(saved, live, dict(m.named_parameters()), {m.weight.untyped_storage().data_ptr()})
    assert m.weight.tolist() == before
    assert known(got) == known(saved)


@pytest.mark.parametrize('grad', [None, torch.ones(3, 2), torch.eye(3, 2).to_sparse()])
@pytest.mark.parametrize('live', [None, nn.Parameter(torch.zeros(3, 2)), torch.zeros(3, 2), torch.zeros(1)])
def test_a_parameter_is_restored_with_its_gradient(grad, live):
    p = nn.Parameter(torch.arange(6.).view(3, 2))
    p.grad = grad
    got, lost = restored(p, live)
    assert got.is_leaf
    assert got.requires_grad
    assert isinstance(got, nn.Parameter) or live is not None
    assert torch.equal(got, p)
    assert (got.grad is None) if grad is None else torch.equal(got.grad.to_dense(), grad.to_dense())
    assert grad is None or got.grad.layout == grad.layout
    assert not lost


def test_a_tensor_that_needs_no_gradient_stays_one_where_there_was_a_parameter():
    assert not restored(torch.ones(2), nn.Parameter(torch.zeros(2)))[0].requires_grad


def test_sparse_tensors_are_restored():
    x = torch.eye(3).to_sparse()
    for live in (None, torch.zeros(3, 3), x.clone()): assert torch.equal(restored(x, live)[0].to_dense(), torch.eye(3))


class Sub(Tensor): "A tensor with behavior of its own."


@pytest.mark.parametrize('make', [
    Odd, object, lambda: iter([1]), lambda: (i for i in []), lambda: torch.ones(2).as_subclass(Sub),
    lambda: torch.ones(2, device='meta'), lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
    lambda: torch.eye(2).to_sparse_csr(), lambda: np.array([Odd()]), lambda: np.array(['a']),
    lambda: np.zeros(2, '>i4'), lambda: np.zeros(2, 'g'), lambda: np.ma.array([1])])
@pytest.mark.filterwarnings('ignore:Sparse CSR')
def test_what_no_checkpoint_can_hold_is_reported_by_path_and_what_is_there_stays(make):
    x, live = make(), make()
    packed, lost = through_file(dict(a=[x]))
    assert list(lost) == ["x['a'][0]"]
    unpacker = Unpacker({}, set(), 'cpu')
    assert unpacker.unpack(packed, dict(a=[live]), 'x')['a'][0] is live
    assert unpacker.lost == ["x['a'][0]"]


@pytest.mark.parametrize('x', [Color.RED, torch.float32, range(3), int, Point(1, 2), defaultdict(list, a=[1])])
def test_what_cannot_be_made_anew_is_reported(x):
    for live in (None, 3): assert restored([x], [live])[1] == ['x[0]']


def test_what_refers_to_something_that_is_gone_is_reported():
    a = Odd()
    assert restored([a], [7], names={id(a): 'somewhere'}) == ([7], ['x[0]'])


def test_plain_values_are_told_from_objects():
    for x in (1, 'a', None, 1j, np.float32(1), torch.ones(1), np.ones(1), Color.RED, Path('a'), PurePosixPath('b')):
        assert is_plain(x)
    for x in ([], {}, (), set(), Odd(), iter([]), nn.Linear(1, 1), torch.Generator()): assert not is_plain(x)

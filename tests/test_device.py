"Nests of tensors, moved to a device and back, and scalars that stay there until they are read."
import runpy
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import default_collate

import miniai.device
from miniai.device import (
    DeferredScalars,
    collate_device,
    def_device,
    detached,
    first_tensor,
    is_number,
    map_tensors,
    tensors_in,
    to_cpu,
    to_device,
    to_scalar,
)
from small import off_cpu

Pair = namedtuple('Pair', 'a b')
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
tensors = st.builds(lambda n, dtype, grad: torch.arange(n).to(dtype).requires_grad_(grad and dtype.is_floating_point),
                    st.integers(0, 3), st.sampled_from(DTYPES), st.booleans())
others = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.just(object()))
nests = st.recursive(tensors | others, lambda x: st.one_of(
    st.lists(x, max_size=3), st.lists(x, max_size=3).map(tuple), st.dictionaries(st.text(max_size=2), x, max_size=3),
    st.dictionaries(st.text(max_size=2), x, max_size=3).map(OrderedDict), st.builds(Pair, x, x)), max_leaves=8)


def leaves(x):
    if isinstance(x, Mapping): x = list(x.values())
    return [leaf for o in x for leaf in leaves(o)] if isinstance(x, tuple | list) else [x]


def outline(x):
    "The nest with every leaf replaced by a dot: only types, keys and lengths."
    if isinstance(x, Mapping): return type(x), [(k, outline(v)) for k, v in x.items()]
    return (type(x), [outline(o) for o in x]) if isinstance(x, tuple | list) else '.'


def is_tensor(x): return isinstance(x, torch.Tensor)


@given(nests)
def test_map_tensors_changes_every_tensor_and_nothing_else(x):
    mapped = map_tensors(lambda t: [id(t)], x)
    expected = [id(o) if is_tensor(o) else o for o in leaves(x)]
    assert leaves(mapped) == expected
    same = map_tensors(lambda t: t, x)
    assert outline(same) == outline(x)
    assert all(a is b for a, b in zip(leaves(same), leaves(x), strict=True))


@given(nests)
def test_tensors_in_gives_every_tensor_in_order_and_first_tensor_the_first(x):
    expected = [o for o in leaves(x) if is_tensor(o)]
    found = list(tensors_in(x))
    assert len(found) == len(expected)
    assert all(a is b for a, b in zip(found, expected, strict=True))
    assert first_tensor(x) is (expected[0] if expected else None)


@pytest.mark.parametrize('f', [to_cpu, detached])
@given(nests)
def test_to_cpu_and_detached_cut_the_graph_and_make_half_precision_float32(f, x):
    moved = f(x)
    assert outline(moved) == outline(x)
    for new, old in zip(leaves(moved), leaves(x), strict=True):
        if not is_tensor(old):
            assert new is old
            continue
        assert not new.requires_grad
        assert new.device.type == 'cpu'
        assert new.dtype == (torch.float32 if old.dtype in (torch.float16, torch.bfloat16) else old.dtype)
        assert new.tolist() == old.tolist()


@given(nests)
def test_to_device_moves_every_tensor_and_keeps_its_type(x):
    moved = to_device(x, 'meta')
    assert outline(moved) == outline(x)
    for new, old in zip(leaves(moved), leaves(x), strict=True):
        if is_tensor(old): assert (new.device.type, new.dtype, new.shape) == ('meta', old.dtype, old.shape)
        else: assert new is old


def test_detached_leaves_tensors_where_they_are():
    there = torch.ones(2, device='meta', dtype=torch.bfloat16, requires_grad=True)
    cut, = detached([there])
    assert (cut.device.type, cut.dtype, cut.requires_grad) == ('meta', torch.float32, False)


def test_to_cpu_brings_tensors_back_from_another_device():
    there = torch.ones(3, device=def_device, requires_grad=True) * 2
    assert torch.equal(to_cpu((there, [there]))[1][0], torch.tensor([2., 2., 2.]))


def test_a_batch_is_moved_to_the_default_device_unless_told_otherwise():
    x, y = to_device((torch.ones(2), torch.zeros(2)))
    assert x.device.type == y.device.type == def_device


def test_other_mappings_keep_their_type_if_it_can_be_made_from_a_dict():
    assert isinstance(map_tensors(lambda t: t + 1, UserDict(a=torch.zeros(1))), UserDict)
    plain = map_tensors(lambda t: t + 1, defaultdict(list, a=torch.zeros(1)))
    assert plain == {'a': torch.ones(1)}


class Ordered(list): "A subclass of list."


@pytest.mark.parametrize('x', [Ordered([torch.zeros(1), torch.zeros(2)]), torch.zeros(2, 3).max(0)],
                         ids=['list subclass', "torch's own named result"])
def test_map_tensors_reaches_every_tensor_that_tensors_in_finds(x):
    mapped = map_tensors(lambda t: t.double(), x)
    assert [t.dtype for t in tensors_in(mapped)] == [torch.float64, torch.float64]


def test_collate_device_is_the_default_collate_on_the_default_device():
    items = [(torch.full((2,), float(i)), {'label': i}) for i in range(3)]
    x, y = collate_device(items)
    expected_x, expected_y = default_collate(items)
    assert torch.equal(x.cpu(), expected_x)
    assert torch.equal(y['label'].cpu(), expected_y['label'])
    assert x.device.type == y['label'].device.type == def_device


@pytest.mark.parametrize(('cuda', 'mps', 'best'), [(True, True, 'cuda'), (True, False, 'cuda'), (False, True, 'mps'),
                                                   (False, False, 'cpu')])
def test_the_default_device_is_cuda_then_mps_then_cpu(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
    assert runpy.run_path(miniai.device.__file__)['def_device'] == best


# Scalars

anything = st.floats(-1e3, 1e3, width=32)
sources = st.sampled_from(['float', 'cpu', 'off', 'off double'])


def as_source(x, source):
    if source == 'float': return x
    t = torch.tensor(x, dtype=torch.double if source == 'off double' else torch.float)
    return off_cpu(t) if source.startswith('off') else t


def test_to_scalar_reads_from_the_cpu_and_only_detaches_elsewhere():
    assert to_scalar(2.5) == 2.5
    read = to_scalar(torch.tensor(1.5, requires_grad=True))
    assert (read, type(read)) == (1.5, float)
    waiting = to_scalar(off_cpu(torch.tensor(1.5, requires_grad=True)*2))
    assert isinstance(waiting, torch.Tensor)
    assert not waiting.requires_grad


def test_a_number_is_a_python_number_or_a_tensor_of_one_element():
    for x in (1, 1., torch.ones(()), torch.ones(1, 1)): assert is_number(x)
    for x in (None, torch.ones(2), torch.ones(0), '1', [1.]): assert not is_number(x)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(anything, sources, st.booleans())))
def test_scalars_keep_their_values_and_order_from_any_device(xs):
    r = DeferredScalars()
    for n, (x, source, look) in enumerate(xs, 1):
        r.append(as_source(x, source))
        assert len(r) == n
        if look: assert r.values[-1] == pytest.approx(x)
    assert r.values == pytest.approx([x for x, _, _ in xs])
    assert len(r) == len(xs)


def test_values_are_python_floats():
    r = DeferredScalars()
    for x in (1., torch.tensor(2.), off_cpu(torch.tensor([3.])), 4., off_cpu(torch.tensor(5.).double())): r.append(x)
    assert [type(x) for x in r.values] == [float]*5


@pytest.mark.parametrize('shape', [(), (1,), (1, 1)])
def test_one_element_of_any_shape_is_a_scalar_and_is_read_once(shape):
    r = DeferredScalars()
    r.append(off_cpu(torch.full(shape, 2.)))
    r.append(torch.full(shape, 3.))
    for _ in range(2): assert (r.values, len(r)) == ([2., 3.], 2)


def test_a_larger_tensor_is_kept_without_its_graph():
    r = DeferredScalars([1.])
    r.append(torch.ones(2, requires_grad=True)*2)
    assert (r.values[1].tolist(), r.values[1].requires_grad, len(r)) == ([2., 2.], False, 2)


@dataclass(frozen=True)
class Item:
    x: torch.Tensor
    y: list
    name: str = 'a'


class Graph:
    "An object with a `to` of its own, in which no nest is known."
    device = 'cpu'
    def to(self, device):
        self.device = device
        return self


def test_the_tensors_of_a_dataclass_are_found_moved_and_mapped_and_the_rest_stays():
    item = Item(torch.zeros(2), [torch.ones(3)])
    assert [len(t) for t in tensors_in((1, item))] == [2, 3]
    assert first_tensor(item) is item.x
    moved = to_device([item], 'meta')[0]
    assert (type(moved), moved.x.device.type, moved.y[0].device.type, moved.name) == (Item, 'meta', 'meta', 'a')
    assert map_tensors(len, item) == Item(2, [3])
    assert item.x.device.type == 'cpu'


def test_an_object_with_a_to_of_its_own_moves_by_it_wherever_it_is():
    graph = Graph()
    moved = to_device((graph, dict(g=[graph])), 'meta')
    assert moved[0] is moved[1]['g'][0] is graph
    assert graph.device == 'meta'


def test_a_packed_sequence_keeps_its_batch_sizes_on_the_cpu_as_torch_does():
    packed = pack_sequence([torch.zeros(3, 2), torch.zeros(1, 2)])
    moved = to_device([packed], 'meta')[0]
    assert (moved.data.device.type, moved.batch_sizes.device.type) == ('meta', 'cpu')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_batches_reach_cuda_without_waiting_for_what_it_computes():
    x = torch.randn(1000, 1000)
    busy = torch.randn(4000, 4000, device='cuda')
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(20): busy = busy@busy/4000
        there = [to_device((x + i, [x.t()]), 'cuda') for i in range(5)]
        doubled = [a*2 for a, _ in there]
    finally: torch.cuda.set_sync_debug_mode('default')
    for i, ((a, (b,)), c) in enumerate(zip(there, doubled, strict=True)):
        assert torch.equal(a.cpu(), x + i)
        assert torch.equal(c.cpu(), (x + i)*2)
        assert torch.equal(b.cpu(), x.t())
        assert b.stride() == x.t().stride()

"Numbers that wait on the device until they are read."
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miniai.device import DeferredScalars, is_number, to_scalar
from small import off_cpu

SHAPES = [(), (1,), (1, 1)]
anything = st.floats(-1e3, 1e3, width=32)
sources = st.sampled_from(['float', 'cpu', 'off', 'off double'])


def as_source(x, source):
    if source == 'float': return x
    t = torch.tensor(x, dtype=torch.double if source == 'off double' else torch.float)
    return off_cpu(t) if source.startswith('off') else t


def test_a_number_on_the_cpu_is_a_float_and_one_elsewhere_stays_there_without_its_graph():
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
def test_scalars_are_the_numbers_in_the_order_they_came_wherever_they_came_from(xs):
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


def test_what_was_read_is_not_waiting_any_more():
    r = DeferredScalars()
    r.append(off_cpu(torch.ones(())))
    assert (r.values, r.values, len(r)) == ([1.], [1.], 1)


@pytest.mark.parametrize('shape', SHAPES)
def test_one_element_of_any_shape_is_a_reading(shape):
    r = DeferredScalars()
    r.append(off_cpu(torch.full(shape, 2.)))
    r.append(torch.full(shape, 3.))
    assert r.values == [2., 3.]

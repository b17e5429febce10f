"The source for Triton: the same lines for any trace, exact division and roots, and half types by their bits."
import torch

from miniai.kernels.trace import trace_rule
from miniai.kernels.triton_source import step_source, sum_source
from miniai.optim import rules


def body(source):
    "The lines of the function that steps a piece."
    inside = source[source.index('inside = '):]
    return [line.strip() for line in inside[:inside.index('@triton')].splitlines() if line.strip()]


def test_a_line_of_a_trace_is_a_line_of_the_kernel():
    trace = trace_rule(rules.rmsprop)
    lines = body(step_source(trace, (torch.float32,)*3, (False,)*3))
    assert [line for line in lines if line.startswith('x')][-4:] == [
        'x5 = tl.sqrt_rn(x3)', 'x6 = x5 + h3', 'x7 = tl.div_rn(x4, x6)', 'x8 = p_ - x7']
    assert lines[-2:] == ['tl.store(q0 + i, x8, mask=inside)', 'tl.store(q2 + i, x3, mask=inside)']


def test_doubles_use_tritons_own_operations_which_are_exact_for_them():
    source = step_source(trace_rule(rules.rmsprop), (torch.float64,)*3, (False,)*3)
    assert 'x5 = tl.sqrt(x3)' in source
    assert 'x7 = x4 / x6' in source


def test_two_elements_share_a_random_number_and_others_are_rounded_to_nearest():
    source = step_source(trace_rule(rules.adam), (torch.bfloat16,)*4, (True, False, True, True))
    assert [line for line in body(source) if 'dithered' in line or line.startswith('d')] == [
        'd0 = drawn(place + i, tl.load(key))', 'd1 = mixed(d0)',
        *(f'tl.store(q{k} + i, dithered({value}, {half}), mask=inside)' for k, value, half in (
            (0, 'x13', 'd0 & 0xffff'), (2, 'x2', 'd0 >> 16'), (3, 'x6', 'd1 & 0xffff')))]
    nearest = step_source(trace_rule(rules.sgd), (torch.bfloat16,)*2, (False,)*2)
    assert body(nearest)[-1] == 'tl.store(q0 + i, rounded(x1), mask=inside)'


def test_sums_are_taken_in_double_precision_inside_the_piece():
    source = sum_source(trace_rule(lambda p, g, *, lr: (p > lr*g, p)), (torch.float32,)*2)
    assert body(source)[-2:] == [f'tl.store(out + {i}, tl.sum(tl.where(inside, {x}, 0).to(tl.float64), 0))'
                                 for i, x in enumerate(('x1', 'p_'))]

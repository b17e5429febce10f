"What an object holds, by name."
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from miniai import BatchSchedCB, MetricsCB, MixUpCB
from miniai.optim import AdamW
from miniai.resume.slots import cells_of, globals_in, names_in, slot_names, slots_of
from small import learner


class Point:
    __slots__ = 'x', 'y'
    def __init__(self): self.x = 1


def closing(a, b=2):
    def inner(c, d=4, *, e=5): return a + b + c + d + e
    return inner


class Counting(MetricsCB):
    def __init__(self):
        super().__init__()
        self.seen, self._mine = 0, 1


@pytest.mark.parametrize(('x', 'slots'), [
    (Point(), dict(x=1)), (partial(max, 1, key=abs), {'func': max, 'argument 0': 1, 'key': abs}),
    (Point.__init__.__get__(3), dict(self=3, method=Point.__init__))])
def test_attributes_arguments_and_parts_of_methods_are_slots(x, slots): assert slots_of(x, 'user', 'plain') == slots


def test_variables_defaults_attributes_and_code_of_a_function_are_slots():
    f = closing(1)
    f.calls = 3
    slots = slots_of(f, 'user', 'plain')
    assert slots.pop('__code__').startswith('inner #')
    assert slots == {'a': 1, 'b': 2, 'default 0': 4, 'e': 5, 'calls': 3}
    assert {nm: c.cell_contents for nm, c in cells_of(f).items()} == dict(a=1, b=2)
    assert slots_of(f, 'library', 'plain').keys() == {'a', 'b', 'default 0', 'e'}


def test_what_torch_and_the_library_keep_for_themselves_is_left_out():
    assert slots_of(nn.Dropout(.3), 'known', 'part') == dict(p=.3, inplace=False)
    dl = DataLoader(TensorDataset(torch.ones(4)), 2, num_workers=1)
    assert slots_of(dl, 'known', 'plain').keys() == {'dataset', 'sampler', 'batch_sampler', 'generator', 'collate_fn',
                                            'batch_size', 'drop_last', 'persistent_workers', 'in_order'}
    assert {'alpha', 'generator'} <= slots_of(MixUpCB(.4), 'known', 'plain').keys()
    assert not [nm for cb in (MixUpCB(.4), MetricsCB()) for nm in slots_of(cb, 'known', 'plain') if nm.startswith('_')]
    assert {'seen', '_mine'} <= slots_of(Counting(), 'user', 'plain').keys()
    assert '_started' not in slots_of(Counting(), 'user', 'plain')
    assert 'sched' not in slots_of(BatchSchedCB(print), 'known', 'plain')


def test_an_optimizer_holds_its_parameters_and_options():
    p = torch.ones(2, requires_grad=True)
    slots = slots_of(AdamW([p], clip_norm=2.), 'known', 'optimizer')
    assert slots['parameters'] == [[p]]
    assert slots['clip_norm'] == 2
    assert not [nm for nm in slots if nm.startswith('_')]


def test_names_of_globals_are_told_from_names_of_attributes():
    def f(x): return [torch.ones(x.rate) for _ in range(learner.size)]
    assert globals_in(f.__code__) == {'torch', 'range', 'learner'}
    assert {'torch', 'ones', 'rate', 'size'} <= names_in(f.__code__)


def test_slots_of_bases_are_named_too():
    class Far(Point): __slots__ = 'z'
    assert slot_names(Far) == ['z', 'x', 'y']


def test_code_is_a_slot_that_differs_where_the_code_does():
    def code(f): return slots_of(f, 'user', 'plain')['__code__']
    assert code(lambda b: b + 1) == code(lambda b: b + 1)
    others = [lambda b: b + 1, lambda b: b + 2, lambda b: b - 1, lambda b: b + 1., lambda b: [i + 1 for i in b],
              lambda b: [i + 2 for i in b], lambda b: len(b), lambda b: max(b), lambda b: b in {1, 2},
              lambda b: b in {1, 3}]
    assert len({*map(code, others)}) == len(others)

"Functions of one line of code that are made with other values differ, in the same way in every process."
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from miniai.racing.code import code_of
from miniai.racing.entrants import find_entrant
from miniai.racing.values import described, made_with


def made(scale, default=0.):
    def rule(p, g, *, lr, k=default): return p - k - lr*scale*g
    return rule


def class_with(scale):
    class Mine(torch.optim.SGD):
        def step(self, closure=None): return scale
    return Mine


def given(p, g, *, lr, k=1.): return p - k*lr*g
class Thing:
    def __init__(self, k): self.k = k


ONE, ALIKE, OTHER = torch.ones(3), torch.ones(3), torch.tensor([1., 1., 2.])
PAIRS = {
    'number': (made(1.), made(1.), made(0.)), 'default': (made(1.), made(1.), made(1., .5)),
    'tensor': (made(ONE), made(ALIKE), made(OTHER)), 'array': (*(made(x.numpy()) for x in (ONE, ALIKE, OTHER)),),
    'half': (*(made(x.bfloat16()) for x in (ONE, ALIKE, OTHER)),), 'type': (made(1), made(1), made(1.)),
    'function': (made(made(1)), made(made(1)), made(made(2))), 'object': (*(made(Thing(k)) for k in (1, 1, 2)),),
    'dict': (*(made({'k': [{k}]}) for k in (1, 1, 2)),), 'long array': (*(made(np.eye(200)*k) for k in (1, 1, 2)),),
    'model': (*(made(torch.nn.PReLU(init=k)) for k in (.1, .1, .2)),), 'class': (*map(class_with, (1, 1, 2)),),
    'partial': (*(partial(given, k=k) for k in (1, 1, 2)),), 'builder': (*(partial(map, k) for k in (1, 1, 2)),),
    'source': ((lambda p: p + 1), (lambda p: p + 1), (lambda p: p + 2)),
    'names': ((lambda p: p.a), (lambda p: p.a), (lambda p: p.b)),
    'loss': (*map(torch.nn.HuberLoss, ('mean', 'mean', 'sum')),),
}


@pytest.mark.parametrize('kind', PAIRS)
def test_code_names_what_a_function_is_made_with(kind):
    one, alike, other = (code_of(f, 'x') for f in PAIRS[kind])
    assert one == alike != other
    assert not re.search('at 0x[0-9a-f]', one)


def test_a_recursive_function_and_a_variable_without_a_value_have_texts():
    def rule(n): return rule(n - 1) if n else later
    assert 'without a value' in str([*made_with(rule)])
    later = 0
    assert described([later], {}) == 'list(0)'


def test_an_optimizer_that_was_used_keeps_its_name():
    cls = class_with(1)
    before = code_of(cls, 'x')
    cls([torch.nn.Parameter(ONE)], lr=1.)
    assert code_of(cls, 'x') == before


def test_rules_of_one_factory_and_lambdas_of_one_file_are_other_rules_and_the_same_in_another_process(tmp_path):
    file = tmp_path/'fac.py'
    file.write_text('''
from functools import partial
def make(scale, words):
    def rule(p, g, *, lr): return p - lr*scale*g if 'a' in words and lr in {1, 2, 'b', 'c', 'd'} else p
    return rule
a, b, c = make(1., {'a', 'x', 'y'}), make(0., {'a', 'x', 'y'}), partial(make(1., {'z'}))
first = lambda params, lr: params
second = lambda params, lr: params + lr
''')
    names = [f'{file}:{rule}' for rule in ('a', 'b', 'c', 'first', 'second')]
    digests = [find_entrant(nm).digest for nm in names]
    assert len({*digests}) == 5
    there = f'from miniai.racing.entrants import find_entrant\nfor n in {names}: print(find_entrant(n).digest)'
    out = subprocess.run([sys.executable, '-c', there], capture_output=True, text=True, check=True)
    assert out.stdout.split() == digests

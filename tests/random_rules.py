"Rules made at random, as the source of a function: stable, but of no use to train anything."
import random

from miniai.kernels.math import maximum, minimum, sign, sqrt, where
from miniai.optim import optimizer, scalars

STATES, HYPERS = ('a', 'b', 'c'), dict(mom=.9, alpha=2., eps=1e-3)
CONDITIONS = '{0} > {1}', '{0} < {1}', '{0} >= {1}', '{0} <= {1}', 'abs({0}) > {1}', '{0}*{1} < {1}', '{0} != 0'
ONE = '-{0}', 'abs({0})', 'sqrt(abs({0}))', '{0}**2/(1 + {0}*{0})', '{0}**3/(1 + abs({0})**3)', '({0}*{0})**0.5'
TWO = ('({0} + {1})', '({0} - {1})', '{0}*{1}/(1 + abs({0}))', '{0}/(abs({1}) + mom)', '1/(1 + abs({0}) + {1}*{1})',
       'maximum({0}, {1})', 'minimum({0}, {1})', 'sqrt({0}*{0} + {1}*{1})')
SAME_FOR_ALL = 'mom', 'alpha', 'eps', '(1 - mom**t)', 'alpha/(1 + t)', '0.5', '2', 'maximum(eps, 1/t)', 'n'


def random_rule(seed):
    "An optimizer class, and the source of its rule."
    r = random.Random(seed)
    states = STATES[:r.randrange(4)]
    elements = 'p', 'g', *states
    def number(): return r.choice(SAME_FOR_ALL)
    def leaf(): return r.choice(elements) if r.random() < .7 else number()
    def value(depth):
        if not depth: return leaf()
        kind = r.random()
        if kind < .2:
            condition = r.choice(CONDITIONS).format(r.choice(elements), number())
            return f"where({condition}, {value(depth - 1)}, {value(depth - 1)})"
        if kind < .3: return f"sign({r.choice(elements)})"
        if kind < .5: return r.choice(ONE).format(value(depth - 1))
        return r.choice(TWO).format(value(depth - 1), value(depth - 1))
    lines = [f'n = {number()}*0.1 + n*mom*0.5', *(f'{s} = mom*{s} + (1-mom)*{value(2)}' for s in states)]
    source = f"def rule({', '.join((*elements, 'n'))}, *, t, lr, mom=.9, alpha=2., eps=1e-3):\n    " + '\n    '.join(
        [*lines, f'step = {value(3)}', f"return {', '.join(('p - lr*step/(1 + abs(step))', *states, 'n'))}"])
    space = dict(sqrt=sqrt, where=where, maximum=maximum, minimum=minimum, sign=sign)
    exec(source, space)
    return optimizer(scalars(n=r.choice((0., 1.)))(space['rule'])), source

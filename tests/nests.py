"Values of all kinds that attributes can hold, and all there is to know about one."
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from miniai.resume.values import brief
from states import arrays, tensors

Point = namedtuple('Point', 'x y')


class Color(Enum): RED, BLUE = 1, 2


class Odd: "An object that no checkpoint can hold."


def name(x): return None if isinstance(x, Tensor) else getattr(x, '__name__', type(x).__name__)
def text(x): return brief(x, name)[0]
def told(x): return brief(x, name)[1]


def known(x):
    "All there is to know about a value, in a form that `==` compares."
    if isinstance(x, Tensor):
        flat = x.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
        return Tensor, x.dtype, x.shape, flat.view(torch.uint8).tolist() if x.numel() else []
    if isinstance(x, np.ndarray): return np.ndarray, x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, dict): return type(x), [(known(k), known(v)) for k, v in x.items()]
    if isinstance(x, set | frozenset): return type(x), sorted(map(repr, x))
    if isinstance(x, list | tuple | deque): return type(x), getattr(x, 'maxlen', None), [known(v) for v in x]
    return type(x), repr(x)


numbers = st.one_of(st.integers(-1, 1), st.floats(width=16), st.booleans(), st.complex_numbers(max_magnitude=2),
                    st.builds(np.float32, st.floats(width=16)), st.builds(np.int64, st.integers(0, 1)))
words = st.sampled_from(['', 'a', 'a, b', "'", '1', 'None', 'x'*300, 'x'*299 + 'y'])
made_anew = st.one_of(st.none(), numbers, words, st.binary(max_size=2), words.map(Path))
fixed = st.sampled_from([*Color, torch.float32, torch.device('cpu'), range(3), slice(1, 2), int, Odd, np.dtype('f4')])
hashable = st.one_of(st.integers(-2, 2), words, st.tuples(st.integers(0, 2), words))


def nests(leaves, kinds=()):
    def containers(inner):
        lists = st.lists(inner, max_size=3)
        dicts = st.dictionaries(hashable, inner, max_size=3)
        sets = st.sets(hashable, max_size=3)
        plain = [lists, lists.map(tuple), lists.map(deque), lists.map(lambda x: deque(x, 5)), sets, sets.map(frozenset),
                 dicts, dicts.map(OrderedDict), st.dictionaries(hashable, st.integers(0, 3), max_size=3).map(Counter)]
        return st.one_of(*plain, *(kind(inner, dicts) for kind in kinds))
    return st.recursive(leaves, containers, max_leaves=8)


plain_nests = nests(st.one_of(made_anew, tensors(), arrays()))
any_nests = nests(st.one_of(made_anew, fixed, tensors(), arrays()), (
    lambda inner, dicts: st.builds(Point, inner, inner),
    lambda inner, dicts: dicts.map(lambda d: defaultdict(list, d))))


# As text

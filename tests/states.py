"States to save: one with everything a checkpoint can hold, random ones, and whether two are equal bit for bit."
import math
import struct
from collections import OrderedDict

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from miniai.checkpoint import load, save

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64,
          torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
          torch.float8_e4m3fn, torch.float8_e5m2]
ARRAYS = ['bool', 'uint8', 'int16', 'uint32', 'uint64', 'float16', 'float32', 'float64', 'complex64', 'complex128']


def bits(x):
    "Everything about a value that a checkpoint keeps, in a form that `==` compares bit for bit."
    if isinstance(x, Tensor): return _tensor_bits(x)
    if isinstance(x, np.ndarray): return np.ndarray, x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, np.generic): return type(x), x.tobytes()
    if isinstance(x, float): return float, struct.pack('>d', x)
    if isinstance(x, dict): return type(x), [(k, type(k), bits(v)) for k, v in x.items()]
    return (type(x), [bits(y) for y in x]) if isinstance(x, list | tuple) else (type(x), x)


def _tensor_bits(t):
    plain = t.detach().cpu().resolve_conj().resolve_neg()
    flat = plain.clone(memory_format=torch.contiguous_format).reshape(-1)
    return Tensor, t.dtype, t.shape, plain.stride(), flat.view(torch.uint8).numpy().tobytes() if t.numel() else b''


def same(a, b): return bits(a) == bits(b)


def aliases(x, by=id):
    "The paths of all tensors and arrays in `x`, grouped by object."
    found = {}
    for path, leaf in _leaves(x, ()): found.setdefault(by(leaf), []).append(path)
    return sorted(found.values())


def ties(x): return aliases(x, _seen)


def _seen(x):
    "Equal for two that see the same memory alike, whether or not they may write to it."
    if isinstance(x, np.ndarray): return (id(x),) if not x.size else (x.ctypes.data, str(x.dtype), x.shape, x.strides)
    lazy = x.is_conj() or x.is_neg()
    return (id(x),) if lazy or not x.numel() else (Tensor, x.data_ptr(), x.dtype, x.shape, x.stride())


def _leaves(x, path):
    if isinstance(x, Tensor | np.ndarray): yield path, x
    for k, v in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list | tuple) else ():
        yield from _leaves(v, (*path, str(k)))


def everything():
    "A state with one of everything, the same at each call."
    g = torch.Generator().manual_seed(7)
    w, image = torch.randn(4, 5, generator=g), torch.randn(2, 3, 4, 5, generator=g)
    opt = {0: dict(avg=image.contiguous(memory_format=torch.channels_last), step=3), 7: dict(avg=w.bfloat16(), step=4)}
    model = OrderedDict([('body.weight', w), ('head.weight', w), ('bias', torch.zeros(0, 3))])
    odd = [math.nan, -math.inf, -0.0, 2**80, -2**63, b'\0\xff', 'h\u00e9\ud800', None, True, (1, [2, (3,)]),
           {'$tensor': 'x'}, {}]
    random = ('MT19937', np.arange(624, dtype=np.uint32), 624, 0, 0.0)
    views = dict(gaps=torch.arange(40.).view(8, 5)[::2, 1::3], wide=torch.ones(1).expand(5, 4), turned=w.t(),
                 point=torch.tensor(2.5))
    return dict(model=model, opt=opt, odd=odd, random=random, views=views, scalar=np.float32(1.5), epoch=3)


@st.composite
def tensors(draw):
    "A tensor of any dtype and layout: permuted, strided, expanded, empty, 0-d."
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=4))
    raw = torch.tensor(list(draw(st.binary(min_size=math.prod(shape)*16, max_size=math.prod(shape)*16))),
                       dtype=torch.uint8)
    t = raw[:math.prod(shape)*dtype.itemsize].clone().view(dtype if dtype != torch.bool else torch.uint8).reshape(shape)
    t = t > 127 if dtype == torch.bool else t
    t = t.permute(draw(st.permutations(range(t.dim()))))
    for d in range(t.dim()):
        if draw(st.booleans()): t = t[(slice(None),)*d + (slice(draw(st.integers(0, 1)), None,
                                                                draw(st.integers(1, 3))),)]
    return t.unsqueeze(0).expand(3, *t.shape) if draw(st.integers(0, 5)) == 0 else t


@st.composite
def arrays(draw):
    dtype, shape = np.dtype(draw(st.sampled_from(ARRAYS))), draw(st.lists(st.integers(0, 3), max_size=3))
    n = math.prod(shape)
    raw = bytearray(draw(st.binary(min_size=n*dtype.itemsize, max_size=n*dtype.itemsize)))  # memory of its own
    a = np.frombuffer(raw, dtype).reshape(shape)
    a = a.view('u1') % 2 == 1 if dtype.kind == 'b' else a
    a.setflags(write=draw(st.booleans()))
    return a.transpose(draw(st.permutations(range(a.ndim))))[::draw(st.sampled_from([1, -1, 2]))] if a.ndim else a


SLICES = [slice(0, 4), slice(3, 7), slice(3, None, -1), slice(6, 2, -1), slice(0, 7, 2), slice(3, 4)]


@st.composite
def views(draw):
    "Arrays and tensors over one memory: overlapping, backwards, with steps, broadcast, read-only, of several dtypes."
    memory = np.frombuffer(bytearray(draw(st.binary(min_size=64, max_size=64))), 'u1')
    return [draw(_view(memory)) for _ in range(draw(st.integers(2, 5)))]


@st.composite
def _view(draw, memory):
    a = memory.view(draw(st.sampled_from(['f8', 'i8', 'c8'])))[draw(st.sampled_from(SLICES))]
    if draw(st.booleans()) and all(n > 0 for n in a.strides): return _lazily(torch.from_numpy(a), draw)
    if draw(st.integers(0, 3)) == 0: return np.broadcast_to(a, (2, len(a)) if len(a) > 1 else (4,))
    a.setflags(write=draw(st.booleans()))
    return a


def _lazily(t, draw):
    how = draw(st.sampled_from(['plain', 'plain', 'expanded', 'negated', 'conjugated']))
    if how == 'expanded': return t.expand(3, *t.shape) if len(t) > 1 else t.expand(4)
    return torch._neg_view(t) if how == 'negated' else t.conj() if how == 'conjugated' else t


text = st.text(st.characters(), max_size=8)
scalars = st.builds(lambda b, nm: np.frombuffer(b, nm)[0], st.binary(min_size=16, max_size=16),
                    st.sampled_from(ARRAYS[1:]))
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(2**62, 2**70), st.floats(), text,
                  st.binary(max_size=8), scalars)
keys = st.one_of(text, st.integers(), st.sampled_from(['$tensor', '$', '__metadata__', '']))


def containers(inner):
    mappings = st.dictionaries(keys, inner, max_size=4)
    lists = st.lists(inner, max_size=4)
    return st.one_of(lists, lists.map(tuple), mappings, mappings.map(OrderedDict))


@st.composite
def states(draw):
    "Any nest of supported values, with some tensors and arrays in it twice, and several views of one memory."
    shared = draw(st.one_of(views(), st.lists(st.one_of(tensors(), arrays()), min_size=1, max_size=4)))
    return draw(st.recursive(st.one_of(plain, st.sampled_from(shared)), containers, max_leaves=12))


def back(path, state):
    save(path, state)
    return load(path)

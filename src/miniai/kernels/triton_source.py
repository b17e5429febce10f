"The source of kernels for Triton: a trace written out as a program that takes one piece of a table of addresses."
import re
from collections.abc import Iterable

import torch

from miniai.kernels.trace import Trace

__all__ = ['TYPES', 'step_source', 'sum_source']

TYPES = {torch.float32: 'tl.float32', torch.float64: 'tl.float64', torch.bfloat16: 'tl.bfloat16',
         torch.float16: 'tl.float16'}

# A piece that is full is stepped by code that knows its length, and can move several elements at a time.
SOURCE = '''"Generated from a rule."
import triton
import triton.language as tl


@triton.jit
def where(c, a, b): return tl.where(c != 0, a, b)


@triton.jit
def double(x): return x.to(tl.float64)


@triton.jit
def mixed(x):
    x = (x ^ (x >> 15)) * 0x846ca68b
    return x ^ (x >> 16)


@triton.jit
def drawn(i, key): return mixed(i.to(tl.uint32) * 0x9e3779b9 + key.to(tl.uint32))


@triton.jit
def bits(x): return x.to(tl.float32).to(tl.uint32, bitcast=True)


@triton.jit
def bfloat16(x, u): return tl.where(x != x, 0x7fc0, u >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def rounded(x): return bfloat16(x, bits(x) + 0x7fff + ((bits(x) >> 16) & 1))


@triton.jit
def dithered(x, noise): return bfloat16(x, bits(x) + noise)


@triton.jit
def segment({pointers}, n, place, h, key, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    inside = i < n
    {hosts}
    {loads}
    {lines}
    {stores}


@triton.jit
def run(table, chunks, h, keys, out, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    k = tl.program_id(0)
    e, first, n = tl.load(chunks + 4*k), tl.load(chunks + 4*k + 1), tl.load(chunks + 4*k + 2)
    if ALIGNED: first = tl.multiple_of(first, 16)
    {addresses}
    {aligned}
    if n == BLOCK: segment({pointers}, BLOCK, tl.load(chunks + 4*k + 3), h + e*{width}, keys + e, out + k*{sums}, BLOCK)
    else: segment({pointers}, n, tl.load(chunks + 4*k + 3), h + e*{width}, keys + e, out + k*{sums}, BLOCK)
'''


def step_source(trace: Trace, dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...]) -> str:
    """A module whose `run` writes a trace's results over its elements, the gradient excepted. Elements have `dtypes`;
    those marked in `dither` are rounded to bfloat16 at random."""
    noise = ['d0 = drawn(place + i, tl.load(key))'] if any(dither) else []
    noise += [f'd{i} = mixed(d{i - 1})' for i in range(1, (sum(dither) + 1)//2)]
    results, stores = iter(trace.results), []
    for k, (nm, dtype) in enumerate(zip(trace.arguments, dtypes, strict=True)):
        if nm == 'g_': continue
        value, turn = next(results), sum(dither[:k])  # two elements share a number of 32 random bits, half each
        if value == nm: continue  # unchanged
        half = (f'd{turn//2} & 0xffff', f'd{turn//2} >> 16')[turn % 2]
        if dither[k]: value = f'dithered({value}, {half})'
        elif dtype is torch.bfloat16: value = f'rounded({value})'
        stores.append(f'tl.store(q{k} + i, {value}, mask=inside)')
    return _filled(trace, dtypes, noise, stores)


def sum_source(trace: Trace, dtypes: tuple[torch.dtype, ...]) -> str:
    "A module whose `run` writes to `out` the sums, in double precision, of a trace's results over each piece."
    return _filled(trace, dtypes, (), [f'tl.store(out + {i}, tl.sum(tl.where(inside, {x}, 0).to(tl.float64), 0))'
                                       for i, x in enumerate(trace.results)])


def _filled(trace: Trace, dtypes: tuple[torch.dtype, ...], first_lines: Iterable[str], stores: list[str]) -> str:
    double, names = dtypes[0] is torch.float64, trace.arguments
    loads = [f'{nm} = tl.load(q{k} + i, mask=inside, other=0.)' + ('.to(tl.float32)' if d.itemsize == 2 else '')
             for k, (nm, d) in enumerate(zip(names, dtypes, strict=True))]
    pointers = [f'q{k} = tl.load(table + e*COLUMNS + {k}).to(tl.pointer_type({TYPES[d]}))'
                for k, d in enumerate(dtypes)]
    lines = [*first_lines, *(f'{nm} = {_exact(code, double)}' for code, nm in trace.lines.items())]
    return SOURCE.format(
        pointers=', '.join(f'q{k}' for k in range(len(names))), width=len(trace.hosts), sums=len(trace.results),
        hosts='\n    '.join(f'{nm} = tl.load(h + {i})' for i, nm in enumerate(trace.hosts.values())),
        loads='\n    '.join(loads), lines='\n    '.join(lines), stores='\n    '.join(stores),
        addresses='\n    '.join(pointers),
        aligned='\n    '.join(f'q{k} = (tl.multiple_of(q{k}, 16) if ALIGNED else q{k}) + first'
                              for k in range(len(names))))


def _exact(code: str, double: bool) -> str:
    "A line in Triton's words, with division and square root rounded as IEEE says; Triton's own are for float32 alone."
    code = code.replace('abs(', 'tl.abs(').replace('sqrt(', 'tl.sqrt(' if double else 'tl.sqrt_rn(')
    return code if double else re.sub(r'^(\S+) / (\S+)$', r'tl.div_rn(\1, \2)', code)

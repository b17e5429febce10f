"""The head of a checkpoint file, a safetensors header: write it, and parse it, checking everything it says.

`__metadata__` comes first and begins with the sha256 at a fixed place, computed over the whole file with zeros in that
place. So one digest covers header and data, and the file is written and verified in one pass."""
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from miniai.checkpoint.errors import Malformed
from miniai.checkpoint.geometry import DTYPES, Geometry, Leaf, dense_strides, span
from miniai.environment import version_of

__all__ = ['Header', 'Entry', 'header_bytes', 'parse', 'masked', 'sealed', 'geometries', 'loads', 'DIGEST_AT',
           'LONGEST']

_PREFIX = b'{"__metadata__":{"sha256":"'
_ZEROS = b'0'*64
_ITEMSIZES = dict(zip(DTYPES.values(), (getattr(torch, nm).itemsize for nm in DTYPES), strict=True), F32=4, F64=8)
_META = {'sha256', 'format', 'version', 'saved', 'miniai', 'torch', 'state', 'tensors'}
DIGEST_AT = 8 + len(_PREFIX)  # offset in the file of the digest's 64 characters
LONGEST = 100_000_000         # bytes of a header; safetensors reads none longer
_TOO_LARGE = 1 << 62


@dataclass(frozen=True)
class Entry:
    "A tensor in the safetensors header: dtype, shape, and the range of its bytes in the data."
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    "A checked header: the metadata, all text, and the tensors in the order of their bytes."
    meta: dict[str, str]
    entries: dict[str, Entry]

    @property
    def data_bytes(self) -> int: return max((e.end for e in self.entries.values()), default=0)


# Writing

def header_bytes(state: Any, leaves: Mapping[str, Leaf]) -> bytes:
    "The head of the file: its length, then JSON, with zeros for the digest. The data follow in the order of `leaves`."
    entries, table, at = {}, {}, 0
    for nm, leaf in leaves.items():
        g = leaf.geometry
        entries[nm] = dict(dtype=DTYPES[g.dtype], shape=g.file_shape, data_offsets=[at, at + g.nbytes])
        if row := _table_row(g): table[nm] = row
        at += g.nbytes
    now = time.time_ns()
    saved = time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now // 10**9)) + f'.{now % 10**9 // 1000:06}Z'
    meta = dict(sha256=_ZEROS.decode(), format='miniai checkpoint', version='1', saved=saved,
                miniai=version_of('miniai-torch') or 'unknown', torch=torch.__version__,
                state=_dumps(state), tensors=_dumps(table))
    text = _dumps({'__metadata__': meta, **entries}).encode('ascii')
    text += b' ' * (-len(text) % 8)
    if len(text) > LONGEST:
        raise ValueError(f'the values other than tensors take {len(text):,} bytes, more than {LONGEST:,}: '
                         f'save long lists as tensors or numpy arrays')
    return len(text).to_bytes(8, 'little') + text


def _dumps(x: Any) -> str: return json.dumps(x, separators=(',', ':'), allow_nan=False)


def _table_row(g: Geometry) -> dict[str, Any]:
    "What the safetensors entry does not say about a tensor: nothing, for a contiguous one on the CPU."
    out = {} if g.stride == dense_strides(g.shape) else dict(shape=g.shape, stride=g.stride)
    if g.dtype.startswith('complex'): out |= dict(dtype=g.dtype)
    if g.device != 'cpu': out |= dict(device=g.device)
    return out | dict(numpy=True) if g.numpy else out


def masked(raw: bytes) -> bytes:
    "The head with zeros in place of the digest: the digest is computed over this."
    return raw[:DIGEST_AT] + _ZEROS + raw[DIGEST_AT + 64:]


def sealed(raw: bytes, digest: str) -> tuple[bytes, slice]:
    "The head with `digest` filled in, and where it is."
    place = slice(DIGEST_AT, DIGEST_AT + 64)
    return raw[:place.start] + digest.encode('ascii') + raw[place.stop:], place


# Reading

def parse(raw: bytes) -> Header:
    "The header in `raw`, the head of a file with its length; Malformed if it is not one or contradicts itself."
    if not raw[8:].startswith(_PREFIX): raise Malformed(_other_kind(raw))
    d = _object(loads(raw[8:].decode('ascii')), 'the header')
    meta = _object(d.pop('__metadata__'), 'the metadata')
    if not all(isinstance(v, str) for v in meta.values()): raise Malformed('the metadata has a value that is not text')
    if meta.get('format') != 'miniai checkpoint': raise Malformed('not a checkpoint of miniai, by its metadata')
    if meta.get('version') != '1':
        raise Malformed(f'format version {meta.get("version")!r}, where this miniai reads version 1: '
                        f'update miniai, or use another checkpoint if the file is damaged')
    if missing := _META - meta.keys(): raise Malformed(f'the metadata lacks {sorted(missing)}')
    entries, at = {}, 0
    for nm, e in d.items():
        entries[nm] = _entry(nm, _object(e, f'the tensor {nm!r}'))
        if entries[nm].begin != at: raise Malformed(f'the tensor {nm!r} does not begin where the one before it ends')
        at = entries[nm].end
    return Header(meta, entries)


def _other_kind(raw: bytes) -> str:
    if raw.startswith((b'PK\x03\x04', b'\x80\x02', b'\x80\x04')):
        return 'a pickle or zip archive, not a checkpoint of miniai: read it with torch.load'
    if raw[8:9] == b'{':
        return 'a safetensors file, but not a checkpoint of miniai, or damaged: try safetensors.torch.load_file'
    return 'not a checkpoint of miniai, or damaged: use another file'


def loads(text: str) -> Any:
    "Parse JSON strictly: Malformed for duplicate keys, NaN, ints beyond 64 bits and nests that are too deep."
    try: return json.loads(text, object_pairs_hook=_unique, parse_int=_parse_int, parse_constant=_refuse_constant)
    except RecursionError: raise Malformed('its JSON is nested too deeply') from None
    except Malformed: raise
    except ValueError as e: raise Malformed(f'its JSON cannot be read: {e}') from None


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    d = dict(pairs)
    if len(d) < len(pairs): raise Malformed('its JSON has a key twice')
    return d


def _parse_int(text: str) -> int:
    if len(text) > 20: raise Malformed(f'its JSON has a number of {len(text)} digits')
    return int(text)


def _refuse_constant(text: str) -> None: raise Malformed(f'its JSON has {text}, which JSON does not allow')


def _object(x: Any, what: str) -> dict:
    if not isinstance(x, dict): raise Malformed(f'{what} is not a JSON object')
    return x


def _entry(name: str, e: dict) -> Entry:
    if e.keys() != {'dtype', 'shape', 'data_offsets'}: raise Malformed(f'the tensor {name!r} has the wrong fields')
    dtype, shape, offsets = e['dtype'], _sizes(e['shape'], name), _sizes(e['data_offsets'], name)
    if not isinstance(dtype, str) or dtype not in _ITEMSIZES:
        raise Malformed(f'the tensor {name!r} has an unknown dtype')
    if len(offsets) != 2 or offsets[1] - offsets[0] != prod(shape)*_ITEMSIZES[dtype]:
        raise Malformed(f'the tensor {name!r} has a shape that does not fit its bytes')
    return Entry(dtype, shape, *offsets)


def _sizes(x: Any, name: str) -> tuple[int, ...]:
    good = isinstance(x, list) and len(x) <= 64 and all(type(n) is int and 0 <= n < _TOO_LARGE for n in x)
    if not good: raise Malformed(f'the tensor {name!r} has impossible sizes')
    return tuple(x)


def geometries(header: Header) -> dict[str, Geometry]:
    "The geometry of each tensor; Malformed if it contradicts the tensor's entry or reaches beyond its bytes."
    table = _object(loads(header.meta['tensors']), 'the table of tensors')
    if stray := table.keys() - header.entries.keys():
        raise Malformed(f'the table describes {min(stray)!r}, a tensor that is not in the file')
    return {nm: _geometry(nm, e, _object(table.get(nm, {}), f'the table row of {nm!r}'))
            for nm, e in header.entries.items()}


def _geometry(name: str, e: Entry, row: dict) -> Geometry:
    if row.keys() - {'shape', 'stride', 'dtype', 'device', 'numpy'} or ('shape' in row) != ('stride' in row):
        raise Malformed(f'the table row of {name!r} has the wrong fields')
    dtype = row.get('dtype', next(nm for nm, s in DTYPES.items() if s == e.dtype))
    shape = _sizes(row.get('shape', list(e.shape[:-1] if 'dtype' in row else e.shape)), name)
    stride = _sizes(row['stride'], name) if 'stride' in row else dense_strides(shape)
    g = Geometry(dtype, shape, stride, row.get('device', 'cpu'), row.get('numpy', False))
    typed = type(g.dtype) is str and type(g.numpy) is bool and type(g.device) is str
    if not typed or DTYPES.get(g.dtype) != e.dtype or (g.numpy and g.dtype not in np.sctypeDict):
        raise Malformed(f'the table row of {name!r} has wrong values')
    n = prod(n or 1 for n in shape)  # torch counts elements in 63 bits, numpy bytes, even where strides share them
    if len(shape) != len(stride) or n >= _TOO_LARGE or (g.numpy and n*g.itemsize > np.iinfo(np.intp).max):
        raise Malformed(f'the tensor {name!r} has impossible sizes')
    if span(shape, stride)*g.itemsize != e.end - e.begin:
        raise Malformed(f'the strides of {name!r} do not fit its bytes')
    if g.file_shape != e.shape: raise Malformed(f'the shape of {name!r} does not fit its data')
    return g

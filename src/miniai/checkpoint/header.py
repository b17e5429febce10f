"""The head of a checkpoint, a safetensors header: written, and read with every claim in it checked. Knows bytes, no
file.

`__metadata__` comes first and begins with the sha256, at a fixed place, taken over the whole file with that place
zeroed: header, JSON and data are sealed by one pass over the file, and written by one."""
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
_BYTES = dict(zip(DTYPES.values(), (getattr(torch, nm).itemsize for nm in DTYPES), strict=True)) | dict(F32=4, F64=8)
_META = ('sha256', 'format', 'version', 'saved', 'miniai', 'torch', 'state', 'tensors')
DIGEST_AT = 8 + len(_PREFIX)  # where in the file the digest's 64 characters stand
LONGEST = 100_000_000         # bytes of a header: safetensors reads no longer one
_TOO_LARGE = 1 << 62


@dataclass(frozen=True)
class Entry:
    "Where a tensor's bytes lie in the data, and what other readers take them for."
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    "A checked header: the metadata, all of it text, and the tensors in the order of their bytes."
    meta: dict[str, str]
    entries: dict[str, Entry]

    @property
    def data_bytes(self) -> int: return max((e.end for e in self.entries.values()), default=0)


def header_bytes(state: Any, leaves: Mapping[str, Leaf]) -> bytes:
    "The head of the file, its own length first, zeros for the digest. The data follow in the order of `leaves`."
    tensors = {nm: _deviations(leaf.geometry) for nm, leaf in leaves.items()}
    stated = dict(state=_dumps(state), tensors=_dumps({nm: d for nm, d in tensors.items() if d}))
    meta = dict(sha256=_ZEROS.decode(), format='miniai checkpoint', version='1', **_made(), **stated)
    text = _dumps({'__metadata__': meta, **_entries(leaves)}).encode('ascii')
    text += b' ' * (-len(text) % 8)
    if len(text) > LONGEST:
        raise ValueError(f'the values that are no tensors take {len(text):,} bytes, over {LONGEST:,}: give long lists '
                         f'as tensors or numpy arrays')
    return len(text).to_bytes(8, 'little') + text


def _dumps(x: Any) -> str: return json.dumps(x, separators=(',', ':'), allow_nan=False)


def _made() -> dict[str, str]:
    now = time.time_ns()
    saved = time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now // 10**9)) + f'.{now % 10**9 // 1000:06}Z'
    return dict(saved=saved, miniai=version_of('miniai-torch') or 'unknown', torch=torch.__version__)


def _deviations(g: Geometry) -> dict[str, Any]:
    "What the header's own entry does not say of a tensor: nothing, for a contiguous one on the CPU."
    out = {} if g.stride == dense_strides(g.shape) else dict(shape=g.shape, stride=g.stride)
    if g.dtype.startswith('complex'): out |= dict(dtype=g.dtype)
    if g.device != 'cpu': out |= dict(device=g.device)
    return out | dict(numpy=True) if g.numpy else out


def _entries(leaves: Mapping[str, Leaf]) -> dict[str, dict]:
    out, at = {}, 0
    for nm, leaf in leaves.items():
        g = leaf.geometry
        out[nm] = dict(dtype=DTYPES[g.dtype], shape=g.file_shape, data_offsets=[at, at + g.nbytes])
        at += g.nbytes
    return out


def masked(raw: bytes) -> bytes:
    "The head of a file as the digest takes it: zeros where it stands itself."
    return raw[:DIGEST_AT] + _ZEROS + raw[DIGEST_AT + 64:]


def sealed(raw: bytes, digest: str) -> tuple[bytes, slice]:
    "The head with its digest, and where in it that stands."
    place = slice(DIGEST_AT, DIGEST_AT + 64)
    return raw[:place.start] + digest.encode('ascii') + raw[place.stop:], place


def parse(raw: bytes) -> Header:
    "The header in `raw`, the head of a file with its length. Malformed where it is none, or is not sound in itself."
    if not raw[8:].startswith(_PREFIX): raise Malformed(_other_kind(raw))
    d = _object(loads(raw[8:].decode('ascii')), 'the header')
    meta = _checked_meta(_object(d.pop('__metadata__'), 'the metadata'))
    entries = {nm: _entry(nm, _object(e, f'the tensor {nm!r}')) for nm, e in d.items()}
    _check_order(entries)
    return Header(meta, entries)


def _other_kind(raw: bytes) -> str:
    if raw.startswith((b'PK\x03\x04', b'\x80\x02', b'\x80\x04')):
        return 'a pickle or zip archive, not a checkpoint of miniai'
    kind = 'a safetensors file, but ' if raw[8:9] == b'{' else ''
    return f'{kind}not a checkpoint of miniai, or damaged'


def loads(text: str) -> Any:
    "JSON, strictly: Malformed for duplicate keys, NaN, ints beyond 64 bits and nests too deep."
    try: return json.loads(text, object_pairs_hook=_unique, parse_int=_modest_int, parse_constant=_no_constant)
    except RecursionError: raise Malformed('its JSON is nested too deeply') from None
    except Malformed: raise
    except ValueError as e: raise Malformed(f'its JSON cannot be read: {e}') from None


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    d = dict(pairs)
    if len(d) < len(pairs): raise Malformed('its JSON has a key twice')
    return d


def _modest_int(text: str) -> int:
    if len(text) > 20: raise Malformed(f'its JSON has a number of {len(text)} digits')
    return int(text)


def _no_constant(text: str) -> None: raise Malformed(f'its JSON has {text}, which is no JSON')


def _object(x: Any, what: str) -> dict:
    if not isinstance(x, dict): raise Malformed(f'{what} is no JSON object')
    return x


def _checked_meta(meta: dict) -> dict[str, str]:
    if not all(isinstance(v, str) for v in meta.values()):
        raise Malformed('the metadata holds something else than text')
    if meta.get('format') != 'miniai checkpoint':
        raise Malformed('the metadata does not say that it is a checkpoint of miniai')
    if meta.get('version') != '1':
        raise Malformed(f'written by a later miniai: format {meta.get("version")!r}, where this one reads format 1; '
                        f'or damaged')
    if missing := set(_META) - meta.keys(): raise Malformed(f'the metadata lacks {sorted(missing)}')
    return meta


def _entry(name: str, e: dict) -> Entry:
    if e.keys() != {'dtype', 'shape', 'data_offsets'}:
        raise Malformed(f'the tensor {name!r} is not described as it should be')
    shape, offsets = _sizes(e['shape'], name), _sizes(e['data_offsets'], name)
    if not isinstance(e['dtype'], str) or e['dtype'] not in _BYTES:
        raise Malformed(f'the tensor {name!r} has an unknown dtype')
    if len(offsets) != 2 or offsets[1] - offsets[0] != prod(shape)*_BYTES[e['dtype']]:
        raise Malformed(f'the tensor {name!r} has a shape that does not fit its bytes')
    return Entry(e['dtype'], shape, *offsets)


def _sizes(x: Any, name: str) -> tuple[int, ...]:
    good = isinstance(x, list) and len(x) <= 64 and all(type(n) is int and 0 <= n < _TOO_LARGE for n in x)
    if not good: raise Malformed(f'the tensor {name!r} has impossible sizes')
    return tuple(x)


def _check_order(entries: dict[str, Entry]) -> None:
    at = 0
    for nm, e in entries.items():
        if e.begin != at: raise Malformed(f'the tensor {nm!r} does not begin where the one before it ends')
        at = e.end


def geometries(header: Header) -> dict[str, Geometry]:
    "How each tensor lies over its bytes. Malformed where that is not what its entry says, or reaches beyond them."
    table = _object(loads(header.meta['tensors']), 'the table of tensors')
    if stray := table.keys() - header.entries.keys():
        raise Malformed(f'the table describes {min(stray)!r}, a tensor that is not there')
    rows = {nm: _object(table.get(nm, {}), 'the table of tensors') for nm in header.entries}
    return {nm: _geometry(nm, e, rows[nm]) for nm, e in header.entries.items()}


def _geometry(name: str, e: Entry, d: dict) -> Geometry:
    if d.keys() - {'shape', 'stride', 'dtype', 'device', 'numpy'} or ('shape' in d) != ('stride' in d):
        raise Malformed(f'the table does not describe {name!r} as it should')
    dtype = d.get('dtype', next(nm for nm, s in DTYPES.items() if s == e.dtype))
    shape = _sizes(d.get('shape', list(e.shape[:-1] if 'dtype' in d else e.shape)), name)
    stride = _sizes(d['stride'], name) if 'stride' in d else dense_strides(shape)
    g = Geometry(dtype, shape, stride, d.get('device', 'cpu'), d.get('numpy', False))
    _check_geometry(name, e, g)
    return g


def _check_geometry(name: str, e: Entry, g: Geometry) -> None:
    typed = type(g.dtype) is str and type(g.numpy) is bool and type(g.device) is str
    if not typed or DTYPES.get(g.dtype) != e.dtype or (g.numpy and g.dtype not in np.sctypeDict):
        raise Malformed(f'the table does not describe {name!r} as it should')
    if len(g.shape) != len(g.stride) or _too_large(g, prod(n or 1 for n in g.shape)):
        raise Malformed(f'the tensor {name!r} has impossible sizes')
    if span(g.shape, g.stride)*g.itemsize != e.end - e.begin:
        raise Malformed(f'the strides of {name!r} reach beyond its data, or not to their end')
    if g.file_shape != e.shape: raise Malformed(f'the shape of {name!r} is not that of its data')


def _too_large(g: Geometry, n: int) -> bool:
    "Whether `n` elements are more than torch counts, or their bytes, shared or not, more than numpy counts."
    return n >= _TOO_LARGE or (g.numpy and n*g.itemsize > np.iinfo(np.intp).max)

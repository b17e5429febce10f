"""The head of a checkpoint file, a safetensors header: write it, and parse it.

`__metadata__` comes first and begins with the sha256 at a fixed place, computed over the whole file with zeros in that
place. safetensors' own reader maps the file, which can change after its sha256 was checked, and accepts keys that come
twice. So the header is parsed here, and refused unless it is, to the byte, what `save` writes for its contents."""
import json
import time
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniai.checkpoint.layout import DTYPES, Layout, dense_strides
from miniai.environment import version_of

__all__ = ['header_bytes', 'parse', 'sealed', 'ZEROS', 'loads', 'DIGEST_AT', 'LONGEST']

_PREFIX = b'{"__metadata__":{"sha256":"'
ZEROS = '0'*64                # in place of the digest while it is computed
DIGEST_AT = 8 + len(_PREFIX)  # offset in the file of the digest's 64 characters
LONGEST = 100_000_000         # bytes of a header; safetensors reads none longer
_TOO_LARGE = 1 << 62          # elements
_META = 'sha256', 'saved', 'miniai', 'torch', 'state', 'tensors'
_DTYPE_OF = {theirs: ours for ours, theirs in reversed(DTYPES.items())}  # F32 is float32, not complex64


def header_bytes(state: Any, leaves: Mapping[str, tuple[Layout, Tensor]]) -> bytes:
    "The head of the file: its length, then JSON, with zeros for the digest. The data follow in the order of `leaves`."
    entries, table, at = {}, {}, 0
    for nm, (layout, _) in leaves.items():
        entries[nm] = layout.entry(at)
        if row := layout.row(): table[nm] = row
        at += layout.nbytes
    now = time.time_ns()
    saved = time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now // 10**9)) + f'.{now % 10**9 // 1000:06}Z'
    meta = dict(sha256=ZEROS, format='miniai checkpoint', version='1', saved=saved,
                miniai=version_of('miniai-torch') or 'unknown', torch=torch.__version__,
                state=_dumps(state), tensors=_dumps(table))
    text = _dumps({'__metadata__': meta, **entries}).encode('ascii')
    text += b' ' * (-len(text) % 8)
    if len(text) > LONGEST:
        raise ValueError(f'the values other than tensors take {len(text):,} bytes, more than {LONGEST:,}: '
                         f'save long lists as tensors or numpy arrays')
    return len(text).to_bytes(8, 'little') + text


def _dumps(x: Any) -> str: return json.dumps(x, separators=(',', ':'), allow_nan=False)


def loads(text: str) -> Any:
    "Parse JSON; ValueError unless it is written as `save` writes it, which excludes keys that come twice."
    x = json.loads(text)
    if _dumps(x) != text: raise ValueError('its JSON is not as save writes it')
    return x


def sealed(head: bytes, digest: str) -> bytes:
    "The head with `digest` filled in."
    return head[:DIGEST_AT] + digest.encode('ascii') + head[DIGEST_AT + 64:]


def parse(head: bytes) -> tuple[dict[str, str], dict[str, Layout]]:
    """The metadata, all text, and the layout of each tensor, in the order of their bytes, which have no gaps. An error
    (of any type, from Python's own operations) if the head is not one, or contradicts itself."""
    if not head[8:].startswith(_PREFIX): raise ValueError(_other_kind(head))
    entries = loads(head[8:].decode('ascii').rstrip(' '))
    meta = entries.pop('__metadata__')
    if meta.get('format') != 'miniai checkpoint': raise ValueError('not a checkpoint of miniai, by its metadata')
    if meta.get('version') != '1':
        raise ValueError(f'format version {meta.get("version")!r}, where this miniai reads version 1: '
                         f'update miniai, or use another checkpoint if the file is damaged')
    if not all(isinstance(meta[k], str) for k in _META): raise ValueError('the metadata has a value that is not text')
    table, layouts, at = loads(meta['tensors']), {}, 0
    for nm, entry in entries.items():
        row = table.pop(nm, {})
        layouts[nm] = layout = _layout(entry, row)
        if _dumps([entry, row]) != _dumps([layout.entry(at), layout.row()]):
            raise ValueError(f'the header contradicts itself about the tensor {nm!r}')
        at += layout.nbytes
    if table: raise ValueError(f'the header describes {min(table)!r}, a tensor that is not in the file')
    return meta, layouts


def _other_kind(head: bytes) -> str:
    if head.startswith((b'PK\x03\x04', b'\x80\x02', b'\x80\x04')):
        return 'a pickle or zip archive, not a checkpoint of miniai: read it with torch.load'
    if head[8:9] == b'{':
        return 'a safetensors file, but not a checkpoint of miniai, or damaged: try safetensors.torch.load_file'
    return 'not a checkpoint of miniai, or truncated or damaged: use another file'


def _layout(entry: dict, row: dict) -> Layout:
    "The layout that an entry and a row describe; ValueError if torch or numpy has none of such a dtype and size."
    shape = row.get('shape', entry['shape'][:-1] if 'dtype' in row else entry['shape'])
    sizes = [*shape, *row.get('stride', shape)]
    if len(shape) > 64 or len(sizes) != 2*len(shape) or not all(type(n) is int and 0 <= n < _TOO_LARGE for n in sizes):
        raise ValueError('a tensor has impossible sizes')
    dtype, numpy = row.get('dtype', _DTYPE_OF[entry['dtype']]), row.get('numpy', False)
    if dtype not in DTYPES or (numpy and not hasattr(np, dtype)): raise ValueError('a tensor has an unknown dtype')
    stride = tuple(row.get('stride', dense_strides(shape)))
    layout = Layout(dtype, tuple(shape), stride, row.get('device', 'cpu'), numpy)
    n = prod(n or 1 for n in shape)  # torch counts elements in 63 bits, numpy bytes, even where strides share them
    if n >= _TOO_LARGE or (numpy and n*layout.itemsize > np.iinfo(np.intp).max):
        raise ValueError('a tensor has impossible sizes')
    return layout

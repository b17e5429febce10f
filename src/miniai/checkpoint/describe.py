"A checkpoint as text: tables of what `inspect` returns."
import re
from typing import Any

from miniai.checkpoint.read import CheckpointInfo

__all__ = ['describe', 'printable', 'size_in_words']

_LONGEST_VALUE, _LONGEST = 80, 200  # characters shown of a value, and of any other text from a file


def describe(info: CheckpointInfo) -> str:
    """Tables of a checkpoint's origin, its plain values, and its tensors with dtype, shape and bytes. Text from the
    file is escaped where it is not printable, and cut to one line."""
    about = [('file', printable(info.path)), ('saved', _cut(info.saved)),
             ('by', _cut(f'miniai {info.miniai}, torch {info.torch}')), ('format', _cut(info.version)),
             ('size', size_in_words(info.size)), ('sha256', _cut(info.sha256))]
    values = [(_cut(k), _shown(v)) for k, v in info.scalars.items()]
    tensors = [(_cut(nm), t.dtype, _cut(' x '.join(map(str, t.shape)) or '0-d'), size_in_words(t.nbytes))
               for nm, t in sorted(info.tensors.items(), key=lambda item: _natural(item[0]))]
    if tensors: tensors.insert(0, ('tensor', 'dtype', 'shape', 'size'))
    return '\n\n'.join(_table(rows) for rows in (about, values, tensors) if rows)


def printable(text: str) -> str:
    "`text` with everything that is not printable escaped: line ends, terminal commands, undecodable bytes."
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text)


def _cut(text: str, most: int = _LONGEST) -> str:
    text = printable(text[:most + 1])
    return text if len(text) <= most else f'{text[:most - 1]}…'


def _shown(v: Any) -> str:
    if isinstance(v, int) and v.bit_length() > 256: return f'an int of {v.bit_length():,} bits'
    return _cut(repr(v), _LONGEST_VALUE)


def _natural(name: str) -> str:
    "A sort key that puts model/10 after model/9."
    return re.sub('[0-9]+', lambda number: number[0].zfill(20), name)


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join('  '.join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def size_in_words(n: int) -> str:
    "Bytes in a readable unit: '12 B', '3.4 kB', '1.2 GB'."
    units = ['B', 'kB', 'MB', 'GB', 'TB']
    k = min((len(str(n)) - 1)//3, len(units) - 1)
    return f'{n/1000**k:.1f} {units[k]}' if k else f'{n} B'

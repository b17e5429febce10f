"A checkpoint in words: a table of what `inspect` says. Knows text."
import re
from typing import Any

from miniai.checkpoint.read import CheckpointInfo

__all__ = ['describe', 'printable', 'size_in_words']

_LONG = 80, 200  # characters of a value, and of any other text out of a file, that are shown


def describe(info: CheckpointInfo) -> str:
    """What is in a checkpoint: where it comes from, its plain values, its tensors with dtype, shape and bytes. Of what
    stands in the file only printable characters are in it, and no more than a line takes."""
    about = [('file', printable(info.path)), ('saved', _cut(info.saved)),
             ('by', _cut(f'miniai {info.miniai}, torch {info.torch}')), ('format', _cut(info.version)),
             ('size', size_in_words(info.size)), ('sha256', _cut(info.sha256))]
    values = [(_cut(k), _short(v)) for k, v in info.scalars.items()]
    in_order = sorted(info.tensors.items(), key=lambda item: _by_number(item[0]))
    tensors = [(_cut(nm), t.dtype, _cut(_shape(t.shape)), size_in_words(t.nbytes)) for nm, t in in_order]
    head = [('tensor', 'dtype', 'shape', 'size')]
    return '\n\n'.join(_table(rows) for rows in (about, values, head + tensors if tensors else []) if rows)


def printable(text: str) -> str:
    "`text` with all but printable characters escaped: line ends, commands to a terminal, bytes that are no text."
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text)


def _cut(text: str, most: int = _LONG[1]) -> str:
    text = printable(text[:most + 1])
    return text if len(text) <= most else f'{text[:most - 1]}…'


def _by_number(name: str) -> list[str | tuple[int, str]]:
    "What sorts model/10 after model/9, however long the numbers are."
    parts = re.split('([0-9]+)', name)
    return [(len(s.lstrip('0')), s.lstrip('0')) if i % 2 else s for i, s in enumerate(parts)]


def _shape(shape: tuple[int, ...]) -> str: return ' x '.join(map(str, shape)) or '0-d'


def _short(v: Any) -> str:
    if isinstance(v, int) and v.bit_length() > 256: return f'an int of {v.bit_length():,} bits'
    return _cut(repr(v), _LONG[0])


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join('  '.join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def size_in_words(n: int) -> str:
    "Bytes in the unit that suits them: '12 B', '3.4 kB', '1.2 GB'."
    units = ['B', 'kB', 'MB', 'GB', 'TB']
    k = min((len(str(n)) - 1)//3, len(units) - 1)
    return f'{n/1000**k:.1f} {units[k]}' if k else f'{n} B'

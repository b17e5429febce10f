"A checkpoint in words: a table of what `inspect` says. Knows text."
import re
from typing import Any

from .read import CheckpointInfo

__all__ = ['describe', 'size_in_words']


def describe(info: CheckpointInfo) -> str:
    "What is in a checkpoint: where it comes from, its plain values, its tensors with dtype, shape and bytes."
    about = [('file', info.path), ('saved', info.saved), ('by', f'miniai {info.miniai}, torch {info.torch}'),
             ('format', info.version), ('size', size_in_words(info.size)), ('sha256', info.sha256)]
    values = [(k, _short(v)) for k, v in info.scalars.items()]
    in_order = sorted(info.tensors.items(), key=lambda item: _by_number(item[0]))
    tensors = [(nm, t.dtype, _shape(t.shape), size_in_words(t.nbytes)) for nm, t in in_order]
    head = [('tensor', 'dtype', 'shape', 'size')]
    return '\n\n'.join(_table(rows) for rows in (about, values, head + tensors if tensors else []) if rows)


def _by_number(name: str) -> list[str | int]:
    "What sorts model/10 after model/9."
    return [int(s) if i % 2 else s for i, s in enumerate(re.split('([0-9]+)', name))]


def _shape(shape: tuple[int, ...]) -> str: return ' x '.join(map(str, shape)) or '0-d'


def _short(v: Any) -> str: return repr(v) if len(repr(v)) <= 80 else repr(v)[:77] + '…'


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join('  '.join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def size_in_words(n: int) -> str:
    "Bytes in the unit that suits them: '12 B', '3.4 kB', '1.2 GB'."
    units = ['B', 'kB', 'MB', 'GB', 'TB']
    k = min((len(str(n)) - 1)//3, len(units) - 1)
    return f'{n/1000**k:.1f} {units[k]}' if k else f'{n} B'

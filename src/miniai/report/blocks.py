"The blocks that sections of the page are made of, as plain data, which the templates draw: text, tables, figures."
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from miniai.report.scales import short

__all__ = ['Block', 'Cell', 'Section', 'commands', 'facts', 'figures', 'folded', 'listed', 'number', 'percent',
           'pictures', 'plural', 'shown', 'table', 'text', 'time_of']


@dataclass
class Cell:
    """A cell of a table, or a fact: `text`, and if it shows a number, its exact `value`. `drawing` is SVG made by this
    package; `share`, from 0 to 1, colors the cell."""
    text: str
    value: Any = None
    drawing: str = ''
    share: float | None = None


@dataclass
class Block:
    "One block; `kind` is the name of the template's macro, and `content` what that needs."
    kind: str
    content: dict[str, Any]


@dataclass
class Section:
    "A section of the page: an identifier for links, a title, and blocks."
    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def text(words: str, kind: str = 'note') -> Block:
    "A paragraph."
    return Block('text', dict(words=words, kind=kind))


def facts(items: Mapping[str, Any]) -> Block:
    "Names with values, without those that are None."
    return Block('facts', dict(items={k: shown(v) for k, v in items.items() if v is not None}))


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], folded: str = '', kind: str = '') -> Block:
    "A table whose first column names the rows. With `folded` it is behind this line, which opens it."
    return Block('table', dict(caption=caption, head=list(head), rows=[[shown(c) for c in row] for row in rows],
                               folded=folded, kind=kind))


def figures(*drawn: dict[str, Any] | None) -> Block:
    "Figures side by side: dicts with `title`, `svg`, and the `legend`, (class, words) for each."
    return Block('figures', dict(figures=[f for f in drawn if f]))


def pictures(caption: str, items: Iterable[dict[str, Any]]) -> Block:
    "Pictures with captions: dicts with the base64 of a PNG, `png`, or None; `alt`; and `lines`."
    return Block('pictures', dict(caption=caption, items=list(items)))


def commands(items: Mapping[str, str]) -> Block:
    "Commands by what they do."
    return Block('commands', dict(items=dict(items)))


def listed(words: Iterable[str]) -> Block:
    "A list of sentences."
    return Block('listed', dict(words=list(words)))


def folded(line: str, blocks: Iterable[Block]) -> Block:
    "Blocks behind a line, which opens them."
    return Block('folded', dict(line=line, blocks=list(blocks)))


def shown(value: Any) -> Cell:
    "Any plain value as a cell."
    if isinstance(value, Cell): return value
    if isinstance(value, bool): return Cell('yes' if value else 'no')
    if isinstance(value, int | float): return number(value)
    if value is None: return Cell('—')
    if isinstance(value, list | tuple): return Cell(', '.join(shown(v).text for v in value))
    return Cell(str(value))


def number(value: float | None, digits: int = 4, unit: str = '') -> Cell:
    "A number, rounded to `digits`, with its exact value."
    if value is None or isinstance(value, str): return Cell('—' if value is None else value)
    return Cell(short(value, digits) + (f'\u00a0{unit}' if unit else ''), value)


def percent(share: float | None, digits: int = 1) -> Cell:
    "A share from 0 to 1 as a percentage, with its exact value."
    if share is None or not math.isfinite(share): return Cell('—')
    return Cell(f'{100*share:.{digits}f}\u00a0%', share)


def time_of(seconds: float | None) -> Cell:
    "A time in words, with its exact seconds."
    if seconds is None: return Cell('—')
    if seconds < 0.1: return Cell(f'{1000*seconds:.2g}\u00a0ms', seconds)
    if seconds < 60: return Cell(f'{seconds:.3g}\u00a0s', seconds)
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60: return Cell(f'{minutes}\u00a0min {rest}\u00a0s', seconds)
    return Cell(f'{minutes//60}\u00a0h {minutes % 60}\u00a0min', seconds)


def plural(n: int, word: str, several: str = '') -> str:
    "'1 epoch', '2 epochs'."
    return f'{n:,} {word if n == 1 else several or word + "s"}'

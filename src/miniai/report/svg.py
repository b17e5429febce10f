"""Drawings as SVG text, from numbers: a chart with two axes, and small ones for table cells. Colors and fonts are
those of the page's style sheet, by class name."""
import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise

from miniai.report.scales import Axis, finite, short, span

__all__ = ['Chart', 'bar', 'escaped', 'interval', 'sparkline']

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 14, 42


def escaped(text: object) -> str:
    "Text that is safe inside of an element and of an attribute in quotes."
    return escape(str(text), quote=True)


class Chart:
    """A chart over the axes `x` and `y`, whose places are set here. Lines, bands and dots are drawn in the order in
    which they are added; `markup` returns the SVG element."""
    def __init__(self, x: Axis, y: Axis, width: int = WIDTH, height: int = HEIGHT) -> None:
        self.x, self.y, self.width, self.height, self.parts = x, y, width, height, []
        x.start, x.end, y.start, y.end = LEFT, width - RIGHT, height - BOTTOM, TOP

    def line(self, xs: Sequence[float], ys: Sequence[float | None], kind: str, title: str = '') -> None:
        "A line, with gaps where `ys` has no finite number, and a triangle at the edge for values beyond the axis."
        paths = [f'M{" ".join(piece)}' for piece in self._pieces(xs, ys)]
        if paths: self.parts.append(f'<path class="line {kind}" d="{"".join(paths)}">{_title(title)}</path>')
        self._beyond(xs, ys, kind.split()[0])

    def _beyond(self, xs: Sequence[float], ys: Sequence[float | None], kind: str) -> None:
        found = [(x, y) for x, y in zip(xs, ys, strict=False) if finite([y])]
        for out, mark, words in (([p for p in found if p[1] > self.y.high], 'm-4 -1l4 -7l4 7z', 'above'),
                                 ([p for p in found if p[1] < self.y.low], 'm-4 1l4 7l4 -7z', 'below')):
            if not out: continue
            at, most = ''.join(f'M{self.x(x):.1f} {self.y(y):.1f}{mark}' for x, y in out), max(abs(y) for _, y in out)
            self.parts.append(f'<path class="beyond {kind}" d="{at}">'
                              f'{_title(f"{words} the axis, up to {short(most, 4)}")}</path>')

    def _pieces(self, xs: Sequence[float], ys: Sequence[float | None]) -> list[list[str]]:
        pieces = [[]]
        for x, y in zip(xs, ys, strict=False):
            if y is not None and math.isfinite(y): pieces[-1].append(f'{self.x(x):.1f} {self.y(y):.1f}')
            elif pieces[-1]: pieces.append([])
        return [piece*2 if len(piece) == 1 else piece for piece in pieces if piece]  # one point is drawn as a dot

    def band(self, xs: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None], kind: str) -> None:
        "The area between two lines, of the points where both are finite."
        found = [p for p in zip(xs, lows, highs, strict=False) if len(finite(p)) == 3]
        there = [f'{self.x(x):.1f} {self.y(high):.1f}' for x, _, high in found]
        back = [f'{self.x(x):.1f} {self.y(low):.1f}' for x, low, _ in reversed(found)]
        if found: self.parts.append(f'<path class="band {kind}" d="M{" ".join(there + back)}Z"/>')

    def dots(self, xs: Sequence[float], ys: Sequence[float | None], kind: str, titles: Sequence[str],
             radius: float = 3.5) -> None:
        "A dot for each finite value, with a title that shows on hover."
        for x, y, title in zip(xs, ys, titles, strict=True):
            if not finite([y]): continue
            place = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:g}"'
            self.parts.append(f'<circle class="dot {kind}" {place}>{_title(title)}</circle>')

    def points(self, xs: Sequence[float], ys: Sequence[float | None], kind: str, crossed: bool = False) -> None:
        "Small dots, or crosses, in one element: many cost few bytes. They have no titles."
        mark = 'm-3 -3l6 6m-6 0l6 -6' if crossed else 'h0'
        at = [f'M{self.x(x):.1f} {self.y(y):.1f}{mark}' for x, y in zip(xs, ys, strict=True) if finite([y])]
        if at: self.parts.append(f'<path class="{"crosses" if crossed else "points"} {kind}" d="{"".join(at)}"/>')

    def hover(self, xs: Sequence[float], titles: Sequence[str]) -> None:
        "Columns that cannot be seen, each with a title that shows on hover."
        edges = [self.x(x) for x in xs]
        middles = [self.x.start, *((a + b)/2 for a, b in pairwise(edges)), self.x.end]
        for left, right, title in zip(middles, middles[1:], titles, strict=False):
            self.parts.append(f'<rect class="hover" x="{left:.1f}" y="{TOP}" width="{max(right - left, 0):.1f}" '
                              f'height="{self.height - TOP - BOTTOM}">{_title(title)}</rect>')

    def marked(self, xs: Iterable[float], kind: str) -> None:
        "Vertical lines from the bottom to the top, drawn below everything else."
        for x in xs:
            at = f'{self.x(x):.1f}'
            self.parts.insert(0, f'<path class="{kind}" d="M{at} {self.y.start:.1f}V{TOP}"/>')

    def markup(self, name: str, title: str, about: str) -> str:
        "The SVG element. `name` is unique on the page; `title` and `about` are for people who do not see it."
        return (f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-labelledby="{name}-t {name}-d">'
                f'<title id="{name}-t">{escaped(title)}</title><desc id="{name}-d">{escaped(about)}</desc>'
                f'{self._axes()}{"".join(self.parts)}</svg>')

    def _axes(self) -> str:
        bottom, parts = self.y.start, []
        for v in self.y.marks:
            at = self.y(v)
            parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{self.width - RIGHT}"/>'
                         f'<text class="mark" x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{_mark(v)}</text>')
        for v in self.x.marks:
            parts.append(f'<path class="tick" d="M{self.x(v):.1f} {bottom:.1f}v4"/><text class="mark" '
                         f'x="{self.x(v):.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{_mark(v)}</text>')
        parts.append(f'<path class="axis" d="M{LEFT} {bottom:.1f}H{self.width - RIGHT}"/>')
        middle = (LEFT + self.width - RIGHT)/2
        parts.append(f'<text class="name" x="{middle:.1f}" y="{self.height - 5}" text-anchor="middle">'
                     f'{escaped(self.x.label)}</text>')
        return ''.join(parts)


def sparkline(xs: Sequence[float], ys: Sequence[float | None], log: bool = False, width: int = 112,
              height: int = 26) -> str:
    "A line without axes, for a table cell that also has the last value as text; therefore hidden from screen readers."
    kept = [(x, y) for x, y in zip(xs, ys, strict=False) if finite([y]) and (y > 0 or not log)]
    if not kept: return ''
    low, high = (min(y for _, y in kept), max(y for _, y in kept)) if log else span([y for _, y in kept])
    if log and low == high: low, high = low/2, high*2
    x, y = Axis(kept[0][0], kept[-1][0], 2, width - 4), Axis(low, high, height - 3, 3, log=log)
    points = ' '.join(f'{x(a):.1f} {y(b):.1f}' for a, b in kept)
    return (f'<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
            f'<path class="line" d="M{points}"/><circle class="dot" r="2" cx="{x(kept[-1][0]):.1f}" '
            f'cy="{y(kept[-1][1]):.1f}"/></svg>')


def bar(share: float | None, kind: str = '', width: int = 64, height: int = 10) -> str:
    "A share from 0 to 1 as a bar, for a table cell that also has it as text."
    filled = width*min(max(finite([share])[0], 0.), 1.) if finite([share]) else 0
    return (f'<svg class="bar {kind}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'aria-hidden="true"><rect class="whole" width="{width}" height="{height}" rx="2"/>'
            f'<rect class="part" width="{filled:.1f}" height="{height}" rx="2"/></svg>')


def interval(value: float, low: float, high: float, of: Axis, mark: float | None = None, kind: str = '') -> str:
    "A value with its interval, for a table cell that also has them as text, and a vertical line at `mark`."
    of.start, of.end = 3, 93
    at = '' if mark is None else f'<path class="axis" d="M{of(mark):.1f} 0V14"/>'
    return (f'<svg class="interval {kind}" viewBox="0 0 96 14" width="96" height="14" aria-hidden="true">{at}'
            f'<path class="line" d="M{of(low):.1f} 7H{of(high):.1f}"/>'
            f'<circle class="dot" r="3.5" cx="{of(value):.1f}" cy="7"/></svg>')


def _title(text: str) -> str: return f'<title>{escaped(text)}</title>' if text else ''
def _mark(v: float) -> str: return escaped(short(v).replace('e-0', 'e-'))

"Three ways to display progress: in a terminal, in a notebook, and as plain lines."
import html
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

from miniai.distributed.ranks import is_first
from miniai.show.sparkline import sparkline

__all__ = ['PlainDisplay', 'TerminalDisplay', 'NotebookDisplay', 'best_display', 'draw_curves', 'say']

Curves = Sequence[tuple[Sequence[float], Sequence[float]]]
CURVE = 20  # columns


def best_display() -> 'PlainDisplay | TerminalDisplay | NotebookDisplay':
    """A new display for the place where this process runs: a notebook, a terminal, or neither (a log or a pipe). Only
    the first of several processes shows anything."""
    if not is_first(): return SilentDisplay()
    ipython = sys.modules.get('IPython')
    shell = ipython.get_ipython() if ipython else None
    if getattr(shell, 'kernel', None) is not None: return NotebookDisplay()
    in_terminal = getattr(sys.stdout, 'isatty', bool)() and os.environ.get('TERM') != 'dumb'
    return TerminalDisplay() if in_terminal else PlainDisplay()


def say(text: str) -> None:
    "Print a text, wrapped at words in a terminal."
    display = best_display()
    (display.text if isinstance(display, TerminalDisplay) else print)(text)


class PlainDisplay:
    """Prints each row as one line of `name value` pairs, for logs and pipes. Shows no bars and no curves. What others
    show beside a bar: `time_left`, the seconds left of pass and fit, and the `losses` so far, if `shows_losses`."""
    seconds_between_updates = float('inf')
    time_left: tuple[float, float] | None = None
    losses: Sequence[float] = ()
    def shows_losses(self) -> bool: return False
    def bar(self, label: str, done: int, total: int | None, comment: str) -> None: "No bar in a log."
    def end_bar(self) -> None: "No bar in a log."
    def text(self, line: str) -> None: print(line, flush=True)
    def row(self, d: dict[str, str]) -> None: self.text('  '.join(f'{k} {v}' for k, v in d.items()))
    def curves(self, curves: Curves, labels: Sequence[str]) -> None: "No picture in a log."
    def close(self) -> None: "Nothing to clean up."


class SilentDisplay(PlainDisplay):
    "Shows nothing."
    def text(self, line: str) -> None: "Not even lines."


# From long to short. The first layout that fits is used, with 6 columns for the bar if it has one.
_BARS = ('{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}FIT left, {rate_fmt}] ',
         '{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}FIT] ',
         '{desc} |{bar}| {n_fmt}/{total_fmt} [<{remaining}FIT] ',
         '{desc} {n_fmt}/{total_fmt} [<{remaining}FIT] ',
         '{desc} |{bar}| {n_fmt}/{total_fmt} ',
         '{desc} {n_fmt}/{total_fmt} ')
_COUNTS = ('{desc} {n_fmt} [{elapsed}, {rate_fmt}] ', '{desc} {n_fmt} ')  # for an unknown total


class TerminalDisplay(PlainDisplay):
    """Shows a bar on the last line, and above it a table that stays. The bar is followed by a small curve of the loss
    where that fits and blocks can be shown. Texts are wrapped at words; a row that is too wide becomes a text."""
    seconds_between_updates = 0.1
    def __init__(self, file: TextIO | None = None) -> None:
        self.file, self.tqdm, self.widths = file or sys.stdout, None, None

    def bar(self, label: str, done: int, total: int | None, comment: str) -> None:
        "Show or update the bar: `done` of `total` batches; `total` is None if unknown."
        from tqdm import tqdm
        from tqdm.utils import disp_len
        if self.tqdm is None:
            colour = {'colour': None} if os.environ.get('NO_COLOR') else {}  # TQDM_COLOUR may have set one
            self.tqdm = tqdm(desc=label, total=total, file=self.file, leave=False, unit='batch', bar_format=' ',
                             **colour)
        self.tqdm.n = done
        comment = comment.replace('{', '{{').replace('}', '}}')
        if self.losses: comment += f'  {sparkline(self.losses, CURVE)}'
        for layout in _BARS if total else _COUNTS:
            layout = self._with_times(layout) + comment
            self.tqdm.bar_format, self.tqdm.ncols = layout.replace('{bar}', '{bar:6}'), None
            if disp_len(str(self.tqdm)) <= _columns(): break
        self.tqdm.bar_format, self.tqdm.ncols = layout, _columns()
        self.tqdm.refresh()

    def _with_times(self, layout: str) -> str:
        if not self.time_left: return layout.replace('FIT left', '').replace('FIT', '')
        of_pass, of_fit = map(_clock, self.time_left)
        return layout.replace('{remaining}', of_pass).replace('FIT', f', fit {of_fit}')

    def shows_losses(self) -> bool:
        "Whether the terminal is wide enough for a curve, and can show its blocks."
        return _columns() >= 99 and (getattr(self.file, 'encoding', None) or '').lower().startswith('utf')

    def end_bar(self) -> None:
        "Remove the bar."
        if self.tqdm is not None: self.tqdm.close()
        self.tqdm = None

    def text(self, line: str) -> None:
        "Print a text of one or more lines in place of the bar; the next bar appears below it."
        for one in line.split('\n'):
            for part in textwrap.wrap(one, _columns(), subsequent_indent='  ', break_long_words=False,
                                      break_on_hyphens=False) or ['']: self._line(part)  # paths stay whole

    def _line(self, line: str) -> None:
        self.end_bar()
        print(line, file=self.file, flush=True)

    def row(self, d: dict[str, str]) -> None:
        """Print a table row. The first row, and any row with different columns, gets a header. A row too wide for the
        terminal becomes a text of names and values."""
        new = self.widths is None or list(self.widths) != list(d)
        if new: self.widths = _widths([d])
        lines = [_aligned(d.keys(), self.widths)]*new + [_aligned(d.values(), self.widths)]
        if max(map(len, lines)) > _columns(): return super().row(d)
        for line in lines: self._line(line)

    def close(self) -> None:
        "Remove the bar and leave the table."
        self.end_bar()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes//60}:{minutes % 60:02}:{seconds:02}' if minutes >= 60 else f'{minutes:02}:{seconds:02}'


def _columns() -> int: return shutil.get_terminal_size().columns - 1


def _widths(rows: list[dict[str, str]]) -> dict[str, int]:
    return {k: max(5, len(k), *(len(str(d[k])) for d in rows)) for k in rows[0]}


def _aligned(cells: Iterable, widths: dict[str, int]) -> str:
    return '  '.join(f'{c!s:>{w}}' for c, w in zip(cells, widths.values(), strict=True))


class NotebookDisplay(PlainDisplay):
    "Shows a table and, while it runs, a bar below it, in one output; the live curves are a second output."
    seconds_between_updates = 0.25
    def __init__(self) -> None: self.blocks, self.status, self.shown, self.figure = [], '', None, None

    def bar(self, label: str, done: int, total: int | None, comment: str) -> None:
        "Show or update the bar: `done` of `total` batches; `total` is None if unknown."
        gauge = f'<progress value="{done}" max="{total}" style="width:20em"></progress>' if total else ''
        of = f' of {total}' if total else ''
        left = f', {_clock(self.time_left[0])} left, fit {_clock(self.time_left[1])}' if self.time_left else ''
        self.status = f'<div>{html.escape(label)} {gauge} {done}{of} {html.escape(comment)}{left}</div>'
        self._show()

    def end_bar(self) -> None:
        "Remove the bar. This becomes visible when something else is shown."
        self.status = ''

    def text(self, line: str) -> None:
        "Show a line that stays."
        self.blocks.append(line)
        self._show()

    def row(self, d: dict[str, str]) -> None:
        "Show a table row. The first row, and any row with different columns, gets a header."
        if not self.blocks or isinstance(self.blocks[-1], str) or list(self.blocks[-1][0]) != list(d):
            self.blocks.append([])
        self.blocks[-1].append(d)
        self._show()

    def _show(self) -> None:
        from IPython.display import display
        data = {'text/html': '\n'.join(map(_as_html, self.blocks)) + self.status,
                'text/plain': '\n'.join(map(_as_text, self.blocks))}
        if self.shown: self.shown.update(data, raw=True)
        else: self.shown = display(data, raw=True, display_id=True)

    def curves(self, curves: Curves, labels: Sequence[str]) -> None:
        "Draw the curves in place of the previous ones."
        from IPython.display import Image, display
        image = Image(draw_curves(curves, labels))
        if self.figure: self.figure.update(image)
        else: self.figure = display(image, display_id=True)

    def close(self) -> None:
        "Remove the bar and leave the table."
        self.end_bar()
        if self.shown: self._show()


def _as_html(block: str | list[dict]) -> str:
    "A line of text, or the rows of a table."
    if isinstance(block, str): return f'<p>{html.escape(block)}</p>'
    rows = [('th', block[0].keys()), *(('td', d.values()) for d in block)]
    cells = [' '.join(f'<{tag}>{html.escape(str(v))}</{tag}>' for v in values) for tag, values in rows]
    return '<table>\n' + '\n'.join(f'<tr>{c}</tr>' for c in cells) + '\n</table>'


def _as_text(block: str | list[dict]) -> str:
    "A line of text, or the rows of a table."
    if isinstance(block, str): return block
    return '\n'.join(_aligned(cells, _widths(block)) for cells in (block[0].keys(), *(d.values() for d in block)))


def draw_curves(curves: Curves, labels: Sequence[str]) -> bytes:
    "A PNG of the `curves`, pairs of xs and ys, thinned to about 2000 points each. pyplot's figures are not touched."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(6, 3.5), layout='constrained')
    ax = fig.add_subplot(xlabel='batch', ylabel='loss')
    for (xs, ys), label in zip(curves, labels, strict=True):
        every = max(1, len(ys)//2000)
        ax.plot(list(xs)[::every], list(ys)[::every], label=label, marker='.' if len(ys) < 20 else None)
    if len(curves) > 1: ax.legend()
    buffer = io.BytesIO()
    fig.savefig(buffer, format='png', dpi=80)
    return buffer.getvalue()

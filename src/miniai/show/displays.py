"""The three faces of progress: a terminal, a notebook, and neither.
Knows how to show rows, bars and curves, not what they mean."""
import html
import io
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

__all__ = ['Plain', 'Terminal', 'Notebook', 'best_face', 'draw_curves']

Curves = Sequence[tuple[Sequence[float], Sequence[float]]]


def best_face() -> 'Plain | Terminal | Notebook':
    "A new face for where this process runs: a notebook, a terminal, or neither."
    if _in_notebook(): return Notebook()
    return Terminal() if getattr(sys.stdout, 'isatty', bool)() else Plain()


def _in_notebook() -> bool:
    ipython = sys.modules.get('IPython')
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, 'kernel', None) is not None


class Plain:
    "One line of `name value` pairs a row, for logs and pipes. There are no bars and no curves."
    seconds_between_updates = float('inf')
    def bar(self, label: str, done: int, total: int | None, comment: str) -> None: "Nothing to show between rows."
    def end_bar(self) -> None: "Nothing to take away."
    def text(self, line: str) -> None: print(line, flush=True)
    def row(self, d: dict[str, str]) -> None: self.text('  '.join(f'{k} {v}' for k, v in d.items()))
    def curves(self, curves: Curves, labels: Sequence[str]) -> None: "A log has no picture."
    def close(self) -> None: "Nothing to end."


class Terminal(Plain):
    "A bar on the last line, above it a table whose rows stay. Rows are cut, never wrapped, at the terminal's width."
    seconds_between_updates = 0.1
    def __init__(self, file: TextIO | None = None) -> None:
        self.file, self.tqdm, self.widths = file or sys.stdout, None, None

    def bar(self, label: str, done: int, total: int | None, comment: str) -> None:
        "Show or move the bar: `done` of `total` batches, None where the total is not known."
        from tqdm import tqdm
        if self.tqdm is None:
            self.tqdm = tqdm(desc=label, total=total, leave=False, dynamic_ncols=True, file=self.file, unit='batch')
        self.tqdm.n = done
        self.tqdm.set_postfix_str(comment, refresh=False)
        self.tqdm.refresh()

    def end_bar(self) -> None:
        "Take the bar away."
        if self.tqdm is not None: self.tqdm.close()
        self.tqdm = None

    def text(self, line: str) -> None:
        "Print a line above the bar."
        self.end_bar()
        print(line[:shutil.get_terminal_size().columns - 1], file=self.file, flush=True)

    def row(self, d: dict[str, str]) -> None:
        "Print a table row; the first one, and one with other columns, under a header."
        if self.widths is None or list(self.widths) != list(d):
            self.widths = {k: max(len(k), len(str(v)), 5) for k, v in d.items()}
            self.text(self._aligned(d.keys()))
        self.text(self._aligned(d.values()))

    def _aligned(self, cells: Iterable) -> str:
        return '  '.join(f'{c!s:>{w}}' for c, w in zip(cells, self.widths.values(), strict=True))

    def close(self) -> None:
        "Leave the terminal clean, with the table in place."
        self.end_bar()


class Notebook(Plain):
    "One output with a table and, while it runs, a bar below it; a second with the live curves."
    seconds_between_updates = 0.25
    def __init__(self) -> None: self.blocks, self.status, self.shown, self.figure = [], '', None, None

    def bar(self, label: str, done: int, total: int | None, comment: str) -> None:
        "Show or move the bar: `done` of `total` batches, None where the total is not known."
        gauge = f'<progress value="{done}" max="{total}" style="width:20em"></progress>' if total else ''
        of = f' of {total}' if total else ''
        self.status = f'<div>{html.escape(label)} {gauge} {done}{of} {html.escape(comment)}</div>'
        self._show()

    def end_bar(self) -> None:
        "Take the bar away; the next thing shown is without it."
        self.status = ''

    def text(self, line: str) -> None:
        "Show a line that stays."
        self.blocks.append(line)
        self._show()

    def row(self, d: dict[str, str]) -> None:
        "Show a table row; the first one, and one with other columns, under a header."
        if not self.blocks or isinstance(self.blocks[-1], str) or list(self.blocks[-1][0]) != list(d):
            self.blocks.append([])
        self.blocks[-1].append(d)
        self._show()

    def _show(self) -> None:
        from IPython.display import display
        data = {'text/html': '\n'.join(map(_block_html, self.blocks)) + self.status,
                'text/plain': '\n'.join(map(_block_text, self.blocks))}
        if self.shown: self.shown.update(data, raw=True)
        else: self.shown = display(data, raw=True, display_id=True)

    def curves(self, curves: Curves, labels: Sequence[str]) -> None:
        "Draw the curves in place of those drawn before."
        from IPython.display import Image, display
        image = Image(draw_curves(curves, labels))
        if self.figure: self.figure.update(image)
        else: self.figure = display(image, display_id=True)

    def close(self) -> None:
        "Take the bar away and leave the table."
        self.end_bar()
        if self.shown: self._show()


def _block_html(block: str | list[dict]) -> str:
    if isinstance(block, str): return f'<p>{html.escape(block)}</p>'
    rows = [_cells('th', block[0]), *(_cells('td', d.values()) for d in block)]
    return '<table>\n' + '\n'.join(f'<tr>{r}</tr>' for r in rows) + '\n</table>'


def _cells(tag: str, values: Iterable) -> str: return ' '.join(f'<{tag}>{html.escape(str(v))}</{tag}>' for v in values)


def _block_text(block: str | list[dict]) -> str:
    if isinstance(block, str): return block
    rows = [list(block[0]), *(list(d.values()) for d in block)]
    return '\n'.join('  '.join(f'{c!s:>9}' for c in r) for r in rows)


def draw_curves(curves: Curves, labels: Sequence[str], most_points: int = 2000) -> bytes:
    "A PNG of the `curves`, pairs of xs and ys, in its own figure: pyplot's current one is left alone."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(6, 3.5), layout='constrained')
    ax = fig.add_subplot(xlabel='batch', ylabel='loss')
    for (xs, ys), label in zip(curves, labels, strict=True):
        every = max(1, len(ys)//most_points)
        ax.plot(list(xs)[::every], list(ys)[::every], label=label, marker='.' if len(ys) < 20 else None)
    if len(curves) > 1: ax.legend()
    buffer = io.BytesIO()
    fig.savefig(buffer, format='png', dpi=80)
    return buffer.getvalue()



"A terminal and a notebook kernel to run scripts in, and what they show."
import os
import pty
import subprocess
import sys

import nbclient
import nbformat
import pytest

from miniai.show import tracking
from miniai.show.displays import TerminalDisplay


class Bar(TerminalDisplay):
    "A display that lists what bars show in `shown`."
    seconds_between_updates = 0
    def __init__(self, shown): self.shown = shown
    def bar(self, *args): self.shown.append(args)
    def close(self): self.shown.append('closed')


@pytest.fixture
def shown(monkeypatch):
    "What the bars of long work show."
    shown = []
    monkeypatch.setattr(tracking, 'best_display', lambda: Bar(shown))
    return shown


class Screen:
    "A terminal of `columns`: the lines it shows after `feed(text)`, and how often a line wrapped."
    def __init__(self, columns):
        self.columns, self.lines, self.row, self.col, self.wraps = columns, [''], 0, 0, 0

    def feed(self, text):
        text = text.replace('\x1b[K', '\x00')
        for c in text: self._put(c)
        return self

    def _put(self, c):
        if c == '\r': self.col = 0
        elif c == '\n': self._down()
        elif c == '\x00': self.lines[self.row] = self.lines[self.row][:self.col]
        elif c == '\x1b': raise ValueError("an unknown escape sequence")
        else: self._write(c)

    def _down(self):
        self.row += 1
        if self.row == len(self.lines): self.lines.append('')

    def _write(self, c):
        if self.col == self.columns:
            self.wraps, self.col = self.wraps + 1, 0
            self._down()
        line = self.lines[self.row].ljust(self.col)
        self.lines[self.row] = line[:self.col] + c + line[self.col + 1:]
        self.col += 1

    @property
    def seen(self): return [line.rstrip() for line in self.lines if line.strip()]


def environment(): return {k: v for k, v in os.environ.items() if k not in ('COLUMNS', 'LINES')} | dict(TERM='xterm')


def in_terminals(scripts, widths, **env):
    "What each of `scripts` writes to a terminal of each width, as a dict by (name, width). All run in one process."
    runs = [(name, columns) for name in scripts for columns in widths]
    steps = [f"columns({n})\nexec({scripts[name]!r}, {{}})\nprint(end={END!r}, flush=True)" for name, n in runs]
    text = _in_terminal('\n'.join([RESIZE, *steps]), env)
    return dict(zip(runs, text.split(END), strict=False))


END = '\x0c'
RESIZE = """
import fcntl, struct, termios
def columns(n): fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 24, n, 0, 0))
"""


def _in_terminal(script, env):
    ours, theirs = pty.openpty()
    paths = [os.path.dirname(__file__), os.environ.get('PYTHONPATH', '')]
    env = environment() | dict(PYTHONPATH=os.pathsep.join(filter(None, paths))) | env
    with subprocess.Popen([sys.executable, '-c', script], stdin=theirs, stdout=theirs, stderr=theirs, env=env) as p:
        os.close(theirs)
        text = _read_all(ours)
    os.close(ours)
    assert p.returncode == 0, text
    return text


def _read_all(fd):
    chunks = []
    while True:
        try: chunk = os.read(fd, 4096)
        except OSError: break
        if not chunk: break
        chunks.append(chunk)
    return b''.join(chunks).decode().replace('\r\n', '\n\r')


def in_notebook(*cells):
    "The outputs of each of `cells`, run in one kernel."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(nb, timeout=120, kernel_name='python3').execute()
    return [c.outputs for c in nb.cells]

"A small Fashion-MNIST in files, pictures opened, a screen: what the tests of jobs and command line share."
import re
import struct

import numpy as np
from PIL import Image

from miniai.data import fashion_mnist

FILES = ['train-images-idx3-ubyte', 'train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte']


def write_tiny(folder, n=600, m=200):
    "The first `n` and `m` images of the sample as IDX files: 0, 0, type 8, dimensions, big-endian sizes, data."
    data = fashion_mnist(source='sample', quiet=True)
    for name, t in zip(FILES, (data.x_train[:n], data.y_train[:n], data.x_valid[:m], data.y_valid[:m]), strict=True):
        a = t.numpy().astype(np.uint8)
        (folder/name).write_bytes(bytes([0, 0, 8, a.ndim]) + struct.pack(f'>{a.ndim}I', *a.shape) + a.tobytes())
    return folder


def colours(path):
    "How many colours a PNG has: 1 where nothing was drawn."
    with Image.open(path) as im:
        assert im.format == 'PNG'
        return len(im.convert('RGB').getcolors(1 << 24))


class Screen:
    "What a terminal of `width` columns shows of `text`; `wrapped` holds the lines that ran over its edge."
    def __init__(self, text, width=80):
        self.lines, self.row, self.col, self.width, self.wrapped = [[]], 0, 0, width, []
        for s in re.findall(r'\x1b\[\??[\d;]*[A-Za-z]|[^\x1b]', text): self._put(s)

    def _put(self, s):
        if s == '\r': self.col = 0
        elif s == '\n': self._down()
        elif s == '\x1b[A': self.row -= 1
        elif s[0] == '\x1b': raise AssertionError(f'a code that this screen does not know: {s!r}')
        else: self._write(s)

    def _down(self):
        self.row += 1
        if self.row == len(self.lines): self.lines.append([])

    def _write(self, s):
        line = self.lines[self.row]
        if self.col == self.width:
            self.wrapped.append(''.join(line))
            self._down()
            self.col, line = 0, self.lines[self.row]
        line += [' ']*(self.col + 1 - len(line))
        line[self.col] = s
        self.col += 1

    @property
    def shown(self): return [''.join(line).rstrip() for line in self.lines]

"A curve as one line of text: a block character for each part of it."
import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ['sparkline']

BLOCKS = '▁▂▃▄▅▆▇█'


def sparkline(values: Sequence[float], width: int) -> str:
    """`values` as at most `width` blocks, each as high as the mean of its part of them, from the lowest mean to the
    highest. A part without finite values is a space. Of many values only some are read."""
    values = values[::max(1, len(values)//2000)]
    edges = [round(i*len(values)/min(width, len(values) or 1)) for i in range(min(width, len(values)) + 1)]
    parts = [[x for x in values[a:b] if math.isfinite(x)] for a, b in pairwise(edges)]
    means = [sum(part)/len(part) if part else None for part in parts]
    known = [m for m in means if m is not None]
    low, span = min(known, default=0.), max(known, default=0.) - min(known, default=0.)
    heights = [None if m is None else int((m - low)/span*len(BLOCKS)) if span else 0 for m in means]
    return ''.join(' ' if h is None else BLOCKS[min(h, len(BLOCKS) - 1)] for h in heights)

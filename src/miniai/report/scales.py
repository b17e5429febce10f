"Axes: from values to places in a picture, round numbers for their marks, and numbers as short text."
import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ['Axis', 'finite', 'linear_marks', 'log_marks', 'short', 'span']


@dataclass
class Axis:
    """Values from `low` to `high` at places from `start` to `end`, in units of the picture. `whole` marks whole numbers
    only, and `log` is for values above 0."""
    low: float
    high: float
    start: float
    end: float
    label: str = ''
    log: bool = False
    whole: bool = False

    def __call__(self, value: float) -> float:
        "The place of a value. One outside of the axis is put at its end."
        low, high, value = (math.log10(v) for v in (self.low, self.high, max(value, self.low))) if self.log else \
                           (self.low, self.high, value)
        share = (value - low)/(high - low) if high > low else 0.5
        return self.start + min(max(share, 0.), 1.)*(self.end - self.start)

    @property
    def marks(self) -> list[float]:
        "Round values to mark, within the axis."
        if self.log: return log_marks(self.low, self.high)
        found = linear_marks(self.low, self.high)
        return [v for v in found if v == int(v)] or [math.floor(self.low)] if self.whole else found


def linear_marks(low: float, high: float, most: int = 6) -> list[float]:
    "Up to `most` multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."
    if not high > low: return [low]
    power = 10.**math.floor(math.log10((high - low)/most))
    step = next(s*power for s in (1, 2, 5, 10, 20) if (high - low)/(s*power) <= most - 1 or s == 20)
    first, last = math.ceil(low/step - 1e-9), math.floor(high/step + 1e-9)
    return [float(f'{i*step:.12g}') for i in range(first, last + 1)]


def log_marks(low: float, high: float, most: int = 5) -> list[float]:
    "Powers of ten from `low` to `high`, every second or third one if there are many; also 2 and 5 if there are few."
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last <= first:
        found = [m*10.**i for i in range(first - 1, last + 1) for m in (1, 2, 5) if low <= m*10.**i <= high]
        return found if len(found) > 2 else [v for v in linear_marks(low, high) if v > 0]
    step = 1 + (last - first)//most
    return [10.**i for i in range(first, last + 1, step)]


def short(value: float | None, digits: int = 3) -> str:
    "A number in a few characters: 0.0123, 12,300, 1.2e-05; a dash for none."
    if value is None or not math.isfinite(value): return '—' if value is None else str(value)
    if value == 0: return '0'
    if abs(value) < 1e7 and (abs(value) >= 10**(digits - 1) or value == int(value)): return f'{value:,.0f}'
    return f'{value:.{digits}g}'


def finite(values: Iterable[float | None]) -> list[float]:
    "The values that are finite numbers."
    return [v for v in values if v is not None and math.isfinite(v)]


def span(values: Iterable[float | None], zero: bool = False, room: float = 0.06) -> tuple[float, float]:
    "The lowest and highest finite value, with some room around them, down to 0 with `zero`; 0 to 1 without values."
    found = finite(values)
    if not found: return 0., 1.
    low, high = min(found), max(found)
    if zero and low >= 0: return 0., high*(1 + room) or 1.
    extra = (high - low or abs(high) or 1.)*room
    return low - extra, high + extra

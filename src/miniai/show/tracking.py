"A progress bar for work that takes longer than a moment."
import time
from collections.abc import Iterable, Iterator
from typing import Any

from miniai.show.displays import best_display

__all__ = ['tracked']


def tracked(items: Iterable, label: str, quiet: float = 2.) -> Iterator[Any]:
    "The `items`, which have a length, with a progress bar after `quiet` seconds."
    display, due = best_display(), time.perf_counter() + quiet
    try:
        for done, item in enumerate(items, 1):
            yield item
            if time.perf_counter() < due: continue
            display.bar(label, done, len(items), '')
            due = time.perf_counter() + display.seconds_between_updates
    finally: display.close()

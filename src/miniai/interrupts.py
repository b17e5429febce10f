"SIGTERM and SIGINT: which are heard, and blocks that SIGTERM ends as Ctrl-C does, or that hold both. Knows no run."
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ['stop_signals', 'terminable', 'held']


def stop_signals() -> list[int]:
    """SIGTERM and SIGINT, as far as they can be handled here: neither from another thread than the main one, and none
    that is ignored, so that it stays so in processes started meanwhile."""
    if threading.current_thread() is not threading.main_thread(): return []
    return [s for s in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(s) not in (signal.SIG_IGN, None)]


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block the first SIGTERM raises SystemExit(143), so that what cleans up after Ctrl-C does so after it
    too; later ones change nothing. The handler is put back at the end. From another thread than the main one, and
    where SIGTERM is ignored or handled already, it does nothing."""
    if signal.SIGTERM not in stop_signals() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL: return (yield)
    signal.signal(signal.SIGTERM, _leave)
    try: yield
    finally: signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: Any) -> None:
    signal.signal(number, lambda number, frame: None)
    raise SystemExit(128 + number)


@contextmanager
def held() -> Iterator[None]:
    "Within the block SIGTERM and SIGINT wait, and do at its end what they would have done; from the main thread alone."
    old, heard = {}, []
    try:
        for s in stop_signals(): old[s] = signal.signal(s, lambda number, frame: heard.append(number))
        yield
    finally:
        for s, handler in old.items(): signal.signal(s, handler)
        for s in heard: signal.raise_signal(s)

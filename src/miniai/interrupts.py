"Signals amid a block: SIGTERM that ends it as Ctrl-C does, and both held until it is done. Knows no run."
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ['terminable', 'held']


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block the first SIGTERM raises SystemExit(143), so that what cleans up after Ctrl-C does so after it
    too; later ones change nothing. The handler is put back at the end. From another thread than the main one, and
    where SIGTERM is ignored or handled already, it does nothing."""
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL: return (yield)
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
        for s in _handled(): old[s] = signal.signal(s, lambda number, frame: heard.append(number))
        yield
    finally:
        for s, handler in old.items(): signal.signal(s, handler)
        for s in heard: signal.raise_signal(s)


def _handled() -> list[int]:
    "Those that are not ignored: what is, stays so in processes started meanwhile."
    signals = (signal.SIGTERM, signal.SIGINT) if _in_main_thread() else ()
    return [s for s in signals if signal.getsignal(s) not in (signal.SIG_IGN, None)]


def _in_main_thread() -> bool: return threading.current_thread() is threading.main_thread()

"""Signals that ask a run to stop: the first waits for a good moment, the second does not; a loader's workers outlast
it. Knows signals alone."""
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.sharedctypes import RawValue
from typing import Any, Self

__all__ = ['stop_signals', 'terminable', 'held', 'SignalWatch', 'OutlastSignals']


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


_GRACE = 30  # seconds


class SignalWatch:
    """Notes the first SIGTERM or SIGINT as `signal`; a second one `hastens` and does what it would have done before. It
    watches from its making to `close()`, which puts the old handlers back; from another thread than the main one, or
    where `on` is False, it does nothing, and a signal that is ignored stays so. A process forked meanwhile lets SIGINT
    pass, which a terminal's Ctrl-C sends to it too; SIGTERM does what it would have done before."""
    def __init__(self, on: bool = True) -> None:
        self.signal, self.hastens, self._left, self.old, self.pid = None, False, False, {}, os.getpid()
        if on: self.old = {s: signal.signal(s, self._note) for s in stop_signals()}

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self.pid: return self._note_in_a_fork(number)
        if self.signal is not None: return self._at_once(number)
        self.signal = number
        name = signal.Signals(number).name
        os.write(2, f'{_clear()}{name}: finishing the batch and saving; once more to leave at once\n'.encode())

    def _note_in_a_fork(self, number: int) -> None:
        if number != signal.SIGINT: self._at_once(number)

    def _at_once(self, number: int) -> None:
        self.hastens = True
        self.close()
        signal.raise_signal(number)

    def leave(self) -> None:
        "Leave, once, where a signal was noted: by KeyboardInterrupt in a notebook, else SystemExit with 143 or 130."
        if not self.signal or self._left: return
        self._left = True
        raise KeyboardInterrupt() if _in_notebook() else SystemExit(128 + self.signal)

    def close(self) -> None:
        "Put the old handlers back; a second call does nothing."
        old, self.old = self.old, {}
        for s, handler in old.items(): signal.signal(s, handler)


class OutlastSignals:
    """A DataLoader's `worker_init_fn`, of which `then` is the user's own. Its workers let SIGINT pass, and within its
    `with` block they outlast the first SIGTERM by 30 seconds: both come to them too where a terminal or a batch system
    asks a whole group of processes to stop, and the run still wants the batches that they are at. Workers that stay
    beyond the block end at once, as multiprocessing wants of them when the process exits."""
    def __init__(self, then: Callable[[int], None] | None) -> None: self.then, self.blocks = then, _blocks()

    def __enter__(self) -> Self:
        self.blocks.value += 1
        return self

    def __exit__(self, *error: object) -> None: self.blocks.value -= 1

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, 'alarm'): signal.signal(signal.SIGTERM, self._linger)
        if self.then is not None: self.then(worker)

    def _linger(self, number: int, frame: Any) -> None:
        if not self.blocks.value: os._exit(0)  # as torch's own workers do; another code is an error to their loader
        signal.signal(number, signal.SIG_DFL)
        signal.alarm(_GRACE)


@cache
def _blocks() -> Any:
    "How many `with` blocks are open: a number that workers see too, those of an earlier block as well."
    return RawValue('i', 0)


def _clear() -> str:
    "What clears the line of a terminal, on which a bar may be drawn; elsewhere a new line."
    try: return f"\r{' '*(os.get_terminal_size(2).columns - 1)}\r"
    except OSError: return '\n'


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get('IPython'), 'get_ipython', lambda: None)()
    return shell is not None

"Signals that ask a run to stop: the first lets it finish a batch and save, the second stops it at once."
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.sharedctypes import RawValue
from typing import Any, Self

from miniai.distributed.ranks import is_first
from miniai.distributed.torchrun import launched

__all__ = ['stop_signals', 'terminable', 'held', 'SignalWatch', 'OutlastSignals']

_GRACE, _PASSED_ON = 30, 5  # seconds
_STOPS = [getattr(signal, nm) for nm in ('SIGTERM', 'SIGINT', 'SIGHUP') if hasattr(signal, nm)]


def stop_signals() -> list[int]:
    """SIGTERM, SIGINT, SIGHUP, if they can be handled here: only in the main thread, not if they are ignored, because
    child processes should ignore them too."""
    if threading.current_thread() is not threading.main_thread(): return []
    return [s for s in _STOPS if signal.getsignal(s) not in (signal.SIG_IGN, None)]


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block the first SIGTERM raises SystemExit(143), so that cleanup runs as it does after Ctrl-C; later
    ones do nothing. No effect outside the main thread, or if SIGTERM is ignored or has a handler already."""
    if signal.SIGTERM not in stop_signals() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL: return (yield)
    def leave(number: int, frame: Any) -> None:
        signal.signal(number, lambda number, frame: None)
        raise SystemExit(128 + number)
    signal.signal(signal.SIGTERM, leave)
    try: yield
    finally: signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def held() -> Iterator[None]:
    "Hold SIGTERM, SIGINT and SIGHUP back until the end of the block. No effect outside the main thread."
    old, received = {}, []
    try:
        for s in stop_signals(): old[s] = signal.signal(s, lambda number, frame: received.append(number))
        yield
    finally:
        for s, handler in old.items(): signal.signal(s, handler)
        for s in received: signal.raise_signal(s)


class SignalWatch:
    """Notes the first SIGTERM, SIGINT or SIGHUP in `signal`; a second sets `forced` and has its usual effect at once.
    Watches until `close()`, which restores the old handlers. Does nothing outside the main thread, with `on` False, and
    for signals that are ignored. Forked processes ignore SIGINT, because Ctrl-C in a terminal reaches them too; SIGTERM
    has its usual effect on them. Under torchrun a second signal within 5 seconds is the first one again."""
    def __init__(self, on: bool = True) -> None:
        self.signal, self.forced, self._left, self.pid = None, False, False, os.getpid()
        self.old_handlers = {s: signal.signal(s, self._note) for s in stop_signals()} if on else {}

    def _note(self, number: int, frame: Any) -> None:
        forked = os.getpid() != self.pid
        if forked and number == signal.SIGINT: return
        if not forked and self.signal is not None and self._is_passed_on(): return
        if forked or self.signal is not None:
            self.forced = True
            self.close()
            return signal.raise_signal(number)
        self.signal, self._noted = number, time.monotonic()
        if not is_first(): return  # the first process says it
        try: clear_line = f"\r{' '*(os.get_terminal_size(2).columns - 1)}\r"  # there may be a progress bar
        except OSError: clear_line = '\n'
        name = signal.Signals(number).name
        with suppress(OSError):  # after SIGHUP the terminal is gone
            os.write(2, f'{clear_line}{name}: finishing this batch and saving; send it again to stop at once\n'
                     .encode())

    def _is_passed_on(self) -> bool:
        "A signal to a whole group of processes, as Ctrl-C's, comes again from torchrun, which passes it on."
        return launched() is not None and time.monotonic() - self._noted < _PASSED_ON

    def leave(self, number: int | None = None) -> None:
        """If a signal was noted here, or in another process the signal `number`, raise KeyboardInterrupt in a notebook,
        else SystemExit with 143 or 130; only once."""
        number = number or self.signal
        if not number or self._left: return
        self._left = True
        raise KeyboardInterrupt() if _in_notebook() else SystemExit(128 + number)

    def close(self) -> None:
        "Restore the old handlers. A second call does nothing."
        old, self.old_handlers = self.old_handlers, {}
        for s, handler in old.items(): signal.signal(s, handler)


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get('IPython'), 'get_ipython', lambda: None)()
    return shell is not None


class OutlastSignals:
    """A DataLoader's `worker_init_fn` that lets workers survive a signal, for use in a `with` block; `then` is the
    user's own `worker_init_fn`. A terminal or a batch system signals all processes of a run, but the run still needs
    the batches that its workers are making: they ignore SIGINT, and within the block they run for 30 seconds after
    the first SIGTERM. After the block SIGTERM ends them at once, as multiprocessing expects when a process exits."""
    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then, self.open_blocks = then, _count_of_open_blocks()

    def __enter__(self) -> Self:
        self.open_blocks.value += 1
        return self

    def __exit__(self, *error: object) -> None: self.open_blocks.value -= 1

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for s in {*_STOPS} - {signal.SIGINT} if hasattr(signal, 'alarm') else (): signal.signal(s, self._outlast)
        if self.then is not None: self.then(worker)

    def _outlast(self, number: int, frame: Any) -> None:
        if not self.open_blocks.value: os._exit(0)  # as torch's own workers do; to their loader other codes are errors
        signal.signal(number, signal.SIG_DFL)
        signal.alarm(_GRACE)


@cache
def _count_of_open_blocks() -> Any:
    "A number in shared memory, so that workers see it change, also those that a later block did not start."
    return RawValue('i', 0)

"Signals that ask a run to stop: the first waits for a good moment, the second does not. Knows signals alone."
import os
import signal
import sys
import threading
from typing import Any

__all__ = ['SignalWatch']

_SIGNALS = signal.SIGTERM, signal.SIGINT


class SignalWatch:
    """Notes the first SIGTERM or SIGINT as `signal`; a second one does what it would have done before. It watches from
    its making to `close()`, which puts the old handlers back; from another thread than the main one, or where `on` is
    False, it does nothing."""
    def __init__(self, on: bool = True) -> None:
        self.signal, self.old = None, {}
        if not on or threading.current_thread() is not threading.main_thread(): return
        self.old = {s: signal.signal(s, self._note) for s in _SIGNALS}

    def _note(self, number: int, frame: Any) -> None:
        if self.signal is not None: return self._at_once(number)
        self.signal = number
        name = signal.Signals(number).name
        os.write(2, f'{_clear()}{name}: finishing the batch and saving; once more to leave at once\n'.encode())

    def _at_once(self, number: int) -> None:
        self.close()
        signal.raise_signal(number)

    def leaving(self) -> BaseException:
        "What to raise to leave for the signal noted: KeyboardInterrupt in a notebook, else SystemExit with 143 or 130."
        return KeyboardInterrupt() if _in_notebook() else SystemExit(128 + self.signal)

    def close(self) -> None:
        "Put the old handlers back; a second call does nothing."
        old, self.old = self.old, {}
        for s, handler in old.items(): signal.signal(s, handler)


def _clear() -> str:
    "What clears the line of a terminal, on which a bar may be drawn; elsewhere a new line."
    try: return f"\r{' '*(os.get_terminal_size(2).columns - 1)}\r"
    except OSError: return '\n'


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get('IPython'), 'get_ipython', lambda: None)()
    return shell is not None

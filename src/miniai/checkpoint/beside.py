"A thread that does one thing at a time beside its caller, and the sha256 that is taken so. Knows no file."
import hashlib
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

__all__ = ['Beside', 'Digest']

_WORTH_A_THREAD = 1 << 16  # bytes; below it, handing over takes longer than hashing


class Beside:
    """Runs one function at a time in a thread of its own. `do` returns at once where the last one is done; `wait`
    returns when it is, and raises what it raised. Leaving the `with` waits too."""
    def __init__(self) -> None:
        self._todo, self._done, self._busy, self._thread = SimpleQueue(), SimpleQueue(), False, None

    def __enter__(self) -> 'Beside': return self

    def do(self, f: Callable, *args: Any) -> None:
        "Call `f(*args)` in the thread, or here where no thread can be had any more: at the interpreter's end."
        self.wait()
        if self._started(): self._busy = self._todo.put((f, args)) is None
        else: f(*args)

    def _started(self) -> bool:
        if self._thread: return True
        thread = Thread(target=self._work, daemon=True, name='miniai-beside')
        try: thread.start()
        except RuntimeError: return False
        self._thread = thread
        return True

    def _work(self) -> None:
        for todo in iter(self._todo.get, None):
            error = _raised(*todo)
            del todo  # else the caller's tensors might end with this thread, amid the interpreter's end
            self._done.put(error)

    def wait(self) -> None:
        "Return when the last function is done; raise what it raised."
        if not self._busy: return
        error, self._busy = self._done.get(), False
        if error: raise error

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try: self.wait()
        except BaseException:
            if kind is None: raise  # else the first error is the one to tell
        finally:
            if self._thread: self._todo.put(None)


def _raised(f: Callable, args: tuple) -> BaseException | None:
    try: f(*args)
    except BaseException as e: return e


class Digest:
    "A sha256 taken beside the caller: a piece handed to `update` must stay as it is until the next call."
    def __init__(self) -> None: self._hash, self._beside = hashlib.sha256(), Beside()
    def __enter__(self) -> 'Digest': return self
    def __exit__(self, *raised: Any) -> None: self._beside.__exit__(*raised)

    def update(self, piece: bytes | memoryview) -> None:
        "Take `piece` in, after all before it."
        self._beside.wait()
        if len(piece) < _WORTH_A_THREAD: self._hash.update(piece)
        else: self._beside.do(self._hash.update, piece)

    def hexdigest(self) -> str:
        "The digest of all so far, as 64 characters."
        self._beside.wait()
        return self._hash.hexdigest()

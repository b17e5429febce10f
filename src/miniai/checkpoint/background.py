"""A call that whichever thread comes first makes, a thread that makes one at a time beside its caller, and the sha256
that is taken so. Knows no file."""
import hashlib
import weakref
from _thread import start_new_thread
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock
from typing import Any

__all__ = ['Task', 'Beside', 'Digest']

_WORTH_A_THREAD = 1 << 16  # bytes; below it, handing over takes longer than hashing


# A KeyboardInterrupt may come after any call of the main thread's. So nothing here is a message, which it could lose
# between its receipt and its use: whether a task is over is a flag, told by one lock that every waiter passes on, and
# whose it is to run is an iterator that gives it once. Thread.start, Event and Condition can be left with a lock held.

class Task:
    "The call `f(*args)`, made once by whichever thread comes first. Then it is `over`; `error` is what it raised."
    def __init__(self, f: Callable, *args: Any) -> None:
        self._todo = iter([None, (f, args)].pop, None)  # gives it once, and keeps nothing of it
        self.over, self.error, self._end = False, None, Lock()
        self._end.acquire()

    def start(self) -> None:
        "Run it in a daemon thread; RuntimeError where none can be had any more: at the interpreter's end."
        start_new_thread(self.run, ())

    def run(self) -> None:
        "Make the call, unless another thread has begun it."
        for f, args in self._todo:
            try: f(*args)
            except BaseException as e: self.error = e
            del f, args  # else the caller's tensors might end with this thread, amid the interpreter's end
            self.over = True
            self._end.release()

    def cancel(self) -> bool:
        "Let the call be over without being made; False where it has begun already."
        for _ in self._todo:
            self.over = True
            self._end.release()
            return True
        return False

    def wait(self) -> None:
        "Return when it is over, whatever it raised."
        while not self.over:
            if self._end.acquire(timeout=1): self._end.release()  # one who is interrupted in between leaves it locked


class Beside:
    """Runs one function at a time in a thread of its own. `do` returns at once where the last one is done; `wait`
    returns when it is, and raises what it raised. Leaving the `with` waits too, whatever interrupts it."""
    def __init__(self) -> None: self._tasks, self._last, self._has_thread, self._lost = SimpleQueue(), None, False, None
    def __enter__(self) -> 'Beside': return self

    def do(self, f: Callable, *args: Any) -> None:
        "Call `f(*args)` in the thread, or here where no thread can be had any more: at the interpreter's end."
        self.wait()
        self._last = Task(f, *args)
        if self._started(): self._tasks.put(self._last)
        else: self.wait()

    def _started(self) -> bool:
        if self._has_thread: return True
        self._lost = weakref.finalize(self, self._tasks.put, None)  # where an interrupt came before `__exit__`
        try: start_new_thread(_work, (self._tasks,))
        except RuntimeError: return False
        self._has_thread = True
        return True

    def wait(self) -> None:
        "Return when the last function is done; raise what it raised."
        last = self._last
        if not last: return
        last.run()  # where the thread has not begun it, or an interrupt kept it from being handed over
        last.wait()
        self._last = None
        if last.error: raise last.error

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            if kind is None: self.wait()
            self._leave()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        "Have nothing at work on the caller's memory, and the thread end; only then let an interrupt through."
        try:
            self._tasks.put(None)
            if self._lost: self._lost.detach()  # an interrupt amid a finalizer would be lost
            if self._last and not self._last.cancel(): self._last.wait()
        except BaseException:
            self._leave()
            raise


def _work(tasks: SimpleQueue) -> None:
    for task in iter(tasks.get, None):
        task.run()
        del task
    tasks.put(None)  # for a second thread, had for a first one whose start was interrupted


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

"Work in the background: a call that runs once, a thread that runs one call at a time, and a sha256 computed in one."
import hashlib
import weakref
from _thread import start_new_thread
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock
from typing import Any

__all__ = ['Task', 'BackgroundThread', 'BackgroundHash']

_WORTH_A_THREAD = 1 << 16  # bytes; a smaller piece is hashed faster than it is handed over


# A KeyboardInterrupt can arrive after any call in the main thread. It must not leave a lock held (Thread.start, Event
# and Condition can) or lose a message between receiving and using it. So a task's end is a flag, announced by one lock
# that every waiter passes on, and the right to run it comes from a `for` loop over an iterator: no interrupt can come
# between taking the item and binding it.

class Task:
    "The call `f(*args)`, made once, by the first thread that calls `run`. Then `finished` is true; `error` is kept."
    def __init__(self, f: Callable, *args: Any) -> None:
        self._call = iter([None, (f, args)].pop, None)  # yields the call once and does not keep it
        self.finished, self.error, self._end = False, None, Lock()
        self._end.acquire()

    def start(self) -> None:
        "Run it in a daemon thread; RuntimeError if none can start, as during interpreter shutdown."
        start_new_thread(self.run, ())

    def run(self) -> None:
        "Make the call, unless another thread has begun it."
        for f, args in self._call:
            try: f(*args)
            except BaseException as e: self.error = e
            del f, args  # else the caller's tensors might be freed in this thread during interpreter shutdown
            self.finished = True
            self._end.release()

    def cancel(self) -> bool:
        "Finish without making the call; False if it has begun already."
        for _ in self._call:
            self.finished = True
            self._end.release()
            return True
        return False

    def wait(self) -> None:
        "Return when it is finished, whatever it raised."
        while not self.finished:
            if self._end.acquire(timeout=1): self._end.release()  # if interrupted in between, others see the flag


class BackgroundThread:
    """Runs one call at a time in its own thread. `wait` returns when the last call is done and raises what it raised;
    `submit` waits for the call before it. Leaving the `with` waits as well, even when interrupted."""
    def __init__(self) -> None: self._tasks, self._last, self._has_thread, self._lost = SimpleQueue(), None, False, None
    def __enter__(self) -> 'BackgroundThread': return self

    def submit(self, f: Callable, *args: Any) -> None:
        "Run `f(*args)` in the thread, or here if no thread can start, as during interpreter shutdown."
        self.wait()
        self._last = Task(f, *args)
        if not self._has_thread:
            self._lost = weakref.finalize(self, self._tasks.put, None)  # ends the thread if `__exit__` is never reached
            try: start_new_thread(_work, (self._tasks,))
            except RuntimeError: return self.wait()
            self._has_thread = True
        self._tasks.put(self._last)

    def wait(self) -> None:
        "Return when the last call is done; raise what it raised."
        last = self._last
        if not last: return
        last.run()  # if the thread has not begun it, or an interrupt came before it was handed over
        last.wait()
        self._last = None
        if last.error: raise last.error

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            if kind is None: self.wait()
            self._close()
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        "End the thread, and return only when nothing uses the caller's memory; an interrupt is raised after that."
        try:
            self._tasks.put(None)
            if self._lost: self._lost.detach()  # an interrupt inside a finalizer would be lost
            if self._last and not self._last.cancel(): self._last.wait()
        except BaseException:
            self._close()
            raise


def _work(tasks: SimpleQueue) -> None:
    for task in iter(tasks.get, None):
        task.run()
        del task
    tasks.put(None)  # ends a second thread, started because an interrupt hid that the first one had started


class BackgroundHash:
    "A sha256 computed in a background thread. A piece given to `update` must not change until the next call."
    def __init__(self) -> None: self._hash, self._thread = hashlib.sha256(), BackgroundThread()
    def __enter__(self) -> 'BackgroundHash': return self
    def __exit__(self, *raised: Any) -> None: self._thread.__exit__(*raised)

    def update(self, piece: bytes | memoryview) -> None:
        "Hash `piece` after all pieces before it."
        self._thread.wait()
        if len(piece) < _WORTH_A_THREAD: self._hash.update(piece)
        else: self._thread.submit(self._hash.update, piece)

    def hexdigest(self) -> str:
        "The digest of all pieces so far, 64 characters."
        self._thread.wait()
        return self._hash.hexdigest()

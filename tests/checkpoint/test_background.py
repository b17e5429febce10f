"A background thread runs one call at a time, raises its errors, and ends, whatever interrupts it."
import _thread
import hashlib
import threading
import time
import weakref

import pytest

import scripts
from miniai.checkpoint import background as module
from miniai.checkpoint.background import BackgroundHash, BackgroundThread, Task


def test_calls_run_in_the_background_one_at_a_time():
    released, seen = threading.Event(), []
    with BackgroundThread() as thread:
        thread.submit(lambda: (released.wait(60), seen.append(1)))
        assert seen == []
        released.set()
        thread.submit(seen.append, 2)
        thread.wait()
        assert seen == [1, 2]


def test_an_error_is_raised_by_wait_by_the_next_submit_and_at_the_end_of_the_with():
    def fail(): raise OSError('no')
    with BackgroundThread() as thread:
        thread.submit(fail)
        with pytest.raises(OSError, match='no'): thread.wait()
        thread.submit(fail)
        with pytest.raises(OSError, match='no'): thread.submit(print)
    with pytest.raises(OSError, match='no'), BackgroundThread() as thread: thread.submit(fail)
    with pytest.raises(KeyError), BackgroundThread() as thread: thread.submit(fail) or {}["the body"]


def ended(before):
    "Are there soon no more threads than `before`?"
    until = time.monotonic() + 60
    while _thread._count() > before and time.monotonic() < until: time.sleep(.001)
    return _thread._count() <= before


def test_the_thread_ends_with_the_with():
    before, began = _thread._count(), threading.Event()
    with BackgroundThread() as thread:
        thread.submit(began.set)
        assert began.wait(60)
        assert _thread._count() == before + 1
    assert ended(before)


def test_the_thread_ends_if_an_interrupt_skips_the_end_of_the_with():
    before, began, thread = _thread._count(), threading.Event(), BackgroundThread()
    thread.submit(began.set)
    assert began.wait(60)
    del thread
    assert ended(before)


def test_a_task_runs_once_in_the_first_thread_to_call_it_and_never_after_cancel():
    seen = []
    task, cancelled = Task(seen.append, 1), Task(seen.append, 2)
    assert cancelled.cancel()
    for t in (task, cancelled): t.start(), t.run(), t.wait(), t.run()
    assert not task.cancel()
    assert (seen, task.finished, cancelled.finished) == ([1], True, True)


def test_every_thread_that_waits_for_a_task_returns():
    released, back = threading.Event(), []
    task = Task(released.wait, 60)
    task.start()
    waiters = [threading.Thread(target=lambda: task.wait() or back.append(task.finished)) for _ in range(5)]
    for w in waiters: w.start()
    assert back == []
    released.set()
    for w in waiters: w.join(60)
    assert back == [True]*5


def test_it_keeps_no_reference_to_the_arguments_after_the_call():
    given = set()
    seen = weakref.ref(given)
    with BackgroundThread() as thread:
        thread.submit(len, given)
        thread.wait()
        del given
        assert seen() is None


def test_without_threads_it_runs_the_call_itself(monkeypatch):
    def refuse(*_): raise RuntimeError("can't start new thread")
    monkeypatch.setattr(module, 'start_new_thread', refuse)
    seen = []
    with BackgroundThread() as thread: thread.submit(seen.append, threading.get_ident())
    assert seen == [threading.get_ident()]


def test_a_background_hash_is_the_sha256_of_all_pieces_in_order():
    pieces = [b'a', b'b'*100_000, b'', b'c'*70_000, b'd']
    with BackgroundHash() as digest:
        for p in pieces: digest.update(memoryview(p))
        assert digest.hexdigest() == hashlib.sha256(b''.join(pieces)).hexdigest()


# Interrupts: CPython runs a signal handler at the beginning of a function and after a call; this test tries each place.

INTERRUPTED = """
import _thread, dis, functools, gc, sys, time
from miniai.checkpoint import background

@functools.cache
def places(code):
    "Where an interrupt can come, except at the first step of `__exit__`, where no Python code can handle it."
    ops = list(dis.get_instructions(code))
    return {b.offset for a, b in zip(ops, ops[1:]) if a.opname.startswith('CALL')
            or a.opname == 'RESUME' and code.co_name != '__exit__'}

class Interrupt:
    "Raises KeyboardInterrupt at the given places, counted from 1."
    def __init__(self, *ats): self.ats, self.seen = ats, 0
    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename != background.__file__: return None
        frame.f_trace_opcodes = True
        if event == 'opcode' and frame.f_lasti in places(frame.f_code):
            self.seen += 1
            if self.seen in self.ats: raise KeyboardInterrupt
        return self

def work(began, ended):
    began.append(1)
    time.sleep(.002)
    ended.append(1)

def fail(began, ended): work(began, ended), {}['an error of its own']

def continues(b, *lists):
    "After an interrupt that is caught, everything works as before."
    for f in (work, work):
        try: b.submit(f, *lists)
        except KeyboardInterrupt: b.wait()
    b.wait()
    assert len(lists[0]) == len(lists[1])

def scenario(k, began, ended):
    with background.BackgroundThread() as b:
        if k == 3: return continues(b, began, ended)
        b.submit(work, began, ended)
        b.submit(fail if k == 1 else work, began, ended)
        if k == 2: raise ZeroDivisionError

before, met = _thread._count(), 0
for k in range(4):
    n, interrupt = 0, None
    while interrupt is None or interrupt.seen >= n:
        n, began, ended = n + 1, [], []
        interrupt = Interrupt(n)
        sys.settrace(interrupt)
        try: scenario(k, began, ended)
        except (KeyboardInterrupt, ZeroDivisionError, KeyError): pass
        finally: sys.settrace(None)
        assert len(began) == len(ended), (k, n, began, ended)
        met += interrupt.seen >= n
gc.collect()  # an error holds the frames that it went through
until = time.monotonic() + 5
while _thread._count() > before and time.monotonic() < until: time.sleep(.01)
print(met, _thread._count() - before)
"""


def test_an_interrupt_at_any_place_leaves_no_hang_no_call_running_and_no_thread():
    code, out, err = scripts.run(INTERRUPTED)
    assert (code, err) == (0, '')
    met, left = map(int, out.split())
    assert met > 100
    assert left == 0

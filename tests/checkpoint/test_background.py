"A thread that does one thing at a time: it waits, raises, and ends."
import _thread
import hashlib
import subprocess
import sys
import threading
import time
import weakref

import pytest

from miniai.checkpoint import background as module
from miniai.checkpoint.background import Beside, Digest, Task


def test_it_runs_beside_the_caller_one_thing_at_a_time():
    go_on, seen = threading.Event(), []
    with Beside() as beside:
        beside.do(lambda: (go_on.wait(10), seen.append(1)))
        assert seen == []
        go_on.set()
        beside.do(seen.append, 2)
        beside.wait()
        assert seen == [1, 2]


def test_what_was_raised_is_raised_by_wait_by_the_next_and_at_the_end():
    def fail(): raise OSError('no')
    with Beside() as beside:
        beside.do(fail)
        with pytest.raises(OSError, match='no'): beside.wait()
        beside.do(fail)
        with pytest.raises(OSError, match='no'): beside.do(print)
    with pytest.raises(OSError, match='no'), Beside() as beside: beside.do(fail)
    with pytest.raises(KeyError), Beside() as beside: beside.do(fail) or {}['what the body raises comes first']


def ended(before):
    "Whether there are no more threads than `before`, soon."
    until = time.monotonic() + 5
    while _thread._count() > before and time.monotonic() < until: time.sleep(.001)
    return _thread._count() <= before


def test_its_thread_ends_with_it():
    before, began = _thread._count(), threading.Event()
    with Beside() as beside:
        beside.do(began.set)
        assert began.wait(5)
        assert _thread._count() == before + 1
    assert ended(before)


def test_its_thread_ends_where_an_interrupt_keeps_the_with_from_ending():
    before, began, beside = _thread._count(), threading.Event(), Beside()
    beside.do(began.set)
    assert began.wait(5)
    del beside
    assert ended(before)


def test_a_task_is_done_once_by_whoever_comes_first_and_not_at_all_once_cancelled():
    seen = []
    task, cancelled = Task(seen.append, 1), Task(seen.append, 2)
    assert cancelled.cancel()
    for t in (task, cancelled): t.start(), t.run(), t.wait(), t.run()
    assert not task.cancel()
    assert (seen, task.over, cancelled.over) == ([1], True, True)


def test_all_who_wait_for_a_task_return():
    go_on, back = threading.Event(), []
    task = Task(go_on.wait, 10)
    task.start()
    waiters = [threading.Thread(target=lambda: task.wait() or back.append(task.over)) for _ in range(5)]
    for w in waiters: w.start()
    assert back == []
    go_on.set()
    for w in waiters: w.join(10)
    assert back == [True]*5


def test_what_it_was_given_is_its_callers_alone_once_it_is_done():
    given = set()
    seen = weakref.ref(given)
    with Beside() as beside:
        beside.do(len, given)
        beside.wait()
        del given
        assert seen() is None


def test_where_no_thread_can_be_had_it_does_the_work_itself(monkeypatch):
    def refuse(*_): raise RuntimeError("can't start new thread")
    monkeypatch.setattr(module, 'start_new_thread', refuse)
    seen = []
    with Beside() as beside: beside.do(seen.append, threading.get_ident())
    assert seen == [threading.get_ident()]


def test_a_digest_is_the_sha256_of_all_pieces_in_order():
    pieces = [b'a', b'b'*100_000, b'', b'c'*70_000, b'd']
    with Digest() as digest:
        for p in pieces: digest.update(memoryview(p))
        assert digest.hexdigest() == hashlib.sha256(b''.join(pieces)).hexdigest()


# Interrupts. CPython lets a signal's handler run where a function begins and after a call; a test may choose at which.

INTERRUPTED = """
import _thread, dis, functools, gc, sys, time
from miniai.checkpoint import background as beside

@functools.cache
def places(code):
    "Where an interrupt may come; at the first step of `__exit__` no Python code can do anything about it."
    ops = list(dis.get_instructions(code))
    return {b.offset for a, b in zip(ops, ops[1:]) if a.opname.startswith('CALL')
            or a.opname == 'RESUME' and code.co_name != '__exit__'}

class Interrupt:
    "Raises KeyboardInterrupt at the given places, counted from 1."
    def __init__(self, *ats): self.ats, self.seen = ats, 0
    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename != beside.__file__: return None
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

def goes_on(b, *lists):
    "One who goes on after an interrupt finds all as if it had not come."
    for f in (work, work):
        try: b.do(f, *lists)
        except KeyboardInterrupt: b.wait()
    b.wait()
    assert len(lists[0]) == len(lists[1])

def scenario(k, began, ended):
    with beside.Beside() as b:
        if k == 3: return goes_on(b, began, ended)
        b.do(work, began, ended)
        b.do(fail if k == 1 else work, began, ended)
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


def test_an_interrupt_anywhere_leaves_no_hang_nothing_at_work_and_no_thread():
    done = subprocess.run([sys.executable, '-c', INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, '')
    met, left = map(int, done.stdout.split())
    assert met > 100
    assert left == 0

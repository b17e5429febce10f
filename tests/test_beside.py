"A thread that does one thing at a time: it waits, raises, and ends."
import hashlib
import threading
import weakref

import pytest

from miniai.checkpoint.beside import Beside, Digest


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


def test_its_thread_ends_with_it():
    with Beside() as beside: beside.do(len, '')
    beside._thread.join(5)
    assert beside._thread not in threading.enumerate()


def test_what_it_was_given_is_its_callers_alone_once_it_is_done():
    given = set()
    seen = weakref.ref(given)
    with Beside() as beside:
        beside.do(len, given)
        beside.wait()
        del given
        assert seen() is None


def test_where_no_thread_can_be_had_it_does_the_work_itself(monkeypatch):
    def refuse(self): raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, 'start', refuse)
    seen = []
    with Beside() as beside: beside.do(seen.append, threading.get_ident())
    assert seen == [threading.get_ident()]


def test_a_digest_is_the_sha256_of_all_pieces_in_order():
    pieces = [b'a', b'b'*100_000, b'', b'c'*70_000, b'd']
    with Digest() as digest:
        for p in pieces: digest.update(memoryview(p))
        assert digest.hexdigest() == hashlib.sha256(b''.join(pieces)).hexdigest()

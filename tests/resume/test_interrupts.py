"Signals amid a block: ended by SIGTERM, held to its end, left alone where that is asked, handled as before after it."
import signal
import threading

import pytest

from miniai.resume.signals import held, terminable

BOTH = signal.SIGTERM, signal.SIGINT


@pytest.fixture(autouse=True)
def handlers():
    "The handlers of before the test, which stand after it too."
    before = {s: signal.getsignal(s) for s in BOTH}
    yield before
    after = {s: signal.signal(s, h) for s, h in before.items()}
    assert after == before


@pytest.fixture
def heard():
    "The signals that handlers of the user's own have heard."
    heard = []
    old = {s: signal.signal(s, lambda number, frame: heard.append(number)) for s in BOTH}
    yield heard
    for s, h in old.items(): signal.signal(s, h)


def test_sigterm_ends_a_block_with_143_and_a_second_one_does_not_cut_the_cleaning_short():
    cleaned = []
    def block():
        try: signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(1)
    with pytest.raises(SystemExit) as e, terminable(): block()
    assert (e.value.code, cleaned) == (143, [1])


def test_a_block_within_another_is_ended_with_it():
    def block():
        with terminable(): pass
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit), terminable(): block()


def test_a_handler_of_the_users_own_is_left_alone(heard):
    with terminable(): signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_a_signal_that_is_ignored_stays_so(handlers):
    for s in BOTH: signal.signal(s, signal.SIG_IGN)
    with terminable(), held():
        assert {signal.getsignal(s) for s in BOTH} == {signal.SIG_IGN}
    for s in BOTH: signal.signal(s, handlers[s])


def test_signals_are_held_to_the_end_of_a_block(heard):
    with held():
        for s in BOTH: signal.raise_signal(s)
        assert heard == []
    assert heard == list(BOTH)


def test_a_held_interrupt_comes_even_where_the_block_fails():
    def block():
        signal.raise_signal(signal.SIGINT)
        raise ValueError
    with pytest.raises(KeyboardInterrupt) as e, held(): block()
    assert isinstance(e.value.__context__, ValueError)


def test_from_another_thread_nothing_is_done():
    seen = []
    def work():
        with terminable(), held(): seen.append({s: signal.getsignal(s) for s in BOTH})
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [{s: signal.getsignal(s) for s in BOTH}]

"Signals that ask to stop: noted once, forced the second time; and blocks within which they wait or raise SystemExit."
import multiprocessing
import os
import signal
import threading

import pytest
from torch.utils.data import DataLoader

from miniai.resume import signals
from miniai.resume.signals import OutlastSignals, SignalWatch, held, terminable

BOTH = signal.SIGTERM, signal.SIGINT


@pytest.fixture(autouse=True)
def handlers():
    "The handlers before the test, which must be there after it too."
    before = {s: signal.getsignal(s) for s in BOTH}
    yield before
    after = {s: signal.signal(s, h) for s, h in before.items()}
    assert after == before


@pytest.fixture
def received(handlers):
    "The signals that the user's own handlers received."
    received = []
    for s in BOTH: signal.signal(s, lambda number, frame: received.append(number))
    yield received
    for s in BOTH: signal.signal(s, handlers[s])


# Blocks

def test_in_a_terminable_block_sigterm_exits_with_143_and_a_second_one_does_not_disturb_cleanup():
    cleaned = []
    def block():
        try: signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(1)
    with pytest.raises(SystemExit) as e, terminable(): block()
    assert (e.value.code, cleaned) == (143, [1])


def test_terminable_blocks_can_be_nested():
    def block():
        with terminable(): pass
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit), terminable(): block()


def test_a_terminable_block_keeps_the_users_handler(received):
    with terminable(): signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_an_ignored_signal_stays_ignored(handlers):
    for s in BOTH: signal.signal(s, signal.SIG_IGN)
    with terminable(), held():
        watch = SignalWatch()
        assert {signal.getsignal(s) for s in BOTH} == {signal.SIG_IGN}
        watch.close()
    for s in BOTH: signal.signal(s, handlers[s])


def test_held_signals_come_at_the_end_of_the_block(received):
    with held():
        for s in BOTH: signal.raise_signal(s)
        assert received == []
    assert received == list(BOTH)


def test_a_held_interrupt_comes_even_if_the_block_fails():
    def block():
        signal.raise_signal(signal.SIGINT)
        raise ValueError
    with pytest.raises(KeyboardInterrupt) as e, held(): block()
    assert isinstance(e.value.__context__, ValueError)


def test_other_threads_leave_the_handlers_alone():
    seen = []
    def work():
        with terminable(), held():
            SignalWatch()
            seen.append({s: signal.getsignal(s) for s in BOTH})
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [{s: signal.getsignal(s) for s in BOTH}]


# SignalWatch

@pytest.fixture
def watch():
    watch = SignalWatch()
    yield watch
    watch.close()


def test_the_first_signal_is_noted_and_the_second_has_its_usual_effect(watch, capfd):
    os.kill(os.getpid(), signal.SIGINT)
    assert (watch.signal, watch.forced) == (signal.SIGINT, False)
    assert capfd.readouterr().err.strip() == 'SIGINT: finishing this batch and saving; send it again to stop at once'
    with pytest.raises(KeyboardInterrupt): os.kill(os.getpid(), signal.SIGINT)
    assert watch.forced
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_under_torchrun_the_same_signal_may_come_twice(watch, monkeypatch):
    monkeypatch.setenv('RANK', '0')  # Ctrl-C reaches all processes, and then torchrun tells them
    for number in (signal.SIGINT, signal.SIGTERM): os.kill(os.getpid(), number)
    assert (watch.signal, watch.forced) == (signal.SIGINT, False)
    monkeypatch.setattr(signals, '_PASSED_ON', 0)  # seconds: this one comes later
    with pytest.raises(KeyboardInterrupt): os.kill(os.getpid(), signal.SIGINT)
    assert watch.forced


def send_to_itself(pipe):
    "Say that SIGINT had no effect, and then die of SIGTERM."
    os.kill(os.getpid(), signal.SIGINT)
    pipe.send('alive')
    os.kill(os.getpid(), signal.SIGTERM)
    pipe.send('still alive')


def test_a_forked_process_ignores_sigint_silently_and_dies_of_sigterm(watch, capfd):
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context('fork').Process(target=send_to_itself, args=(there,))
    child.start()
    child.join()
    assert here.recv() == 'alive'
    assert not here.poll()
    assert child.exitcode == -signal.SIGTERM
    assert (watch.signal, capfd.readouterr().err) == (None, '')


# Workers

class Workers:
    "Samples say which process makes them, and whether it was started with the user's worker_init_fn."
    def __len__(self): return 41
    def __getitem__(self, i): return os.getpid(), 'STARTED' in os.environ


def start(worker): os.environ['STARTED'] = 'yes'


WAYS = pytest.mark.parametrize('way', ['fork', 'spawn'])


@WAYS
def test_a_loaders_worker_survives_sigint_and_a_first_sigterm(way):
    with OutlastSignals(start) as outlast:
        batches = iter(DataLoader(Workers(), 1, num_workers=1, multiprocessing_context=way, worker_init_fn=outlast))
        pid, started = (int(x) for x in next(batches))
        assert started
        for number in BOTH[::-1]:
            os.kill(pid, number)
            assert [int(next(batches)[0]) for _ in range(20)] == [pid]*20
        assert list(batches) == []  # torch may abort a spawned worker that ends with batches left over


def work(outlast, pipe):
    "Until the other end of the pipe is closed, answer each message, which a signal must not prevent."
    outlast(0)
    while True:
        pipe.send('working')
        pipe.recv()


@pytest.fixture
def worker():
    "Starts processes that work on forever, as a loader starts its own; each with a pipe that it answers."
    started = []
    def make(outlast, way='fork'):
        context = multiprocessing.get_context(way)
        here, there = context.Pipe()
        process = context.Process(target=work, args=(outlast, there), daemon=True)
        process.start()
        assert here.recv() == 'working'
        started.append(process)
        return process, here
    yield make
    for process in started: process.kill()


def ended_by_sigterm(process):
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    return process.exitcode


@WAYS
def test_in_a_block_a_worker_survives_the_first_sigterm_and_after_it_none(way, worker):
    with OutlastSignals(None) as outlast: (one, _), (two, pipe) = worker(outlast, way), worker(outlast, way)
    assert ended_by_sigterm(one) == 0
    with OutlastSignals(None):
        os.kill(two.pid, signal.SIGTERM)
        pipe.send('and now?')
        assert pipe.recv() == 'working'
        assert ended_by_sigterm(two) == -signal.SIGTERM


def test_a_worker_that_survived_sigterm_ends_after_a_while(monkeypatch, worker):
    monkeypatch.setattr(signals, '_GRACE', 1)
    with OutlastSignals(None) as outlast: assert ended_by_sigterm(worker(outlast)[0]) == -signal.SIGALRM

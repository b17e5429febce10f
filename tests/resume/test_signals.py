"Signals that ask to stop: noted once, passed on the second time, left alone in forked processes, outlasted by workers."
import multiprocessing
import os
import signal
import time

import pytest
from torch.utils.data import DataLoader

from miniai.resume.signals import OutlastSignals, SignalWatch


@pytest.fixture
def watch():
    watch = SignalWatch()
    yield watch
    watch.close()


def send(number): os.kill(os.getpid(), number)


def test_the_first_is_noted_and_told_and_the_second_does_what_it_did_before(watch, capfd):
    send(signal.SIGINT)
    assert watch.signal == signal.SIGINT
    assert capfd.readouterr().err.strip() == 'SIGINT: finishing the batch and saving; once more to leave at once'
    with pytest.raises(KeyboardInterrupt): send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def sleeping(number):
    "Send a signal to a forked process, and then SIGTERM: how it ends."
    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(20,))
    child.start()
    time.sleep(.1)
    os.kill(child.pid, number)
    time.sleep(.1)
    alive = child.is_alive()
    child.terminate()
    child.join()
    return alive, child.exitcode


def test_a_forked_process_lets_sigint_pass_silently_and_can_be_terminated(watch, capfd):
    assert sleeping(signal.SIGINT) == (True, -signal.SIGTERM)
    assert sleeping(signal.SIGTERM) == (False, -signal.SIGTERM)
    assert (watch.signal, capfd.readouterr().err) == (None, '')


class Workers:
    "Says which process makes a sample, and whether it was started as the user wants it."
    def __len__(self): return 41
    def __getitem__(self, i): return os.getpid(), 'STARTED' in os.environ


def start(worker): os.environ['STARTED'] = 'yes'


@pytest.mark.parametrize('way', ['fork', 'spawn'])
def test_a_loaders_worker_outlasts_an_interrupt_and_a_first_sigterm(way):
    with OutlastSignals(start) as outlast:
        batches = iter(DataLoader(Workers(), 1, num_workers=1, multiprocessing_context=way, worker_init_fn=outlast))
        pid, started = (int(x) for x in next(batches))
        assert started
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
            assert [int(next(batches)[0]) for _ in range(20)] == [pid]*20
        assert list(batches) == []  # torch alone may abort a spawned worker that ends with batches nobody fetched


def work(outlast, ready):
    outlast(0)
    ready.set()
    while True: time.sleep(.01)


def worker(outlast, way='fork'):
    "A process that works on for ever, started as a loader starts its own."
    context = multiprocessing.get_context(way)
    ready = context.Event()
    process = context.Process(target=work, args=(outlast, ready), daemon=True)
    process.start()
    assert ready.wait(30)
    return process


def terminated(process, seconds=10):
    "How a process has ended some seconds after SIGTERM; None where it goes on."
    os.kill(process.pid, signal.SIGTERM)
    process.join(seconds)
    return process.exitcode


@pytest.mark.parametrize('way', ['fork', 'spawn'])
def test_within_a_block_a_first_sigterm_is_outlasted_and_a_second_is_not_and_beyond_it_the_first_ends_all(way):
    with OutlastSignals(None) as outlast: one, two = worker(outlast, way), worker(outlast, way)
    assert terminated(one) == 0
    with OutlastSignals(None):
        assert terminated(two, .3) is None
        assert terminated(two) == -signal.SIGTERM


def test_a_worker_that_nobody_wants_any_more_ends_after_a_while(monkeypatch):
    from miniai.resume import signals
    monkeypatch.setattr(signals, '_GRACE', 1)
    with OutlastSignals(None) as outlast: assert terminated(worker(outlast)) == -signal.SIGALRM

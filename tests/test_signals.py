"Signals that ask to stop: noted once, passed on the second time, left alone in forked processes, outlasted by workers."
import multiprocessing
import os
import signal
import time

import pytest
from torch.utils.data import DataLoader

from miniai.callbacks.signals import OutlastSignals, SignalWatch


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
    def __len__(self): return 1000
    def __getitem__(self, i): return os.getpid(), 'STARTED' in os.environ


def terminated(pid, batches, seconds):
    "The batches that come some seconds after a worker has been sent SIGTERM."
    os.kill(pid, signal.SIGTERM)
    time.sleep(seconds)
    return list(batches)


def start(worker): os.environ['STARTED'] = 'yes'


@pytest.mark.parametrize('way', ['fork', 'spawn'])
def test_a_loaders_worker_outlasts_an_interrupt_and_a_first_sigterm_but_not_a_second(way):
    batches = iter(DataLoader(Workers(), 1, num_workers=1, multiprocessing_context=way,
                              worker_init_fn=OutlastSignals(start)))
    pid, started = (int(x) for x in next(batches))
    assert started
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
        assert [int(next(batches)[0]) for _ in range(20)] == [pid]*20
    with pytest.raises(RuntimeError, match='killed by signal: Terminated'): terminated(pid, batches, 0)


def test_a_worker_that_nobody_wants_any_more_ends_after_a_while(monkeypatch):
    from miniai.callbacks import signals
    monkeypatch.setattr(signals, '_GRACE', 1)
    batches = iter(DataLoader(Workers(), 1, num_workers=1, worker_init_fn=OutlastSignals(None)))
    pid = int(next(batches)[0])
    with pytest.raises(RuntimeError, match='killed by signal: Alarm clock'): terminated(pid, batches, 3)

"When a run is saved: after batches, epochs, cancels and signals, but not after an error; and what files are kept."
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import wait
from functools import partial
from pathlib import Path

import pytest
from torch import nn

import crash
from miniai import accuracy
from miniai.callbacks.lr_finder import LRFinderCB
from miniai.checkpoint import SaveError, durable, load, saving, verify
from miniai.learner import CancelBatchException, CancelEpochException, CancelFitException, NonFiniteLossError
from miniai.resume import signals
from miniai.resume.checkpoint import CheckpointCB
from resuming import AtCB, Quiet, StopCB, Watcher, assert_resumes_exactly, checkpoints, digest, fit_until_stopped, run
from small import learner, off_cpu

BOTH = signal.SIGINT, signal.SIGTERM


def weights(learn): return [p.tolist() for p in learn.model.parameters()]
def newest(folder): return load(max(folder.glob('checkpoint-*')))
def kill_self(number=signal.SIGTERM): os.kill(os.getpid(), number)


def cancel(e=CancelFitException):
    def f(): raise e()
    return f


@pytest.fixture(scope='module')
def whole():
    "A run that is not interrupted."
    learn = run()
    learn.fit(2)
    return learn


# Cancels

@pytest.mark.parametrize(('event', 'batch', 'training', 'order', 'at'), [
    ('after_batch', 3, True, 0, '00001-1-00000004'), ('cleanup_batch', 3, True, 0, '00001-1-00000004'),
    ('after_batch', 6, True, 0, '00001-1-00000007'), ('after_batch', 0, False, 0, '00001-2-00000001'),
    ('after_epoch', None, True, 10, '00001-2-00000000'), ('cleanup_epoch', None, True, 0, '00001-2-00000000'),
    ('before_epoch', None, True, 0, '00001-1-00000000'), ('before_epoch', None, False, 0, '00001-2-00000000'),
    ('after_epoch', None, False, 10, '00002-3-00000000'), ('cleanup_epoch', None, False, 0, '00002-3-00000000'),
    ('before_epoch', None, True, math.inf, '00001-1-00000000'),
    ('cleanup_batch', 2, True, math.inf, '00001-1-00000003'),  # a whole group of batches: AccumulateCB drops others
    ('cleanup_batch', 0, False, math.inf, '00001-2-00000001')])
def test_a_cancelled_fit_is_saved_where_it_ends_and_resumes(event, batch, training, order, at, whole, tmp_path):
    run(tmp_path, cbs=[AtCB(event, cancel(), 1, training, batch, order)], batches=None, epochs=None).fit(2)
    assert checkpoints(tmp_path) == [at]
    again = run(tmp_path, batches=None, epochs=None)
    again.fit(2, resume=True)
    assert weights(again) == weights(whole)


@pytest.mark.parametrize('order', [0, math.inf])
def test_a_cancel_before_the_first_resumed_batch_changes_nothing(order, whole, tmp_path):
    fit_until_stopped(run(tmp_path, cbs=[StopCB(1, 2)], batches=3))
    there = checkpoints(tmp_path)
    run(tmp_path, cbs=[AtCB('before_epoch', cancel(), 1, order=order)], batches=3).fit(2, resume=True)
    assert checkpoints(tmp_path) == there
    again = run(tmp_path)
    again.fit(2, resume=True)
    assert weights(again) == weights(whole)


def test_a_batch_that_is_cancelled_with_the_fit_does_not_count(tmp_path):
    run(tmp_path, cbs=[AtCB('after_loss', cancel(), 0, batch=2)]).fit(1)
    assert checkpoints(tmp_path)[-1] == '00000-1-00000003'


def test_a_cancelled_epoch_is_done_and_a_cancelled_batch_counts(tmp_path):
    def make(folder, *cbs):
        cancels = [AtCB('after_batch', cancel(CancelEpochException), 0, batch=2),
                   AtCB('before_batch', cancel(CancelBatchException), 1, batch=3)]
        return run(folder, cbs=[*cancels, *cbs])
    assert_resumes_exactly(make, tmp_path, ((0, 1), (1, 3)))
    there = checkpoints(tmp_path/'whole')
    assert '00000-1-00000003' not in there
    assert {'00001-1-00000000', '00001-1-00000004'} <= {*there}


# Signals

@pytest.mark.parametrize(('number', 'at', 'saved'), [
    (signal.SIGTERM, (0, True, 2), '00000-1-00000003'), (signal.SIGINT, (1, True, 4), '00001-1-00000005'),
    (signal.SIGTERM, (0, False, 0), '00000-2-00000001'), (signal.SIGHUP, (0, True, 3), '00000-1-00000004')])
def test_a_signal_lets_the_batch_finish_saves_and_exits_and_the_run_resumes(number, at, saved, whole, tmp_path, capfd):
    before = [signal.getsignal(s) for s in BOTH]
    epoch, training, batch = at
    learn = run(tmp_path, cbs=[AtCB('before_batch', partial(kill_self, number), epoch, training, batch)], batches=None)
    with pytest.raises(SystemExit) as left: learn.fit(2)
    assert left.value.code == 128 + number
    assert [signal.getsignal(s) for s in BOTH] == before
    assert checkpoints(tmp_path)[-1] == saved
    says = f'{number.name}: finishing this batch and saving; send it again to stop at once'
    assert says in capfd.readouterr().err
    again = run(tmp_path)
    again.fit(2, resume=True)
    assert digest(again) == digest(whole)


def test_in_a_notebook_an_interrupt_leaves_a_learner_that_can_go_on(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, '_in_notebook', lambda: True)
    interrupt = AtCB('before_batch', partial(kill_self, signal.SIGINT), 0, batch=3)
    learn = run(tmp_path, cbs=[interrupt], batches=None)
    with pytest.raises(KeyboardInterrupt): learn.fit(2)
    learn.cbs.remove(interrupt)
    learn.fit(2, resume=True)
    assert [r['loss'] for r in learn.history] == [r['loss'] for r in whole.history]


@pytest.mark.parametrize('background', [False, True])
def test_a_signal_after_the_last_batch_exits_once_everything_is_saved(background, tmp_path):
    class AtTheEndCB(Watcher):
        def after_fit(self, learn): kill_self()
    learn = run(tmp_path, cbs=[AtTheEndCB()], background=background)
    with pytest.raises(SystemExit) as left: learn.fit(2)
    assert left.value.code == 143
    assert verify(max(tmp_path.glob('checkpoint-*')))
    again = run(tmp_path)
    again.fit(2, resume=True)
    assert digest(again) == digest(learn)


def test_a_signal_in_an_epoch_that_is_cancelled_exits_at_its_end(tmp_path):
    class SignalledCB(Watcher):
        def after_batch(self, learn):
            kill_self()
            raise CancelEpochException()
    with pytest.raises(SystemExit): run(tmp_path, cbs=[SignalledCB()], batches=None).fit(1)
    assert checkpoints(tmp_path) == ['00000-2-00000000']


def test_a_signal_that_comes_after_the_decision_to_save_waits_for_the_next_batch(tmp_path, monkeypatch):
    real, asked = CheckpointCB._batches_due, []
    def late(self, learn):
        asked.append(learn.iter)
        if len(asked) == 4: kill_self()
        return real(self, learn)
    monkeypatch.setattr(CheckpointCB, '_batches_due', late)
    with pytest.raises(SystemExit): run(tmp_path, batches=None).fit(1)
    assert checkpoints(tmp_path) == ['00000-1-00000005']


SCRIPT = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import os
import time
import crash
from miniai.checkpoint import durable, saving
from resuming import *
class FaultCB(Watcher):
    def before_batch(self, learn):
        if not learn.training or learn.iter < 3: return
        if durable.os is os and saving._last: saving._last.wait()
        durable.os = crash.system(write=fault)
        if sys.argv[2] != 'full' and learn.iter == 4:
            for _ in range(2): os.kill(os.getpid(), int(sys.argv[2]))
def fault(fd, data):
    if sys.argv[2] == 'full': raise OSError(28, 'No space left on device')
    time.sleep(1)  # a save takes a minute
    return os.write(fd, data)
run(sys.argv[1], cbs=[FaultCB()], background=True).fit(2)
"""


def script(folder, arg):
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', SCRIPT, str(folder), str(arg)], capture_output=True,
                          text=True, timeout=300)


@pytest.mark.parametrize('number', BOTH)
def test_a_second_signal_does_not_wait_for_what_is_being_written(number, tmp_path):
    child = script(tmp_path, int(number))
    assert child.returncode == -number, child.stderr
    assert checkpoints(tmp_path)[-1] == '00000-1-00000003'
    run(tmp_path).fit(2, resume=True)
    assert not list(tmp_path.glob('.*.part'))


# Errors are not saved

@pytest.mark.parametrize(('event', 'batch', 'last'), [('after_batch', 2, '00000-1-00000002'),
                                                      ('after_epoch', None, '00000-1-00000007')])
def test_what_ends_with_an_error_is_not_saved(event, batch, last, tmp_path):
    learn = run(tmp_path, cbs=[AtCB(event, cancel(KeyError), 0, batch=batch, order=math.inf)])
    with pytest.raises(KeyError): learn.fit(1)
    assert checkpoints(tmp_path)[-1] == last


class FarLossCB(Watcher):
    "Losses that claim to be on an accelerator; from one batch on they are NaN."
    def __init__(self, batch): self.batch = batch
    def after_loss(self, learn):
        if not learn.training: return
        far = off_cpu(learn.loss.detach())
        learn.loss = (far*math.nan if learn.iter >= self.batch else far).requires_grad_()


def test_losses_on_an_accelerator_are_checked_before_a_save(tmp_path):
    learn = learner([CheckpointCB(tmp_path, batches=2), FarLossCB(2)])
    with pytest.raises(NonFiniteLossError, match='epoch 0, batch 2'): learn.fit(2)
    assert checkpoints(tmp_path) == ['00000-1-00000002']


# What is kept

LAST = ['00001-1-00000007', '00002-3-00000000']


@pytest.mark.parametrize('background', [False, True])
def test_the_last_checkpoints_and_the_best_are_kept_and_the_best_is_a_second_name(background, tmp_path):
    run(tmp_path, keep=2, best='accuracy', background=background).fit(2)
    assert sorted(p.name for p in tmp_path.glob('*.safetensors'))[0] == 'best.safetensors'
    assert checkpoints(tmp_path) == LAST
    for p in tmp_path.glob('*.safetensors'): verify(p)
    run(tmp_path/'all', best='accuracy', batches=None, keep=5, background=background).fit(2)
    best = tmp_path/'all'/'best.safetensors'
    assert best.stat().st_ino in [p.stat().st_ino for p in best.parent.glob('checkpoint-*')]
    values = [r['accuracy'] for r in newest(best.parent)['history'] if r['phase'] == 'eval']
    assert load(best)['position']['epoch'] == values.index(max(values)) + 1


def test_dry_runs_and_fits_that_only_validate_save_nothing(tmp_path):
    learn = learner([CheckpointCB(tmp_path/'run'), Quiet(accuracy=accuracy)], lr=.1)
    learn.fit(1, train=False)
    learn.lr_find()
    learn.capture_preds()
    learn.summary()
    assert not (tmp_path/'run').exists()


def test_a_finished_run_that_goes_on_keeps_its_newest(tmp_path):
    def make(*cbs): return learner([CheckpointCB(tmp_path, batches=1, keep=1), Quiet(), *cbs])
    make().fit(1)
    fit_until_stopped(make(StopCB(1, 0)), resume=True)
    assert checkpoints(tmp_path) == ['00001-1-00000001']


# In the background

def no_space(fd, data): raise OSError(28, 'No space left on device')


class BeatCB(Watcher):
    "Notes which batches began, and waits for the background save after each."
    order = math.inf  # after the CheckpointCB
    def __init__(self): self.began = []
    def before_batch(self, learn): self.began.append((learn.epoch, learn.training, learn.iter))
    def cleanup_batch(self, learn):
        if saving._last: wait([saving._last._future])


@pytest.mark.parametrize(('epoch', 'batch', 'batches', 'last'), [
    (0, 5, 3, (0, True, 6)), (1, 1, 2, (1, True, 2)), (0, 6, 1, (0, False, 0))])
def test_a_failed_background_save_is_raised_by_the_next_batch(epoch, batch, batches, last, whole, tmp_path,
                                                              monkeypatch):
    def fill_disk(): monkeypatch.setattr(durable, 'os', crash.system(write=no_space))
    beat, fail = BeatCB(), AtCB('before_batch', fill_disk, epoch, batch=batch)
    learn = run(tmp_path, cbs=[fail, beat], batches=batches, background=True)
    with pytest.raises(SaveError, match='No space left') as e: learn.fit(2)
    assert 'raised by callback CheckpointCB in event cleanup_batch' in e.value.__notes__
    monkeypatch.undo()
    assert beat.began[-1] == last
    assert not list(tmp_path.glob('.*.part'))
    for p in tmp_path.glob('*.safetensors'): verify(p)
    again = run(tmp_path, background=True)
    again.fit(2, resume=True)
    assert digest(again) == digest(whole)


def test_if_the_last_save_fails_the_fit_raises_it_at_the_end(tmp_path, monkeypatch):
    fail = AtCB('before_batch', lambda: monkeypatch.setattr(durable, 'os', crash.system(write=no_space)), 0, batch=0)
    with pytest.raises(SaveError, match='No space left'):
        run(tmp_path, cbs=[fail], batches=None, background=True).fit(1)
    assert [p.name for p in tmp_path.iterdir()] == ['.miniai.lock']


def test_a_process_with_a_full_disk_exits_with_1_says_so_once_and_unlocks_the_folder(tmp_path):
    child = script(tmp_path, 'full')
    assert child.returncode == 1
    assert child.stderr.count('miniai.checkpoint.durable.SaveError') == 1
    assert 'miniai: error' not in child.stderr
    assert [p.name for p in sorted(tmp_path.iterdir())][1:] == [f'checkpoint-00000-1-0000000{i}.safetensors'
                                                                for i in (1, 2, 3)]
    run(tmp_path).fit(2, resume=True)


# Mistakes

class Extra(nn.Linear):
    def get_extra_state(self): return {1, 2}
    def set_extra_state(self, state): pass


class Bare:
    "An optimizer without a state."
    def __init__(self, params, lr): pass
    def step(self): pass
    def zero_grad(self): pass


@pytest.mark.parametrize(('kwargs', 'error', 'says'), [
    (dict(model=nn.Sequential(Extra(1, 1))), TypeError, r'is a builtins\.set'),
    (dict(model=nn.Sequential(nn.LazyLinear(1))), ValueError, r"'0\.weight' has no shape yet: run a batch through the"),
    (dict(opt_func=Bare), TypeError, 'Bare has no param_groups or state_dict or load_state_dict')])
def test_a_run_that_cannot_be_saved_is_refused_before_its_first_batch(kwargs, error, says, tmp_path):
    cbs = [CheckpointCB(tmp_path/'a'), *kwargs.pop('cbs', [])]
    with pytest.raises(error, match=says): learner(cbs, **kwargs).fit(1)
    assert not list(tmp_path.glob('a/*.safetensors'))


def test_a_search_for_a_rate_is_not_resumed(tmp_path):
    with pytest.raises(ValueError, match='dry run'):
        learner([CheckpointCB(tmp_path/'a'), LRFinderCB()]).fit(1, resume=True)
    assert not (tmp_path/'a').exists()


def test_wrong_arguments_are_refused(tmp_path):
    for kwargs, says in ((dict(keep=0), 'keep must be a whole number above 0, got 0'),
                         (dict(batches=-1), 'batches must be a whole number above 0'),
                         (dict(keep=1.5), 'keep must be .* got 1.5'), (dict(batches='5'), "batches must be .* got '5'"),
                         (dict(minutes=0), 'minutes must be a number above 0'), (dict(minutes='x'), 'minutes must be')):
        with pytest.raises(ValueError, match=says): CheckpointCB(tmp_path, **kwargs)
    with pytest.raises(TypeError, match='best must be the name of a metric'): CheckpointCB(tmp_path, best=3)


def test_the_metric_for_best_must_exist_before_the_fit_or_if_a_callback_may_supply_it_after_an_epoch(tmp_path):
    says = r"CheckpointCB needs a validation metric 'acuracy'; there are \['accuracy', 'loss', 'seconds'\]"
    with pytest.raises(ValueError, match=says): run(tmp_path/'a', best='acuracy').fit(1)
    assert not (tmp_path/'a').exists()
    class OwnCB(Watcher):
        def after_epoch(self, learn): pass
    with pytest.raises(ValueError, match="CheckpointCB needs a validation metric 'own'"):
        run(tmp_path/'b', cbs=[OwnCB()], best='own', batches=None).fit(1)
    assert checkpoints(tmp_path/'b') == ['00001-3-00000000']

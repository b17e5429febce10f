"When a run is saved: after batches, passes and cancels, with all that its callbacks do, and never after a failure."
import math
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from miniai import BatchSchedCB, Callback, DataLoaders
from miniai.callbacks.lr_finder import LRFinderCB
from miniai.checkpoint import load
from miniai.learner import CancelBatchException, CancelEpochException, CancelFitException, NonFiniteLossError
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.state import ResumeError
from resuming import StopCB, digest, run
from small import learner, off_cpu


def names(folder): return sorted(p.name[11:-12] for p in folder.glob('checkpoint*'))
def newest(folder): return load(max(folder.glob('checkpoint*')))


class RaiseCB(Callback):
    "Raises once, at one event of an epoch, a pass and a batch."
    def __init__(self, event, e, epoch, training=True, batch=None, order=0):
        self.at, self.e, self.order = (epoch, training, batch), e, order
        setattr(self, event, self._raise)

    def _raise(self, learn):
        epoch, training, batch = self.at
        if (learn.epoch, learn.training) == (epoch, training) and batch in (None, learn.iter): raise self.e


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    learn = run(tmp_path_factory.mktemp('alone'))
    learn.fit(2)
    return learn


def weights(learn): return [p.tolist() for p in learn.model.parameters()]


# Cancels

@pytest.mark.parametrize(('event', 'batch', 'training', 'order', 'at'), [
    ('after_batch', 3, True, 0, '00001-1-00000004'), ('cleanup_batch', 3, True, 0, '00001-1-00000004'),
    ('after_batch', 6, True, 0, '00001-1-00000007'), ('after_batch', 0, False, 0, '00001-2-00000001'),
    ('after_epoch', None, True, 10, '00001-2-00000000'), ('cleanup_epoch', None, True, 0, '00001-2-00000000'),
    ('before_epoch', None, True, 0, '00001-1-00000000'), ('before_epoch', None, False, 0, '00001-2-00000000'),
    ('after_epoch', None, False, 10, '00002-3-00000000'), ('cleanup_epoch', None, False, 0, '00002-3-00000000'),
    ('before_epoch', None, True, math.inf, '00001-1-00000000'),
    ('cleanup_batch', 2, True, math.inf, '00001-1-00000003'),  # a whole group of batches: that of another is dropped
    ('cleanup_batch', 0, False, math.inf, '00001-2-00000001')])
def test_a_fit_that_a_callback_cancels_is_saved_where_it_ends_and_goes_on(event, batch, training, order, at, alone,
                                                                          tmp_path):
    cancel = RaiseCB(event, CancelFitException(), 1, training, batch, order)
    run(tmp_path, cbs=[cancel], batches=None, epochs=None).fit(2)
    assert names(tmp_path) == [at]
    again = run(tmp_path, batches=None, epochs=None)
    again.fit(2, resume=True)
    assert weights(again) == weights(alone)


@pytest.mark.parametrize('order', [0, math.inf])
def test_a_cancel_as_a_pass_is_taken_up_changes_nothing(order, alone, tmp_path):
    with pytest.raises(RuntimeError, match='stopped'): run(tmp_path, cbs=[StopCB(1, 2)], batches=3).fit(2)
    there = names(tmp_path)
    cancel = RaiseCB('before_epoch', CancelFitException(), 1, order=order)
    run(tmp_path, cbs=[cancel], batches=3).fit(2, resume=True)
    assert names(tmp_path) == there
    again = run(tmp_path)
    again.fit(2, resume=True)
    assert weights(again) == weights(alone)


def test_a_cancel_in_the_middle_of_a_batch_leaves_that_batch_out(tmp_path):
    run(tmp_path, cbs=[RaiseCB('after_loss', CancelFitException(), 0, batch=2)]).fit(1)
    assert names(tmp_path)[-1] == '00000-1-00000003'


def test_an_epoch_that_is_cancelled_is_over_and_a_batch_that_is_counts(tmp_path):
    def make(folder, *cbs):
        cancels = [RaiseCB('after_batch', CancelEpochException(), 0, batch=2),
                   RaiseCB('before_batch', CancelBatchException(), 1, batch=3)]
        return run(folder, cbs=[*cancels, *cbs])
    want = make(tmp_path/'alone')
    want.fit(2)
    there = names(tmp_path/'alone')
    assert '00000-1-00000003' not in there
    assert {'00001-1-00000000', '00001-1-00000004'} <= {*there}
    for at in ((0, 1), (1, 3)):
        with pytest.raises(RuntimeError, match='stopped'): make(tmp_path/str(at), StopCB(*at)).fit(2)
        again = make(tmp_path/str(at))
        again.fit(2, resume=True)
        assert digest(again) == digest(want)


def test_a_signal_in_an_epoch_that_is_cancelled_leaves_at_its_end(tmp_path):
    class Signalled(Callback):
        def after_batch(self, learn):
            os.kill(os.getpid(), signal.SIGTERM)
            raise CancelEpochException()
    with pytest.raises(SystemExit) as left: run(tmp_path, cbs=[Signalled()], batches=None).fit(1)
    assert left.value.code == 143
    assert names(tmp_path) == ['00000-2-00000000']


# What fails is not saved

@pytest.mark.parametrize(('event', 'batch', 'last'), [('after_batch', 2, '00000-1-00000002'),
                                                      ('after_epoch', None, '00000-1-00000007')])
def test_what_ends_by_an_error_is_not_saved(event, batch, last, tmp_path):
    learn = run(tmp_path, cbs=[RaiseCB(event, KeyError('oh'), 0, batch=batch, order=math.inf)])
    with pytest.raises(KeyError): learn.fit(1)
    assert names(tmp_path)[-1] == last


class FarLossCB(Callback):
    "Losses that say they are on an accelerator; from one batch on they are NaN."
    def __init__(self, batch): self.batch = batch
    def after_loss(self, learn):
        if not learn.training: return
        far = off_cpu(learn.loss.detach())
        learn.loss = (far*math.nan if learn.iter >= self.batch else far).requires_grad_()


def test_losses_on_an_accelerator_are_looked_at_before_a_save(tmp_path):
    learn = learner([CheckpointCB(tmp_path, batches=2), FarLossCB(2)])
    with pytest.raises(NonFiniteLossError, match='epoch 0, batch 2'): learn.fit(2)
    assert names(tmp_path) == ['00000-1-00000002']


# What callbacks do

class BusyCB(Callback):
    "Draws random numbers, counts, and in training changes the model, as passes and batches begin and end."
    def __init__(self): self.seen = []
    def state_dict(self): return dict(seen=self.seen)
    def load_state_dict(self, state): self.seen = state['seen']
    def before_epoch(self, learn): self._work(learn, 'before_epoch', 2.)
    def cleanup_epoch(self, learn): self._work(learn, 'cleanup_epoch', .75)
    def cleanup_batch(self, learn): self._work(learn, 'cleanup_batch', 1.001)

    def _work(self, learn, event, factor):
        self.seen.append(f'{event} {learn.training} {torch.rand(()).item()}')
        if learn.training: learn.model[0].weight.data.mul_(factor)


def test_what_callbacks_do_as_passes_and_batches_begin_and_end_is_done_once(tmp_path):
    want = run(cbs=[BusyCB()])
    want.fit(2)
    for at in ((0, 0, True), (1, 2, True), (1, 0, False)):
        folder, always = tmp_path/str(at), dict(minutes=1e-9)
        with pytest.raises(RuntimeError, match='stopped'): run(folder, cbs=[BusyCB(), StopCB(*at)], **always).fit(2)
        again = run(folder, cbs=[BusyCB()], **always)
        again.fit(2, resume=True)
        assert digest(again) == digest(want), at


def test_a_callback_whose_records_grow_goes_on_in_the_same_process(tmp_path):
    class Growing(Callback):
        def __init__(self): self.seen = {}
        def state_dict(self): return self.seen
        def load_state_dict(self, state): self.seen = state
        def after_batch(self, learn): self.seen[f'{learn.epoch} {learn.training} {learn.iter}'] = 1
    stop = StopCB(0, 2)
    learn = run(tmp_path, cbs=[Growing(), stop])
    with pytest.raises(RuntimeError, match='stopped'): learn.fit(2)
    learn.cbs.remove(stop)
    learn.fit(2, resume=True)
    assert len(learn.cbs[-1].seen) == 2*(7 + 2)


# Refused, and nothing is changed

class TellCB(Callback):
    "Has a record, and may not take one back."
    def __init__(self, refuses=False): self.word, self.refuses = 'mine', refuses
    def before_fit(self, learn): self.word = 'begun'
    def state_dict(self): return dict(word=self.word)
    def load_state_dict(self, state):
        self.word = state['word']
        if self.refuses and self.word == 'saved': raise KeyError('flavour')

    def after_batch(self, learn): self.word = 'saved'


def test_where_a_callback_cannot_take_its_records_all_keep_theirs(tmp_path):
    with pytest.raises(RuntimeError): run(tmp_path, cbs=[TellCB(), TellCB(), StopCB(0, 2)]).fit(1)
    first, second = TellCB(), TellCB(refuses=True)
    learn = run(tmp_path, cbs=[first, second])
    before = weights(learn)
    with pytest.raises(ResumeError, match="TellCB 2 takes back no such records: KeyError: 'flavour'"):
        learn.fit(1, resume=True)
    assert (first.word, second.word) == ('begun', 'begun')
    assert weights(learn) == before


class ThawCB(Callback):
    "Adds a group of parameters on the way."
    def before_epoch(self, learn):
        if learn.training and learn.epoch == 1: learn.opt.add_param_group(dict(params=[learn.model[-1].bias]))


def test_a_group_added_on_the_way_is_refused_by_name_before_anything_is_put_back(tmp_path):
    def some(params, lr): return torch.optim.SGD([p for p in params if p.ndim > 1], lr)
    def make(*cbs): return learner([CheckpointCB(tmp_path, batches=1), *cbs], opt_func=some)
    changed = r'cannot be gone on with, as parameters of group 1 was nothing as it began and is 1 now: see to'
    with pytest.warns(UserWarning, match=changed), pytest.raises(RuntimeError, match='stopped'):
        make(ThawCB(), StopCB(1, 1)).fit(3)
    learn = make(ThawCB())
    before = weights(learn)
    says = 'parameters of group 1 was 1 in the checkpoint and is nothing here: what is trained must all be there as a'
    with pytest.raises(ResumeError, match=says): learn.fit(3, resume=True)
    assert weights(learn) == before


def test_a_run_that_saved_in_between_is_found_out(tmp_path):
    with pytest.raises(RuntimeError, match='stopped'): run(tmp_path, cbs=[StopCB(0, 2)]).fit(2)
    class Meanwhile(Callback):
        order = -1
        def before_fit(self, learn):
            with pytest.raises(RuntimeError, match='stopped'): run(tmp_path, cbs=[StopCB(0, 4)]).fit(2, resume=True)
    with pytest.raises(ResumeError, match=r'another run has saved to .* since its checkpoints were read'):
        run(tmp_path, cbs=[Meanwhile()]).fit(2, resume=True)


def test_the_state_gone_on_from_is_let_go_when_it_has_been_put_back(tmp_path):
    with pytest.raises(RuntimeError, match='stopped'): run(tmp_path, cbs=[StopCB(0, 2)]).fit(2)
    held = []
    class Look(Callback):
        def before_batch(self, learn): held.append(learn.start.state)
    run(tmp_path, cbs=[Look()]).fit(2, resume=True)
    assert held
    assert {*held} == {None}


# What must be as it was, and what is told as it changes

def test_where_no_pass_can_be_taken_up_every_epoch_is_saved(tmp_path):
    class Odd(torch.utils.data.Sampler):
        def __iter__(self): return iter([0, 1, 2, 3])
        def __len__(self): return 4
    dl = DataLoader(TensorDataset(torch.randn(4, 4), torch.tensor([0, 1, 0, 1])), 2, sampler=Odd())
    def make(*cbs): return learner([CheckpointCB(tmp_path, minutes=600, epochs=None), *cbs], dls=DataLoaders(dl, dl))
    besides = r'class Odd, draws from: .*The last checkpoint between epochs stays besides, and is then gone on from'
    with pytest.warns(UserWarning, match=besides), pytest.raises(SystemExit): make(SignalAt(3, 0)).fit(9)
    assert names(tmp_path) == ['00003-1-00000000', '00003-1-00000001']
    again = make()
    with pytest.warns(UserWarning, match=besides), pytest.warns(UserWarning, match='passed over'):
        again.fit(9, resume=True)
    assert names(tmp_path)[-1] == '00009-3-00000000'


class SignalAt(Callback):
    def __init__(self, epoch, batch): self.at = epoch, batch
    def after_batch(self, learn):
        if learn.training and (learn.epoch, learn.iter) == self.at: os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_comes_after_the_save_was_decided_waits_for_the_next(tmp_path, monkeypatch):
    real, asked = CheckpointCB._is_due, []
    def late(self, learn):
        asked.append(learn.iter)
        if len(asked) == 4: os.kill(os.getpid(), signal.SIGTERM)
        return real(self, learn)
    monkeypatch.setattr(CheckpointCB, '_is_due', late)
    with pytest.raises(SystemExit): run(tmp_path, batches=None).fit(1)
    assert names(tmp_path) == ['00000-1-00000005']


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        class Interrupt(Callback):
            def before_batch(self, learn): os.kill(os.getpid(), signal.SIGINT)
        run(tmp_path, cbs=[Interrupt()], batches=None).fit(1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally: signal.signal(signal.SIGINT, before)
    assert names(tmp_path) == ['00001-3-00000000']


def test_a_run_with_validation_is_not_gone_on_with_without(tmp_path):
    with pytest.raises(RuntimeError, match='stopped'):
        run(tmp_path, cbs=[StopCB(0, 0, False)], minutes=1e-9).fit(2)
    with pytest.raises(ResumeError, match='validation was True in the checkpoint and is False here'):
        run(tmp_path).fit(2, valid=False, resume=True)


def test_the_best_of_another_run_is_not_written_over(tmp_path):
    run(tmp_path, best='accuracy').fit(1)
    for p in tmp_path.glob('checkpoint*'): p.unlink()
    for resume in (False, True):
        with pytest.raises(ResumeError, match=r'holds best.safetensors of an earlier run, and nothing to go on from'):
            run(tmp_path, best='accuracy').fit(1, resume=resume)
    run(tmp_path).fit(1)


def test_parameters_in_another_order_are_refused_by_name(tmp_path):
    def make(turned):
        def opt_func(params, lr): return torch.optim.Adam(list(params)[::-1 if turned else 1], lr)
        return learner([CheckpointCB(tmp_path)], opt_func=opt_func)
    make(False).fit(1)
    with pytest.raises(ResumeError, match=r"group 0, parameter 0 was '.*weight' .* is '.*bias' here"):
        make(True).fit(2, resume=True)


def test_schedules_functions_and_tensors_among_hyperparameters_are_compared(tmp_path):
    def make(folder, steps, lr=.01):
        sched = BatchSchedCB(lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: max(0., 1 - i/steps)))
        def opt_func(params, lr_): return torch.optim.Adam(params, torch.tensor(lr))
        return learner([sched, CheckpointCB(tmp_path/folder)], opt_func=opt_func)
    make('a', 14).fit(1)
    with pytest.raises(ResumeError, match=r'schedule 0: value of function 0 at step 1 was 0\.92.* and is 0\.96'):
        make('a', 28).fit(2, resume=True)
    make('b', 14).fit(1)
    with pytest.raises(ResumeError, match=r'lrs? was .*0\.00999.* and is .*0\.2'):
        make('b', 14, .2).fit(2, resume=True)


def test_another_loader_in_place_of_the_runs_is_refused_within_a_pass(tmp_path):
    class Fewer(Callback):
        def before_epoch(self, learn):
            if learn.training: learn.dl = list(islice(learn.dl, 4))
    with pytest.raises(RuntimeError, match='stopped'): run(tmp_path, cbs=[Fewer(), StopCB(0, 1)]).fit(2)
    with pytest.raises(ResumeError, match=r'has put another loader in the place of learn\.dl, and nobody'):
        run(tmp_path, cbs=[Fewer()]).fit(2, resume=True)


class Around:
    def __init__(self, inner): self.inner = inner
    def __len__(self): return len(self.inner)
    def __iter__(self): return iter(self.inner)


def test_a_loader_that_goes_over_the_runs_own_is_taken_up(alone, tmp_path):
    class Wraps(Callback):
        def before_epoch(self, learn): learn.dl = Around(learn.dl)
    with pytest.raises(RuntimeError, match='stopped'): run(tmp_path, cbs=[Wraps(), StopCB(1, 2)]).fit(2)
    again = run(tmp_path, cbs=[Wraps()])
    again.fit(2, resume=True)
    assert weights(again) == weights(alone)
    class Other(Callback):
        def before_epoch(self, learn): learn.dl = learn.dls.train
    with pytest.raises(RuntimeError, match='stopped'): run(tmp_path/'b', cbs=[StopCB(1, 2)]).fit(2)
    with pytest.raises(ResumeError, match='has put another'): run(tmp_path/'b', cbs=[Other()]).fit(2, resume=True)


def test_handlers_are_put_back_where_a_loader_cannot_be_looked_at(tmp_path):
    class Bad(TensorDataset):
        def __getitem__(self, i): raise KeyError('no image')
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    dl = DataLoader(Bad(torch.ones(8)), 4, num_workers=1)
    with pytest.raises(KeyError, match='no image'): learner([CheckpointCB(tmp_path)], dls=DataLoaders(dl, dl)).fit(1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


class Scaled(nn.Module):
    "A loss with a running mean of its own, by which it divides."
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.ones(()))

    def forward(self, preds, y):
        loss = nn.functional.cross_entropy(preds, y)
        self.mean.mul_(.9).add_(.1*loss.detach())
        return loss/self.mean


class FreezeNormCB(Callback):
    def after_batch(self, learn):
        if learn.training and learn.iter == 1: learn.model[1].eval()


def test_a_losss_buffers_and_the_modes_of_modules_go_on_too(tmp_path):
    def make(folder, *cbs):
        learn = run(folder, cbs=[FreezeNormCB(), *cbs])
        learn.loss_func = Scaled()
        return learn
    want = make(tmp_path/'alone')
    want.fit(2)
    with pytest.raises(RuntimeError, match='stopped'): make(tmp_path/'mine', StopCB(1, 3)).fit(2)
    again = make(tmp_path/'mine')
    again.fit(2, resume=True)
    assert digest(again) == digest(want)


def test_what_cannot_be_saved_is_told_before_the_first_batch(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self): return {1, 2}
        def set_extra_state(self, state): pass
    with pytest.raises(TypeError, match=r'is a builtins\.set'):
        learner([CheckpointCB(tmp_path/'a')], model=nn.Sequential(Extra(1, 1))).fit(1)
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet: run a batch through the model before"):
        learner([CheckpointCB(tmp_path/'a')], model=nn.Sequential(nn.LazyLinear(1))).fit(1)
    class Bare:
        def __init__(self, params, lr): pass
        def step(self): pass
        def zero_grad(self): pass
    with pytest.raises(TypeError, match='Bare has no param_groups or state_dict or load_state_dict'):
        learner([CheckpointCB(tmp_path/'a')], opt_func=Bare).fit(1)
    (tmp_path/'file').write_text('')
    with pytest.raises(NotADirectoryError, match=r'checkpoints go to a folder, and .*file is a file'):
        learner([CheckpointCB(tmp_path/'file')]).fit(1)
    with pytest.raises(TypeError, match='best must be the name of a metric'): CheckpointCB(tmp_path, best=3)
    with pytest.raises(ValueError, match='LRFinderCB in cbs looks for a rate instead'):
        learner([CheckpointCB(tmp_path/'a'), LRFinderCB()]).fit(1, resume=True)
    assert not (tmp_path/'a').exists()


def test_what_changes_so_that_it_cannot_be_gone_on_with_is_told_when_it_is_saved(tmp_path):
    class Once(Callback):
        def state_dict(self): return {}
        def load_state_dict(self, state): pass
        def after_epoch(self, learn): learn.cbs.remove(self)
    with pytest.warns(UserWarning, match=r"gone on with, as records of callbacks was \[.*'Once 1'.* is \[.* now"):
        run(tmp_path, cbs=[Once()]).fit(1)


# How it is written

@pytest.mark.parametrize('background', [False, True])
def test_the_best_epochs_checkpoint_is_written_once_and_has_two_names(background, tmp_path):
    run(tmp_path, best='accuracy', batches=None, keep=5, background=background).fit(2)
    best = (tmp_path/'best.safetensors').stat()
    assert best.st_ino in [p.stat().st_ino for p in tmp_path.glob('checkpoint*')]
    rows = [r['accuracy'] for r in run_history(tmp_path)]
    assert load(tmp_path/'best.safetensors')['position']['epoch'] == max(range(2), key=lambda i: (rows[i], -i)) + 1


def run_history(folder): return [r for r in newest(folder)['history'] if r['phase'] == 'eval']


SLOW = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import os, signal, time
from miniai.checkpoint import disk
from resuming import *
class Twice(Callback):
    def before_batch(self, learn):
        if learn.iter == 3: disk.write = lambda fd, data: time.sleep(60)
        if learn.iter != 4: return
        print(time.time(), flush=True)
        for _ in range(2): os.kill(os.getpid(), int(sys.argv[2]))
run(sys.argv[1], cbs=[Twice()], background=True, batches=2).fit(2)
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_wait_for_what_is_being_written(number, tmp_path):
    child = subprocess.run([sys.executable, '-W', 'ignore', '-c', SLOW, str(tmp_path), str(int(number))],
                           capture_output=True, text=True, timeout=50)
    assert child.returncode == -number, child.stderr
    assert time.time() - float(child.stdout.split()[-1]) < 15
    assert names(tmp_path)[-1] == '00000-1-00000002'
    run(tmp_path).fit(2, resume=True)
    assert not list(tmp_path.glob('.*.part'))

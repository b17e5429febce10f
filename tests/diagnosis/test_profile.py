"Where the time of an epoch goes: the parts sum to the wall time, each is put down to whom it belongs, nothing stays."
import time
from contextlib import suppress

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from miniai.activations import HooksCallback
from miniai.datasets import DataLoaders
from miniai.diagnosis import profile as module
from miniai.diagnosis.profile import ProfileCB
from miniai.learner import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    DeviceCB,
    Learner,
    MetricsCB,
    ProgressCB,
    SingleBatchCB,
    TrainCB,
    TrainLearner,
)
from miniai.sgd import RecorderCB
from small import batches, learner, mlp, raising, same, weights


@pytest.fixture
def clock(monkeypatch):
    "A clock that moves by `clock.sleep` alone: every second is put down exactly."
    class Clock:
        time = 0.
        def __call__(self): return self.time
        def sleep(self, seconds): self.time += seconds
    clock = Clock()
    monkeypatch.setattr(module, 'perf_counter', clock)
    return clock


def sleeping(clock, seconds, *events, cls=Callback, name='Sleeps', **attributes):
    "A callback whose class has `name`, and which sleeps at `events`."
    def sleep(self, learn): clock.sleep(seconds)
    return type(name, (cls,), dict.fromkeys(events, sleep) | attributes)()


class Slow:
    "A loader that sleeps before each batch."
    def __init__(self, clock, seconds, n): self.clock, self.seconds, self.batches = clock, seconds, batches(n)
    def __len__(self): return len(self.batches)
    def __iter__(self):
        for b in self.batches:
            self.clock.sleep(self.seconds)
            yield b


def slowed(cls, clock, phases):
    "`cls` with `phases`, a dict of seconds, that sleep after their work."
    def then_sleeps(phase, seconds):
        def f(self, *args):
            getattr(cls, phase)(self, *args)
            clock.sleep(seconds)
        return f
    return type('Slowed', (cls,), {phase: then_sleeps(phase, s) for phase, s in phases.items()})


def seconds(cb, phase='train'):
    return {r['part']: r['seconds'] for r in cb.rows if r['phase'] == phase and r['seconds']}


def fitted(cbs, profile=None, n=1, **kwargs):
    profile = profile or ProfileCB(quiet=True)
    learner(cbs, **kwargs).fit(n, cbs=profile)
    return profile


# Each part to whom it belongs

def test_the_phases_of_a_learner_have_their_own_time(clock):
    phases = dict(predict=1, get_loss=2, backward=4, step=8, zero_grad=16)
    cb = fitted([], cls=slowed(TrainLearner, clock, phases))
    assert seconds(cb) == dict(forward=4, loss=8, backward=16, optimizer=32, zero_grad=64)
    assert seconds(cb, 'valid') == dict(forward=2, loss=4)


def test_the_phases_of_a_callback_are_the_same_parts(clock):
    phases = slowed(TrainCB, clock, dict(predict=1, step=8))
    assert seconds(fitted([phases()], cls=Learner)) == dict(forward=4, optimizer=32)


def test_a_model_that_sleeps_is_the_forward(clock):
    model = mlp()
    model.register_forward_hook(lambda *args: clock.sleep(3))
    assert seconds(fitted([], model=model)) == dict(forward=12)


@pytest.mark.parametrize('bar', [[], [ProgressCB()]])
def test_a_loader_that_sleeps_is_waited_for(clock, bar):
    cb = fitted(bar, dls=DataLoaders(Slow(clock, 5, 3), Slow(clock, 7, 2)))
    assert (seconds(cb), seconds(cb, 'valid')) == ({'waiting for data': 15}, {'waiting for data': 14})


def test_a_bar_that_sleeps_is_its_callbacks(clock):
    class Bar(ProgressCB):
        def before_epoch(self, learn):
            super().before_epoch(learn)
            self.mbar.display.seconds_between_updates = self._next_bar = 0
            self.mbar.display.bar = lambda *args: clock.sleep(1)
    cb = fitted([Bar()], dls=DataLoaders(Slow(clock, 5, 3), Slow(clock, 7, 2)))
    assert seconds(cb) == {'waiting for data': 15, 'Bar': 2}


def test_moving_to_a_device_is_copying(clock):
    assert seconds(fitted([sleeping(clock, 2, 'before_batch', cls=DeviceCB, device='cpu')])) == dict(copying=8)


def test_a_callback_has_its_time_of_all_events_in_an_epoch_under_the_name_of_its_class(clock):
    events = ['before_epoch', 'before_batch', 'after_predict', 'after_loss', 'after_backward', 'after_step',
              'after_batch', 'cleanup_batch', 'after_epoch', 'cleanup_epoch']
    a, b = (sleeping(clock, s, *events, name=nm, order=o) for s, nm, o in ((1, 'A', 0), (100, 'B', float('-inf'))))
    cb = fitted([a, b, a], n=2)
    assert seconds(cb) == dict(B=100*(8*7 + 2*3), A=2*(8*7 + 2*3))
    assert seconds(cb, 'valid') == dict(B=100*(4*5 + 2*3), A=2*(4*5 + 2*3))


def test_what_happens_around_the_epochs_is_in_no_part(clock):
    assert seconds(fitted([sleeping(clock, 5, 'before_fit', 'after_fit', 'cleanup_fit')])) == {}


def test_hooks_on_modules_are_their_callbacks_and_not_the_forwards(clock):
    def look(*args): clock.sleep(3)
    watches = HooksCallback(look, lambda m: isinstance(m, nn.Linear))
    assert seconds(fitted([watches])) == dict(HooksCallback=2*4*3)
    assert watches.hookfunc is look


def test_what_the_loop_itself_does_is_the_loops(clock):
    assert seconds(fitted([], cls=slowed(TrainLearner, clock, dict(_one_batch=2)))) == dict(loop=8)


def test_callbacks_that_come_and_go_during_the_fit_are_seen(clock):
    late = sleeping(clock, 1, 'after_batch', name='Late')
    class Brings(Callback):
        def after_batch(self, learn):
            if (learn.epoch, learn.iter, learn.training) == (0, 1, True): learn.cbs.append(late)
            if (learn.epoch, learn.iter, learn.training) == (1, 2, True): learn.cbs.remove(late)
    cb = fitted([Brings()], n=2)
    assert (seconds(cb), seconds(cb, 'valid')) == (dict(Late=2 + 3), dict(Late=2))


def test_an_epoch_within_an_epoch_is_its_callbacks_time(clock):
    class Nested(Callback):
        def after_batch(self, learn):
            if not learn.training or learn.iter != 1: return
            learn.one_epoch(False)
            learn.model.train()
    cb = fitted([Nested()], dls=DataLoaders(batches(4), Slow(clock, 5, 2)))
    assert (seconds(cb), seconds(cb, 'valid')) == (dict(Nested=10), {'waiting for data': 10})


# The sum is the wall time

def test_the_parts_sum_to_the_wall_time_of_the_epochs():
    took = dict(train=0., valid=0.)
    class Timed(TrainLearner):
        def one_epoch(self, training):
            started = time.perf_counter()
            try: super().one_epoch(training)
            finally: took['train' if training else 'valid'] += time.perf_counter() - started
    slow = sleeping(time, .01, 'after_epoch', 'before_batch', 'cleanup_epoch')
    cb = fitted([slow, MetricsCB(), ProgressCB()], cls=Timed, dls=DataLoaders(Slow(time, .005, 10), batches(5)), n=2)
    for phase, wall in took.items(): assert sum(seconds(cb, phase).values()) == pytest.approx(wall, rel=.02)


@pytest.mark.parametrize('every', [1, 2, 3, 7, 100])
@pytest.mark.parametrize('n', [1, 2, 5, 12])
def test_with_some_batches_looked_at_the_parts_still_sum_to_all_the_time(clock, every, n):
    cb = fitted([sleeping(clock, 3, 'before_epoch', 'after_batch', 'after_epoch')], ProfileCB(every, quiet=True),
                dls=DataLoaders(Slow(clock, 1, n), Slow(clock, 2, n)))
    assert sum(seconds(cb).values()) == pytest.approx(6 + 4*n)
    assert sum(seconds(cb, 'valid').values()) == pytest.approx(6 + 5*n)
    looked_at = n > 1 or every == 1
    assert seconds(cb) == pytest.approx({'waiting for data': n, 'Sleeps': 6 + 3*n} if looked_at
                                        else {'Sleeps': 6, 'not timed': 4*n})


def test_the_batches_not_looked_at_are_taken_to_be_like_those_looked_at(clock):
    class Uneven(Callback):
        def after_batch(self, learn): clock.sleep(3 if learn.iter % 2 else 1)
    cb = fitted([Uneven()], ProfileCB(2, quiet=True), dls=DataLoaders(Slow(clock, 1, 4), batches(2)))
    assert seconds(cb) == pytest.approx({'waiting for data': 12*1/4, 'Uneven': 12*3/4})


@pytest.mark.parametrize('every', [1, 2, 3])
@pytest.mark.parametrize('at', [0, 1, 2, 3])
@pytest.mark.parametrize('e', [CancelEpochException, CancelFitException])
def test_what_comes_after_an_epochs_cancel_is_put_down_as_it_was_and_no_batchs(clock, every, at, e):
    def cancel(self, learn):
        if learn.training and learn.iter == at: raise e
    cancels = type('Cancels', (Callback,), dict(before_batch=cancel))()
    ends = sleeping(clock, 5, 'cleanup_epoch', name='Ends')
    cb = fitted([cancels, ends], ProfileCB(every, quiet=True), dls=DataLoaders(Slow(clock, 1, 5), batches(2)))
    assert seconds(cb)['Ends'] == pytest.approx(5)
    assert sum(seconds(cb).values()) == pytest.approx(5 + at + 1)


# An accelerator

@pytest.fixture
def accelerator(monkeypatch, clock):
    "A device that does its work while Python goes on: `accelerator.work` is waited for by synchronising."
    class Accelerator:
        queue = waits = 0
        def work(self, seconds): self.queue += seconds
        def wait(self, device):
            clock.sleep(self.queue)
            self.queue, self.waits = 0, self.waits + 1
    fake = Accelerator()
    monkeypatch.setattr(torch.accelerator, 'synchronize', fake.wait)
    return fake


class OnDevice(nn.Module):
    "A model that gives an accelerator work."
    def __init__(self, accelerator):
        super().__init__()
        self.inside, self.accelerator = mlp(), accelerator
    def forward(self, x):
        self.accelerator.work(5)
        return self.inside(x)


@pytest.fixture
def on_device(monkeypatch, accelerator):
    monkeypatch.setattr(module, '_device_of', lambda model: torch.device('cuda'))
    return OnDevice(accelerator)


def test_the_work_of_an_accelerator_is_put_down_to_the_part_that_gave_it(on_device, accelerator):
    assert seconds(fitted([], ProfileCB(1, quiet=True), model=on_device)) == dict(forward=20)


def test_an_accelerator_is_waited_for_in_one_batch_of_ten_alone_and_all_the_time_is_put_down(on_device, accelerator,
                                                                                             clock):
    cb, started = ProfileCB(quiet=True), clock()
    learner([], model=on_device, dls=DataLoaders(batches(30), batches(1))).fit(1, valid=False, cbs=cb)
    assert seconds(cb) == pytest.approx(dict(forward=150))
    assert clock() - started == 150
    assert accelerator.waits < 3*25


def test_on_the_cpu_nothing_is_waited_for(accelerator):
    fitted([])
    assert accelerator.waits == 0


# Everything as it was

def own(learn):
    "What stands on the instance of a Learner in the place of its class's methods."
    return {k: v for k, v in vars(learn).items() if callable(getattr(type(learn), k, None))}


def ends(e, event):
    def act(self, learn):
        if learn.training: raise e
    return type('Ends', (Callback,), {event: act})()


@pytest.mark.parametrize('event', ['before_fit', 'before_epoch', 'before_batch', 'after_loss', 'after_batch',
                                   'after_epoch', 'cleanup_epoch'])
@pytest.mark.parametrize('e', [None, CancelBatchException(), CancelEpochException(), CancelFitException(),
                               ValueError('oh'), KeyboardInterrupt()], ids=repr)
def test_a_fit_leaves_the_learner_as_it_was_however_it_ends(event, e):
    learn = learner([ends(e, event)] if e else [ProgressCB()])
    before, methods, cb = own(learn), {nm: getattr(learn, nm) for nm in ('one_epoch', 'predict', 'step')}, ProfileCB()
    if e is None: learn.fit(1, cbs=cb)
    else:
        with suppress(type(e)): learn.fit(1, cbs=cb)
    assert own(learn) == before
    assert methods == {nm: getattr(learn, nm) for nm in methods}
    assert cb not in learn.cbs
    assert not isinstance(getattr(getattr(learn, 'dl', None), 'dl', None), module._TimedLoader)


def test_a_fit_gives_the_same_weights_and_history_with_it_and_without():
    def run(cbs):
        learn = learner([MetricsCB()])
        learn.fit(2, cbs=cbs)
        return weights(learn), [r['loss'] for r in learn.history]
    (a, losses), (b, losses2) = run([]), run([ProfileCB(quiet=True)])
    assert same(a, b)
    assert losses == losses2


def test_a_phase_put_on_the_instance_is_timed_and_put_back(clock):
    learn = learner()
    plain = learn.predict
    def predict():
        plain()
        clock.sleep(1)
    learn.predict, cb = predict, ProfileCB(quiet=True)
    learn.fit(1, cbs=cb)
    assert seconds(cb) == dict(forward=4)
    assert learn.predict is predict


def test_a_method_that_a_callback_has_put_there_meanwhile_stays():
    def step(): pass
    class Puts(Callback):
        def after_epoch(self, learn): learn.step = step
    learn = learner([Puts()])
    learn.fit(1, cbs=ProfileCB(quiet=True))
    assert learn.step is step


def test_taken_out_during_a_fit_it_stops_and_a_later_fit_is_free_of_it():
    cb = ProfileCB(quiet=True)
    class Takes(Callback):
        def after_epoch(self, learn):
            if cb in learn.cbs: learn.cbs.remove(cb)
    learn = learner([cb, Takes()])
    learn.fit(3)
    assert {r['phase'] for r in cb.rows} == {'train'}
    learn.fit(1)
    assert own(learn) == {}


def test_without_it_the_loop_calls_the_very_methods():
    rec, learn = RecorderCB(), learner([])
    learn.cbs = [rec]
    class Sees(Callback):
        def after_batch(self, learn):
            assert rec.after_batch in learn.cbs.dispatch.table['after_batch']
            assert not own(learn)
    learn.fit(1, cbs=Sees())


def test_an_error_still_names_the_callback_and_the_event():
    with pytest.raises(ValueError, match='oh') as e:
        learner([ends(ValueError('oh'), 'after_loss')]).fit(1, cbs=ProfileCB())
    assert 'raised by callback Ends in event after_loss' in e.value.__notes__


def test_two_of_them_are_refused_before_the_first_batch():
    learn = learner([ProfileCB()])
    with pytest.raises(ValueError, match='two ProfileCBs in cbs: keep one'): learn.fit(1, cbs=ProfileCB())
    assert learn.iter is None
    assert own(learn) == {}


@pytest.mark.parametrize('look', ['lr_find', 'summary', 'capture_preds', 'show_image_batch'])
def test_a_look_keeps_the_profile_of_the_fit_before_and_prints_none(look, capsys):
    cb = ProfileCB()
    learn = learner([cb], dls=DataLoaders([(torch.rand(6, 2, 2), torch.randint(3, (6,)))]*40, batches(2)),
                    model=nn.Sequential(nn.Flatten(), mlp()))
    learn.dls.valid = learn.dls.train
    learn.fit(1)
    before, _ = cb.table(), capsys.readouterr()
    getattr(learn, look)()
    assert cb.table() == before
    assert look == 'lr_find' or 'waiting for data' not in capsys.readouterr().out
    assert own(learn) == {}


# Rows, table, picture

def test_rows_have_the_parts_in_the_order_of_a_batch_then_callbacks_by_time_then_the_loop(clock):
    cbs = [sleeping(clock, s, 'after_batch', name=nm) for nm, s in (('Short', 1), ('Long', 9))]
    cb = fitted([DeviceCB('cpu'), *cbs])
    parts = ['waiting for data', 'copying', 'forward', 'loss', 'backward', 'optimizer', 'zero_grad', 'Long', 'Short',
             'FiniteLossCB', 'loop']
    hidden = 'FirstBatchCB', 'EpochCB'
    def of(phase): return [r['part'] for r in cb.rows if r['phase'] == phase and r['part'] not in hidden]
    assert of('train') == parts
    assert of('valid') == [*parts[:4], *parts[7:]]


def test_rows_say_seconds_milliseconds_a_batch_and_the_share(clock):
    cb = fitted([sleeping(clock, 1, 'after_batch')], dls=DataLoaders(Slow(clock, 3, 5), batches(1)))
    row = next(r for r in cb.rows if r['part'] == 'Sleeps')
    assert row == dict(phase='train', part='Sleeps', seconds=5, ms_per_batch=1000, share=1/4)


def test_a_new_fit_starts_a_new_record(clock):
    cb = ProfileCB(quiet=True)
    learn = learner([cb, sleeping(clock, 1, 'after_batch')])
    for _ in range(2): learn.fit(1)
    assert seconds(cb) == dict(Sleeps=4)


def test_the_table_is_the_rows_as_aligned_text(clock):
    cb = fitted([sleeping(clock, 1, 'after_batch')], dls=DataLoaders(Slow(clock, 3, 5), batches(1)))
    train, evals = cb.table().split('\n\n')
    head, columns, *lines = train.splitlines()
    assert (head, evals.splitlines()[0]) == ('train: 5 batches, 20.0 s', 'valid: 1 batches, 1.0 s')
    assert columns.split() == ['part', 'seconds', 'ms/batch', 'share']
    assert len({len(ln) for ln in (columns, *lines)}) == 1
    assert 'Sleeps              5.000  1000.000  25.0%' in lines
    assert len(lines) == len([r for r in cb.rows if r['phase'] == 'train'])


def test_the_table_is_printed_after_a_fit_that_trained_to_its_end_unless_quiet(capsys):
    def said(cb, *cbs, **kwargs):
        learner(cbs).fit(1, cbs=cb, **kwargs)
        return capsys.readouterr().out
    loud, quiet = ProfileCB(), ProfileCB(quiet=True)
    assert said(loud) == loud.table() + '\n'
    assert said(quiet) == said(ProfileCB(), train=False) == said(ProfileCB(), SingleBatchCB()) == ''


def test_a_cancelled_fit_has_its_rows(clock):
    cb = fitted([SingleBatchCB(), sleeping(clock, 1, 'after_batch')])
    assert seconds(cb) == dict(Sleeps=1)


def test_where_nothing_was_profiled_there_are_no_rows_and_table_and_picture_say_so():
    cb = ProfileCB()
    assert cb.rows == []
    for draw in (cb.table, cb.plot):
        with pytest.raises(ValueError, match='nothing profiled yet: train with this callback first'): draw()


def test_a_fit_that_fails_before_its_first_epoch_prints_nothing(capsys):
    with pytest.raises(ValueError, match='oh'):
        learner([type('Bad', (Callback,), dict(before_fit=raising(ValueError('oh'))))()]).fit(1, cbs=ProfileCB())
    assert capsys.readouterr().out == ''


def test_the_picture_has_a_panel_a_phase_with_a_bar_and_a_label_a_part(clock):
    cb = fitted([sleeping(clock, 1, 'after_batch')], dls=DataLoaders(Slow(clock, 3, 5), batches(1)))
    fig = Figure()
    axs = cb.plot(fig)
    assert plt.get_fignums() == []
    assert [ax.get_title() for ax in axs] == ['train: 5 batches, 20.0 s', 'valid: 1 batches, 1.0 s']
    assert [bar.get_width() for bar in axs[0].patches] == [r['ms_per_batch'] for r in cb.rows if r['phase'] == 'train']
    assert '1000.00 ms, 25.0%' in [t.get_text() for t in axs[0].texts]
    assert [t.get_text() for t in axs[0].get_yticklabels()][:2] == ['waiting for data', 'forward']
    low, high = axs[0].get_ylim()
    assert low > high


def test_without_a_figure_the_picture_is_pyplots():
    cb = fitted([])
    axs = cb.plot()
    assert plt.gcf() is axs[0].figure
    assert len(plt.gcf().axes) == 2


@pytest.mark.parametrize('every', [0, -1])
def test_every_must_be_one_or_more(every):
    with pytest.raises(ValueError, match='every must be 1 or more'): ProfileCB(every=every)

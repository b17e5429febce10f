"What would never be called is refused before the first batch, with what to write; helpers and users' own events pass."
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

from miniai import BatchSchedCB, Callback, MetricsCB, TrainCB, accuracy
from miniai.callbacks.train_loss import TrainLossCB
from miniai.events import EVENTS, PHASES
from miniai.learner import Learner, TrainLearner, with_cbs
from miniai.sgd import HasLearnCB
from small import learner


class Metric:
    def update(self, preds, targets): pass
    def compute(self): return 0.
    def reset(self): pass


def schedule(): return optim.lr_scheduler.ConstantLR(optim.SGD([torch.ones(1)]))


@pytest.mark.parametrize(('cb', 'says'), [
    (accuracy, r'cbs holds accuracy, which is not a callback.*metric, write MetricsCB\(accuracy\)'),
    (Metric(), r'an object of type Metric.*write MetricsCB\(…\)'),
    (nn.CrossEntropyLoss(), r'type CrossEntropyLoss.*not a callback'),
    (optim.SGD([torch.ones(1)]), r'type SGD.*not a callback.*such as after_epoch'),
    (schedule(), r'type ConstantLR.*For a schedule, write BatchSchedCB'),
    (SimpleNamespace(lr=.1), r'type SimpleNamespace.*such as after_epoch'),
    (MetricsCB, r'class MetricsCB; pass an instance'), (None, 'cbs holds None'), ('DeviceCB', "cbs holds 'DeviceCB'")])
def test_what_no_event_would_call_is_refused(cb, says):
    learn = learner([cb])
    with pytest.raises(TypeError, match=says): learn.fit(1)
    assert learn.epoch is None


def with_method(name, base=Callback): return type('Mine', (base,), {name: lambda self, *args: None})()


@pytest.mark.parametrize(('name', 'meant'), [
    ('befor_fit', 'before_fit'), ('beforeFit', 'before_fit'), ('afterbatch', 'after_batch'),
    ('clean_up_fit', 'cleanup_fit'), ('on_after_loss', 'after_loss'), ('before_bach', "'before_batch'"),
    ('on_epoch_end', 'after_epoch'), ('on_train_begin', 'before_fit'), ('on_train_end', 'after_fit'),
    ('on_fit_start', 'before_fit'), ('on_train_batch_end', 'after_batch'), ('on_batch_begin', 'before_batch'),
    ('on_train_epoch_start', 'before_epoch'), ('on_validation_epoch_end', 'after_epoch'),
    ('on_step_end', 'after_batch'), ('on_validation_end', 'after_epoch'), ('on_after_backward', 'after_backward'),
    ('begin_fit', 'before_fit'), ('begin_batch', 'before_batch'),
    ('before_step', 'after_backward'), ('before_backward', 'after_loss'), ('after_validate', 'after_epoch'),
    ('on_before_optimizer_step', 'after_backward'), ('training_step', 'predict and get_loss')])
def test_a_method_that_is_almost_an_event_or_one_elsewhere_is_refused_with_the_right_name(name, meant):
    for base in (Callback, object, MetricsCB):
        with pytest.raises(AttributeError, match=rf'Mine\.{name}.*did you mean {meant}'):
            learner(with_method(name, base)).fit(1)
    duck = SimpleNamespace(after_predict=lambda learn: None, **{name: lambda learn: None})
    with pytest.raises(AttributeError, match=rf'{name}.*did you mean {meant}'): learner(duck).fit(1)


@pytest.mark.parametrize(('name', 'meant'), [('predcit', 'predict'), ('getloss', 'get_loss'), ('zerograd', 'zero_grad'),
                                             ('backwrad', 'backward')])
def test_a_method_that_is_almost_a_phase_is_refused(name, meant):
    with pytest.raises(AttributeError, match=f'Mine.{name} would never be called.*did you mean {meant}'):
        learner(with_method(name, TrainCB), cls=Learner).fit(1)
    mine = type('Mine', (TrainLearner,), {name: lambda self: None})
    with pytest.raises(AttributeError, match=f'Mine.{name} would never be called.*did you mean {meant}'):
        learner(cls=mine).fit(1)


@pytest.mark.parametrize('name', ['predict_all', 'predictor', 'steps', 'get_losses', 'on_click', 'forward', 'setup',
                                  'step_size', 'begin', 'epoch', 'log', 'before', 'cleanup', 'draw_batch', 'fit',
                                  '_befor_fit'])
def test_helpers_pass(name):
    for base in (Callback, MetricsCB): learner(with_method(name, base)).fit(1)


def test_callbacks_with_phases_or_attributes_alone_pass():
    phases = SimpleNamespace(**{p: getattr(TrainCB(), p) for p in PHASES})
    learner([phases, HasLearnCB(), Callback()], cls=Learner).fit(1)


def test_a_class_that_has_both_names_serves_two_libraries():
    class Both:
        def after_epoch(self, learn): self.on_epoch_end()
        def on_epoch_end(self): pass
    learner(Both()).fit(1)


def test_a_metrics_callback_that_has_the_name_of_another_library_is_refused():
    class Mine(MetricsCB):
        def on_epoch_end(self): pass
    with pytest.raises(AttributeError, match='did you mean after_epoch'): learner(Mine()).fit(1)


@pytest.mark.parametrize('event', EVENTS)
def test_an_event_as_a_method_of_a_learner_is_refused_unless_the_learner_calls_it_itself(event):
    heard = []
    mine = type('Mine', (TrainLearner,), {event: lambda self, *args: heard.append(event)})
    with pytest.raises(AttributeError, match=rf'Mine\.{event} would never be called.*Move it to a Callback'):
        learner(cls=mine).fit(1)
    class Calls(mine):
        def callback(self, name):
            super().callback(name)
            if name in EVENTS and hasattr(self, name): getattr(self, name)()
    learner(cls=Calls).fit(1)
    assert heard


def test_a_learners_own_events_and_methods_pass():
    class Staged(TrainLearner):
        events = (*TrainLearner.events, 'before_stage', 'after_stage', 'cleanup_stage')
        @with_cbs('stage')
        def stage(self): pass
        def predict_twice(self): pass
    cb = SimpleNamespace(before_stage=lambda learn: None)
    learn = learner(cb, cls=Staged)
    learn.fit(1)
    learn.stage()


def test_what_the_library_and_torch_keep_as_attributes_passes():
    learner([BatchSchedCB(lambda opt: optim.lr_scheduler.ConstantLR(opt)), TrainLossCB(F.cross_entropy)]).fit(1)

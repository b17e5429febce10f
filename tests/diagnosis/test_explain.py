"One batch explained: the events are those that ran, each change is told of whoever made it, and nothing stays."
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import BatchTransformCB, Callback, DataLoaders, MaxBatchesCB, MetricsCB, MixUpCB, TrainCB
from miniai.diagnosis.explain import LOOP
from miniai.diagnosis.moment import change_text
from miniai.learner import CancelBatchException, Learner, ProgressCB, SingleBatchCB, TrainLearner
from miniai.sgd import BatchSchedCB
from small import AROUND, WITHIN, Heard, TwoInputs, copied, equal, everything, learner, mlp, raising, two_inputs

TRAINS = ['before_fit', 'before_epoch', 'before_batch', 'predict', 'after_predict', 'get_loss', 'after_loss',
          'backward', 'after_backward', 'step', 'after_step', 'zero_grad', 'after_batch', 'cleanup_batch',
          'after_epoch', 'cleanup_epoch', 'after_fit', 'cleanup_fit']
VALIDATES = ['before_epoch', 'before_batch', 'predict', 'after_predict', 'get_loss', 'after_loss', 'after_batch',
             'cleanup_batch', 'after_epoch', 'cleanup_epoch']


def events(rows):
    "Each event once in a row, without what the loop does before it."
    names = [r['event'] for r in rows if r['callback'] != LOOP]
    return [nm for nm, before in zip(names, [None, *names], strict=False) if nm != before]


def by(explained, name, event=None):
    return [r for r in explained.rows if r['callback'] == name and event in (None, r['event'])]


def test_every_event_and_phase_is_told_in_order_also_those_that_nothing_hears():
    assert events(learner().explain().rows) == TRAINS
    assert events(learner().explain(valid=True).rows) == TRAINS[:-2] + VALIDATES + TRAINS[-2:]
    assert events(learner().explain(train=False, valid=True).rows) == ['before_fit', *VALIDATES, *TRAINS[-2:]]


@pytest.mark.parametrize('valid', [False, True])
def test_each_callback_has_a_row_for_each_event_that_it_hears(valid):
    cb = Heard()
    rows = by(learner(cb).explain(valid=valid), 'Heard')
    assert [r['event'] for r in rows] == cb.log
    assert set(cb.log) == {*AROUND, *WITHIN}
    assert all(r['ms'] >= 0 and r['given'] for r in rows)


def test_one_batch_is_run_of_each_loader_with_the_length_of_all():
    lengths = []
    cb = Heard({'before_batch': lambda learn: lengths.append((learn.iter, len(learn.dl)))})
    learner(cb).explain(valid=True)
    assert lengths == [(0, 4), (0, 2)]


def test_phases_of_the_learner_itself_and_of_callbacks_are_told_of_their_owner():
    class Mine(TrainLearner):
        def get_loss(self): self.loss = F.cross_entropy(self.preds, self.batch[1])*2
    own = learner(cls=Mine).explain()
    owners = [r['callback'] for r in own.rows if r['event'] in ('predict', 'get_loss')]
    assert owners == ['TrainLearner', 'Mine']
    dls = two_inputs()
    theirs = Learner(TwoInputs(), dls, F.cross_entropy, cbs=TrainCB(n_inp=2)).explain()
    phases = [(r['event'], r['callback']) for r in theirs.rows if r['event'] in ('predict', 'backward', 'step')]
    assert phases == [('predict', 'TrainCB'), ('backward', 'TrainCB'), ('step', 'TrainCB')]


def test_each_change_is_told_of_the_callback_that_made_it():
    def double(learn): learn.batch = (learn.batch[0]*2, learn.batch[1])
    def clip(learn): nn.utils.clip_grad_value_(learn.model.parameters(), 1e-3)
    explained = learner([Heard({'before_batch': double, 'after_backward': clip})]).explain()
    batch, = by(explained, 'Heard', 'before_batch')[0]['changes']
    assert (batch['name'], batch['after']['mean']) == ('batch[0]', pytest.approx(2*batch['before']['mean']))
    grads, = by(explained, 'Heard', 'after_backward')[0]['changes']
    assert (grads['name'], grads['names']) == ('gradients', ['0.weight', '0.bias', '2.weight', '2.bias'])
    assert grads['after']['std'] < 1e-3 < grads['before']['std']
    assert all(not r['changes'] for r in by(explained, 'Heard') if r['event'] not in ('before_batch', 'after_backward'))


def test_the_phases_change_predictions_loss_gradients_and_weights():
    rows = {r['event']: [c['name'] for c in r['changes']] for r in by(learner().explain(), 'TrainLearner')}
    assert rows == dict(predict=['preds'], get_loss=['loss'], backward=['gradients'], step=['parameters'],
                        zero_grad=['gradients'])


def test_what_the_loop_does_is_told_too():
    loop = {c['name']: c['after'] for r in by(learner().explain(), LOOP) for c in r['changes']}
    assert (loop['epoch'], loop['iter'], loop['opt']) == (0, 0, 'SGD')
    assert loop['batch[0]']['shape'] == [6, 4]


def test_a_schedule_shows_as_a_change_of_the_rate():
    sched = BatchSchedCB(lambda opt: torch.optim.lr_scheduler.LinearLR(opt, .5, 1, total_iters=4))
    changes = [c for r in by(learner(sched, lr=.1).explain(), 'BatchSchedCB') for c in r['changes']]
    assert [(c['before'], c['after']) for c in changes if c['name'] == 'opt.lr'] == [
        (.1, .05), (.05, pytest.approx(.0625))]


def test_a_phase_that_a_callback_replaces_is_told_of_that_callback():
    rows = [r for r in learner(MixUpCB()).explain().rows if r['event'] == 'get_loss']
    assert [r['callback'] for r in rows] == ['TrainLearner', 'MixUpCB', 'TrainLearner', 'MixUpCB']
    assert [c['name'] for c in rows[-1]['changes']] == ['batch[1]', 'loss']


def test_a_phase_that_is_a_function_in_a_method_is_told_of_its_class():
    class Doubles(Callback):
        def before_fit(self, learn):
            get_loss = learn.get_loss
            def doubled():
                get_loss()
                learn.loss = 2*learn.loss
            learn.get_loss = doubled
    rows = [r for r in learner(Doubles()).explain().rows if r['event'] == 'get_loss']
    assert {r['callback'] for r in rows} == {'Doubles'}


def test_a_cancelled_batch_says_who_raised_and_what_then_did_not_run():
    explained = learner(Heard({'after_loss': raising(CancelBatchException())})).explain()
    row, = by(explained, 'Heard', 'after_loss')
    assert row['raised'] == 'CancelBatchException'
    assert not {'backward', 'step', 'after_batch'} & {*events(explained.rows)}
    assert 'raised CancelBatchException' in str(explained)


def test_random_numbers_are_told_of_who_draws_them():
    def draw(learn): random.random(), np.random.rand()
    row, = by(learner(Heard({'before_batch': draw})).explain(), 'Heard', 'before_batch')
    assert row['changes'][-1]['names'] == ['numpy', 'python']


def test_callbacks_of_every_fit_are_in_the_data_and_in_the_text_if_they_change_something():
    explained = learner(MetricsCB()).explain()
    assert [r['given'] for r in by(explained, 'FiniteLossCB')] == [False]*len(by(explained, 'FiniteLossCB')) != []
    assert 'FiniteLossCB' not in str(explained).split('cbs: added')[1].split('\n', 1)[1]
    assert 'MetricsCB' in str(explained)


def test_the_rows_are_plain_data_and_the_text_has_a_line_for_each_change():
    explained = learner([MetricsCB(), BatchTransformCB(lambda b: (b[0] + 1, b[1]))]).explain(valid=True)
    assert json.loads(json.dumps(explained.rows)) == explained.rows
    lines = repr(explained).split('\n')
    assert lines[0].split() == ['event', 'by', 'ms', 'what', 'changed']
    shown = [dict(event=line.split()[0], callback=line.split()[1]) for line in lines[1:] if line[0] != ' ']
    assert events(shown) == events(explained.rows)
    assert all(any(change_text(c) in line for line in lines) for r in explained.rows for c in r['changes'])
    assert sum('BatchTransformCB' in line and 'batch[0]: float32 (6, 4) mean' in line for line in lines) == 2


@pytest.mark.parametrize('own_optimizer', [False, True])
@pytest.mark.parametrize('fails', [False, True])
def test_everything_is_restored_to_the_bit(own_optimizer, fails):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(50, 4), torch.randint(0, 3, (50,))
    learn = learner([MetricsCB(), ProgressCB()], model=net, opt_func=torch.optim.Adam,
                    dls=DataLoaders.from_arrays(x, y, bs=8))
    learn.fit(1)
    if own_optimizer: learn.opt_func = None
    before, attributes, epoch = copied(everything(learn)), dict(vars(learn)), learn.dls.train.epoch
    states = torch.get_rng_state(), random.getstate()
    if fails:
        learn.cbs.append(Heard({'after_step': raising(ValueError('oh'))}))
        with pytest.raises(ValueError, match='oh'): learn.explain()
        learn.cbs.pop()
    else: learn.explain(valid=True)
    assert equal(everything(learn), before)
    assert vars(learn) == attributes
    assert learn.dls.train.epoch == epoch
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_callbacks_and_a_rate_for_this_time_alone():
    learn, cb = learner(lr=None), Heard()
    rates = [c['after'] for r in learn.explain(cbs=cb, lr=.7).rows for c in r['changes'] if c['name'] == 'opt.lr']
    assert rates == [.7]
    assert 'after_step' in cb.log
    assert learn.cbs == []


def test_it_works_with_lazy_layers_single_batches_and_dict_batches():
    lazy = learner(SingleBatchCB(), model=nn.Sequential(nn.LazyLinear(3))).explain()
    assert 'parameters' in [c['name'] for r in lazy.rows if r['event'] == 'predict' for c in r['changes']]
    b = dict(x=torch.randn(5, 4), y=torch.randint(0, 3, (5,)))
    named = Learner(mlp(), DataLoaders([b], [b]), F.cross_entropy,
                    cbs=[TrainCB(inputs=lambda b: b['x'], targets='y'), MaxBatchesCB(1)]).explain()
    assert events(named.rows) == TRAINS

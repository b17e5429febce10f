"PlateauCB: the rate falls by a validation metric as plain PyTorch makes it fall, whatever the order of callbacks."
import itertools

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from miniai import EarlyStoppingCB, MetricsCB, PlateauCB, RecorderCB
from small import learner

SCORES = [5., 4., 4.5, 4.2, 4.1, 3., 3.5, 3.1, 3.2, 3.3]


class Scores:
    "Writes scores as validation metrics, and others as training metrics."
    order = 50
    def after_epoch(self, learn):
        score = learn.epoch if learn.training else SCORES[learn.epoch]
        phase = 'train' if learn.training else 'eval'
        learn.history.append(dict(epoch=learn.epoch, phase=phase, score=score, up=-score))


def by_hand(factor, patience):
    opt = torch.optim.SGD([torch.zeros(1)], lr=.1)
    sched, rates = ReduceLROnPlateau(opt, factor=factor, patience=patience), []
    for score in SCORES:
        rates.append(opt.param_groups[0]['lr'])
        sched.step(score)
    return rates


@pytest.mark.parametrize('metric', ['-score', 'up'])
@pytest.mark.parametrize(('factor', 'patience'), [(.5, 1), (.1, 2)])
def test_the_rates_are_those_of_torchs_scheduler_fed_with_the_validation_metric(metric, factor, patience):
    for order in itertools.permutations(range(3)):
        rec = RecorderCB(lr=lambda cb: cb.pg['lr'])
        cbs = [PlateauCB(metric, factor=factor, patience=patience), Scores(), rec]
        learner([cbs[i] for i in order]).fit(len(SCORES))
        assert rec.recs['lr'][::4] == by_hand(factor, patience)


def test_it_sees_the_validation_loss_wherever_it_stands():
    rates = []
    for cbs in ([PlateauCB(patience=0), MetricsCB()], [MetricsCB(), PlateauCB(patience=0)]):
        learn = learner(cbs, lr=3.)
        learn.fit(8)
        opt = torch.optim.SGD([torch.zeros(1)], lr=3.)
        sched = ReduceLROnPlateau(opt, patience=0)
        for row in learn.history:
            if row['phase'] == 'eval': sched.step(row['loss'])
        rates.append(learn.opt.param_groups[0]['lr'])
        assert rates[-1] == opt.param_groups[0]['lr'] < 3.
    assert rates[0] == rates[1]


def test_it_needs_validation_and_its_metric():
    with pytest.raises(ValueError, match='PlateauCB needs validation'): learner(PlateauCB()).fit(1, valid=False)
    with pytest.raises(ValueError, match="'score'"): learner([MetricsCB(), PlateauCB('-score')]).fit(1)
    assert PlateauCB.order == EarlyStoppingCB.order > MetricsCB.order


def test_a_search_for_a_rate_leaves_it_out_and_a_fit_that_only_validates_does_nothing():
    learn = learner([MetricsCB(), PlateauCB(patience=0)], lr=.1)
    learn.lr_find(max_epochs=1)
    learn.fit(2, train=False)
    assert learn.cbs[1].schedo is None

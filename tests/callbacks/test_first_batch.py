"The look at the first batch comes and goes."
import pytest
import torch.nn.functional as F
from torch import nn

from miniai import AccumulateCB, ProgressCB
from resuming import Quiet
from small import Heard, learner


def test_the_look_is_there_for_the_first_batch_of_each_fit_only():
    seen = []
    def look(learn): seen.append('FirstBatchCB' in [type(cb).__name__ for cb in learn.cbs])
    learn = learner(Heard({'before_batch': look}))
    for _ in range(2): learn.fit(1)
    assert seen == ([True] + [False]*5)*2


class Hiding(nn.Module):
    "A loss that ignores class 0."
    def forward(self, out, y): return F.cross_entropy(out, y, ignore_index=0)


def weight(learn): return (learn.batch[1] != 0).sum()


@pytest.mark.parametrize(('cbs', 'named'), [
    ([Quiet()], 'Quiet'), ([ProgressCB()], 'MetricsCB'), ([AccumulateCB(2)], 'AccumulateCB'),
    ([Quiet(), AccumulateCB(2, weight)], 'Quiet')])
def test_a_loss_that_hides_what_targets_weigh_is_told_once_by_who_averages(cbs, named):
    learn = learner(cbs, loss_func=Hiding())
    with pytest.warns(UserWarning, match=f'ignores some targets, but {named} will weigh.*weight=lambda') as told:
        learn.fit(2)
    assert len(told) == 1


def test_nothing_is_told_where_weights_are_given_or_nothing_is_averaged_or_the_run_is_dry():
    learner([Quiet(weight=weight), AccumulateCB(2, weight)], loss_func=Hiding()).fit(1)
    learner(loss_func=Hiding()).fit(1)
    learner(Quiet(), loss_func=Hiding()).lr_find(max_epochs=1)

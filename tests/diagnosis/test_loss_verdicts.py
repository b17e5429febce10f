"Each rule about the loss finds its fault in a small network, and is silent about the healthy twin."
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import HealthCB, MetricsCB, TrainLearner
from miniai.diagnosis.verdict import Facts, judge
from wards import blobs, check_up, in_batches, loaders, names, net, verdict

X, Y = blobs()


def valid_with(value, row=70):
    "Validation batches of 64 with this value in a row."
    x, y = blobs(128, seed=2)
    x[row, 2] = value
    return in_batches(x, y, 64)


def test_a_validation_loss_that_is_not_finite_is_named_with_its_epoch_batch_and_origin():
    health = check_up(dls=loaders(valid=valid_with(math.nan)), epochs=2)
    found = verdict(health, 'non-finite values')
    assert found.says == ('The validation loss is not finite after epoch 1, first in its batch 1: the inputs are not '
                          'finite already.')
    assert (found.since, found.certain) == (10, 'sure')
    assert [e['valid'] for e in health.records['epochs']] == [None, None]
    assert 'non-finite values' not in names(check_up(dls=loaders(valid=valid_with(1.)), epochs=2))


def test_a_validation_loss_on_a_device_is_only_known_as_a_mean():
    epochs = [dict(epoch=0, batch=10, train=1., valid=1.), dict(epoch=1, batch=20, train=1., valid=math.inf)]
    found, = judge(Facts(losses=[1.]*20, epochs=epochs))[0]
    assert (found.says, found.since) == ('The validation loss is not finite after epoch 2.', 20)


def test_a_loss_in_a_verdict_is_that_of_the_table_also_if_the_last_batch_is_short():
    health, metrics = HealthCB(1, quiet=True), MetricsCB()
    x, y = blobs(70, seed=2)
    learn = TrainLearner(net(), loaders(X[:70]/2, Y[:70], valid=in_batches(x, y)), F.cross_entropy, 0.01,
                         [health, metrics])
    learn.fit(1)
    e, rows = health.records['epochs'][0], {row['phase']: row['loss'] for row in learn.history}
    assert (e['train'], e['valid']) == pytest.approx((rows['train'], rows['eval']), rel=1e-5)


@pytest.mark.parametrize('value', [1e30, 3e38], ids=['loss', 'output'])
def test_an_input_far_beyond_the_others_is_the_origin_of_a_loss_that_is_not_finite(value):
    x = X[:, :1]/2
    x[200] = value
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    dls = loaders(x, x.clip(-3, 3), valid=[(x[:9], x[:9])])
    found = verdict(check_up(model, dls, F.mse_loss, epochs=1, raises=RuntimeError), 'non-finite values')
    assert f'an input is {value:.3g}, usual ones' in found.says
    assert found.do.startswith('Clean the data')


# Where the baseline is not known, and validation that never works

def test_sorted_labels_are_not_compared_with_the_labels_that_were_seen():
    model, order = nn.Sequential(net(), Zeros()), Y.argsort()
    assert 'stuck at chance' in names(check_up(model, epochs=12))
    assert 'stuck at chance' not in check_up(model, loaders(X[order], Y[order]), epochs=12).checked


class Zeros(nn.Module):
    def forward(self, x): return 0*x


def test_validation_inputs_of_another_range_are_named_and_are_no_overfitting():
    valid = [(30 - 20*x, y) for x, y in in_batches(*blobs(128, seed=2), 64)]
    found = check_up(dls=loaders(valid=valid), epochs=30)
    assert names(found) == {'validation inputs differ'}
    ratio = torch.cat([x for x, _ in valid]).std()/X.std()
    assert verdict(found, 'validation inputs differ').value == pytest.approx(ratio.item(), rel=0.1)


def test_validation_labels_of_another_meaning_are_named_and_are_no_overfitting():
    x, y = blobs(128, seed=2)
    found = check_up(dls=loaders(valid=in_batches(x, (y + 1) % 4, 64)), epochs=30, lr=0.02)
    assert names(found) == {'validation worse than guessing'}
    assert 'Validation data seem to differ' in verdict(found, 'validation worse than guessing').says


# Losses that take outputs otherwise

def test_probabilities_that_go_into_cross_entropy_are_named_and_their_logarithms_are_right():
    model = nn.Sequential(net(), nn.Softmax(1))
    assert names(check_up(model, epochs=12)) == {'softmax before the loss'}
    assert not names(check_up(nn.Sequential(net(), nn.Softmax(1)), epochs=12,
                              loss_func=lambda p, y: F.nll_loss(p.log(), y)))


@pytest.mark.filterwarnings('ignore:Using a target size')
def test_a_loss_of_all_pairs_of_outputs_and_targets_is_named():
    y = X[:, 0]
    found = check_up(net(outputs=1), loaders(X/2, y, valid=[(X, y)]), F.mse_loss)
    assert verdict(found, 'outputs and targets broadcast').says == (
        'Outputs of shape (32, 1) and targets of shape (32,) broadcast to (32, 32): the loss compares outputs with '
        'targets of other samples.')
    own = check_up(net(outputs=1), loaders(X/2, y, valid=[(X, y)]), lambda p, y: F.mse_loss(p[:, 0], y))
    assert 'outputs and targets broadcast' not in names(own)

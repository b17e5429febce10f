"Each rule about data finds its fault in a small network, and is silent about the healthy twin."
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import Adam, DataLoaders, HealthCB, TrainLearner
from miniai.diagnosis.verdict import Facts, judge
from wards import blobs, check_up, in_batches, loaders, names, net, verdict

X, Y = blobs()


def test_labels_beyond_the_outputs_are_named_though_the_fit_fails():
    found = verdict(check_up(dls=loaders(y=Y + 1), raises=IndexError), 'labels out of range')
    assert found.says == 'Labels go from 1 to 4, but the model has 4 outputs, for 0 to 3.'
    assert found.certain == 'sure'


def test_ignored_labels_are_in_range():
    assert 'labels out of range' not in names(check_up(dls=loaders(y=Y.where(torch.arange(len(Y)) % 7 > 0, -100))))


def test_unscaled_inputs_are_not_normalized_unless_the_model_does_it():
    far = loaders(100*X + 300)
    assert 'inputs not normalized' in names(check_up(dls=far, raises=RuntimeError))
    assert 'inputs not normalized' not in names(check_up(nn.Sequential(nn.BatchNorm1d(12), *net()), far))


def test_the_same_input_again_and_again_is_constant():
    assert 'constant inputs' in names(check_up(dls=loaders(X[:1].repeat(len(X), 1))))


def test_rows_that_come_many_times_in_a_pass_are_repeated():
    assert 'repeated inputs' in names(check_up(dls=loaders(X[:40].repeat(8, 1), Y[:40].repeat(8))))
    assert 'repeated inputs' not in names(check_up())


def test_several_passes_in_an_epoch_of_steps_are_no_repeats():
    health = HealthCB(1, quiet=True)
    TrainLearner(net(), loaders(), F.cross_entropy, 0.01, health, Adam).fit(steps=60, valid_every=60)
    assert 'repeated inputs' in health.checked
    assert not names(health)


def test_validation_samples_in_training_are_found_also_when_only_some_are():
    shared = [(X[:32], Y[:32]), *in_batches(*blobs(96, seed=5))]
    found = verdict(check_up(dls=loaders(X/2, valid=shared)), 'validation data in training')
    assert found.value == pytest.approx(0.25, abs=0.05)
    assert 'validation data in training' not in names(check_up())


def test_leaked_samples_are_found_also_if_training_repeats_samples():
    rows, y = X[:80].repeat(4, 1)/2, Y[:80].repeat(4)
    order = torch.randperm(320, generator=torch.Generator().manual_seed(1))
    leaked = in_batches(X[:32], Y[:32])
    found = check_up(dls=loaders(rows[order], y[order], valid=[*leaked, *in_batches(*blobs(96, seed=5))]))
    assert verdict(found, 'validation data in training').value == pytest.approx(0.25)


def repeated_then_split(x, y):
    "Loaders of data that were repeated three times, shuffled, and then split."
    order = torch.randperm(3*len(x), generator=torch.Generator().manual_seed(1))
    x, y = x.repeat(3, *[1]*(x.ndim - 1))[order]/2, y.repeat(3)[order]
    n = 4*len(x)//5//32*32
    return loaders(x[:n], y[:n], valid=[(2*a, b) for a, b in in_batches(x[n:], y[n:])])


def test_samples_that_were_repeated_before_they_were_split_are_found():
    found = verdict(check_up(dls=repeated_then_split(X[:160], Y[:160])), 'validation data in training')
    assert found.value > 0.9  # of 160 rows with three copies each, 0.2**3 are only in validation


@pytest.mark.parametrize(('values', 'found'), [(8, True), (2, False)], ids=['pictures', 'letters as one-hot vectors'])
def test_pictures_are_not_equal_by_chance_and_letters_are(values, found):
    g = torch.Generator().manual_seed(2)
    x = torch.randint(0, values, (160, 4, 3), generator=g).float()
    health = check_up(nn.Sequential(nn.Flatten(), net()), repeated_then_split(x, Y[:160]))
    assert ('validation data in training' in names(health)) is found
    assert 'validation data in training' in health.checked


def test_samples_that_are_often_equal_by_chance_are_no_leak():
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 2, (448, 6), generator=g).float().repeat(1, 2)  # 64 different ones
    y = x[:, :6].sum(1).long() % 4
    found = check_up(dls=loaders(x[:320], y[:320], valid=[(2*a, b) for a, b in in_batches(x[320:], y[320:])]))
    assert 'validation data in training' in found.checked
    assert 'validation data in training' not in names(found)


def test_a_class_that_is_most_of_the_data_is_unbalanced():
    keep = (Y > 0) | (torch.arange(len(Y)) % 16 == 0)
    n = keep.sum()//32*32
    sick = check_up(dls=loaders(X[keep][:n]/2, Y[keep][:n]))
    assert 'Class 0 is' not in verdict(sick, 'unbalanced labels').says
    assert 'unbalanced labels' not in names(check_up())


def test_labels_in_another_order_than_inputs_are_shuffled():
    order = torch.randperm(len(Y), generator=torch.Generator().manual_seed(1))
    health = check_up(dls=loaders(y=Y[order]), epochs=4)
    assert 'shuffled labels' in names(health)


def test_a_validation_loss_that_rises_while_training_memorises_is_overfitting():
    g = torch.Generator().manual_seed(1)
    noisy = torch.where(torch.rand(64, generator=g) < 0.4, torch.randint(0, 4, (64,), generator=g), Y[:64])
    dls = DataLoaders([(X[:64]/2, noisy)], [(x/2, y) for x, y in in_batches(*blobs(128, seed=2), 64)])
    assert 'overfitting' in names(check_up(net(width=64), dls, epochs=150, lr=0.01))


@pytest.mark.parametrize(('train', 'valid', 'found'), [
    ([2., 0.5, 0.2, 0.2], [1.8, 1., 1.4, 1.5], True), ([2., 0.1, 0.01, 0.01], [1.8, 0.6, 0.6, 0.6], True),
    ([2., 0.1, 0.03, 0.03], [1.8, 0.1, 0.14, 0.16], False), ([2., 0.5, 0.3, 0.3], [1.8, 0.7, 0.6, 0.6], False)],
    ids=['rises', 'knows all', 'rises by little', 'usual gap'])
def test_overfitting_is_a_rise_or_gap_of_the_validation_loss_that_matters(train, valid, found):
    epochs = [dict(epoch=i, batch=i, train=a, valid=b) for i, (a, b) in enumerate(zip(train, valid, strict=True))]
    verdicts, _ = judge(Facts(epochs=epochs, data=dict(baseline=2.3)))
    assert ('overfitting' in {v.name for v in verdicts}) is found


def test_a_model_that_stands_still_below_its_nearest_neighbors_underfits():
    torch.manual_seed(3)
    narrow = nn.Sequential(nn.Linear(12, 1), nn.Softsign(), nn.Linear(1, 4))
    assert 'underfitting' in names(check_up(narrow, epochs=40, lr=0.03))


@pytest.mark.parametrize(('valid', 'found'), [(1.5, True), (0.5, False)], ids=['poor', 'better without dropout'])
def test_a_model_that_is_better_in_validation_does_not_underfit(valid, found):
    facts = Facts(losses=[2.3]*10 + [1.5]*190, done=1., epochs=[dict(epoch=0, batch=200, train=1.5, valid=valid)],
                  data=dict(baseline=2.3, neighbors=dict(score=0.8, chance=0.1, rows=512)))
    assert ('underfitting' in {v.name for v in judge(facts)[0]}) is found


def test_a_fit_that_diverges_does_not_overfit():
    epochs = [dict(epoch=i, batch=i, train=a, valid=b) for i, (a, b) in enumerate([(1., 1.), (0.5, 0.5), (67., 1730.)])]
    assert not judge(Facts(epochs=epochs, losses=[1.], data=dict(baseline=1.)))[0]


def test_a_loader_that_takes_most_of_the_time_is_slow():
    class Slow(list):
        def __iter__(self):
            for b in super().__iter__():
                time.sleep(0.02)
                yield b
    dls = loaders()
    found = check_up(dls=DataLoaders(Slow(dls.train), dls.valid), epochs=2)._kept.current().data
    assert found['waited'] >= 18*0.02  # the first wait of a pass is not counted
    def judged(waited): return judge(Facts(losses=[1.]*20, data=dict(waited=waited, worked=0.3)))[0]
    assert [v.name for v in judged(0.4)] == ['slow data loading']
    assert not judged(0.2)
    assert not judge(Facts(losses=[1.]*20, data=dict(waited=0.03, worked=0.001)))[0]  # less than 2 ms a batch


def test_rules_without_facts_do_not_judge():
    assert judge(Facts()) == ([], [])

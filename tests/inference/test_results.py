"learn.results: tables against scikit-learn and numpy, and pictures of what they say."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from torch import nn

from miniai import DataLoaders, TrainLearner
from miniai.data.pictures import PictureRecipe
from miniai.inference.results import ClassResults, NumberResults, compared
from predicting import flat, named, picture_loaders, pixels, tabular, trained, two_inputs
from small import learner, same, weights

TRUE, SAID = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]


def said(predicted, targets, k=3, inputs=None):
    "Results with these predictions, sure to 90 %, in order of their index from most to least."
    ps = torch.full((len(predicted), k), .1/(k - 1))
    ps[range(len(predicted)), predicted] = .9 - torch.arange(len(predicted))/1000
    return ClassResults(ps, torch.tensor(targets), [f'class {i}' for i in range(k)], inputs)


def test_confusion_and_figures_of_six_samples_worked_out_by_hand():
    r = said(SAID, TRUE)
    assert r.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert r.accuracy == pytest.approx(4/6)
    got = {row['class']: list(row.values())[1:] for row in r.per_class()}
    assert got == {'class 0': [3, 1., pytest.approx(2/3), pytest.approx(.8)], 'class 1': [2, .5, .5, .5],
                   'class 2': [1, .5, 1., pytest.approx(2/3)]}
    assert r.as_dict() == dict(accuracy=r.accuracy, classes=r.per_class(), confusion=r.confusion.tolist())


def test_a_class_without_samples_or_predictions_has_no_figure():
    rows = said([0, 0, 3], [0, 1, 0], k=4).per_class()
    assert [math.isnan(rows[1][nm]) for nm in ('precision', 'recall', 'f1')] == [True, False, False]
    assert [math.isnan(rows[2][nm]) for nm in ('precision', 'recall', 'f1')] == [True, True, True]
    assert [math.isnan(rows[3][nm]) for nm in ('precision', 'recall', 'f1')] == [False, True, False]


@settings(max_examples=20)
@given(st.integers(2, 5).flatmap(lambda k: st.tuples(st.just(k), st.lists(
    st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=40))))
def test_tables_are_those_of_scikit_learn(case):
    metrics = pytest.importorskip('sklearn.metrics')
    k, pairs = case
    predicted, true = map(list, zip(*pairs, strict=True))
    r = said(predicted, true, k)
    assert r.confusion.tolist() == metrics.confusion_matrix(true, predicted, labels=range(k)).tolist()
    want = metrics.precision_recall_fscore_support(true, predicted, labels=range(k), zero_division=np.nan)
    for column, name in zip(want, ('precision', 'recall', 'f1', 'samples'), strict=True):
        np.testing.assert_allclose([row[name] for row in r.per_class()], column)
    assert r.accuracy == pytest.approx(metrics.accuracy_score(true, predicted))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32)), min_size=2, max_size=30))
def test_figures_of_numbers_are_those_of_numpy(pairs):
    p, y = np.array(pairs, np.float32).T
    if y.std() < 1e-3: return
    found = NumberResults(torch.tensor(p), torch.tensor(y)).figures()
    e = p.astype(np.float64) - y
    r2 = 1 - (e**2).sum()/((y - y.astype(np.float64).mean())**2).sum()
    assert found == pytest.approx(dict(rmse=np.sqrt((e**2).mean()), mae=np.abs(e).mean(), r2=r2), rel=1e-4, abs=1e-3)


def test_r2_is_that_of_scikit_learn():
    metrics = pytest.importorskip('sklearn.metrics')
    p, y = torch.randn(2, 50).double()
    assert NumberResults(p, y).figures()['r2'] == pytest.approx(metrics.r2_score(y, p))


def test_mistakes_come_with_the_most_confident_first():
    r = said(SAID, TRUE)
    assert [(m['index'], m['true'], m['predicted']) for m in r.mistakes()] == [(2, 'class 0', 'class 1'),
                                                                              (4, 'class 1', 'class 2')]
    assert [m['probability'] for m in r.mistakes(1)] == [pytest.approx(.898)]
    numbers = NumberResults(torch.tensor([1., 5., 2.]), torch.tensor([1., 2., 3.]))
    assert numbers.mistakes(2) == [dict(index=1, true=2., predicted=5.), dict(index=2, true=3., predicted=2.)]
    assert numbers.residuals.tolist() == [0., 3., -1.]
    assert str(numbers) == 'rmse 1.826  mae 1.333  r2 -4'


def test_as_text_the_table_is_aligned_and_ends_with_the_accuracy():
    assert str(said(SAID, TRUE)).splitlines() == [
        'class    samples  precision  recall     f1', 'class 0        3      1.000   0.667  0.800',
        'class 1        2      0.500   0.500  0.500', 'class 2        1      0.500   1.000  0.667', 'accuracy 0.6667']


def test_a_learners_results_are_those_of_a_plain_loop_on_its_validation_set():
    learn = named(n_epochs=2)
    before, history = weights(learn), learn.history
    r = learn.results()
    outs, ys = zip(*[(learn.model.eval()(x), y) for x, y in learn.dls.valid], strict=True)
    torch.testing.assert_close(r.probabilities, torch.cat(outs).softmax(1).detach())
    assert torch.equal(r.targets, torch.cat(ys))
    assert r.classes == ['bag', 'coat', 'shoe']
    assert (same(before, weights(learn)), learn.history is history) == (True, True)
    x, y = pixels(9, seed=7)
    assert learn.results(learn.dls.test(x, y)).predicted.tolist() == [
        r.classes.index(p.label) for p in learn.predictor()(x)]


def test_results_of_numbers_are_in_their_own_units():
    learn = tabular('value')
    r, recipe, dl = learn.results(), learn.dls.recipe, learn.dls.valid
    want = dl.tensors[2]*recipe.target_std + recipe.target_mean
    torch.testing.assert_close(r.targets, want)
    assert torch.equal(r.predicted, learn.predictor().probabilities(dl.tensors[:2]))


@pytest.mark.parametrize('loss', [F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss()])
@pytest.mark.parametrize('shape', [(-1, 1), (-1,)])
def test_one_logit_is_two_classes(loss, shape):
    class Flat(nn.Sequential):
        def forward(self, x): return super().forward(x).reshape(shape)
    learn = flat(loss, 1, lambda x: (x[:, 0] > 0).float().reshape(shape), Flat(nn.Linear(4, 1)))
    r = learn.results()
    assert (r.probabilities.shape, r.classes, r.targets.shape) == ((8, 2), ['0', '1'], (8,))
    preds, targets = learn.capture_preds()
    assert r.confusion.diagonal().sum() == ((preds > 0) == (targets > .5)).sum()


def test_several_inputs_and_log_probabilities_have_results_too():
    assert two_inputs().results().confusion.sum() == 4
    r = compared(torch.tensor([[.9, .1], [.3, .7]]).log(), torch.tensor([0, 0]), 'log_probabilities', None)
    assert r.confusion.tolist() == [[1, 1], [0, 0]]


def test_targets_that_are_probabilities_count_as_their_most_probable_class():
    r = compared(torch.eye(3)*9, torch.tensor([[.8, .1, .1], [.6, .3, .1], [0., 0., 1.]]), 'classes', None)
    assert r.confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(('kind', 'out', 'target'), [
    ('labels', (5, 3), (5, 3)), ('numbers', (5, 2), (5, 2)), ('classes', (5, 3, 4), (5, 4)),
    ('classes', (5, 3), (5, 2))])
def test_more_than_one_class_or_number_for_each_sample_is_an_error(kind, out, target):
    with pytest.raises(ValueError, match=r'one class or number for each sample.*capture_preds'):
        compared(torch.zeros(out), torch.zeros(target), kind, None)


def test_batches_without_targets_are_an_error():
    learn = learner()
    with pytest.raises(ValueError, match='results need targets'): learn.results([(torch.zeros(2, 4),)])


def titles(): return [ax.get_title() for ax in plt.gcf().axes if ax.has_data()]
def shown(): return [np.asarray(ax.images[0].get_array()) for ax in plt.gcf().axes if ax.images]


@pytest.mark.parametrize('channels', [1, 3])
def test_pictures_of_mistakes_are_the_users_own_pixels(channels):
    torch.manual_seed(1)
    dls = picture_loaders(channels)
    learn = trained(nn.Sequential(nn.Flatten(), nn.Linear(144*channels, 3)), dls, F.cross_entropy)
    x, y = pixels(9, channels=channels, seed=4)
    r = learn.results(dls.test(x, y))
    r.show_mistakes(4)
    found = r.mistakes(4)
    assert titles() == [f"{m['predicted']} {m['probability']:.0%}\nis {m['true']}" for m in found]
    for im, m in zip(shown(), found, strict=True):
        pixel = x[m['index']].numpy()/255
        np.testing.assert_allclose(im, pixel if channels == 1 else pixel.transpose(1, 2, 0), atol=1e-5)
    plt.close('all')
    r.show_samples(2)
    pairs = [(r.classes[p], r.classes[t]) for p, t in zip(r.predicted[:2], r.targets[:2], strict=True)]
    assert titles() == [t if p == t else f'{p}\nis {t}' for p, t in pairs]


def test_without_mistakes_or_pictures_there_is_a_word(capsys):
    said([0, 1], [0, 1]).show_mistakes()
    assert capsys.readouterr().out == 'no mistakes to show\n'
    for inputs in (None, torch.zeros(6, 4), (torch.zeros(6, 4), torch.zeros(6, 2))):
        with pytest.raises(ValueError, match=r'the inputs are no pictures: mistakes\(\)'):
            said(SAID, TRUE, inputs=inputs).show_mistakes()


def test_the_picture_of_the_confusion_shows_counts_and_shares_of_the_true_class():
    figure, ax = plt.subplots()
    r = said(SAID, TRUE)
    assert r.plot_confusion(ax) is ax
    np.testing.assert_allclose(ax.images[0].get_array(), [[2/3, 1/3, 0], [0, .5, .5], [0, 0, 1]], atol=1e-6)
    assert {(t.get_position(), t.get_text()) for t in ax.texts} == {
        ((0, 0), '2'), ((1, 0), '1'), ((1, 1), '1'), ((2, 1), '1'), ((2, 2), '1')}
    assert [t.get_text() for t in ax.get_xticklabels()] == r.classes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('predicted', 'true')
    many = said([0], [0], k=60).plot_confusion()
    assert (many.texts[:], max(many.figure.get_size_inches())) == ([], 14)
    figure.savefig('/dev/null', format='png')


def test_the_picture_of_residuals_has_a_point_for_each_sample_and_a_line_where_both_agree():
    r = NumberResults(torch.tensor([1., 4.]), torch.tensor([2., 3.]))
    line, points = r.plot_residuals().lines
    assert line.get_xydata().tolist() == [[1., 1.], [4., 4.]]
    assert points.get_xydata().tolist() == [[2., 1.], [3., 4.]]


def test_the_outputs_can_be_named_where_the_loss_says_nothing():
    learn = learner(loss_func=lambda out, y: F.cross_entropy(out, y))
    with pytest.raises(ValueError, match='one class or number'): learn.results()
    assert learn.results(outputs='classes').confusion.sum() == 12


def test_results_need_no_inputs_also_of_pictures_that_were_normalized():
    recipe = PictureRecipe(4, 1, mean=[.5], std=[.2], classes=['a', 'b'])
    assert compared(torch.eye(2), torch.tensor([0, 1]), 'classes', recipe).accuracy == 1


def test_pictures_of_a_loader_in_memory_are_not_copied_but_read_again_by_index():
    x = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    dls = DataLoaders.from_arrays(x, torch.arange(40) % 3, valid=range(30, 40), bs=8, normalize=True)
    learn = TrainLearner(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), dls, F.cross_entropy)
    found = learn.results()
    assert len(found.inputs) == 10
    for i in range(10): assert found.inputs[i].equal(x[30 + i]/255)
    found.show_samples(3)

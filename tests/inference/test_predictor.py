"The predictor: what it takes, and what it makes of a model's outputs, against plain PyTorch."
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from miniai import AdamW, DataLoaders, Predictor, TrainLearner
from miniai.inference.predictor import OUTPUTS, Prediction, class_names, outputs_of
from predicting import flat, named, picture_loaders, pixels, tabular, trained, two_inputs, valid_rows
from small import learner, loaders, same, weights


@pytest.fixture(scope='module')
def pictures(): return named(n_epochs=3)


def by_hand(learn, x):
    "Probabilities in plain PyTorch: pixels scaled, normalized, through the model, softmax."
    mean, std = (torch.tensor(v) for v in (learn.dls.recipe.mean, learn.dls.recipe.std))
    with torch.no_grad(): return learn.model((x[:, None].float()/255 - mean)/std).softmax(1)


def test_a_picture_gets_the_class_and_the_probabilities_of_plain_pytorch(pictures):
    x, _ = pixels(5, seed=3)
    found, want = pictures.predictor()(x), by_hand(pictures, x)
    names = np.array(['bag', 'coat', 'shoe'])
    assert [p.label for p in found] == names[want.argmax(1)].tolist()
    for p, row in zip(found, want.tolist(), strict=True):
        assert list(p.probabilities.values()) == pytest.approx(row, abs=1e-6)
        assert (list(p.probabilities), p.probability) == (list(names), max(p.probabilities.values()))


def test_a_path_a_pil_image_an_array_and_a_tensor_give_the_same_prediction(pictures, tmp_path):
    x, predict = pixels(1, seed=4)[0][0], pictures.predictor()
    Image.fromarray(x.numpy()).save(tmp_path/'a.png')
    forms = [tmp_path/'a.png', str(tmp_path/'a.png'), Image.fromarray(x.numpy()), x.numpy(), x]
    assert len({repr(predict(form).probabilities) for form in forms}) == 1
    for p in predict([x, tmp_path/'a.png']): assert p.probabilities == pytest.approx(predict(x).probabilities, abs=1e-6)
    assert [p.label for p in predict(tmp_path)] == [predict(x).label]


def test_predictions_are_those_of_the_learner_on_its_validation_set(pictures):
    want = pictures.capture_preds()[0].softmax(1)
    torch.testing.assert_close(pictures.predictor().probabilities(valid_rows(pictures)[:1]), want)


def test_many_samples_are_predicted_in_batches(pictures):
    x, small = pixels(50)[0], pictures.predictor()
    small.bs = 7
    torch.testing.assert_close(small.probabilities([x]), pictures.predictor().probabilities([x]))


def test_a_table_row_gets_a_class_also_if_a_value_is_missing_or_new():
    predict = tabular().predictor()
    row = dict(a=1., b=-1., c='x')
    one, many = predict(row), predict([row, row | dict(a=None), row | dict(c='new')])
    assert one.probabilities.keys() == {'no', 'yes'}
    assert many[0].probabilities == pytest.approx(one.probabilities, rel=1e-6)  # other shapes round differently
    assert len({p.probability for p in many}) == 3


def test_numbers_come_in_their_own_units():
    learn = tabular('value')
    recipe, (numbers, codes, _) = learn.dls.recipe, learn.dls.valid.tensors
    with torch.no_grad(): raw = learn.model(numbers, codes)
    want = raw*recipe.target_std + recipe.target_mean
    assert learn.predictor().probabilities([numbers, codes]).tolist() == want.tolist()
    assert 40 < learn.predictor()(dict(a=0., b=0., c='x')).value < 160


def test_a_model_of_several_inputs_takes_a_tuple_of_them():
    learn = two_inputs()
    a, i = torch.randn(4, 4), torch.tensor([0, 1, 2, 3])
    with torch.no_grad(): want = learn.model(a, i).softmax(1)
    predict = learn.predictor()
    assert [list(p.probabilities.values()) for p in predict((a, i))] == want.tolist()
    assert predict((a[1], i[1])).probabilities == predict((a, i))[1].probabilities
    with pytest.raises(ValueError, match='the model takes 2 inputs, and 1 were given'): predict(a)


def one_number(x): return x[:, :1] + 3
def classes(x): return (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


class Squeezed(nn.Sequential):
    def forward(self, x): return super().forward(x).squeeze(-1)


@pytest.mark.parametrize('loss', [F.cross_entropy, nn.CrossEntropyLoss(), partial(F.cross_entropy, label_smoothing=.1)])
def test_outputs_under_cross_entropy_become_probabilities_by_softmax(loss):
    learn = flat(loss, 3, classes)
    x = torch.randn(6, 4)
    with torch.no_grad(): want = learn.model(x).softmax(1)
    assert [list(p.probabilities.values()) for p in learn.predictor()(x)] == want.tolist()
    assert [p.label for p in learn.predictor()(x)] == list(map(str, want.argmax(1).tolist()))


def test_log_probabilities_under_nll_loss_become_probabilities_by_exp():
    learn = flat(F.nll_loss, 3, classes, nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)))
    x = torch.randn(6, 4)
    with torch.no_grad(): want = learn.model[0](x).softmax(1)
    torch.testing.assert_close(learn.predictor().probabilities([x]), want)


def test_one_logit_is_two_classes_and_has_their_names():
    learn = flat(F.binary_cross_entropy_with_logits, 1, lambda x: (x[:, :1] > 0).float())
    learn.dls.classes = ['cat', 'dog']
    x = torch.randn(6, 4)
    with torch.no_grad(): dog = learn.model(x).sigmoid().flatten()
    found = learn.predictor()(x)
    assert [p.probabilities['dog'] for p in found] == dog.tolist()
    assert [p.label for p in found] == [['cat', 'dog'][d > .5] for d in dog.tolist()]
    assert all(p.probability >= .5 and sum(p.probabilities.values()) == pytest.approx(1) for p in found)


def test_several_logits_are_labels_each_for_itself():
    learn = flat(nn.BCEWithLogitsLoss(), 3, lambda x: (x[:, :3] > 0).float())
    learn.dls.classes = ['red', 'round', 'ripe']
    x = torch.randn(8, 4)
    with torch.no_grad(): ps = learn.model(x).sigmoid()
    found = learn.predictor()(x)
    assert [p.label for p in found] == [[nm for nm, p in zip(learn.dls.classes, row, strict=True) if p > .5]
                                        for row in ps.tolist()]
    assert [list(p.probabilities.values()) for p in found] == ps.tolist()
    assert (found[0].probability, str(Prediction([])), str(Prediction(['red', 'ripe']))) == (None, 'none', 'red, ripe')


@pytest.mark.parametrize(('outputs', 'target', 'model', 'form'), [
    (1, lambda x: x[:, :1], None, lambda out: out.flatten()), (3, lambda x: x[:, :3], None, lambda out: out),
    (1, lambda x: x[:, 0], Squeezed(nn.Linear(4, 1)), lambda out: out)])
def test_outputs_of_other_losses_are_numbers_one_or_a_list(outputs, target, model, form):
    learn = flat(F.mse_loss, outputs, target, model)
    x = torch.randn(5, 4)
    with torch.no_grad(): want = form(learn.model(x)).tolist()
    assert [p.value for p in learn.predictor()(x)] == want
    assert learn.predictor()(x[0]).value == pytest.approx(want[0], abs=1e-6)


def test_a_loss_of_ones_own_means_classes_if_the_data_have_them():
    learn = flat(lambda out, y: F.cross_entropy(out, y), 3, classes)
    assert learn.predictor().outputs == 'classes'
    assert learn.predictor(outputs='labels').outputs == 'labels'
    assert flat(lambda out, y: F.mse_loss(out, y), 1, one_number).predictor().outputs == 'numbers'
    for loss in (F.mse_loss, nn.L1Loss(), F.huber_loss, nn.MSELoss()):
        assert outputs_of(loss, learn.dls.recipe) == 'numbers'
    assert outputs_of(partial(partial(F.nll_loss), reduction='sum')) == 'log_probabilities'


def test_more_outputs_than_classes_are_numbered():
    learn = named(n_epochs=0)
    assert class_names(learn.dls.recipe, 5) == ['bag', 'coat', 'shoe', '3', '4']
    assert (class_names(learn.dls.recipe, 2), class_names(None, 2)) == (['bag', 'coat'], ['0', '1'])


def test_without_a_recipe_the_predictor_takes_a_batch_of_the_models_inputs():
    learn = learner(dls=loaders())
    x = learn.dls.valid[0][0]
    with torch.no_grad(): want = learn.model.eval()(x).softmax(1).tolist()
    predict = learn.predictor()
    for form in (x, x.numpy(), (x,), [x]): assert [list(p.probabilities.values()) for p in predict(form)] == want
    assert predict.recipe is None


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_predicts_and_its_probabilities_are_floats(dtype):
    learn = learner(dls=loaders())
    learn.model.to(dtype)
    x = learn.dls.valid[0][0]
    with torch.no_grad(): want = learn.model.eval()(x.to(dtype))
    want = (want.float() if dtype is torch.bfloat16 else want).softmax(1)
    assert torch.equal(learn.predictor().probabilities([x]), want)


def test_the_predictor_has_a_copy_and_changes_neither_learner_nor_random_state(pictures):
    pictures.model.train()
    before, state = weights(pictures), torch.get_rng_state()
    predict = pictures.predictor()
    predict(pixels(4)[0])
    assert same(before, weights(pictures))
    assert torch.equal(state, torch.get_rng_state())
    assert (pictures.model.training, predict.model.training) == (True, False)
    with torch.no_grad():
        for p in predict.model.parameters(): p.zero_()
    assert same(before, weights(pictures))


class Wrapper(nn.Module):
    "As torch.compile wraps a model."
    def __init__(self, model):
        super().__init__()
        self._orig_mod = model

    def forward(self, x): return self._orig_mod(x)


@pytest.mark.parametrize('wrap', [Wrapper, nn.DataParallel])
def test_a_wrapped_model_and_a_wrapped_optimizer_make_no_difference(wrap):
    learn = named(n_epochs=0)
    x, want = pixels(3)[0], learn.predictor()
    learn.model = wrap(learn.model)
    class Wrapped:
        def __init__(self, opt): self.optimizer = opt
    learn.opt = Wrapped(AdamW(learn.model.parameters(), .1))
    assert same(learn.predictor().model.state_dict(), want.model.state_dict())
    assert torch.equal(learn.predictor().probabilities([x]), want.probabilities([x]))


class Two(nn.Module):
    def forward(self, x): return x, x


@pytest.mark.parametrize(('model', 'outputs', 'x', 'said'), [
    (nn.Identity(), 'classes', torch.zeros(3), 'no dimension for classes.*outputs='),
    (nn.Identity(), 'classes', torch.zeros(2, 3, 4), r'more than one class for each sample.*\(2, 3, 4\)'),
    (Two(), 'numbers', torch.zeros(2), 'the model returned a tuple, and predictions need a tensor')])
def test_outputs_that_do_not_fit_are_errors(model, outputs, x, said):
    with pytest.raises(ValueError, match=said): Predictor(model, None, outputs)(x)


def test_no_sample_and_unknown_outputs_are_errors(pictures):
    with pytest.raises(ValueError, match=r'no sample|no pictures'): pictures.predictor()(pixels(0)[0])
    with pytest.raises(ValueError, match='no sample'): flat(F.mse_loss, 1, one_number).predictor()(torch.zeros(0, 4))
    with pytest.raises(ValueError, match=r"outputs must be one of classes, log_probabilities.*got 'class'"):
        pictures.predictor(outputs='class')


@pytest.mark.parametrize(('x', 'said'), [
    (torch.zeros(5), r'trained on inputs of shape \(4,\)'), (torch.zeros(3, 5), r'shape \(4,\), got \(5,\)'),
    (torch.zeros(3, 4, dtype=torch.long), 'trained on float32, got int64')])
def test_inputs_of_another_shape_or_kind_are_errors(x, said):
    with pytest.raises(ValueError, match=said): flat(F.mse_loss, 1, one_number).predictor()(x)


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=5),
       st.sampled_from(list(OUTPUTS)))
def test_every_row_gets_one_prediction_whatever_the_outputs(rows, outputs):
    found = Predictor(nn.Identity(), None, outputs)(torch.tensor(rows))
    assert len(found) == len(rows)
    for p in found: assert (p.value is None) == (outputs != 'numbers')
    for p in found if outputs == 'classes' else (): assert sum(p.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_a_prediction_reads_as_what_it_says():
    assert repr(Prediction('coat', .4321, dict(coat=.4321))) == 'Prediction(coat (43.2%))'
    assert [str(Prediction(value=v)) for v in (3.14159, [1.23456, 2.], [[1., .5]])] == ['3.142', '[1.235, 2]',
                                                                                      '[[1, 0.5]]']


def test_color_pictures_are_predicted_as_they_are_in_training():
    torch.manual_seed(1)
    dls = picture_loaders(3)
    learn = trained(nn.Sequential(nn.Flatten(), nn.Linear(3*144, 3)), dls, F.cross_entropy)
    x = pixels(4, channels=3, seed=8)[0]
    want = learn.capture_preds(dl=dls.test(x))[0].softmax(1)
    assert torch.equal(learn.predictor().probabilities([x]), want)


def test_loaders_of_a_users_own_have_no_recipe():
    learn = TrainLearner(nn.Linear(4, 3), DataLoaders([], loaders().valid), F.cross_entropy)
    assert learn.predictor().recipe is None


def test_a_predictor_says_what_it_takes_and_gives(pictures):
    assert repr(pictures.predictor()) == 'Predictor: Sequential on cpu, from pictures to bag, coat, shoe'
    assert repr(Predictor(nn.Linear(2, 1))) == 'Predictor: Linear on cpu, from batches to numbers'
    assert repr(Predictor(nn.Linear(2, 1), outputs='labels')) == 'Predictor: Linear on cpu, from batches to labels'

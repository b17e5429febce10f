"What is recorded of validation: the figures of learn.results(), and the most confident mistakes with their pictures."
import base64
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from miniai.callbacks.train import TrainCB
from miniai.datasets import DataLoaders
from miniai.inference.validated import SAMPLES, ValidatedCB, thumbnail
from miniai.learner import Learner
from small import learner


def pictures(n=60, classes=('cat', 'dog', 'owl')):
    r = np.random.default_rng(0)
    x = r.integers(0, 256, (n, 6, 6), dtype=np.uint8)
    dls = DataLoaders.from_arrays(x, torch.arange(n) % len(classes), valid=range(0, n, 2), bs=7, normalize=True)
    dls.classes = list(classes)
    return x[::2], dls


def fitted(dls, model, loss_func=F.cross_entropy):
    torch.manual_seed(0)
    cb = ValidatedCB()
    learn = Learner(model, dls, loss_func, .01, [TrainCB(), cb])
    learn.fit(2)
    return learn, cb.record


def pixels(png): return np.asarray(Image.open(BytesIO(base64.b64decode(png))))


def test_figures_of_classes_are_those_of_results_and_mistakes_come_with_their_pictures():
    x, dls = pictures()
    learn, found = fitted(dls, nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    want = learn.results()
    assert (found['kind'], found['epoch'], found['samples']) == ('classes', 1, 30)
    assert found['confusion'] == want.confusion.tolist()
    assert found['per_class'] == want.per_class()
    mistakes = [{k: v for k, v in m.items() if k != 'png'} for m in found['mistakes']]
    assert [m['index'] for m in mistakes] == [m['index'] for m in want.mistakes(SAMPLES)]
    assert mistakes == [m | dict(probability=pytest.approx(m['probability'])) for m in want.mistakes(SAMPLES)]
    for m in found['mistakes'] + found['examples']:
        assert np.abs(pixels(m['png']).astype(int) - x[m['index']]).max() <= 1
    assert [e['index'] for e in found['examples']] == list(range(SAMPLES))
    pairs = [(c['true'], c['predicted'], c['count']) for c in found['confused']]
    wrong = [(want.classes[i], want.classes[j], n) for i, row in enumerate(want.confusion.tolist())
             for j, n in enumerate(row) if n and i != j]
    assert sorted(pairs) == sorted(wrong)
    assert [n for *_, n in pairs] == sorted((n for *_, n in pairs), reverse=True)


def test_numbers_are_in_their_own_units():
    x, y = torch.randn(40, 3), torch.randn(40)
    dls = DataLoaders.from_arrays(x, y, valid=range(10), bs=8)
    learn, found = fitted(dls, nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), F.mse_loss)
    want = learn.results()
    assert {k: found[k] for k in ('rmse', 'mae', 'r2')} == pytest.approx(want.figures())
    assert found['points'] == [[pytest.approx(t), pytest.approx(p)] for t, p in zip(
        want.targets.tolist(), want.predicted.tolist(), strict=True)]
    assert [m['index'] for m in found['mistakes']] == [m['index'] for m in want.mistakes(SAMPLES)]


def test_targets_that_the_loss_ignores_count_nowhere():
    batches = [(torch.randn(6, 4), torch.tensor([0, 1, 2, -100, 0, 1]))]
    cb = ValidatedCB()
    learner(cb, dls=DataLoaders(batches, batches)).fit(1)
    assert sum(map(sum, cb.record['confusion'])) == 5
    assert 3 not in [m['index'] for m in cb.record['mistakes']]


@pytest.mark.parametrize(('preds', 'why'), [(torch.zeros(6, 3, 5), 'one class or number for each sample'),
                                            (dict(a=1), 'returned a dict'),
                                            (torch.zeros(6, 100_000), '100,000 x 100,000 classes')])
def test_what_has_no_classes_or_numbers_says_why_and_the_fit_goes_on(preds, why):
    cb = ValidatedCB()
    learn = learner(cb)
    learn.after_predict = None
    class Odd:
        order = 0
        def after_loss(self, learn):
            if not learn.training: learn.preds = preds
    learn.cbs.append(Odd())
    learn.fit(1)
    assert cb.record['kind'] is None
    assert why in cb.record['why']


def test_looking_elsewhere_leaves_the_record_of_the_fit():
    cb = ValidatedCB()
    learn = learner(cb)
    learn.fit(1)
    before = cb.record
    learn.evaluate(learn.dls.train)
    assert cb.record is before


def test_large_pictures_become_small_and_keep_their_shape():
    image = pixels(thumbnail(torch.rand(3, 300, 150)))
    assert image.shape == (64, 32, 3)


def test_an_error_while_predictions_are_recorded_does_not_end_the_fit(monkeypatch):
    def broken(*_): raise RuntimeError('no memory')
    for name in ('compared', 'confusion_of'):
        monkeypatch.setattr(f'miniai.inference.validated.{name}', broken)
        cb = ValidatedCB()
        learner(cb).fit(1)
        assert cb.record['kind'] is None
        assert 'no memory' in cb.record['why']
        monkeypatch.undo()

"An error within a batch keeps its type and text, and has a note that says where, on what, and what to do."
import re
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import BatchTransformCB, Callback, CheckpointCB, DataLoaders
from miniai.learner import CancelFitException, Learner, NonFiniteLossError, TrainCB
from small import learner, raising

X, Y = torch.linspace(-1, 1, 24).reshape(6, 4), torch.arange(6) % 3


def linear(): return nn.Linear(4, 3)
def bce(p, y): return F.binary_cross_entropy(p.sigmoid(), y)
def fails(x=X, y=Y, model=None, loss_func=F.cross_entropy, cbs=(), n=1, **kwargs):
    "The error of a fit whose batches are all (x, y)."
    learn = learner(list(cbs), model=model or linear(), dls=DataLoaders([(x, y)]*n, [(x, y)]), loss_func=loss_func)
    with pytest.raises(Exception) as e: learn.fit(3, **kwargs)  # noqa: PT011
    return e.value


def notes(e): return '\n'.join(getattr(e, '__notes__', []))


CONVERT = r'Convert in the dataset, or with BatchTransformCB\(lambda b: \({}\)\)'
MODEL, TARGET, PREDS = (CONVERT.format(s) for s in (r'b\[0\]\.{}\(\), \*b\[1:\]', r'b\[0\], b\[1\]\.long\(\)',
                                                     r'b\[0\], b\[1\]\.float\(\)'))


@pytest.mark.parametrize(('given', 'says'), [
    (dict(x=X.double()), MODEL.format('float')), (dict(x=X.int()), MODEL.format('float')),
    (dict(x=X.byte()), MODEL.format('float')), (dict(model=linear().half()), MODEL.format('half')),
    (dict(model=linear().double()), MODEL.format('double')),
    (dict(model=linear().bfloat16()), MODEL.format('bfloat16')),
    (dict(x=X.double(), model=nn.Sequential(nn.BatchNorm1d(4), linear())), MODEL.format('float')),
    (dict(x=X.double(), model=nn.Sequential(nn.LayerNorm(4), linear())), MODEL.format('float')),
    (dict(x=X.double().reshape(6, 1, 2, 2), model=nn.Conv2d(1, 3, 2)), MODEL.format('float')),
    (dict(x=X.double()[:, None], model=nn.LSTM(4, 3)), MODEL.format('float')),
    (dict(model=nn.Embedding(3, 3)), CONVERT.format(r'b\[0\]\.long\(\), \*b\[1:\]')),
    (dict(y=Y.int()), TARGET), (dict(y=Y.float()), TARGET),
    (dict(y=torch.ones(6, 3).long(), loss_func=F.binary_cross_entropy_with_logits), PREDS),
    (dict(y=torch.ones(6, 3).long(), loss_func=bce), PREDS),
    (dict(model=linear().to('meta')), r'different devices: add DeviceCB\(\)')])
def test_dtypes_and_devices_that_do_not_match_are_explained(given, says):
    e = fails(**given)
    assert type(e) in (RuntimeError, ValueError)
    assert re.search(says, notes(e)), notes(e)


@pytest.mark.parametrize('text', [
    'Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!',
    'Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same',
    'Input type (torch.FloatTensor) and weight type (torch.cuda.FloatTensor) should be the same'])
def test_what_torch_says_of_devices_on_an_accelerator_is_explained(text):
    e = fails(loss_func=raising(RuntimeError(text)))
    assert notes(e).endswith('Model and batch are on different devices: add DeviceCB() to cbs')


def test_the_advice_on_dtypes_works():
    for f, batch in ((lambda b: (b[0].float(), *b[1:]), (X.double(), Y)),
                     (lambda b: (b[0], b[1].long()), (X, Y.int()))):
        learner(BatchTransformCB(f), dls=DataLoaders([batch], [])).fit(1, valid=False)


def test_a_batch_norm_that_refuses_a_batch_of_one_names_batch_size_and_drop_last():
    model = nn.Sequential(nn.BatchNorm1d(4), linear())
    learn = learner(model=model, dls=DataLoaders([(X, Y), (X[:1], Y[:1])], []))
    with pytest.raises(ValueError, match='Expected more than 1 value per channel') as e: learn.fit(1, valid=False)
    assert re.search(r'epoch 0, training batch 1 .*float32 \(1, 4\).*\n.*drop_last=True .* batch size', notes(e.value))


def test_an_instance_norm_without_positions_is_explained():
    e = fails(X[:, :, None], model=nn.Sequential(nn.InstanceNorm1d(4), nn.Flatten(), linear()))
    assert 'needs more than one position per channel' in notes(e)


class FailsAt(Callback):
    "Raises an error in one batch."
    only_shows = True
    def __init__(self, epoch, training, batch, error=None, event='after_loss'):
        self.at, self.error = (epoch, training, batch), error or KeyError('oh')
        setattr(self, event, self.fail)

    def fail(self, learn):
        if (learn.epoch, learn.model.training, learn.iter) == self.at: raise self.error


@pytest.mark.parametrize('event', ['before_batch', 'after_predict', 'after_loss', 'after_batch', 'cleanup_batch'])
@pytest.mark.parametrize(('at', 'where'), [((1, True, 2), 'epoch 1, training batch 2'),
                                           ((0, False, 0), 'epoch 0, validation batch 0')])
def test_epoch_phase_batch_and_what_is_in_it_are_named(at, where, event):
    e = fails(n=4, cbs=[FailsAt(*at, event=event)])
    assert (type(e), e.args) == (KeyError, ('oh',))
    said = f'in {where} (both counted from 0): (float32 (6, 4), int64 (6,)); the model is float32 on cpu'
    assert notes(e).endswith(said)


Pair = namedtuple('Pair', 'a b')


@dataclass
class Sample:
    x: torch.Tensor
    name: str


@pytest.mark.parametrize(('batch', 'text'), [
    ((dict(a=X, b=[Y]), Y), '({a: float32 (6, 4), b: (int64 (6,))}, int64 (6,))'),
    ((Pair(X, 3), 'text'), '((float32 (6, 4), int), str)'),
    ((Sample(X, 'a'), None), '(Sample of float32 (6, 4), NoneType)'),
    ((X.to('meta'), Y), '(float32 (6, 4) on meta, int64 (6,))'), ((X,)*12, '(' + 'float32 (6, 4), '*10 + '…)')])
def test_a_batch_of_any_kind_is_described(batch, text):
    class Own(TrainCB):
        def predict(self, learn): raise KeyError('oh')
    learn = learner(Own(), cls=Learner, dls=DataLoaders([batch], []))
    with pytest.raises(KeyError) as e: learn.fit(1, valid=False)
    assert f'(both counted from 0): {text}; the model' in notes(e.value)


def test_what_is_not_within_a_batch_or_explains_itself_or_is_no_error_has_no_note():
    def says_batch(e): return 'counted from 0): ' in notes(e)
    assert not says_batch(fails(cbs=[FailsAt(0, False, 0, event='after_epoch')]))
    e = fails(x=X*float('nan'))
    assert isinstance(e, NonFiniteLossError)
    assert not says_batch(e)
    assert not says_batch(fails(x=dict(a=1), y=None, loss_func=None))
    with pytest.raises(KeyboardInterrupt) as e: learner(FailsAt(0, True, 0, KeyboardInterrupt())).fit(1)
    assert not says_batch(e.value)
    learner(FailsAt(0, True, 0, CancelFitException())).fit(1)


def test_an_error_while_the_next_batch_is_loaded_does_not_blame_the_last_one():
    def batches():
        yield X, Y
        raise OSError('gone')
    class Loader:
        def __iter__(self): return batches()
    with pytest.raises(OSError, match='gone') as e: learner(dls=DataLoaders(Loader(), [])).fit(1, valid=False)
    assert not notes(e.value)


def test_the_error_of_a_fit_inside_a_fit_names_both_batches():
    class Inner(Callback):
        def after_batch(self, learn): learner(FailsAt(0, True, 1)).fit(1)
    e = fails(cbs=[Inner()])
    assert [re.search(r'batch (\d)', n)[1] for n in e.__notes__ if 'counted' in n] == ['1', '0']


def test_a_run_that_fails_in_a_batch_with_checkpoints_keeps_the_error(tmp_path):
    assert 'training batch 0' in notes(fails(X.double(), cbs=[CheckpointCB(tmp_path)]))

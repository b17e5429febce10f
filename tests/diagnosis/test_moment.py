"What a Learner holds at a moment: every change between two moments is found, to the bit, and told."
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from miniai.diagnosis.moment import Moment, change_text, changes, described
from small import learner, mlp


@pytest.fixture
def learn():
    learn = learner(model=nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), opt_func=torch.optim.Adam)
    learn.fit(1)
    learn.batch, learn.preds, learn.loss = (torch.arange(6.).reshape(2, 3), torch.tensor([1, 0])), None, None
    return learn


def found(learn, change):
    before = Moment(learn)
    change(learn)
    return changes(before, Moment(learn))


def test_nothing_changed_is_no_change(learn): assert found(learn, lambda learn: None) == []


def halve(learn): learn.batch[0].mul_(.5)
def flip(learn): learn.batch = (learn.batch[0].flip(0), learn.batch[1])  # the same mean and standard deviation
def zero_one(learn): learn.model[0].bias.data[3] = 0.  # as a kernel does, unseen by torch's version counters
def give_grad(learn): learn.model[0].bias.grad = torch.ones(8)
def clear(learn): learn.opt.zero_grad()
def running(learn): learn.model[1].running_mean += 1
def freeze(learn): learn.model[1].eval()
def rate(learn): learn.opt.param_groups[0]['lr'] = .5
def moments(learn): learn.opt.state[learn.model[0].bias]['exp_avg'].add_(1)
def draw(learn): torch.rand(1)
def draw_numpy(learn): np.random.rand()


@pytest.mark.parametrize(('change', 'name', 'names'), [
    (halve, 'batch[0]', None), (flip, 'batch[0]', None), (zero_one, 'parameters', ['0.bias']),
    (give_grad, 'gradients', ['0.bias']), (running, 'buffers', ['1.running_mean']), (freeze, 'modes', ['1']),
    (rate, 'opt.lr', None), (moments, 'optimizer state', ['1.exp_avg']), (draw, 'random numbers', ['torch']),
    (draw_numpy, 'random numbers', ['numpy'])])
def test_each_change_is_found_alone(learn, change, name, names):
    learn.model[1].train()
    assert [(c['name'], c.get('names')) for c in found(learn, change)] == [(name, names)]


def test_a_tensor_is_told_by_dtype_shape_mean_and_std_before_and_after(learn):
    change, = found(learn, halve)
    before, after = (dict(dtype='float32', shape=[2, 3], mean=mean, std=pytest.approx(std, abs=1e-4))
                     for mean, std in ((2.5, 1.7078), (1.25, .8539)))
    assert change == dict(name='batch[0]', before=before, after=after)
    assert change_text(change) == 'batch[0]: float32 (2, 3) mean 2.5 std 1.71 → mean 1.25 std 0.854'


def test_a_tensor_that_becomes_another_kind_is_told_with_both_kinds(learn):
    def to_image(learn): learn.batch = (learn.batch[0].double()[None], learn.batch[1])
    change, = found(learn, to_image)
    assert change_text(change).startswith('batch[0]: float32 (2, 3) mean 2.5 std 1.71 → float64 (1, 2, 3) mean')


def test_gradients_that_come_and_go(learn):
    come, = found(learn, give_grad)
    assert change_text(come) == 'gradients: 0.bias new mean 1 std 0'
    gone, = found(learn, clear)
    assert (gone['after'], change_text(gone)) == (None, 'gradients: 0.bias cleared')


def test_attributes_of_any_kind_are_told_by_value_or_type(learn):
    def set_some(learn):
        learn.epoch, learn.note, learn.loss = 7, 'x'*99, torch.tensor(2.5)
        learn.model, learn.history = mlp(), [*learn.history, {}]
    texts = dict(change_text(c).split(': ', 1) for c in found(learn, set_some) if 'names' not in c)
    assert texts['epoch'] == '0 → 7'
    assert len(texts['note']) == 67
    assert texts['loss'] == 'None → float32 2.5'
    assert texts['model'] == 'Sequential → Sequential'
    assert texts['history'] == 'list of 0 → list of 1'


def test_callbacks_that_join_and_leave_are_told(learn):
    class NewCB: before_fit = None
    def join(learn): learn.cbs.append(NewCB())
    change, = found(learn, join)
    assert change_text(change) == 'cbs: added NewCB'


def test_tensors_in_dicts_and_dataclasses_have_names(learn):
    @dataclass
    class Batch:
        ids: torch.Tensor
    def nested(learn): learn.batch = dict(a=torch.ones(2), b=[Batch(torch.zeros(3))])
    names = [c['name'] for c in found(learn, nested)]
    assert sorted(names) == ["batch['a']", "batch['b'][0].ids", 'batch[0]', 'batch[1]']


def test_nan_is_equal_to_nan(learn):
    learn.batch = (torch.tensor([float('nan'), 1.]),)
    assert found(learn, lambda learn: setattr(learn, 'batch', (learn.batch[0].clone(),))) == []


def test_what_is_told_is_plain_data(learn):
    everything = [c for change in (halve, zero_one, give_grad, clear, freeze, rate, moments, draw)
                  for c in found(learn, change)]
    assert json.loads(json.dumps(everything)) == everything
    assert described(torch.tensor([1+1j]))['dtype'] == 'complex64'
    assert described(torch.empty(0, 3)) == dict(dtype='float32', shape=[0, 3])

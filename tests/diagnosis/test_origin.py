"Where values that are not finite began."
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import Callback
from miniai.diagnosis.origin import origin_of_nonfinite
from miniai.randomness import random_states, same_states
from small import learner, same, weights


def fails(cb_model, batch=None, loss_func=F.cross_entropy):
    "What is found in the first batch, and whether the Learner is as it was."
    found = []
    class Look(Callback):
        def after_loss(self, learn):
            before, preds, states = weights(learn), learn.preds, random_states()
            found.append(origin_of_nonfinite(learn))
            assert same(finite(before), finite(weights(learn)))
            assert learn.preds is preds
            assert same_states(states, random_states())
    dls = None if batch is None else type('Dls', (), dict(train=[batch], valid=[]))()
    learn = learner([Look()], model=cb_model, dls=dls, loss_func=loss_func)
    learn.check_finite = False
    learn.fit(1, valid=False)
    return found[0]


def finite(tensors): return {nm: x.nan_to_num() for nm, x in tensors.items()}


class Broken(nn.Module):
    def forward(self, x): return x/0


def test_the_first_module_whose_output_is_not_finite_is_named():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), Broken(), nn.ReLU(), nn.Linear(8, 3))
    assert fails(model) == ('3', 'output')


def test_a_parameter_an_input_a_target_and_the_loss_are_named():
    def model(): return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    x, y = torch.ones(6, 4), torch.zeros(6, 3)
    assert fails(model(), (x/0, y), F.mse_loss) == ('', 'input')
    assert fails(model(), (x, y/0), F.mse_loss) == ('', 'target')
    assert fails(model(), (x, y), lambda p, t: (p - t).mean()/0) == ('', 'loss')
    broken = model()
    broken[1].weight.data[0, 0] = torch.inf
    assert fails(broken, (x, y), F.mse_loss) == ('1.weight', 'parameter')


def test_a_predict_phase_of_the_users_is_not_repeated():
    calls = []
    class Own(Callback):
        def predict(self, learn): calls.append(1)
    learn = SimpleNamespace(batch=(torch.ones(2, 2),), preds=None, cbs=[Own()], model=nn.Linear(2, 2), loss_func=None)
    assert origin_of_nonfinite(learn) == ('', 'loss')
    assert not calls


@pytest.mark.parametrize('name', ['running_var', 'running_mean'])
def test_a_buffer_is_named(name):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    getattr(model[0], name)[0] = torch.nan
    assert fails(model, (torch.ones(6, 4), torch.zeros(6, 3)), lambda p, t: p.sum()/0) == (f'0.{name}', 'buffer')

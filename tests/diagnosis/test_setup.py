"Facts that are fixed when a fit begins."
import pytest
import torch
from torch import nn, optim

from miniai import SGD, AdamW, Lion
from miniai.callbacks.compile import CompileCB
from miniai.diagnosis.setup import family_of, is_compiled, setup_of
from miniai.optim import Muon
from small import learner


def test_optimizers_have_families():
    p = [torch.zeros(2, 2, requires_grad=True)]
    families = {kind: family_of(kind(p, lr=0.1)) for kind in (SGD, AdamW, Lion, Muon, optim.SGD, optim.Adam)}
    assert families == {SGD: 'sgd', AdamW: 'adam', Lion: 'sign', Muon: 'sign', optim.SGD: 'sgd', optim.Adam: 'adam'}


def test_what_the_optimizer_lacks_and_how_norms_decay_is_named():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    learn = learner(model=model)
    learn.opt = AdamW([*model[:2].parameters()], 0.1, wd=0.5)
    found = setup_of(learn)
    assert found['left_out'] == ['2.weight', '2.bias']
    assert found['decayed_norms'] == {'1.weight': 0.5, '1.bias': 0.5}
    assert (found['batch_norms'], found['has_norms'], found['normalizes_inputs']) == (['1'], True, False)


def test_a_model_may_begin_with_a_norm():
    learn = learner(model=nn.Sequential(nn.Sequential(nn.LayerNorm(4)), nn.Linear(4, 3)))
    learn.opt = SGD(learn.model.parameters(), 0.1)
    assert setup_of(learn)['normalizes_inputs']


def test_compiled_models_are_known():
    assert not is_compiled(learner())
    assert is_compiled(learner([CompileCB()]))


@pytest.mark.parametrize('opt', [None, object()])
def test_without_groups_nothing_is_said_about_them(opt):
    learn = learner()
    learn.opt = opt
    assert setup_of(learn)['left_out'] is None

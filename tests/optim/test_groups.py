"Helpers that split parameters into groups, and the table of them."
import pytest
import torch
from torch import nn

from miniai.optim import AdamW, Prodigy, depth_groups, groups_table, no_decay_groups
from miniai.optim.groups import rate_of


def net(): return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_weights_decay_and_biases_norms_and_frozen_parameters_do_not():
    model = net()
    model[3].bias.requires_grad_(False)
    decay, rest = no_decay_groups(model, .1)
    assert [decay['weight_decay'], rest['weight_decay']] == [.1, 0.]
    assert [id(p) for p in decay['params']] == [id(model[0].weight), id(model[3].weight)]
    assert [id(p) for p in rest['params']] == [id(model[0].bias), id(model[1].weight), id(model[1].bias)]
    opt = AdamW(no_decay_groups(model, .1), lr=.01)
    assert [g['weight_decay'] for g in opt.param_groups] == [.1, 0.]


def test_rates_fall_with_depth_and_every_parameter_is_in_one_group():
    model = net()
    model[3].weight = nn.Parameter(model[3].weight.detach())
    groups = depth_groups(model, 1., .5)
    assert [g['lr'] for g in groups] == [.25, .5, 1.]
    assert [g['name'] for g in groups] == ['0', '1', '3']
    assert [id(p) for g in groups for p in g['params']] == [id(p) for p in model.parameters()]
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert [len(g['params']) for g in depth_groups(tied, 1.)] == [2, 1]
    AdamW(depth_groups(tied, 1.), lr=.1)


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


def test_a_model_that_wraps_another_has_the_groups_of_that():
    for model, prefix in ((Wrapper(net()), 'model.'), (nn.Sequential(Wrapper(net())), '0.model.')):
        groups = depth_groups(model, 1., .5)
        assert [(g['name'], g['lr']) for g in groups] == [(f'{prefix}0', .25), (f'{prefix}1', .5), (f'{prefix}3', 1.)]
    assert [g['name'] for g in depth_groups(nn.Sequential(nn.Linear(2, 2)), 1.)] == ['0']
    own = Wrapper(net())
    own.scale = nn.Parameter(torch.ones(1))
    first = depth_groups(own, 1.)[0]
    assert (first['name'], len(first['params'])) == ('own', 1)


def test_groups_by_depth_split_by_decay_keep_their_rates_and_names():
    model = net()
    groups = no_decay_groups(depth_groups(model, 1., .5), .1)
    assert [(g['name'], g['lr'], g['weight_decay']) for g in groups] == [
        ('0, decay', .25, .1), ('0, no decay', .25, 0.), ('1, no decay', .5, 0.), ('3, decay', 1., .1),
        ('3, no decay', 1., 0.)]
    assert {id(p) for g in groups for p in g['params']} == {id(p) for p in model.parameters()}
    AdamW(groups, lr=1.)


def test_parameters_as_an_opt_func_gets_them_are_split_too():
    model = net()
    for given in (model.parameters(), list(model.parameters()), iter(depth_groups(model, 1., 1.))):
        groups = no_decay_groups(given, .1)
        assert {g['weight_decay'] for g in groups} == {.1, 0.}
        assert sum(len(g['params']) for g in groups) == 6
        for g in groups: assert all((p.ndim > 1) == (g['weight_decay'] > 0) for p in g['params'])


@pytest.mark.parametrize('fall', [0., -.5, 1.5])
def test_a_fall_outside_0_to_1_is_an_error(fall):
    with pytest.raises(ValueError, match='fall'): depth_groups(net(), 1., fall)


def test_the_table_has_a_row_for_each_group_with_its_sizes_and_hyperparameters():
    head, *rows = groups_table(AdamW(no_decay_groups(net(), .1), lr=.01)).splitlines()
    assert head.split()[:3] == ['group', 'tensors', 'elements']
    assert {'lr', 'weight_decay', 'betas', 'eps'} <= set(head.split())
    assert [r.split()[-8:] != [] for r in rows] == [True, True]
    assert '0.01' in rows[0]
    assert ('decay  ' in rows[0], 'no decay' in rows[1]) == (True, True)
    assert ('20' in rows[0].split(), '14' in rows[1].split()) == (True, True)


def test_the_rate_of_a_group_is_lr_times_the_distance_that_an_optimizer_finds():
    assert rate_of(AdamW(net(), lr=.5).param_groups[0]) == .5
    assert rate_of(Prodigy(net(), lr=.5, d=.1).param_groups[0]) == .05
    assert rate_of(dict(lr=torch.tensor(.5))) == .5

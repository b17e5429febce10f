"Each rule about training finds its fault in a small network, and is silent about the healthy twin."
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import SGD, Adam, AdamW, BatchSchedCB, Callback, DataLoaders, TrainLearner
from miniai.diagnosis.verdict import NAMES, Facts, Verdict, judge
from wards import N, blobs, check_up, in_batches, loaders, names, net, verdict


@pytest.fixture(scope='module')
def healthy():
    twins = dict(relu=net(), norm=net(norm=nn.BatchNorm1d), tanh=net(nn.Tanh), deep=net(depth=4))
    return {nm: check_up(model, epochs=12) for nm, model in twins.items()}


def test_healthy_networks_get_no_verdict_and_most_rules_could_judge(healthy):
    assert {nm: names(h) for nm, h in healthy.items()} == {nm: set() for nm in healthy}
    assert {nm for h in healthy.values() for nm in h.checked} == set(NAMES)


def test_a_layer_whose_units_are_all_0_is_dead(healthy):
    model = net()
    nn.init.constant_(model[2].bias, -20.)
    found = verdict(check_up(model), 'dead layer')
    assert (found.where, found.value, found.since, found.certain) == ('3', 1., 0, 'sure')
    assert found.says == '3: 100 % of the units are 0 for every sample since batch 0.'


class Functional(nn.Module):
    "A network whose activations are functions: a bias of -20 makes the units after a layer dead."
    def __init__(self, dead=None, conv=False):
        super().__init__()
        torch.manual_seed(3)
        make = (lambda a, b: nn.Conv1d(a, b, 1)) if conv else nn.Linear
        self.a, self.b, self.c, self.conv = make(1 if conv else 12, 16), make(16, 16), nn.Linear(16, 4), conv
        if dead: nn.init.constant_(getattr(self, dead).bias, -20.)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x[:, None] if self.conv else x))))
        return self.c(x.mean(-1) if self.conv else x)


@pytest.mark.parametrize('conv', [False, True])
def test_units_of_functions_are_seen_as_the_inputs_of_the_next_layer(conv):
    x, y = blobs()
    x[:, :8] = 0.  # as the border of pictures
    assert 'dead layer' not in names(check_up(Functional(conv=conv), loaders(x/2, y), epochs=12))
    for dead, where in dict(a='b', b='c').items():
        found = verdict(check_up(Functional(dead, conv)), 'dead layer')
        assert (found.where, found.value, found.since) == (where, 1., 0)
        assert found.says == f'{where}: 100 % of the inputs are 0 for every sample since batch 0.'


def test_a_layer_at_the_flat_ends_of_tanh_is_saturated():
    model = net(nn.Tanh)
    model[0].weight.data.mul_(100)
    found = verdict(check_up(model, lr=1e-3), 'saturated layer')
    assert found.where == '1'
    assert found.value > 0.8


def test_gradients_that_shrink_through_many_sigmoids_vanish():
    found = verdict(check_up(net(nn.Sigmoid, depth=8)), 'vanishing gradients')
    assert found.where == '1'
    assert found.value < 1e-3


def test_gradients_that_grow_through_layers_explode():
    model = net(depth=6)
    for m in model: isinstance(m, nn.Linear) and nn.init.normal_(m.weight, std=3.)
    assert 'exploding gradients' in names(check_up(model, lr=1e-5))


def test_a_first_loss_far_above_that_of_knowing_nothing_is_wrong():
    model = net()
    model[-1].weight.data.mul_(50)
    found = verdict(check_up(model), 'wrong initial loss')
    assert found.value == pytest.approx(F.cross_entropy(model_at_start(50)(blobs()[0][:32]/2), blobs()[1][:32]).item())
    assert 'ln 4 = 1.39' in found.says


def model_at_start(factor):
    model = net()
    model[-1].weight.data.mul_(factor)
    return model


def test_targets_far_from_0_are_a_wrong_initial_loss_of_a_regression():
    x, _ = blobs()
    y = x[:, :1]
    far, near = (check_up(net(outputs=1), loaders(x, y + d, valid=[(x, y + d)]), F.mse_loss) for d in (20, 0))
    assert 'wrong initial loss' in names(far)
    assert not names(near)


def test_a_network_that_never_beats_a_constant_is_stuck_at_chance():
    model = nn.Sequential(net(), Zeros())
    assert 'stuck at chance' in names(check_up(model, epochs=12))


class Zeros(nn.Module):
    def forward(self, x): return 0*x


@pytest.mark.parametrize(('opt_func', 'lr'), [(SGD, 300.), (Adam, 10.)])
def test_a_rate_that_makes_the_loss_rise_is_too_high(opt_func, lr):
    assert 'rate too high' in names(check_up(lr=lr, opt_func=opt_func, raises=RuntimeError))


def test_a_loss_that_rises_far_or_steps_larger_than_weights_are_too_high_in_a_few_batches():
    def found(losses, step): return {v.name for v in judge(Facts(losses=losses, run=dict(update=[step]*3)))[0]}
    assert found([2.3, 50., 900., 2000., 4000., 5000.], 0.05) == {'rate too high'}
    assert found([2.3, 2.6, 2.9, 2.8, 2.6, 2.4], 0.05) == set()
    recovers = [2.3, 4., 5., 4., 3., 2., 1.5, *[1.]*20]
    assert (found(recovers, 5.), found(recovers, 0.5)) == ({'rate too high'}, set())


def test_a_rate_a_thousand_times_too_high_is_named_after_one_short_epoch():
    health = check_up(net(norm=nn.BatchNorm1d), loaders(bs=64), lr=10., epochs=1)
    assert len(health.records['batches']) == 5
    assert 'times their size' in verdict(health, 'rate too high').says


def test_signs_may_move_weights_twice_as_far():
    losses, run = [1.]*20 + [5.]*40, dict(update=[0.03]*3)
    def found(family): return {v.name for v in judge(Facts(losses=losses, run=run, setup=dict(family=family)))[0]}
    assert (found('adam'), found('sign')) == ({'rate too high'}, set())


@pytest.mark.parametrize(('opt_func', 'lr'), [(SGD, 1e-4), (Adam, 1e-6)])
def test_a_rate_that_barely_moves_weights_is_too_low(opt_func, lr):
    found = verdict(check_up(lr=lr, opt_func=opt_func), 'rate too low')
    assert found.value < 1e-4


def test_the_end_of_a_schedule_is_not_a_rate_too_low():
    cosine = BatchSchedCB(lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 60))
    assert not names(check_up(cbs=[cosine]))


def test_gradients_clipped_in_each_step_are_reported_for_both_ways_to_clip():
    class ClipCB(Callback):
        def after_backward(self, learn): nn.utils.clip_grad_norm_(learn.model.parameters(), 1e-3)
    own = check_up(opt_func=lambda params, lr: Adam(params, lr, clip_norm=1e-3))
    assert 'clipping always' in names(own) & names(check_up(cbs=[ClipCB()]))
    assert 'clipping always' not in names(check_up(opt_func=lambda params, lr: Adam(params, lr, clip_norm=100.)))


def test_gradients_that_a_callback_drops_are_not_clipped():
    class Drops(Callback):
        def after_backward(self, learn):
            for p in learn.model[0].parameters(): p.grad = None
    found = names(check_up(cbs=[Drops()]))
    assert 'clipping always' not in found
    assert 'parameter never moves' in found


class Functions(nn.Module):
    "With a function for its activation."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x): return self.b(F.relu(self.a(x)))


@pytest.mark.parametrize('model', [net, Functions])
def test_weights_without_a_gradient_that_only_decay_are_no_rate_too_low(model):
    model = model()
    nn.init.constant_(next(m for m in model.modules() if isinstance(m, nn.Linear)).bias, -100.)
    found = check_up(model, opt_func=AdamW, lr=1e-3, epochs=6)
    assert 'rate too low' not in names(found)
    says = verdict(found, 'parameter never moves').says
    assert says.endswith('do not learn: no gradient arrives, and the steps are only weight decay.')
    assert 'parameter never moves' not in names(check_up(opt_func=AdamW, lr=1e-3))


def test_a_parameter_that_forward_does_not_use_or_whose_rate_is_0_never_moves():
    unused = net()
    unused.extra = nn.Linear(2, 2)
    unused.forward = lambda x: nn.Sequential.forward(nn.Sequential(*list(unused)[:-1]), x)
    assert verdict(check_up(unused), 'parameter never moves').where == 'extra.weight'
    def groups(params, lr):
        first, *rest = params
        return Adam([dict(params=[first], lr=0.), dict(params=rest)], lr)
    assert verdict(check_up(opt_func=groups), 'parameter never moves').where == '0.weight'


def test_a_frozen_parameter_may_stay_as_it_is():
    model = net()
    model[0].requires_grad_(False)
    assert not names(check_up(model))


def test_a_parameter_that_the_optimizer_lacks_is_in_no_group():
    found = verdict(check_up(opt_func=lambda params, lr: Adam(list(params)[:-2], lr)), 'parameter in no group')
    assert (found.where, found.value) == ('4.weight', 2.)
    assert 'parameter never moves' not in names(check_up(opt_func=lambda params, lr: Adam(list(params)[:-2], lr)))


def test_parameters_of_a_second_optimizer_are_in_a_group():
    class Two(TrainLearner):
        def step(self):
            self.opt.step()
            self.second.step()
    model = net()
    def opt_func(params, lr): return Adam(list(params)[:-2], lr)
    health = check_up(model, opt_func=opt_func, cls=type('L', (Two,), dict(second=None)), cbs=[Second(model)])
    assert not names(health)


class Second:
    def __init__(self, model): self.model = model
    def before_fit(self, learn): learn.second = Adam([*self.model[-1].parameters()], 0.01)


def test_strong_decay_of_norms_is_reported_and_the_default_is_not():
    sick, well = (check_up(net(norm=nn.BatchNorm1d), opt_func=lambda params, lr, wd=wd: AdamW(params, lr, wd=wd))
                  for wd in (1., 0.01))
    assert 'decay on norms' in names(sick)
    assert 'decay on norms' in well.checked
    assert not names(well)


def test_running_statistics_that_lag_are_a_difference_between_modes():
    model = net(norm=nn.BatchNorm1d)
    model[0].weight.data.mul_(30)
    for m in model: m.momentum = 1e-4
    assert verdict(check_up(model), 'batch norm differs between modes').where == '1'


def test_batches_sorted_by_target_are_a_difference_between_modes_and_no_imbalance():
    x, y = blobs()
    order = y.argsort()
    found = check_up(net(norm=nn.BatchNorm1d), loaders(x[order]/2, y[order]), epochs=2)
    assert verdict(found, 'batch norm differs between modes').do == 'Shuffle the training data.'
    assert 'unbalanced labels' not in names(found)


def test_batches_of_4_are_too_small_for_batch_norm_and_fine_without():
    small = loaders(bs=4)
    assert 'batch too small for batch norm' in names(check_up(net(norm=nn.BatchNorm1d), small, epochs=1))
    assert 'batch too small for batch norm' not in names(check_up(net(), small, epochs=1))


def test_values_that_are_not_finite_are_traced_to_the_module_where_they_began():
    class Root(nn.Module):
        def forward(self, x): return (x - 1).sqrt()
    model = nn.Sequential(nn.Linear(12, 8), Root(), nn.Linear(8, 4))
    found = check_up(model, raises=RuntimeError).verdicts[0]
    assert (found.name, found.where, found.since) == ('non-finite values', '1', 0)


def test_warm_up_is_judged_by_a_peak_of_the_loss_at_full_rate():
    run = dict(lr=[1., 1.], update=[0.5, 0.1])
    def facts(peak): return Facts(losses=[2., *[peak]*5, *[1.]*194], run=run, batches=[0, 1], done=1.)
    assert 'warm-up too short' in {v.name for v in judge(facts(9.))[0]}
    assert 'warm-up too short' not in {v.name for v in judge(facts(2.1))[0]}


def test_a_peak_without_long_steps_is_no_lack_of_warm_up():
    calm = Facts(losses=[2., *[9.]*5, *[1.]*194], run=dict(lr=[1., 1.], update=[0.01, 0.01]), batches=[0, 1], done=1.)
    assert 'warm-up too short' not in {v.name for v in judge(calm)[0]}


def test_a_missing_value_in_the_data_is_no_rate_too_high():
    run = dict(lr=[1.]*3, update=[0.2]*3)
    def names_of(*losses): return {v.name for v in judge(Facts(losses=losses, run=run, batches=[0, 1, 2], done=0.1))[0]}
    assert names_of(1., 0.9, 0.8, float('nan')) == {'non-finite values'}
    assert names_of(1., 0.9, 8., float('nan')) == {'non-finite values', 'rate too high'}


@pytest.mark.parametrize(('rate', 'found'), [(1e-2, True), (1e-3, False)])
def test_decay_of_norms_counts_by_what_it_takes_in_the_fit(rate, found):
    facts = Facts(losses=[1.]*300, rate=rate, done=1., setup=dict(has_norms=True, decayed_norms={'1.weight': 0.1}))
    assert ('decay on norms' in {v.name for v in judge(facts)[0]}) is found


@pytest.mark.parametrize('every', [1, 7])
def test_what_decay_takes_is_that_of_all_batches_whichever_are_looked_at(every):
    cosine = BatchSchedCB(lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 60))
    health = check_up(net(norm=nn.BatchNorm1d), cbs=[cosine], every=every,
                      opt_func=lambda params, lr: AdamW(params, lr, wd=1.))
    rates = [0.01*(1 + math.cos(math.pi*t/60))/2 for t in range(60)]
    assert verdict(health, 'decay on norms').value == pytest.approx(1 - math.exp(-sum(rates)), rel=1e-6)


def judged(**facts): return {v.name for v in judge(Facts(**facts))[0]}


def test_gradients_that_are_tiny_at_a_loss_of_0_do_not_explode_and_those_with_the_loss_do():
    norms, n = [1., 1e-3, 1e-6, 1e-9, 1e-5, 1e-9], 60
    run = dict(gradient_norm=norms, clipped_norm=norms)
    learned = [2.3/(1 + i)**6 for i in range(n)]
    assert not judged(losses=learned, run=run, batches=[0, 10, 20, 30, 40, 50])
    jump = [1., 1., 1., 1., 2e3, 1.]
    run = dict(gradient_norm=jump, clipped_norm=jump)
    for after in (9., math.inf, math.nan):
        broken = [1.]*41 + [after]*19
        assert 'exploding gradients' in judged(losses=broken, run=run, batches=[0, 10, 20, 30, 40, 50])
    assert not judged(losses=learned, run=run, batches=[0, 10, 20, 30, 40, 50])


def test_weights_in_bfloat16_that_stand_still_are_no_rate_of_0():
    data = [(x.bfloat16(), y) for x, y in in_batches(*blobs())]
    found = verdict(check_up(net().bfloat16(), DataLoaders(data, data), lr=1e-4, opt_func=SGD), 'parameter never moves')
    assert 'gradients arrive, but steps are 0 or rounded away in bfloat16' in found.says
    assert "float32 and add MixedPrecision(), use an optimizer with rounding='stochastic'" in found.do
    stochastic = check_up(net().bfloat16(), DataLoaders(data, data), lr=1e-4,
                          opt_func=lambda params, lr: SGD(params, lr, rounding='stochastic'))
    assert 'parameter never moves' not in names(stochastic)


def test_a_parameter_that_is_unfrozen_later_without_the_optimizer_is_in_no_group():
    class UnfreezeCB(Callback):
        def before_epoch(self, learn): learn.model[0].requires_grad_(learn.epoch > 0)
    model = net()
    model[0].requires_grad_(False)
    def trained(params, lr): return Adam([p for p in params if p.requires_grad], lr)
    health = check_up(model, cbs=[UnfreezeCB()], opt_func=trained)
    assert verdict(health, 'parameter in no group').says == 'The optimizer was not given 0.weight, 0.bias.'
    assert health.records['parameters']['0.weight']['norm'][0] is None
    assert health.records['parameters']['0.weight']['gradient'][-1] > 0


def test_parameters_of_lazy_layers_are_watched():
    health = check_up(nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(4)), opt_func=torch.optim.Adam)
    assert set(health.records['parameters']) == {'0.weight', '0.bias', '2.weight', '2.bias'}
    assert health.records['layers']['0']['kind'] == 'Linear'
    assert not names(health)


@pytest.mark.parametrize(('start', 'found'), [(3.5, False), (6., True)])
def test_a_regression_may_begin_with_a_few_times_the_variance(start, found):
    assert ('wrong initial loss' in judged(losses=[start], data=dict(task='numbers', baseline=1.))) is found


def test_causes_come_before_what_they_bring_about():
    order = [NAMES.index(nm) for nm in ('inputs not normalized', 'rate too high', 'dead layer', 'vanishing gradients',
                                        'parameter never moves', 'stuck at chance')]
    assert order == sorted(order)
    health = check_up(lr=100., raises=RuntimeError)
    assert health.verdicts[0].name == 'rate too high'
    assert len(health.verdicts) > 1


def test_a_verdict_has_the_fields_that_reports_read():
    assert Verdict._fields == ('name', 'where', 'value', 'threshold', 'since', 'says', 'do', 'certain', 'source')
    assert len(in_batches(*blobs())) == N//32

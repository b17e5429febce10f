"What a configuration names is what gets built."
import itertools
import math

import pytest
import torch
from torch import nn

from miniai.callbacks.schedule import BatchSchedCB
from miniai.device import def_device
from miniai.jobs import build
from miniai.jobs.build import OPTIMIZERS, build_data, build_device, build_model, build_schedule, rate_of
from miniai.jobs.config import ConfigError, LRFindConfig, TrainConfig
from miniai.optim import SGD, Adam, AdamW, Momentum, RMSProp
from tiny import write_tiny

RULES, SCHEDULES = ['sgd', 'momentum', 'rmsprop', 'adam', 'adamw'], ['onecycle', 'cosine', 'constant']
PAIRS = list(itertools.product(RULES, SCHEDULES))


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return write_tiny(tmp_path_factory.mktemp('fmnist'), 41, 9)


# Device

def test_the_device_named_is_the_device_used():
    assert build_device(TrainConfig(device='cpu')) == 'cpu'
    assert build_device(LRFindConfig()) == def_device


@pytest.mark.parametrize('device', ['nope', '', 'meta', 'hpu', 'cuda:99', 'xla'])
def test_a_device_that_cannot_train_is_refused_in_one_short_line_that_says_what_to_do(device):
    with pytest.raises(ConfigError, match=rf"^device '{device}' cannot be used here: .+; try cpu or auto$") as e:
        build_device(TrainConfig(device=device))
    assert len(str(e.value)) < 300


# Data

def test_the_loaders_hold_the_folders_images_in_batches_of_the_size_asked_for(folder, capsys):
    dls = build_data(TrainConfig(data=str(folder), batch_size=16))
    assert [len(y) for _, y in dls.train] == [16, 16, 9]
    assert [x.shape for x, _ in dls.valid] == [(9, 1, 28, 28)]
    assert capsys.readouterr().out == f'Fashion-MNIST, 41 training and 9 test images, from {folder}\n'


def test_the_seed_decides_the_order(folder):
    orders = [torch.cat([y for _, y in build_data(TrainConfig(data=str(folder), seed=s)).train]) for s in (1, 1, 2)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


@pytest.mark.parametrize(('data', 'asked'), [('auto', {}), ('hub', dict(source='hub')),
                                             ('sample', dict(source='sample')), ('a/b', dict(folder='a/b'))])
def test_data_is_a_word_for_a_source_or_else_a_folder(monkeypatch, data, asked):
    seen = []
    def fake(**kwargs):
        seen.append(kwargs)
        raise FileNotFoundError
    monkeypatch.setattr(build, 'fashion_mnist', fake)
    with pytest.raises(FileNotFoundError): build_data(LRFindConfig(data=data))
    assert seen == [asked]


@pytest.mark.parametrize('bs', [1, 5, 20, 40])
def test_a_last_batch_of_one_image_is_refused_for_the_resnet_before_training(folder, bs):
    with pytest.raises(ConfigError, match=f'batch_size {bs} leaves a last batch of one image out of 41.*another'):
        build_data(TrainConfig(data=str(folder), model='resnet', batch_size=bs))
    build_data(TrainConfig(data=str(folder), model='simple', batch_size=bs))


@pytest.mark.parametrize('bs', [3, 39, 41, 1024])
def test_the_resnet_takes_every_other_batch_size(folder, bs):
    dls = build_data(TrainConfig(data=str(folder), model='resnet', batch_size=bs))
    model = build_model(TrainConfig(model='resnet')).train()
    assert all(model(x).shape == (len(y), 10) for x, y in dls.train)


# Model

@pytest.mark.parametrize(('name', 'size'), [('simple', 30_274), ('resnet', 300_000)])
def test_a_model_has_the_size_that_the_help_says_and_ten_outputs(name, size):
    model = build_model(TrainConfig(model=name))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(size, rel=0.1)
    assert model(torch.randn(4, 1, 28, 28)).shape == (4, 10)


def test_the_seed_decides_the_weights():
    ws = [nn.utils.parameters_to_vector(build_model(TrainConfig(seed=s)).parameters()) for s in (7, 7, 8)]
    assert torch.equal(ws[0], ws[1])
    assert not torch.equal(ws[0], ws[2])


def test_the_weights_are_kaimings_for_a_leak_of_a_tenth():
    convs = [m for m in build_model(TrainConfig()).modules() if isinstance(m, nn.Conv2d)]
    w = convs[-2].weight
    fan_in = w[0].numel()
    assert w.std().item() == pytest.approx(math.sqrt(2/(1 + 0.1**2)/fan_in), rel=0.05)


# Optimizer, rate and schedule

def test_every_optimizer_and_no_other_is_named():
    named = dict(sgd=SGD, momentum=Momentum, rmsprop=RMSProp, adam=Adam, adamw=AdamW)
    assert named == OPTIMIZERS


@pytest.mark.parametrize(('rule', 'schedule'), PAIRS)
def test_auto_is_a_rate_for_each_pair_and_a_number_is_itself(rule, schedule):
    assert 0 < rate_of(TrainConfig(optimizer=rule, schedule=schedule)) <= 3
    assert rate_of(TrainConfig(optimizer=rule, schedule=schedule, lr=0.123)) == 0.123


def test_auto_takes_the_courses_rates():
    course = dict(sgd=0.4, momentum=1.5, rmsprop=3e-3, adam=6e-3)
    assert all(rate_of(TrainConfig(optimizer=o, schedule='constant')) == lr for o, lr in course.items())
    assert rate_of(TrainConfig(optimizer='adam', schedule='cosine')) == 2e-2
    assert rate_of(TrainConfig()) == 6e-2


def rates(rule, schedule, steps):
    opt = OPTIMIZERS[rule]([nn.Parameter(torch.zeros(1))], 0.1)
    sched, lrs = build_schedule(TrainConfig(optimizer=rule, schedule=schedule, lr=0.1), steps)(opt), []
    for _ in range(steps):
        lrs.append(opt.param_groups[0]['lr'])
        opt.step()
        sched.step()
    return lrs


@pytest.mark.parametrize('rule', RULES)
def test_constant_keeps_the_rate(rule): assert rates(rule, 'constant', 8) == [0.1]*8


@pytest.mark.parametrize('rule', RULES)
def test_cosine_falls_by_half_a_cosine_over_the_steps(rule):
    wanted = [0.05*(1 + math.cos(math.pi*t/20)) for t in range(20)]
    assert rates(rule, 'cosine', 20) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize('rule', RULES)
def test_onecycle_starts_at_a_25th_peaks_at_the_rate_and_ends_near_nothing(rule):
    lrs = rates(rule, 'onecycle', 100)
    assert lrs[0] == pytest.approx(0.1/25)
    assert max(lrs) == pytest.approx(0.1)
    assert lrs.index(max(lrs)) in (29, 30)
    assert lrs[-1] == pytest.approx(0.1/25/1e4, rel=0.01)


@pytest.mark.parametrize('steps', [1, 2, 3, 4])
@pytest.mark.parametrize('schedule', SCHEDULES)
def test_a_schedule_of_very_few_steps_works(schedule, steps): assert len(rates('adamw', schedule, steps)) == steps


@pytest.mark.parametrize('rule', ['momentum', 'adam', 'adamw'])
def test_onecycle_cycles_momentum_where_there_is_some(rule):
    opt = OPTIMIZERS[rule]([nn.Parameter(torch.zeros(1))], 0.1)
    build_schedule(TrainConfig(optimizer=rule), 10)(opt)
    g = opt.param_groups[0]
    assert (g['momentum'] if rule == 'momentum' else g['betas'][0]) == 0.95


def test_a_schedule_is_what_the_batch_callback_takes():
    assert isinstance(BatchSchedCB(build_schedule(TrainConfig(), 5)), BatchSchedCB)

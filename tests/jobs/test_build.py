"What a configuration names is what gets built."
import math

import pytest
import torch
from torch import nn

from miniai.data import fashion_mnist
from miniai.device import def_device
from miniai.jobs import build
from miniai.jobs.build import auto_lr, build_data, build_device, build_model, build_schedule, learning_rate
from miniai.jobs.config import ConfigError, LRFindConfig, TrainConfig
from miniai.steps.schedule import BatchSchedCB
from tiny import write_tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return write_tiny(tmp_path_factory.mktemp('fmnist'), 41, 9)


# Device

def test_the_device_named_is_the_device_used():
    assert build_device(TrainConfig(device='cpu')) == 'cpu'
    assert build_device(LRFindConfig()) == def_device


@pytest.mark.parametrize('device', ['nope', '', 'meta', 'hpu', 'cuda:99', 'xla'])
def test_a_device_that_cannot_train_is_refused_in_one_short_line_that_says_what_to_do(device):
    with pytest.raises(ConfigError, match=rf"^cannot use device '{device}' here: .+; try cpu or auto$") as e:
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


def test_data_is_a_name_in_the_registry_or_else_a_folder(monkeypatch, folder, capsys):
    asked = []
    monkeypatch.setattr(build, 'fashion_mnist', lambda **kwargs: asked.append(kwargs) or fashion_mnist(folder))
    monkeypatch.setitem(build.DATA, 'hub', build.DATA['hub']._replace(load=lambda: asked.append('hub') or
                                                                      fashion_mnist(folder)))
    for data in ('hub', 'a/b'): build_data(LRFindConfig(data=data))
    assert asked == ['hub', dict(folder='a/b')]


@pytest.mark.parametrize('bs', [1, 5, 20, 40])
def test_a_last_batch_of_one_image_is_refused_for_the_resnet_before_training(folder, bs):
    with pytest.raises(ConfigError, match=f'batch_size {bs} leaves a last batch of 1 out of 41 images.*choose another'):
        build_data(TrainConfig(data=str(folder), model='resnet', batch_size=bs))
    build_data(TrainConfig(data=str(folder), model='simple', batch_size=bs))


@pytest.mark.parametrize('bs', [3, 39, 41, 1024])
def test_the_resnet_takes_every_other_batch_size(folder, bs):
    dls = build_data(TrainConfig(data=str(folder), model='resnet', batch_size=bs))
    model = build_model(TrainConfig(model='resnet')).train()
    assert all(model(x).shape == (len(y), 10) for x, y in dls.train)


# Model

def test_the_seed_decides_the_weights():
    ws = [nn.utils.parameters_to_vector(build_model(TrainConfig(seed=s)).parameters()) for s in (7, 7, 8)]
    assert torch.equal(ws[0], ws[1])
    assert not torch.equal(ws[0], ws[2])


def test_the_weights_are_kaimings_for_a_leak_of_a_tenth():
    convs = [m for m in build_model(TrainConfig()).modules() if isinstance(m, nn.Conv2d)]
    w = convs[-2].weight
    fan_in = w[0].numel()
    assert w.std().item() == pytest.approx(math.sqrt(2/(1 + 0.1**2)/fan_in), rel=0.05)


# Learning rate and schedule

def test_auto_is_the_rate_in_the_registry_and_a_number_is_itself():
    assert learning_rate(TrainConfig()) == 2e-2
    assert learning_rate(TrainConfig(optimizer='adam', schedule='cosine')) == auto_lr('adam', 'cosine') == 2e-2
    assert learning_rate(TrainConfig(optimizer='lion', lr=0.123)) == 0.123


def test_a_schedule_without_a_rate_of_its_own_gets_that_of_the_constant_one(monkeypatch):
    monkeypatch.setitem(build.OPTIMIZERS, 'sgd', build.OPTIMIZERS['sgd']._replace(lrs=dict(constant=0.5)))
    assert auto_lr('sgd', 'onecycle') == 0.5


def test_a_schedule_is_what_the_batch_callback_takes():
    schedule = build_schedule(TrainConfig(lr=0.1), 5)
    assert isinstance(BatchSchedCB(schedule), BatchSchedCB)
    opt = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    assert (schedule(opt).total_steps, opt.param_groups[0]['lr']) == (5, pytest.approx(0.1/25))

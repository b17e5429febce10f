"What a configuration names is what gets built."
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai.data import DataLoaders
from miniai.device import def_device
from miniai.jobs import build
from miniai.jobs.build import (
    auto_lr,
    build_device,
    build_model,
    build_optimizer,
    build_schedule,
    build_task,
    epochs,
    learning_rate,
)
from miniai.jobs.config import ConfigError, LRFindConfig, TrainConfig
from miniai.steps.schedule import BatchSchedCB

PICTURES = DataLoaders.from_arrays(torch.zeros(40, 28, 28, dtype=torch.uint8), torch.arange(40) % 10)


def table(y, n=200):
    return DataLoaders.from_table(dict(x=np.arange(n), kind=['a', 'b']*(n//2), y=y), 'y', bs=16)


# Device

def test_the_device_named_is_the_device_used():
    assert build_device(TrainConfig(device='cpu')) == 'cpu'
    assert build_device(LRFindConfig()) == def_device


@pytest.mark.parametrize('device', ['nope', '', 'meta', 'hpu', 'cuda:99', 'xla'])
def test_a_device_that_cannot_train_is_refused_in_one_short_line_that_says_what_to_do(device):
    with pytest.raises(ConfigError, match=rf"^cannot use device '{device}' here: .+; try cpu or auto$") as e:
        build_device(TrainConfig(device=device))
    assert len(str(e.value)) < 300


# Model

def test_the_seed_decides_the_weights():
    ws = [nn.utils.parameters_to_vector(build_model(TrainConfig(seed=s), PICTURES).parameters()) for s in (7, 7, 8)]
    assert torch.equal(ws[0], ws[1])
    assert not torch.equal(ws[0], ws[2])


def test_the_weights_are_kaimings_for_a_leak_of_a_tenth():
    convs = [m for m in build_model(TrainConfig(), PICTURES).modules() if isinstance(m, nn.Conv2d)]
    w = convs[-2].weight
    fan_in = w[0].numel()
    assert w.std().item() == pytest.approx(math.sqrt(2/(1 + 0.1**2)/fan_in), rel=0.05)


# Learning rate and schedule

def test_auto_is_the_rate_in_the_registry_and_a_number_is_itself():
    assert learning_rate(TrainConfig(), PICTURES) == 2e-2
    adam = TrainConfig(optimizer='adam', schedule='cosine')
    assert learning_rate(adam, PICTURES) == auto_lr('adam', 'cosine') == 2e-2
    assert learning_rate(TrainConfig(optimizer='lion', lr=0.123), PICTURES) == 0.123
    assert learning_rate(TrainConfig(), table(['no', 'yes']*100)) == 1e-2
    sgd = [TrainConfig(optimizer='sgd', schedule=nm) for nm in ('onecycle', 'constant')]
    assert [learning_rate(config, table(['no', 'yes']*100)) for config in sgd] == [0.2, 0.025]
    assert learning_rate(sgd[0], PICTURES) == 0.8
    with pytest.raises(ConfigError, match=r'no learning rate is known for torch\.optim:SGD: give one with --lr'):
        learning_rate(TrainConfig(optimizer='torch.optim:SGD'), PICTURES)


def test_a_schedule_without_a_rate_of_its_own_gets_that_of_the_constant_one(monkeypatch):
    monkeypatch.setitem(build.OPTIMIZERS, 'sgd', build.OPTIMIZERS['sgd']._replace(lrs=dict(constant=0.5)))
    assert auto_lr('sgd', 'onecycle') == 0.5


def test_a_schedule_is_what_the_batch_callback_takes():
    schedule = build_schedule(TrainConfig(lr=0.1), 5)
    assert isinstance(BatchSchedCB(schedule), BatchSchedCB)
    opt = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    assert (schedule(opt).total_steps, opt.param_groups[0]['lr']) == (5, pytest.approx(0.1/25))


def test_a_schedule_may_be_a_function_of_an_optimizer_and_the_steps():
    schedule = build_schedule(TrainConfig(lr=0.1, schedule='torch.optim.lr_scheduler:StepLR'), 5)
    assert schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)).step_size == 5
    nowhere = TrainConfig(schedule='nowhere:f')
    with pytest.raises(ConfigError, match="cannot import 'nowhere:f'"): build_schedule(nowhere, 5)


# Models and optimizers for the data

@pytest.mark.parametrize(('y', 'outputs', 'loss', 'metric'), [
    (['no', 'yes']*100, 2, F.cross_entropy, 'accuracy'), (np.linspace(0, 1, 200), 1, F.mse_loss, 'rmse')])
def test_a_table_gets_the_table_model_and_the_loss_of_its_target(y, outputs, loss, metric):
    dls = table(y)
    model = build_model(TrainConfig(net='widths=[8]'), dls)
    assert model.recipe == dict(name='table', facts=dict(numbers=1, categories=[3], outputs=outputs),
                                options=dict(widths=[8]))
    loss_func, metrics = build_task(dls)
    assert (loss_func, [*metrics]) == (loss, [metric])


def test_the_error_of_numbers_is_in_their_own_units():
    dls = table(np.linspace(0, 50, 200))
    rmse = build_task(dls)[1]['rmse']
    rmse.update(torch.tensor([0., 0.]), torch.tensor([.3, .4]))
    assert rmse.compute() == pytest.approx(math.sqrt(.125)*dls.recipe.target_std)


@pytest.mark.parametrize(('n', 'expected'), [(20, 100), (200, 15), (4000, 5)])  # 1, 10 and 200 batches
def test_small_tables_get_more_epochs(n, expected):
    assert epochs(TrainConfig(), table(['no', 'yes']*(n//2), n)) == expected
    assert epochs(TrainConfig(), PICTURES) == 5
    assert epochs(TrainConfig(epochs=3), table(['no', 'yes']*(n//2), n)) == 3


def test_an_optimizer_gets_its_options_by_name_and_may_be_anyones():
    params = [nn.Parameter(torch.zeros(1))]
    group = build_optimizer(TrainConfig(opt='beta2=0.5 wd=0.25'))(params, 0.1).param_groups[0]
    assert (group['betas'][1], group['weight_decay'], group['lr']) == (0.5, 0.25, 0.1)
    options = 'momentum=0.5 nesterov=true fused=none'
    opt = build_optimizer(TrainConfig(optimizer='torch.optim:SGD', opt=options, lr=1.))(params, 0.1)
    assert (type(opt), opt.defaults['momentum'], opt.defaults['nesterov']) == (torch.optim.SGD, 0.5, True)


def test_an_option_that_may_be_of_several_kinds_takes_each_of_them():
    params = [nn.Parameter(torch.ones(1))]
    for text, rescaled in (('cautious=rescaled', True), ('cautious=true', False)):
        stages = build_optimizer(TrainConfig(opt=text))(params, 0.1).stages
        assert (stages.cautious, stages.rescaled) == (True, rescaled)
    for text, eps1 in (('eps1=1e-20', 1e-20), ('eps1=precision', 'precision'), ('eps1=0', 0)):
        opt = build_optimizer(TrainConfig(optimizer='adafactor', opt=text))(params, 0.1)
        assert opt.param_groups[0]['eps1'] == eps1


@pytest.mark.parametrize(('options', 'said'), [
    (dict(opt='cautious=3'), "the option cautious of the optimizer adamw must be True or False, or text, such as its "
                             "default False, got 3"),
    (dict(opt='cautious=rescale'), "cautious must be True, False or 'rescaled', got 'rescale'"),
    (dict(optimizer='adafactor', opt='eps1=[1]'), "the option eps1 of the optimizer adafactor must be text, or a "
                                                  "number, such as its default 'precision', got [1]"),
    (dict(optimizer='adafactor', opt='eps1=precise'), "eps1 must be a number or 'precision', got 'precise'"),
    (dict(optimizer='muon', opt='adjust=2'), "adjust must be 'match_rms_adamw' or 'spectral', got 2.0"),
    (dict(model='table'), 'table is for a table, and the data are images: choose from simple, resnet'),
    (dict(net='width=3'), "the model simple has no option width; did you mean 'widths'?"),
    (dict(model='nowhere:f'), "cannot import 'nowhere:f'"),
    (dict(optimizer='nowhere:f'), "cannot import 'nowhere:f'"),
    (dict(opt='beta3=0.5'), "the optimizer adamw has no option beta3; did you mean 'beta2'?"),
    (dict(opt='beta2=abc'),
     "the option beta2 of the optimizer adamw must be a number, such as its default 0.999, got 'abc'"),
    (dict(opt='lr=0.5'), 'the learning rate is no option of --opt: use --lr'),
    (dict(optimizer='torch.optim:Adam', opt='betas=[0.5]'), 'Adam cannot be made with betas=[0.5]: '),
    (dict(optimizer='torch.optim:SGD', opt='momentum=-1'), 'SGD cannot be made with momentum=-1: Invalid momentum')])
def test_what_does_not_exist_or_fit_is_a_mistake_in_the_options(options, said):
    def build(): return build_optimizer(TrainConfig(**options)), build_model(TrainConfig(**options), PICTURES)
    with pytest.raises(ConfigError, match=re.escape(said)): build()

"The registry: every choice builds, and one row is enough to add one."
import inspect
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from miniai import optim
from miniai.jobs.registry import DATA, MODELS, OPTIMIZERS, SCHEDULES
from tiny import files, write_tiny

BASES = {optim.RuleOptimizer}


def test_every_public_optimizer_has_a_row():
    public = {o for o in vars(optim).values() if inspect.isclass(o) and issubclass(o, torch.optim.Optimizer)} - BASES
    assert {row.build for row in OPTIMIZERS.values()} == public
    assert all(name == row.build.__name__.lower() for name, row in OPTIMIZERS.items())


def test_every_optimizer_has_a_rate_for_every_schedule():
    assert all(row.lrs.keys() == SCHEDULES.keys() for row in OPTIMIZERS.values())
    assert all(0 < row.lrs['constant'] <= row.lrs['cosine'] <= row.lrs['onecycle'] <= 3 for row in OPTIMIZERS.values())


def test_the_highest_rate_of_a_schedule_is_no_lower_than_a_constant_rate():
    for row in OPTIMIZERS.values():
        assert 0 < row.lrs['constant'] <= min(row.lrs['cosine'], row.lrs['onecycle'])


def rates(optimizer, schedule, steps):
    opt = OPTIMIZERS[optimizer].build([nn.Parameter(torch.zeros(1))], 0.1)
    sched, lrs = SCHEDULES[schedule].build(opt, lr=0.1, steps=steps), []
    for _ in range(steps):
        lrs.append(opt.param_groups[0]['lr'])
        opt.step()
        sched.step()
    return lrs


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_schedules_have_their_shape_with_every_optimizer(optimizer):
    assert rates(optimizer, 'constant', 8) == [0.1]*8
    cosine = [0.05*(1 + math.cos(math.pi*t/20)) for t in range(20)]
    assert rates(optimizer, 'cosine', 20) == pytest.approx(cosine, rel=1e-9)
    lrs = rates(optimizer, 'onecycle', 100)
    assert (lrs[0], max(lrs)) == pytest.approx((0.1/25, 0.1))
    assert lrs.index(max(lrs)) in (29, 30)
    assert lrs[-1] == pytest.approx(0.1/25/1e4, rel=0.01)


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_a_schedule_of_very_few_steps_works(schedule):
    assert [len(rates('adamw', schedule, steps)) for steps in (1, 2, 3, 4)] == [1, 2, 3, 4]


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_onecycle_cycles_the_momentum_where_there_is_one(optimizer):
    opt = OPTIMIZERS[optimizer].build([nn.Parameter(torch.zeros(1, 1))], 0.1)
    SCHEDULES['onecycle'].build(opt, lr=0.1, steps=10)
    group = opt.param_groups[0]
    momentum = group['betas'][0] if 'betas' in group else group.get('momentum')
    assert momentum == (None if optimizer in ('sgd', 'rmsprop', 'adagrad', 'adafactor') else 0.95)


@pytest.mark.parametrize('momentum', [0, .9])
def test_onecycle_gives_torchs_plain_sgd_no_momentum(momentum):
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1, momentum=momentum)
    SCHEDULES['onecycle'].build(opt, lr=0.1, steps=10)
    assert opt.param_groups[0]['momentum'] == (0.95 if momentum else 0)


def test_texts_for_the_help_are_there():
    assert all(row.about for table in (DATA, MODELS, SCHEDULES) for row in table.values())


ADDED = """
import sys
from functools import partial
import torch
from torch import nn
from miniai.data import fashion_mnist
from miniai.jobs import registry
from miniai.models.by_name import ModelRow
from miniai.optim import optimizer, sign
def signum(p, g, *, lr): return p - lr*sign(g)
registry.OPTIMIZERS['signum'] = registry.OptimizerRow(optimizer(signum), dict(constant=1e-3))
registry.MODELS['linear'] = ModelRow(lambda outputs: nn.Sequential(nn.Flatten(), nn.Linear(784, outputs)),
                                     'images', 'one layer')
def halving(opt, lr, steps): return torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
registry.SCHEDULES['halving'] = registry.ScheduleRow(halving, 'halves at each batch')
registry.DATA['tiny'] = registry.DataRow(partial(fashion_mnist, sys.argv[1]), 'a few images')
from miniai.cli import main
for args in (['--help'], ['--optimizer', 'signum', '--model', 'linear', '--schedule', 'halving', '--data', 'tiny',
                          '--epochs', '1', '--batch-size', '30', '--device', 'cpu', '--no-stats', '--out', 'run']):
    try: main(['train', *args])
    except SystemExit as e: assert e.code == 0
"""


def test_one_row_makes_an_optimizer_a_model_a_schedule_and_a_data_set_available_to_the_command_line(tmp_path):
    (tmp_path/'data').mkdir()
    write_tiny(tmp_path/'data', 60, 20)
    done = subprocess.run([sys.executable, '-c', ADDED, tmp_path/'data'], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'linear model, 7,850 parameters; signum, halving, lr 0.001; cpu' in done.stdout
    help_text = ' '.join(done.stdout.replace('│', ' ').split())
    assert all(text in help_text for text in ('linear: one layer.', 'halving: halves at each batch.',
                                              'tiny: a few images.', 'lion, signum'))
    assert 'activations.png' not in files(tmp_path/'run')
    assert 'curves.png' in files(tmp_path/'run')

"What a job can choose from: data sets, models, optimizers, schedules. One row makes a choice available to every job."
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch.optim import Optimizer, lr_scheduler

from miniai import optim
from miniai.data import ImageSet, fashion_mnist
from miniai.models.by_name import MODELS
from miniai.optim.schedules import has_momentum, warmup_cosine

__all__ = ['DATA', 'MODELS', 'OPTIMIZERS', 'SCHEDULES', 'DataRow', 'OptimizerRow', 'ScheduleRow']


class DataRow(NamedTuple):
    "`load()` returns an ImageSet. `about` is for the help."
    load: Callable[[], ImageSet]
    about: str


class OptimizerRow(NamedTuple):
    """`build(params, lr)` returns the optimizer. `lrs` has the learning rates of `--lr auto` by schedule: the highest
    rate of the schedule. A schedule without one gets the rate for 'constant'."""
    build: Callable[..., Optimizer]
    lrs: Mapping[str, float]


class ScheduleRow(NamedTuple):
    "`build(optimizer, lr=, steps=)` returns a torch scheduler. `lr` is its highest rate. `about` is for the help."
    build: Callable[..., Any]
    about: str


def _onecycle(opt: Optimizer, lr: float, steps: int) -> Any:
    return lr_scheduler.OneCycleLR(opt, max_lr=lr, total_steps=steps, cycle_momentum=has_momentum(opt))


def _warmup_cosine(opt: Optimizer, lr: float, steps: int) -> Any: return warmup_cosine()(opt, steps)
def _cosine(opt: Optimizer, lr: float, steps: int) -> Any: return lr_scheduler.CosineAnnealingLR(opt, T_max=steps)
def _constant(opt: Optimizer, lr: float, steps: int) -> Any: return lr_scheduler.ConstantLR(opt, factor=1.)


DATA = {  # others are named by a folder, a file, hub:NAME or module:function
    'auto':   DataRow(fashion_mnist, "Fashion-MNIST: the folder in MINIAI_DATA, else Debian's package, else sample"),
    'hub':    DataRow(partial(fashion_mnist, source='hub'), 'Fashion-MNIST from the Hugging Face hub'),
    'sample': DataRow(partial(fashion_mnist, source='sample'), '10 thousand training images inside miniai'),
}
DATA['fashion-mnist'] = DATA['auto']._replace(about='the same as auto')
OPTIMIZERS = {  # rates tuned on held-out training images, with the simple model and batches of 128
    'sgd':       OptimizerRow(optim.SGD,       dict(constant=5e-2,   cosine=0.8,  onecycle=0.8)),
    'momentum':  OptimizerRow(optim.Momentum,  dict(constant=0.3,    cosine=2.,   onecycle=2.)),
    'heavyball': OptimizerRow(optim.HeavyBall, dict(constant=3e-2,   cosine=0.2,  onecycle=0.2)),
    'nesterov':  OptimizerRow(optim.Nesterov,  dict(constant=2e-2,   cosine=0.2,  onecycle=0.2)),
    'rmsprop':   OptimizerRow(optim.RMSProp,   dict(constant=8e-4,   cosine=1e-2, onecycle=1e-2)),
    'adagrad':   OptimizerRow(optim.Adagrad,   dict(constant=1.5e-2, cosine=5e-2, onecycle=8e-2)),
    'adam':      OptimizerRow(optim.Adam,      dict(constant=4e-3,   cosine=2e-2, onecycle=2e-2)),
    'adamw':     OptimizerRow(optim.AdamW,     dict(constant=4e-3,   cosine=2e-2, onecycle=2e-2)),
    'nadamw':    OptimizerRow(optim.NAdamW,    dict(constant=8e-4,   cosine=2e-2, onecycle=2e-2)),
    'radam':     OptimizerRow(optim.RAdam,     dict(constant=8e-3,   cosine=4e-2, onecycle=4e-2)),
    'adopt':     OptimizerRow(optim.ADOPT,     dict(constant=8e-3,   cosine=2e-2, onecycle=4e-2)),
    'ademamix':  OptimizerRow(optim.AdEMAMix,  dict(constant=4e-3,   cosine=1e-2, onecycle=2e-2)),
    'lamb':      OptimizerRow(optim.LAMB,      dict(constant=8e-3,   cosine=2e-2, onecycle=2e-2)),
    'mars':      OptimizerRow(optim.MARS,      dict(constant=1.6e-2, cosine=2e-2, onecycle=8e-2)),
    'muon':      OptimizerRow(optim.Muon,      dict(constant=8e-3,   cosine=2e-2, onecycle=2e-2)),
    'normuon':   OptimizerRow(optim.NorMuon,   dict(constant=1.6e-2, cosine=2e-2, onecycle=2e-2)),
    'soap':      OptimizerRow(optim.SOAP,      dict(constant=4e-3,   cosine=1e-2, onecycle=2e-2)),
    'shampoo':   OptimizerRow(optim.Shampoo,   dict(constant=4e-3,   cosine=1e-2, onecycle=4e-2)),
    'adafactor': OptimizerRow(optim.Adafactor, dict(constant=1.6e-2, cosine=0.16, onecycle=0.16)),
    'scion':     OptimizerRow(optim.Scion,     dict(constant=5e-4,   cosine=1e-3, onecycle=2e-3)),
    'schedulefreesgd':   OptimizerRow(optim.ScheduleFreeSGD,   dict(constant=1.,     cosine=1.,   onecycle=2.)),
    'schedulefreeadamw': OptimizerRow(optim.ScheduleFreeAdamW, dict(constant=1.6e-2, cosine=2e-2, onecycle=2e-2)),
    'kron':      OptimizerRow(optim.Kron,      dict(constant=2e-3,   cosine=1e-2, onecycle=2e-2)),
    'prodigy':   OptimizerRow(optim.Prodigy,   dict(constant=0.5,    cosine=2.,   onecycle=3.)),
    'lion':      OptimizerRow(optim.Lion,      dict(constant=1.5e-3, cosine=4e-3, onecycle=8e-3)),
}
for row in OPTIMIZERS.values(): row.lrs['warmup-cosine'] = row.lrs['cosine']
SCHEDULES = {
    'onecycle':      ScheduleRow(_onecycle,      'rises to lr, then falls to almost 0'),
    'cosine':        ScheduleRow(_cosine,        'falls from lr to 0'),
    'warmup-cosine': ScheduleRow(_warmup_cosine, 'rises to lr in a tenth of the steps, then falls to 0'),
    'constant':      ScheduleRow(_constant,      'stays at lr'),
}

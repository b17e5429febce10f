"The options that every optimizer has: which stages surround its rule, and how its state is kept."
from numbers import Integral
from typing import Any

import torch

from miniai.optim.stages import Stages

__all__ = ['OPTIONS', 'SEVERAL_KINDS', 'STATES', 'stages_of']

OPTIONS = dict(decoupled=True, clip_norm=None, clip_value=None, skip_nonfinite=False, cautious=False, ema=None,
               tail=None, nesterov=False, cautious_decay=False, hyperball=False, state=None, rounding='nearest', seed=0)
SEVERAL_KINDS = dict(cautious=bool | str)  # of what kinds an option may be, if not only of its default's
STATES = {None: None, 'bf16': torch.bfloat16, 'int8': torch.uint8}  # the dtype in which states are kept
_VALUES = dict(  # which values are right, and in words
    clip_norm=(lambda x: x is None or x > 0, 'above 0'),
    clip_value=(lambda x: x is None or x > 0, 'above 0'),
    cautious=(lambda x: x in (False, True, 'rescaled'), "True, False or 'rescaled'"),
    ema=(lambda x: x is None or 0 <= x < 1, 'in [0, 1), the weight of the average'),
    tail=(lambda x: x is None or x >= 1, 'at least 1, the first step to be averaged'),
    state=(lambda x: x in STATES, "'bf16', 'int8' or None"),
    rounding=(lambda x: x in ('nearest', 'stochastic'), "'nearest' or 'stochastic'"),
    seed=(lambda x: isinstance(x, Integral), 'a whole number'),
    **dict.fromkeys(('decoupled', 'skip_nonfinite', 'nesterov', 'cautious_decay', 'hyperball'),
                    (lambda x: x in (False, True), 'True or False')))


def stages_of(options: dict[str, Any]) -> Stages:
    "The stages that options ask for. ValueError for wrong values, and for two options that exclude each other."
    for name, (good, wanted) in _VALUES.items():
        if not good(options[name]): raise ValueError(f"{name} must be {wanted}, got {options[name]!r}")
    o = {k: x not in (None, False) for k, x in options.items()}
    if options['ema'] is not None and o['tail']:
        raise ValueError(f"ema={options['ema']} and tail={options['tail']} are both averages of the weights: give only "
                         f"one of them")
    if o['cautious_decay'] and not o['decoupled']:
        raise ValueError("cautious_decay=True needs decoupled decay: remove decoupled=False")
    return Stages(o['clip_value'], o['decoupled'], o['cautious'], options['cautious'] == 'rescaled',
                  options['ema'] is not None, o['tail'], o['nesterov'], o['cautious_decay'], o['hyperball'])

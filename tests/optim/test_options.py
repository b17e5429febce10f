"Options: wrong values, and options that exclude each other, are errors that say what to do."
import inspect
import math

import pytest

import miniai.optim as optim
from miniai.jobs.registry import OPTIMIZERS
from miniai.optim.options import OPTIONS, stages_of
from miniai.optim.stages import Stages
from opts import param


@pytest.mark.parametrize(('wrong', 'says'), [
    (dict(tail=0), 'tail must be at least 1, the first step to be averaged, got 0'),
    (dict(tail=math.nan), 'tail must be at least 1'),
    (dict(nesterov='yes'), "nesterov must be True or False, got 'yes'"),
    (dict(hyperball=2.), r'hyperball must be True or False, got 2\.0'),
    (dict(cautious_decay='rescaled'), "cautious_decay must be True or False, got 'rescaled'"),
    (dict(skip_nonfinite='no'), "skip_nonfinite must be True or False, got 'no'"),
    (dict(seed=None), 'seed must be a whole number, got None'),
    (dict(ema=.9, tail=5), r'ema=0\.9 and tail=5 are both averages of the weights: give only one'),
    (dict(ema=0., tail=5), 'give only one'),
    (dict(cautious_decay=True, decoupled=False), 'cautious_decay=True needs decoupled decay: remove decoupled=False')])
def test_wrong_values_and_options_that_exclude_each_other_are_errors(wrong, says):
    for cls in (optim.AdamW, optim.Muon):
        with pytest.raises(ValueError, match=says): cls([param(2, 2)], **wrong)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_has_every_option(name):
    found = inspect.signature(OPTIMIZERS[name].build).parameters
    assert {k: found[k].default for k in OPTIONS} == OPTIONS


def test_without_options_there_are_no_stages_but_decoupled_decay():
    assert stages_of(OPTIONS) == Stages()
    assert stages_of(OPTIONS | dict(ema=0., cautious='rescaled')) == Stages(ema=True, cautious=True, rescaled=True)

"Suggestions of a rate finder's curve: where they are, how far they agree, and when to believe none."
import json

import numpy as np
import pytest

from miniai.callbacks.lr_suggestions import LRSuggestions, suggestions

LRS = np.geomspace(1e-6, 10, 80)


def sigmoid(at, steep=3, rises=1):
    "A loss that falls from 2 to 0.5 around the rate `at`, and rises above the rate `rises`."
    return 2 - 1.5/(1 + (LRS/at)**-steep) + np.maximum(LRS - rises, 0)*5


@pytest.mark.parametrize('at', [1e-4, 1e-3, 1e-2])
def test_all_suggestions_are_where_they_say(at):
    losses = sigmoid(at)
    found = suggestions(LRS, losses)
    step = LRS[1]/LRS[0]
    assert found.half == pytest.approx(at, rel=2*step - 2)
    assert found.steepest == pytest.approx(at, rel=2*step - 2)  # a sigmoid is steepest in its middle
    assert found.tenth == pytest.approx(LRS[losses.argmin()]/10, rel=3*step - 3)
    assert at < found.valley < LRS[losses.argmin()]
    assert found.half < found.peak < LRS[losses.argmin()]


def test_the_valley_is_two_thirds_of_the_way_down_a_fall_that_is_even():
    x = np.log(LRS)
    losses = np.where(LRS < 1e-4, 2., np.where(LRS < 1e-1, 2 - (x - np.log(1e-4))/5, 9.))
    assert suggestions(LRS, losses).valley == pytest.approx(1e-2, rel=.6)


def test_the_longest_fall_may_leave_out_losses_that_are_too_high():
    bumps = sigmoid(1e-3)
    bumps[::10] += .02
    smooth, bumpy = suggestions(LRS, sigmoid(1e-3)), suggestions(LRS, bumps)
    assert bumpy.valley == pytest.approx(smooth.valley, rel=.5)


def test_the_spread_is_the_largest_rate_over_the_smallest():
    found = suggestions(LRS, sigmoid(1e-3))
    rates = found.half, found.steepest, found.valley, found.tenth
    assert found.spread == pytest.approx(max(rates)/min(rates))
    assert f'agree within a factor of {found.spread:.1f}.' in str(found)


def test_a_loss_that_dips_early_by_chance_moves_no_suggestion():
    losses = sigmoid(1e-3)
    before = suggestions(LRS, losses)
    losses[8:13] = 1.2
    assert suggestions(LRS, losses)[:4] == before[:4]


def test_a_curve_that_falls_and_rises_is_believed():
    assert suggestions(LRS, sigmoid(1e-3)).doubt == ''
    assert 'rely' not in str(suggestions(LRS, sigmoid(1e-3)))


g = np.random.default_rng(0)
DOUBTFUL = {
    'never fell clearly': (LRS, 1 + .1*g.standard_normal(80)),
    'only 4 finite losses': (LRS[:6], [3., 2., 1., 1., np.nan, np.nan]),
    'only 8 losses': (LRS[:8], [5., 4., 3., 2., 1., .5, .4, 3.]),
    'times its noise': (LRS, sigmoid(1e-2) + np.random.default_rng(4).standard_normal(80)),
    'from the first rates on': (LRS[:40], np.r_[8., 3., 1.2, .9, .6, .5, .4, .3, np.full(31, .3), 2.]),
    'still fell at the last rate': (LRS[:60], np.linspace(3, 1, 60)),
    'differ by a factor of': (LRS, np.r_[np.linspace(2, 1, 20), np.linspace(1, .95, 55), 3, 3, 3, 3, 3])}


@pytest.mark.parametrize('why', DOUBTFUL)
def test_a_curve_that_says_nothing_is_doubted_with_the_reason(why):
    found = suggestions(*DOUBTFUL[why])
    assert why in found.doubt
    assert found.doubt in str(found)
    assert (found.half is None) == (why in ('never fell clearly', 'only 4 finite losses'))
    if found.half is None: assert str(found).startswith('No suggestion')
    else: assert str(found).endswith(f'Do not rely on them: {found.doubt}.')


def test_an_end_that_is_not_finite_is_an_explosion_not_a_fall():
    falling = list(sigmoid(1e-2)[:55])
    assert 'still fell' in suggestions(LRS[:55], falling).doubt
    assert suggestions(LRS[:56], [*falling, float('nan')]).doubt == ''


def test_the_curve_is_kept_as_plain_data():
    found = suggestions(LRS, sigmoid(1e-3))
    again = LRSuggestions(**json.loads(json.dumps(found._asdict())))
    assert again == found
    assert again.lrs == list(LRS)


def test_without_losses_there_is_no_suggestion():
    assert suggestions([], [])[:6] == (None,)*6

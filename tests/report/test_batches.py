"Batches of a run, thinned: nothing is lost of a short run, and a long one keeps means and extremes."
import math

import numpy as np

from miniai.report.batches import MOST_POINTS, thinned


def test_a_short_run_keeps_every_value():
    losses, rates = [3., 1., 2.], [.1, .2, .3]
    assert thinned(losses, rates, [2, 3]) == dict(batches=3, every=1, loss=losses, low=losses, high=losses, lr=rates,
                                                  ends=[2, 3])


def test_a_long_run_has_means_extremes_and_the_last_rate_of_equal_pieces():
    n = 2*MOST_POINTS + 1
    losses, rates = np.random.default_rng(0).normal(size=n).tolist(), list(range(n))
    found = thinned(losses, rates, [])
    pieces = [losses[i:i + 3] for i in range(0, n, 3)]
    assert (found['batches'], found['every']) == (n, 3)
    assert np.allclose(found['loss'], [np.mean(p) for p in pieces])
    assert found['low'] == [min(p) for p in pieces]
    assert found['high'] == [max(p) for p in pieces]
    assert found['lr'] == [rates[i:i + 3][-1] for i in range(0, n, 3)]
    assert len(found['loss']) <= MOST_POINTS


def test_a_loss_that_is_not_finite_shows_in_its_piece():
    losses = [1.]*(MOST_POINTS*2)
    losses[4] = math.nan
    assert [i for i, v in enumerate(thinned(losses, [], [])['loss']) if math.isnan(v)] == [2]


def test_without_batches_or_with_rates_of_other_batches_the_lists_are_empty():
    assert thinned([], [], []) == dict(batches=0, every=1, loss=[], low=[], high=[], lr=[], ends=[])
    assert thinned([1.], [.1, .2], [])['lr'] == []

"Verdicts are calibrated: equal rules are told apart no more often than stated, known differences as often as stated."
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from miniai.racing.verdict import compare, compare_all, detectable, holm, pairs_of, ranks, seeds_needed, with_worst

RACES = 200


def simulated(rng, seeds, effect=0., cells=2, spread=1., noise=None):
    "Figures of two rules: what a seed does to both, and what it does to each; a lower by `effect` in the first cell."
    noise = noise or rng.normal
    def figures(shift): return shared + spread/2**.5*noise(size=seeds) - shift
    out = {}
    for cell in range(cells):
        shared = 3*rng.normal(size=seeds)
        out[cell] = dict(a=figures(effect if cell == 0 else 0.), b=figures(0.))
    return out


@pytest.mark.parametrize(('seeds', 'kind'), [(5, 'normal'), (5, 'exponential'), (5, 'standard_cauchy'), (8, 'normal'),
                                             (12, 'exponential')])
def test_a_rule_against_itself_is_told_apart_in_no_more_races_than_stated(seeds, kind):
    rng = np.random.default_rng(seeds)
    noise = getattr(rng, kind)
    false = sum(any(row['verdict'] != 'cannot tell' for row in
                    compare_all(simulated(rng, seeds, noise=noise), [('a', 'b')])) for _ in range(RACES))
    assert false <= stats.binom.ppf(.999, RACES, .05)


@pytest.mark.parametrize('seeds', [5, 9])
def test_the_difference_that_a_plan_calls_detectable_is_detected_with_the_stated_power(seeds):
    rng = np.random.default_rng(seeds)
    effect = detectable(1., seeds, .05/2, .8)
    found = [compare_all(simulated(rng, seeds, effect), [('a', 'b')])[0]['verdict'] for _ in range(RACES)]
    assert found.count('better') >= stats.binom.ppf(.001, RACES, .8)
    assert found.count('worse') == 0


@pytest.mark.parametrize(('seeds', 'm'), [(7, 3), (8, 6), (10, 42), (11, 42), (12, 42), (14, 42)])
def test_the_power_holds_where_sign_flips_hardly_reach_the_level(seeds, m):
    rng = np.random.default_rng(seeds)
    effect = detectable(1., seeds, .05/m, .8)
    found = sum(compare(rng.normal(-effect, 1, seeds), np.zeros(seeds), .05, m)['p_alone'] <= .05/m for _ in range(400))
    assert stats.binom.ppf(.001, 400, .8) <= found <= stats.binom.ppf(.999, 400, .86)


@pytest.mark.parametrize(('seeds', 'm'), [(5, 1), (8, 42), (30, 1)])
def test_what_is_detectable_has_the_power_of_the_noncentral_t_distribution(seeds, m):
    limit, shift = stats.t.ppf(1 - .025/m, seeds - 1), detectable(2., seeds, .05/m, .8)/2*seeds**.5
    assert stats.nct.sf(limit, seeds - 1, shift) == pytest.approx(.8, abs=1e-4)


def test_with_the_seeds_that_are_said_to_be_needed_a_difference_is_detected():
    rng = np.random.default_rng(0)
    n = seeds_needed(.8, 1., .05, .8)
    found = [compare_all(simulated(rng, n, .8, cells=1), [('a', 'b')])[0]['verdict'] for _ in range(RACES)]
    assert stats.binom.ppf(.001, RACES, .8) <= found.count('better') <= 190
    few = [compare_all(simulated(rng, n//2, .8, cells=1), [('a', 'b')])[0]['verdict'] for _ in range(RACES)]
    assert few.count('better') < found.count('better')


@pytest.mark.parametrize('seeds', [6, 25])
def test_an_interval_of_95_percent_holds_the_true_difference_that_often(seeds):
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(RACES):
        low, high = compare(rng.normal(.3, 1, seeds), np.zeros(seeds))['interval']
        inside += low <= .3 <= high
    assert stats.binom.ppf(.001, RACES, .93) <= inside


def test_the_sign_flip_test_counts_all_flips():
    d = np.array([.3, -.1, .4, .25, .6, .2, .15, .05, .1])
    means = [abs(np.dot(s, d)) for s in product((1, -1), repeat=9)]
    row = compare(d, np.zeros(9))
    assert row['test'] == 'sign flips'
    assert row['p_alone'] == np.mean(np.array(means) >= d.sum() - 1e-12)


def test_with_too_few_seeds_for_flips_the_test_is_students():
    d = np.array([.3, .1, .4, .25])
    row = compare(d, np.zeros(4))
    assert (row['test'], row['p_alone']) == ('Student', pytest.approx(stats.ttest_1samp(d, 0).pvalue))


def test_with_many_comparisons_a_clear_difference_is_still_decided():
    rng = np.random.default_rng(0)
    row = compare(rng.normal(size=20), rng.normal(5, size=20), .05, m=4000)
    assert row['p_alone'] <= .05/4000


def test_equal_differences_are_not_proof_and_none_at_all_is_no_difference():
    assert compare([1, 1, 1], [2, 2, 2])['p_alone'] == .25  # 2 of 8 flips
    row, = compare_all(dict(cell=dict(a=[1.]*30, b=[1.]*30)), [('a', 'b')])
    assert (row['verdict'], row['difference'], row['p']) == ('cannot tell', 0, 1)


def test_differences_of_rounding_are_none():
    a = np.linspace(1, 2, 9)
    assert compare(a*(1 + 9e-6), a)['p_alone'] == compare(-a*(1 + 9e-6), -a)['p_alone'] == 1
    assert compare(a*(1 + 9e-6), a)['difference'] == 0
    assert compare(a*(1 + 2e-5), a)['p_alone'] == 2/2**9


def test_holm_multiplies_by_the_number_of_those_that_are_left_and_keeps_the_order():
    assert holm([.01, .04, .03, .005]) == pytest.approx([.03, .06, .06, .02])
    assert holm([.5, .9]) == [1, 1]


def test_with_baselines_alone_fewer_pairs_are_corrected_for():
    assert pairs_of('abc', 'xy') == [(a, b) for a, b in combinations('abcxy', 2) if a in 'abc']
    assert pairs_of('abc', 'xy', 'baselines') == [*product('abc', 'xy')]
    cells = dict(cell=dict(a=[1., 2., 3., 4.], b=[2., 4., 7., 6.], x=[1.1, 2.3, 3.2, 4.4]))
    p = {kind: {(r['a'], r['b']): r['p'] for r in compare_all(cells, pairs_of('ab', 'x', kind))}
         for kind in ('all', 'baselines')}
    assert p['all']['a', 'x'] == pytest.approx(3/2*p['baselines']['a', 'x'])


def test_a_failed_run_counts_as_the_worst_figure_or_as_no_training():
    assert with_worst(dict(a=[1., None], b=[5., 2.]), [3.]) == dict(a=[1, 5], b=[5, 2])
    assert with_worst(dict(a=[1., None]), [7.]) == dict(a=[1, 7])


def test_ranks_share_ties_and_their_intervals_hold_them():
    found = ranks(dict(x=dict(a=[1, 1, 5], b=[2, 1, 4], c=[3, 3, 3])))
    assert [found[nm][0] for nm in 'abc'] == pytest.approx([(1 + 1.5 + 3)/3, (2 + 1.5 + 2)/3, (3 + 3 + 1)/3])
    assert all(low <= mean <= high for mean, low, high in found.values())


def test_figures_that_rounding_alone_parts_share_a_rank():
    found = ranks(dict(x=dict(a=[.5, .5], b=[.5000001, .5000001], c=[.6, .6])))
    assert [found[nm][0] for nm in 'abc'] == [1.5, 1.5, 3]


@pytest.mark.parametrize('seeds', [3, 8, 12])
def test_the_interval_of_a_rank_holds_that_of_equal_rules_as_often_as_it_says(seeds):
    rng, inside = np.random.default_rng(seeds), 0
    for _ in range(RACES):
        _, low, high = ranks({cell: {nm: rng.normal(size=seeds) for nm in 'abc'} for cell in range(3)})['a']
        inside += low <= 2 <= high
    assert stats.binom.ppf(.001, RACES, .91) <= inside


def test_one_seed_is_no_comparison():
    with pytest.raises(ValueError, match='2 or more seeds, got 1'): compare([1.], [2.])

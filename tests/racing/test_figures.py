"Figures of a race show the record's values: medians and quartiles over seeds, and what each learning rate came to."
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from miniai.racing.answer import Answer
from miniai.racing.figures import curves_figure, groups, quartiles, rates_figure
from raced import record

WHERE = 'easy', 40


@pytest.fixture(scope='module')
def race(): return Answer(record())


def test_quartiles_are_those_over_seeds_and_failed_runs_count_as_infinite(race):
    curves = {nm: [r['result']['curve'] for r in race.record['runs'] if not r['tunes'] and r['rule'] == nm and
                   r['steps'] == 40] for nm in race.rules}
    for k, (step, *found) in enumerate(quartiles(race, WHERE, 'new')):
        assert step == 10*(k + 1)
        assert found == pytest.approx(np.quantile([c[k][2] for c in curves['new']], [.5, .25, .75]))
    finite = sorted(c[3][2] for c in curves['wild'] if c)  # of 5 runs, 2 failed
    assert quartiles(race, WHERE, 'wild')[-1] == (40, pytest.approx(finite[2]), pytest.approx(finite[1]), float('inf'))


def test_up_to_eight_rules_share_a_figure_and_of_more_each_has_the_baselines():
    assert [sorted(nms) for nms in groups(Answer(record()))] == [['new', 'old', 'wild']]
    rules = [f'r{i}' for i in range(14)]
    found = groups(Answer(record(rules=rules, entrants=12, lengths=(40,))))
    assert [nms[:2] for nms in found] == [['r12', 'r13']]*2
    assert found[0][2:] + found[1][2:] == rules[:12]


def paths(svg, kind): return re.findall(rf'<path class="{kind}" d="([^"]*)"', svg)


def test_curves_have_a_line_for_each_rule_and_a_baseline_is_dashed(race):
    f = curves_figure(race, WHERE, ['new', 'old'], 'a')
    assert (f['title'], f['legend']) == ('easy, 40 steps', [('s1', 'new'), ('s2 dotted', 'old')])
    assert len(paths(f['svg'], 'line s1')) == len(paths(f['svg'], 'line s2 dotted')) == 1
    assert len(paths(f['svg'], 'band s1')) == 1
    about = ElementTree.fromstring(f['svg']).find('desc').text
    assert about == f"Medians at the end: new {quartiles(race, WHERE, 'new')[-1][1]:.4g}, " \
                    f"old {quartiles(race, WHERE, 'old')[-1][1]:.4g}."


def test_a_rule_that_never_came_to_a_figure_has_no_line_and_says_so():
    given = record(figure=lambda i, seed, steps: None if i == 1 else .1 + seed/1e4)
    f = curves_figure(Answer(given), WHERE, ['new', 'wild'], 'a')
    assert f['legend'][1] == ('s2', 'wild (5 of 5 failed)')
    assert not paths(f['svg'], 'line s2')
    assert 'wild failed' in ElementTree.fromstring(f['svg']).find('desc').text


def test_a_run_that_is_worse_than_no_training_does_not_flatten_the_others():
    given = record(figure=lambda i, seed, steps: 1e9 if i == 1 else .5 + seed/1e4)
    heights = [float(y) for y in re.findall(r' (\d+\.\d)', paths(curves_figure(
        Answer(given), WHERE, ['new', 'wild'], 'a')['svg'], 'line s1')[0])]
    assert max(heights) - min(heights) > 20


def test_every_configuration_is_a_dot_at_its_rate_the_best_a_ring_and_failed_ones_are_crosses(race):
    f = rates_figure(race, WHERE, ['new', 'wild'], 'a')
    assert paths(f['svg'], 'points s1')[0].count('h0') == 4
    assert not paths(f['svg'], 'points s2')
    assert paths(f['svg'], 'crosses s2')[0].count('M') == 4
    root = ElementTree.fromstring(f['svg'])
    ring, = root.findall('circle')
    best = min((r for r in race.record['runs'] if r['tunes'] and (r['rule'], r['steps']) == ('new', 40)),
               key=lambda r: r['result']['final'])
    assert f"best {best['result']['final']:.4g} at {best['config']['lr']:.3g}" in ring[0].text
    assert 'wild: 4 of 4 failed' in root.find('desc').text
    first, second = (float(x) for x in re.findall(r'M(\d+\.\d)', paths(f['svg'], 'points s1')[0])[:2])
    last = float(re.findall(r'M(\d+\.\d)', paths(f['svg'], 'points s1')[0])[-1])
    assert second - first == pytest.approx((last - first)/3, abs=.2)  # rates double: equal steps on a log axis

"The page of a race: its numbers are those of the record, names and code stay text, and it is one small file."
import math
import re
from statistics import mean, median, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai.racing import answer as module
from miniai.racing.answer import Answer
from miniai.racing.page import race_page
from raced import record
from recorded import Page


def shown(given): return Page(race_page(Answer(given)))


@pytest.fixture(scope='module')
def race(): return Answer(record())


@pytest.fixture(scope='module')
def found(race): return Page(race_page(race))


# Numbers

def test_verdicts_come_first_and_are_counted_over_tasks_and_lengths(race, found):
    titles = [a['id'] for t, a in found.tags if t == 'h2']
    assert titles == ['verdicts', 'comparisons', 'ranks', 'figures', 'curves', 'rates', 'costs', 'notes',
                      'configurations', 'rules', 'protocol', 'machine', 'repeat']
    def counted(a, b):
        vs = [c['verdict'] for c in race.comparisons if (c['a'], c['b']) == (a, b)]
        return [f'{a} against {b}', *(vs.count(v) for v in ('better', 'worse', 'cannot tell'))]
    rows = found.tables['Against the baselines, on 1 task at 2 lengths'][1:]
    assert sorted(rows) == [counted('new', 'old'), counted('wild', 'old')]
    assert [row[2] - row[1] for row in rows] == sorted(row[2] - row[1] for row in rows)  # the best first
    assert found.tables['Among the entrants, on 1 task at 2 lengths'][1:] == [counted('new', 'wild')]
    assert race.summary() in found.text


def test_a_race_on_one_task_at_one_length_has_its_comparisons_first():
    found = shown(record(lengths=(40,)))
    assert found.tables['easy, 40 steps'][0][:2] == ['rules', 'verdict']
    assert [a['id'] for t, a in found.tags if t == 'h2'][:2] == ['verdicts', 'ranks']


def test_every_comparison_has_its_difference_interval_p_and_what_would_tell():
    given = record(lengths=(40,), figure=lambda i, seed, steps: [.1, .3, .102][i] + .001*((7*i + seed*seed) % 5))
    answer = Answer(given)
    rows = shown(given).tables['easy, 40 steps'][1:]
    assert len(rows) == len(answer.comparisons) == 3
    for row, c in zip(rows, answer.comparisons, strict=True):
        low, high = c['interval']
        assert row[0] == f"{c['a']} against {c['b']}"
        assert row[2] == c['difference']
        assert row[3] == f'{low:+.3g} to {high:+.3g}'
        assert row[4] == c['p']
        if c['verdict'] == 'cannot tell':
            assert row[1] == 'cannot be told apart'
            more = f"{c['more_seeds']} more seeds" if c['more_seeds'] < 1000 else f"difference of {c['detectable']:.2g}"
            assert more in row[5]
        else: assert (row[1], row[5]) == (c['verdict'], '—')
    assert {c['verdict'] for c in answer.comparisons} == {'better', 'worse', 'cannot tell'}


def test_ranks_figures_and_costs_are_those_of_the_record(race, found):
    ranks = found.tables['Mean rank over all tasks, lengths and seeds; 1 is the best'][1:]
    assert [row[:2] for row in ranks] == [[nm, race.ranks[nm][0]] for nm in sorted(race.ranks, key=race.ranks.get)]
    for steps in (40, 160):
        runs = {nm: [r['result'] for r in race.record['runs'] if not r['tunes'] and
                     (r['steps'], r['rule']) == (steps, nm)] for nm in race.rules}
        figures = {nm: [2. if r['final'] is None else r['final'] for r in rs] for nm, rs in runs.items()}
        rows = found.tables[f'easy, {steps} steps: loss'][1:]
        assert [row[:3] for row in rows] == [[nm, pytest.approx(mean(xs)), pytest.approx(stdev(xs))]
                                             for nm, xs in figures.items()]
        assert [row[3] for row in rows] == ['0 of 5', '2 of 5', '0 of 5']
        target = median(r['curve'][-1][2] for r in runs['old'])
        costs, = (rows for caption, rows in found.tables.items() if caption.startswith(f'easy, {steps} steps: target'))
        for row, (nm, results) in zip(costs[1:], runs.items(), strict=True):
            reached = median(next((step for step, _, x in r['curve'] if x <= target), math.inf) for r in results)
            assert row[:2] == [nm, pytest.approx(4.)]
            assert row[2] == ('not reached' if reached == math.inf else reached)
            assert row[4] == 4096


def test_every_configuration_is_listed_with_its_figures_and_the_chosen_one_is_marked(race, found):
    for nm in race.rules:
        tuned = [r for r in race.record['runs'] if r['tunes'] and r['rule'] == nm]
        rows = found.tables[nm][1:]
        assert len(rows) == 4
        for k, row in enumerate(rows):
            finals = [r['result']['final'] for r in tuned if r['config']['lr'] == .01*2**k]
            assert row[1:3] == [f'{.01*2**k:.2g}', '0.125']
            assert [x.replace(' ★', '') for x in row[3:]] == ['failed' if x is None else f'{x:.4g}' for x in finals]
            assert ['★' in x for x in row[3:]] == [k == 1]*2


def test_the_protocol_the_machine_and_the_rest_can_be_read(race, found):
    assert (found.facts['seeds of the comparison'], found.facts['torch']) == (5, '2.10')
    assert found.tables['Spaces that were tuned'][1] == ['new', '0.01 to 0.08', '0.125, 0.25']
    for note in race.notes(): assert note in found.text
    assert 'not tested: the task resnet' in found.text
    assert 'miniai race --verdict race.json' in found.text


# One file for everyone

def test_the_page_needs_nothing_else_and_everything_in_it_has_a_name(found):
    ids = found.ids()
    assert len(ids) == len(set(ids))
    for tag, attrs in found.tags:
        assert tag not in ('script', 'iframe', 'object', 'embed', 'base', 'img')
        assert not any(nm.startswith('on') for nm in attrs)
        for name in attrs.keys() & {'src', 'href', 'action'}: assert re.match(r'#|data:', attrs[name])
        if tag == 'svg': assert attrs.get('aria-hidden') == 'true' or attrs['role'] == 'img'
        if 'aria-labelledby' in attrs: assert set(attrs['aria-labelledby'].split()) <= set(ids), attrs
    assert not re.search(r'(https?:)?//', found.html)
    assert "default-src 'none'" in found.html
    assert found.html.count('<table') == found.html.count('<caption') > 10


NAMES = st.text(st.characters(exclude_categories=('Cs', 'Cc', 'Cn')), min_size=1, max_size=20).filter(str.strip) | \
    st.sampled_from(['<b>bold</b>', '"><script>alert(1)</script>', "' onload='x", '{{ 7*7 }}', '&amp;', '</style>'])


@settings(max_examples=15, deadline=None)
@given(name=NAMES.filter(lambda nm: nm not in ('wild', 'old')))
def test_names_and_code_that_look_like_html_stay_text(name, found):
    page = shown(record(rules=(name, 'wild', 'old'), codes={name: f'{name}\ndef rule(p, g): "{name}"'}))
    assert {t for t, _ in page.tags} <= {t for t, _ in found.tags} | {'details', 'pre', 'code'}
    assert not any(nm.startswith('on') for _, attrs in page.tags for nm in attrs)
    assert ' '.join(f'def rule(p, g): "{name}"'.split()) in page.text


def test_a_race_of_27_rules_on_7_tasks_fits_into_2_mb(monkeypatch):
    rules = [f'a_rule_with_a_name_{i}' for i in range(27)]
    given = record(rules=rules, entrants=24, tasks=[f'task-{i}' for i in range(7)], lengths=(250, 1000), trials=8,
                   seeds=8, codes={nm: f'{nm}\n{"p = p - lr*g  # "*100}{nm}' for nm in rules[:24]},
                   figure=lambda i, seed, steps: None if (i, seed) == (3, 5) else .1 + i/300 + (seed % 7)/1234567)
    for r in given['runs']: r['config']['lr'] *= 1 + int(r['task'][-1])/7  # as where tasks have factors
    row = dict(difference=-.123456789, spread=.0123456789, interval=(-.23456789, -.0123456), p=.0123456789, seeds=8,
               verdict='cannot tell', more_seeds=123, detectable=.123)
    monkeypatch.setattr(module, 'compare_all', lambda figures, pairs, *_: [
        dict(row, cell=cell, a=a, b=b) for cell in figures for a, b in pairs])
    html = race_page(Answer(given))
    assert len(html.encode()) < 1.8e6  # room for longer code
    assert 'Left out' not in html
    assert html.count('role="img"') == 2*14*5


def test_of_a_page_that_would_be_larger_the_details_are_left_out_before_the_verdicts(monkeypatch):
    monkeypatch.setattr('miniai.report.page.LARGEST', 1)
    found = shown(record())
    assert 'Left out, so that this page stays below 2 MB. race.json has it.' in found.text
    assert 'Against the baselines, on 1 task at 2 lengths' in found.tables
    assert 'new' not in found.tables


def test_without_any_figure_there_are_dashes():
    given = record(figure=lambda i, seed, steps: None)
    for r in given['runs']: r['result']['start'] = None
    found = shown(given)
    assert found.tables['easy, 40 steps: loss'][1][1:3] == ['—', '—']
    assert found.tables['easy, 40 steps'][1] == ['new against wild', 'cannot be told apart', '—', '—', '—',
                                                 'no run has a figure']


def test_many_comparisons_without_baselines_are_only_counted(monkeypatch):
    monkeypatch.setattr('miniai.racing.page.MOST_ROWS', 5)
    found = shown(record(entrants=3))  # 6 comparisons
    assert len(found.tables['Among the entrants, on 1 task at 2 lengths']) == 1 + 3
    assert not any(row[0] == 'rules' for rows in found.tables.values() for row in rows
                   if 'what would tell' in row)

"The answer is computed from the record alone: verdicts, failures as the worst, targets, costs and notes."
import json
import re

import pytest

import raced
from miniai.racing.answer import Answer, best_configuration


def run(rule, seed, final, tunes=False, lr=.1, curve=((1, .1, .9), (2, .2, .5)), failed=None):
    result = dict(final=final, start=2., failed=failed, curve=[list(r) for r in curve], state_bytes=8)
    return dict(task='t', steps=2, rule=rule, tunes=tunes, seed=seed, config=dict(lr=lr), result=result)


def record(finals, entrants=('new',), baselines=('old',)):
    runs = [run(nm, i, x) for nm, xs in finals.items() for i, x in enumerate(xs)]
    tuning = [run(nm, 999, 1., True, lr) for nm in finals for lr in (.01, .1, .3)]
    protocol = dict(entrants=list(entrants), baselines=list(baselines), trials=3, seeds=len(runs)//len(finals),
                    alpha=.05, power=.8)
    return dict(protocol=protocol, runs=tuning + runs, rules={nm: dict(space=dict(lr=[.01, 1.])) for nm in finals},
                tasks=dict(t=dict(figure='loss')), left_out=['resnet'])


def test_lower_figures_at_every_seed_are_better_and_the_first_rank():
    answer = Answer(record(dict(new=[.1, .2, .15, .12, .3, .2, .1, .2, .1],
                                old=[.5, .7, .6, .52, .8, .9, .5, .7, .6])))
    c, = answer.comparisons
    assert (c['verdict'], c['p']) == ('better', 2/2**9)
    assert c['difference'] == pytest.approx((1.47 - 5.82)/9)
    assert answer.ranks == dict(new=(1, 1, 1), old=(2, 2, 2))
    assert '1 better, 0 worse, 0 cannot be told apart' in str(answer)


def test_what_cannot_be_told_apart_says_how_many_seeds_more_would_tell():
    answer = Answer(record(dict(new=[.1, .5, .2, .6], old=[.2, .45, .4, .58])))
    assert answer.comparisons[0]['verdict'] == 'cannot tell'
    assert f"about {answer.comparisons[0]['more_seeds']} more seeds" in answer.table()


def test_a_failed_run_is_as_bad_as_no_training_and_is_said():
    given = record(dict(new=[.1, None], old=[.5, .7]))
    next(r for r in given['runs'] if r['result']['final'] is None)['result']['failed'] = 'diverged: NaN\nmore'
    answer = Answer(given)
    assert answer.figures['t', 2]['new'] == [.1, 2.]
    assert 'new: 0 of 3 runs of tuning and 1 of the comparison failed, and count as the worst; the first: ' \
           'diverged: NaN\n' in answer.table() + '\n'


def test_the_target_is_the_first_baselines_median_and_a_rule_reaches_it_or_not():
    given = record(dict(new=[.1, .2], old=[.5, .7]))
    for r in given['runs']:
        if r['rule'] == 'new': r['result']['curve'] = [[1, .1, .5], [2, .2, .4]]
    answer = Answer(given)
    assert answer.target(('t', 2)) == .5
    rows = {line.split(' | ')[2].strip(): [c.strip(' |') for c in line.split(' | ')] for line in
            answer.costs().split('\n')[2:]}
    assert rows['new'][3:] == ['0.5', '1', '0.1', '100', '8']
    assert rows['old'][4:6] == ['2', '0.2']
    for r in given['runs']:
        if r['rule'] == 'new': r['result']['curve'] = [[1, .1, .9], [2, .2, None]]
    assert '| -           |' in Answer(given).costs()


def test_half_of_the_runs_reach_the_target_that_is_their_median():
    given = record(dict(new=[.1, .2, .3, .4], old=[.5, .7, .5, .7]))
    for r in given['runs']: r['result']['curve'][-1][2] += r['seed']/100
    answer = Answer(given)
    assert answer.target(('t', 2)) == .5 + (1 + 2)/200
    assert [answer.cost(('t', 2), 'old')[k] for k in ('steps', 'seconds')] == [2, .2]


def test_the_peak_of_a_gpu_is_a_column_if_there_was_one():
    given = record(dict(new=[.1, .2], old=[.5, .7]))
    assert 'peak bytes' not in Answer(given).costs()
    for r in given['runs']: r['result']['peak_bytes'] = 1_000_000*(1 + r['seed'])
    head, _, *rows = Answer(given).costs().split('\n')
    assert head.split('|')[-2].strip() == 'peak bytes'
    assert [row.split('|')[-2].strip() for row in rows] == ['2,000,000']*2


def test_a_best_rate_at_the_end_of_those_tried_is_noted():
    given = record(dict(new=[.1, .2], old=[.5, .7]))
    assert 'the best lr is' not in Answer(given).table()
    for r in given['runs']:
        if not r['tunes'] and r['rule'] == 'new': r['config']['lr'] = .3
    assert 'new: the best lr is the highest that was tried on t at 2 steps' in Answer(given).table()


def test_the_best_configuration_is_the_lowest_and_failures_come_last():
    runs = [run('a', 9, x, True, lr) for lr, x in ((.1, None), (.2, .5), (.3, .4), (.4, .4))]
    assert best_configuration(runs, 't', 2, 'a') == dict(lr=.3)
    assert best_configuration(runs[:1], 't', 2, 'a') == dict(lr=.1)


def test_only_what_the_protocol_compares_is_compared_and_a_record_that_does_not_say_compares_all():
    given = record(dict(a=[.1, .2], b=[.3, .5], old=[.5, .7]), entrants=('a', 'b'))
    assert [(c['a'], c['b']) for c in Answer(given).comparisons] == [('a', 'b'), ('a', 'old'), ('b', 'old')]
    given['protocol']['compare'] = 'baselines'
    assert [(c['a'], c['b']) for c in Answer(given).comparisons] == [('a', 'old'), ('b', 'old')]
    assert 'a - b' not in Answer(given).table()


def test_another_file_is_no_race(tmp_path):
    (tmp_path/'a.json').write_text('[]')
    with pytest.raises(ValueError, match='is not the race'): Answer.read(tmp_path/'a.json')


def test_runs_are_paired_by_seed_in_whatever_order_they_are():
    given = record(dict(new=[.1, .5, .2, .6], old=[.2, .45, .4, .58]))
    expected = Answer(given)
    given['runs'][-4:] = given['runs'][-4:][::-1]
    assert Answer(given).comparisons == expected.comparisons
    assert Answer(given).table() == expected.table()
    given['runs'] += given['runs'][-4:]  # the same run twice is one
    assert Answer(given).comparisons == expected.comparisons


def test_without_any_figure_nothing_can_be_told():
    given = record(dict(new=[None, None], old=[None, None]))
    for r in given['runs']: r['result'] |= dict(start=None, final=None, failed='diverged')
    answer = Answer(given)
    c, = answer.comparisons
    assert (c['verdict'], c['p'], answer.ranks) == ('cannot tell', 1, dict(new=(1.5,)*3, old=(1.5,)*3))
    cells = [[x.strip() for x in line.strip('|').split(' | ')] for line in str(answer).splitlines()]
    assert ['t', '2', 'new', '-', '-', '2 of 2', 'lr=0.1'] in cells
    assert ['t', '2', 'new - old', '-', '-', '-', 'cannot be told apart; no run has a figure'] in cells


@pytest.mark.parametrize(('damage', 'said'), [
    (lambda r: r.update(runs=[]), 'new on easy at 40 steps has 0 of 4 runs of tuning'),
    (lambda r: r['runs'].pop(), 'old on easy at 160 steps has 4 of 5 seeds'),
    (lambda r: r['runs'][-1].update(seed=99), 'old on easy at 160 steps has other seeds than the first rule'),
    (lambda r: r['runs'][7].update(rule='x'), 'its protocol has no runs of x on easy at 40 steps'),
    (lambda r: r['runs'][7]['result'].pop('curve'), 'run 7 lacks curve'),
    (lambda r: r['runs'].insert(0, 3), 'is damaged: '),
    (lambda r: r.update(protocol={}), 'its protocol lacks entrants, baselines, tasks, trials, seeds, lengths'),
    (lambda r: r.pop('machine'), 'its machine lacks versions'), (lambda r: r.update(tasks={}), 'is damaged: ')])
def test_a_damaged_race_is_an_error_that_names_the_file_and_what_is_wrong(damage, said, tmp_path):
    given, file = raced.record(), tmp_path/'race.json'
    file.write_text(json.dumps(given))
    assert Answer.read(file).comparisons == Answer(given).comparisons
    damage(given)
    file.write_text(json.dumps(given))
    with pytest.raises(ValueError, match=re.escape(f'{file} is damaged: ')) as e: Answer.read(file)
    assert said in str(e.value)


@pytest.mark.parametrize('text', ['', '{"a'])
def test_a_broken_file_is_an_error_that_names_it(text, tmp_path):
    (tmp_path/'a.json').write_text(text)
    with pytest.raises(ValueError, match=r'a\.json is damaged: '): Answer.read(tmp_path/'a.json')
    with pytest.raises(ValueError, match=r'b\.json cannot be read: '): Answer.read(tmp_path/'b.json')

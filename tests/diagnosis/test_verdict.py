"Verdicts and facts: sorted, counted, and only judged where enough is known."
import pytest

from miniai.diagnosis import data_verdicts, verdicts  # noqa: F401 (they register their rules)
from miniai.diagnosis.verdict import (
    EXPLAINED,
    NAMES,
    Facts,
    Verdict,
    judge,
    last,
    mean_of,
    median_of,
    of_size,
    percent,
    since_when,
)


def test_verdicts_come_with_causes_first_and_what_is_only_possible_last():
    x = dict(mean=500., std=1., low=0., high=1., spread=1., rows=9)
    data = dict(inputs=[x], low=0., high=7., classes=3, sizes=[2])
    setup = dict(batch_norms=['1'], left_out=['w'], has_norms=True, decayed_norms={'1.weight': 0.5})
    found, checked = judge(Facts(data=data, setup=setup, losses=[1.]*9, rate=0.1, done=1.))
    assert [(v.certain, v.name) for v in found] == [
        ('sure', 'labels out of range'), ('likely', 'inputs not normalized'), ('sure', 'parameter in no group'),
        ('likely', 'batch too small for batch norm'), ('possible', 'decay on norms')]
    assert set(checked) == {v.name for v in found} | {'non-finite values', 'constant inputs',
                                                      'outputs and targets broadcast'}
    assert all(isinstance(v, Verdict) for v in found)


def underfitted(**facts):
    "Facts of a fit that stands still at two thirds of the loss of a constant prediction, where neighbors are right."
    data = dict(baseline=1.5, task='classes', outputs=4, neighbors=dict(score=0.9, chance=0.25, rows=500))
    return Facts(losses=[1.5]*20 + [1.]*180, data=data | facts.pop('data', {}), done=1., **facts)


@pytest.mark.parametrize(('name', 'facts'), [
    ('parameter in no group', dict(setup=dict(left_out=['w']))),
    ('batch too small for batch norm', dict(setup=dict(batch_norms=['1']), data=dict(sizes=[2]))),
    ('decay on norms', dict(setup=dict(has_norms=True, decayed_norms={'1': 0.1}), rate=0.05)),
    ('clipping always', dict(batches=[*range(6)], run=dict(gradient_norm=[1.]*6, clipped_norm=[0.1]*6)))])
def test_a_fit_is_not_called_underfitting_beside_a_cause_that_explains_it(name, facts):
    assert [v.name for v in judge(underfitted())[0]] == ['underfitting']
    found, checked = judge(underfitted(**facts))
    assert [v.name for v in found] == [name]
    assert 'underfitting' in checked


def test_a_cause_that_is_only_possible_explains_nothing():
    found, _ = judge(underfitted(setup=dict(has_norms=True, decayed_norms={'1': 0.03}), rate=0.05))
    assert [(v.name, v.certain) for v in found] == [('underfitting', 'likely'), ('decay on norms', 'possible')]


def test_there_are_30_rules_with_names():
    assert len(set(NAMES)) == len(NAMES) == 30
    assert {*EXPLAINED, *EXPLAINED['underfitting']} < {*NAMES}


def test_what_was_not_measured_or_is_not_finite_does_not_count():
    values = [1., None, float('inf'), 3., float('nan')]
    assert (mean_of(values), median_of(values), last(values, 1)) == (2., 2., [3.])
    assert mean_of([None]) is median_of([]) is None


def test_since_when_is_the_first_of_the_last_batches_for_which_it_holds():
    facts = Facts(batches=[0, 5, 10, 15])
    assert since_when(facts, [1., 0., 1., 1.], bool) == 10
    assert since_when(facts, [1., None, None, 1.], bool) == 0
    assert since_when(facts, [1., 1., 1., 0.], bool) is None


def test_windows_are_means_over_shares_of_the_batches():
    facts = Facts(losses=[4., 3., 2., 1.])
    assert (facts.window(0, 0.5), facts.window(0.75, 1), Facts().window(0, 1)) == (3.5, 1., None)


def test_steps_are_shares_or_multiples_of_the_size():
    assert [of_size(x) for x in (0.03, 1.5, 995967.69)] == ['3 % of their size', '150 % of their size',
                                                            '9.96e+05 times their size']


def test_percent(): assert [percent(x) for x in (0.93, 0.004, 1.)] == ['93 %', '0.4 %', '100 %']


def test_more_than_three_verdicts_of_a_rule_are_counted():
    columns = dict(mean=[0.]*3, std=[0.]*3, dead=[1.]*3, saturated=[None]*3, gradient=[1.]*3, near_zero=[1.]*3,
                   stretch=[None]*3, kind='ReLU')
    facts = Facts(batches=[0, 1, 2], layers={str(i): columns for i in range(5)})
    found = [v for v in judge(facts)[0] if v.name == 'dead layer']
    assert [v.where for v in found] == ['0', '1', '2']
    assert found[2].says.endswith('since batch 0; as in 2 more.')

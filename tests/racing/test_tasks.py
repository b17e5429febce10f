"Tasks: parts that share no row, whose order depends on the seed alone, and the code that names them."
from dataclasses import replace
from functools import partial

import pytest
import torch

import races
from miniai.racing.ladder import TASKS
from miniai.racing.tasks import error_rate, parts_of, task_digest


def rows(dl): return [r for x, _ in dl for r in x[:, 0].tolist()]


def test_the_parts_share_no_row_and_are_the_same_for_every_seed():
    x = torch.arange(50.)[:, None]
    a, b = (parts_of(x, x, (.2, .1, .3), 4, seed) for seed in (1, 2))
    held_out = [rows(dl) for dl in a[1:]]
    assert [len(r) for r in held_out] == [10, 5, 15]
    train = rows(a.train)
    assert len(train) == 20
    assert sorted(sum(held_out, train)) == [*range(50)]
    assert held_out == [rows(dl) for dl in b[1:]]
    other = rows(b.train)
    assert train != other
    assert sorted(train) == sorted(other)


def test_a_test_set_of_its_own_is_the_test_part():
    x, y = torch.arange(20.)[:, None], torch.arange(100., 105.)[:, None]
    assert rows(parts_of(x, x, (.2, .2), 4, 0, (y, y)).test) == [100, 101, 102, 103, 104]


@pytest.mark.parametrize('shares', [(.5, .5, .1), (.2, 0, .2), (.2, .2)])
def test_shares_that_leave_a_part_empty_or_missing_are_an_error(shares):
    x = torch.zeros(20, 1)
    with pytest.raises(ValueError, match='shares must be'): parts_of(x, x, shares, 4, 0)


def test_a_task_is_named_by_the_code_of_all_its_functions_and_of_what_they_are_given():
    assert len({task_digest(task) for task in TASKS.values()}) > 4
    def other(x): return x + 1
    tiny = races.tiny()
    changed = [replace(tiny, **{nm: other}) for nm in ('model', 'dls', 'loss', 'figure')]
    given = [replace(tiny, model=partial(map, f)) for f in (other, races.nan)]
    digests = [task_digest(task) for task in (tiny, *changed, *given)]
    assert len({*digests}) == len(digests)
    assert task_digest(races.tiny()) == digests[0]


def test_tasks_whose_functions_are_given_other_numbers_are_other_tasks():
    def scaled(k): return lambda seed: races.data(k*seed)
    tiny = races.tiny()
    tasks = [*(replace(tiny, model=partial(races.model, k)) for k in (1, 2)),
             *(replace(tiny, dls=scaled(k)) for k in (1, 2))]
    assert len({*map(task_digest, tasks)}) == 4
    assert task_digest(replace(tiny, dls=scaled(2))) == task_digest(tasks[3])


def test_a_task_that_keeps_what_it_has_loaded_keeps_its_name():
    kept = {}
    def data(seed): return kept.setdefault('data', races.data(seed))
    task = replace(races.tiny(), dls=data)
    before = task_digest(task)
    data(1)
    assert task_digest(task) == before


def test_the_error_rate_is_the_share_of_wrong_classes():
    assert error_rate(torch.eye(4), torch.tensor([0, 1, 2, 0])) == .25

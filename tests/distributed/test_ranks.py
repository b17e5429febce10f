"Ranks: numbers, parts and objects that processes share; in one process nothing changes."
import time
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniai.distributed import ranks
from ranks import run_ranks


def shared():
    me = ranks.rank()
    return dict(rank=me, world=ranks.world(), first=ranks.is_first(), total=ranks.total([me, .5]),
                most=ranks.most([me, -me]),
                one=ranks.agree(me == 2), none=ranks.agree(False), gathered=ranks.gathered({'rank': me}),
                from_first=ranks.from_first(f'of {me}'), part=ranks.part(), parts=[ranks.part_of(n) for n in range(9)])


def test_processes_share_numbers_flags_and_objects():
    found = run_ranks(shared, 3)
    for i, x in enumerate(found):
        assert (x['rank'], x['world'], x['first'], x['part']) == (i, 3, i == 0, (i, 3))
        assert x['total'] == [3, 1.5]
        assert x['most'] == [2, 0]
        assert x['one']
        assert not x['none']
        assert x['gathered'] == [{'rank': 0}, {'rank': 1}, {'rank': 2}]
        assert x['from_first'] == 'of 0'
    for n in range(9):
        parts = [list(x['parts'][n]) for x in found]
        assert list(chain(*parts)) == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert len(parts[0]) == max(map(len, parts))  # the first process always has a sample


def fails_in_the_second():
    def fail():
        with ranks.failing_together():
            if ranks.rank() == 1: raise ValueError('of 1')
    with pytest.raises(ValueError, match='of 1'): fail()
    with ranks.failing_together(): return 'whole'


def test_an_error_of_one_process_is_raised_in_all():
    assert run_ranks(fails_in_the_second, 2) == ['whole']*2


def test_in_one_process_nothing_is_shared():
    x = object()
    assert (ranks.rank(), ranks.world(), ranks.is_first(), ranks.part()) == (0, 1, True, (0, 1))
    assert ranks.total([1, 2]) == [1, 2]
    assert ranks.most([3]) == [3]
    assert ranks.agree(1)
    assert not ranks.agree(0)
    assert ranks.gathered(x) == [x]
    assert ranks.from_first(x) is x


@given(st.integers(0, 1000))
def test_the_part_of_one_process_is_everything(n): assert ranks.part_of(n) == range(n)


def test_a_group_starts_only_under_torchrun(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    assert ranks.start('cpu').type == 'cpu'
    assert ranks.world() == 1


def test_data_is_divided_over_a_mesh_of_one_dimension():
    with pytest.raises(ValueError, match=r"mesh of 1 dimension, got 2: pass a part of it, such as mesh\['dp'\]"):
        ranks.split_data_over(type('Mesh', (), dict(ndim=2)))


def leave(folder):
    "Whether the other process was leaving too, when this one has left."
    me = ranks.rank()
    time.sleep(me/2)
    (folder/f'{me}').touch()
    ranks.close()
    return (folder/f'{1 - me}').exists()


def test_processes_leave_their_group_together(tmp_path): assert run_ranks(leave, 2, tmp_path) == [True, True]

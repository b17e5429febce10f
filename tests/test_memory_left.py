"Memory that is there to take: what the system says, and a container's limit."
import os

import pytest

from miniai import environment as ram


@pytest.fixture
def system(tmp_path, monkeypatch):
    monkeypatch.setattr(ram, '_MEMINFO', tmp_path/'meminfo')
    monkeypatch.setattr(ram, '_CGROUP', tmp_path)
    (tmp_path/'meminfo').write_text('MemTotal:  100 kB\nMemAvailable:   80 kB\n')
    return tmp_path


def limit(folder, most, current, inactive=0):
    (folder/'memory.max').write_text(f'{most}\n')
    (folder/'memory.current').write_text(f'{current}\n')
    (folder/'memory.stat').write_text(f'anon 5\ninactive_file {inactive}\n')


def test_this_machine_has_some_and_no_more_than_all():
    assert 0 < ram.available_memory() <= os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')


def test_what_the_system_calls_available_counts(system): assert ram.available_memory() == 80*1024


@pytest.mark.parametrize(('given', 'left'), [((50_000, 20_000), 30_000), ((50_000, 20_000, 5_000), 35_000),
                                             ((10**9, 5), 80*1024), (('max', 5), 80*1024), ((5, 10), 0)])
def test_a_container_s_limit_counts_where_it_leaves_less(system, given, left):
    limit(system, *given)
    assert ram.available_memory() == left


def old_limit(folder, most, usage, inactive=0):
    (folder/'memory').mkdir()
    (folder/'memory'/'memory.limit_in_bytes').write_text(f'{most}\n')
    (folder/'memory'/'memory.usage_in_bytes').write_text(f'{usage}\n')
    (folder/'memory'/'memory.stat').write_text(f'inactive_file 1\ntotal_inactive_file {inactive}\n')


@pytest.mark.parametrize(('given', 'left'), [((50_000, 20_000), 30_000), ((50_000, 20_000, 5_000), 35_000),
                                             ((2**63 - 4096, 5), 80*1024), ((5, 10), 0)])
def test_a_limit_of_cgroup_v1_counts_as_well_and_one_near_2_to_the_63_is_none(system, given, left):
    old_limit(system, *given)
    assert ram.available_memory() == left


def test_of_both_limits_the_narrower_counts(system):
    limit(system, 50_000, 20_000)
    old_limit(system, 40_000, 20_000)
    assert ram.available_memory() == 20_000


@pytest.mark.parametrize('said', ['', 'nonsense', 'MemTotal: 5 kB'])
def test_a_system_that_does_not_say_is_good_for_a_quarter(system, said):
    (system/'meminfo').write_text(said)
    assert ram.available_memory() == os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')//4


def test_a_system_that_knows_nothing_is_good_for_a_gibibyte(system, monkeypatch):
    (system/'meminfo').unlink()
    monkeypatch.delattr(os, 'sysconf')
    assert ram.available_memory() == 2**30

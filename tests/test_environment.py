"The machine and the process: versions, available memory, and memory given back."
import builtins
import os
import sys
import types
import weakref
from importlib import metadata

import numpy
import pytest
import torch

from miniai import environment
from miniai.environment import available_memory, clean_ipython_hist, clean_mem, clean_tb, version_of


def test_the_version_is_the_packages_own():
    assert version_of('numpy') == numpy.__version__
    assert version_of('torch').split('+')[0] == torch.__version__.split('+')[0]


def test_a_package_that_is_not_installed_has_no_version(): assert version_of('no-such-package-anywhere') is None


def test_a_version_is_looked_up_once(monkeypatch):
    first = version_of('numpy')
    monkeypatch.setattr(metadata.Distribution, 'from_name', lambda *_: 1/0)
    assert version_of('numpy') == first


# Available memory

@pytest.fixture
def system(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, '_MEMINFO', tmp_path/'meminfo')
    monkeypatch.setattr(environment, '_CGROUP', tmp_path)
    (tmp_path/'meminfo').write_text('MemTotal:  100 kB\nMemAvailable:   80 kB\n')
    return tmp_path


def limit(folder, most, current, inactive=0):
    (folder/'memory.max').write_text(f'{most}\n')
    (folder/'memory.current').write_text(f'{current}\n')
    (folder/'memory.stat').write_text(f'anon 5\ninactive_file {inactive}\n')


def test_available_memory_is_positive_and_no_more_than_the_machine_has():
    assert 0 < available_memory() <= os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')


def test_available_memory_is_what_the_system_reports(system): assert available_memory() == 80*1024


@pytest.mark.parametrize(('given', 'left'), [((50_000, 20_000), 30_000), ((50_000, 20_000, 5_000), 35_000),
                                             ((10**9, 5), 80*1024), (('max', 5), 80*1024), ((5, 10), 0)])
def test_a_containers_limit_counts_if_it_leaves_less(system, given, left):
    limit(system, *given)
    assert available_memory() == left


def old_limit(folder, most, usage, inactive=0):
    (folder/'memory').mkdir()
    (folder/'memory'/'memory.limit_in_bytes').write_text(f'{most}\n')
    (folder/'memory'/'memory.usage_in_bytes').write_text(f'{usage}\n')
    (folder/'memory'/'memory.stat').write_text(f'inactive_file 1\ntotal_inactive_file {inactive}\n')


@pytest.mark.parametrize(('given', 'left'), [((50_000, 20_000), 30_000), ((50_000, 20_000, 5_000), 35_000),
                                             ((2**63 - 4096, 5), 80*1024), ((5, 10), 0)])
def test_a_limit_of_cgroup_v1_counts_too_and_near_2_to_the_63_means_no_limit(system, given, left):
    old_limit(system, *given)
    assert available_memory() == left


def test_the_lower_of_two_limits_counts(system):
    limit(system, 50_000, 20_000)
    old_limit(system, 40_000, 20_000)
    assert available_memory() == 20_000


@pytest.mark.parametrize('said', ['', 'nonsense', 'MemTotal: 5 kB'])
def test_without_a_report_a_quarter_of_all_memory_is_assumed(system, said):
    (system/'meminfo').write_text(said)
    assert available_memory() == os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')//4


def test_a_system_that_reports_nothing_is_assumed_to_have_a_gibibyte(system, monkeypatch):
    (system/'meminfo').unlink()
    monkeypatch.delattr(os, 'sysconf')
    assert available_memory() == 2**30


# Memory given back

class Big: "An object that must not stay alive."


LAST = ('last_type', 'last_value', 'last_exc', 'last_traceback')


@pytest.fixture
def no_last_error():
    kept = {n: sys.__dict__.pop(n) for n in LAST if hasattr(sys, n)}
    yield
    for name in LAST: sys.__dict__.pop(name, None)
    sys.__dict__.update(kept)


def leave_an_error():
    "Leave an error in `sys`, as an interpreter does. Returns a weak reference to an object in its frame."
    def failing():
        big = Big()
        seen.append(weakref.ref(big))
        raise RuntimeError('out of memory')

    seen = []
    try: failing()
    except RuntimeError as e:
        sys.last_type, sys.last_value, sys.last_exc, sys.last_traceback = type(e), e, e, e.__traceback__
    return seen[0]


@pytest.mark.usefixtures('no_last_error')
@pytest.mark.parametrize('clean', [clean_tb, clean_mem])
def test_the_last_error_no_longer_keeps_objects_of_its_frames_alive(clean):
    big = leave_an_error()
    before = big() is not None
    clean()
    assert before
    assert big() is None
    assert not [n for n in LAST if hasattr(sys, n)]


@pytest.mark.usefixtures('no_last_error')
def test_cleaning_works_without_an_error_a_notebook_or_an_accelerator(monkeypatch):
    monkeypatch.setitem(sys.modules, 'IPython', types.SimpleNamespace(get_ipython=lambda: None))
    clean_mem()
    monkeypatch.delitem(sys.modules, 'IPython')
    clean_mem()


def test_clean_mem_empties_the_cache_of_a_gpu(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: calls.append('emptied'))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    clean_mem()
    assert calls == []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    clean_mem()
    assert calls == ['emptied']


def notebook(monkeypatch, tmp_path, **settings):
    "The shell of a notebook, which leaves no traces."
    IPython = pytest.importorskip('IPython')
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path))
    for name in ('__IPYTHON__', 'display'): monkeypatch.setattr(builtins, name, None, raising=False)
    for name in ('excepthook', 'displayhook', 'ps1', 'ps2', 'ps3'):
        monkeypatch.setattr(sys, name, getattr(sys, name, None), raising=False)
    config = Config(HistoryManager=dict(enabled=False), InteractiveShell=dict(xmode='Plain', **settings))
    shell = InteractiveShell(config=config, user_module=types.ModuleType('notebook'))
    monkeypatch.setattr(IPython, 'get_ipython', lambda: shell)
    return shell


@pytest.mark.parametrize('clean', [clean_ipython_hist, clean_mem])
def test_the_outputs_of_a_notebook_are_no_longer_kept_alive(monkeypatch, tmp_path, capsys, clean):
    shell = notebook(monkeypatch, tmp_path)
    shell.user_ns.update(Big=Big, clean=clean)
    for cell in ('Big()', 'x = 3', 'Big()'): shell.run_cell(cell, store_history=True)
    kept = [weakref.ref(o) for o in shell.user_ns['Out'].values()]
    before = [r() is not None for r in kept]
    shell.run_cell('clean()', store_history=True)
    assert before == [True, True]
    assert [r() for r in kept] == [None, None]
    assert shell.user_ns['Out'] == {}
    assert shell.user_ns['x'] == 3
    assert not any(isinstance(v, Big) for v in shell.user_ns.values())
    shell.run_cell('Big()', store_history=True)
    assert len(shell.user_ns['Out']) == 1


def test_a_notebook_without_an_output_cache_can_be_cleaned(monkeypatch, tmp_path, capsys):
    shell = notebook(monkeypatch, tmp_path, cache_size=0)
    shell.run_cell('3', store_history=True)
    clean_mem()

"A run folder: never overwritten, complete files only, and what is needed to understand the run."
import json
import math
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn

from miniai import environment
from miniai.jobs import run_folder
from miniai.jobs.run_folder import HistoryFileCB, RunFolder, as_json
from tiny import colors, files


@pytest.fixture
def folder(tmp_path): return RunFolder(str(tmp_path/'run'), 'train')


# Never overwritten

def test_a_folder_is_made_with_its_parents(tmp_path):
    assert RunFolder(str(tmp_path/'a'/'b'), 'train').path == tmp_path/'a'/'b'
    assert (tmp_path/'a'/'b').is_dir()


def test_an_empty_folder_may_be_used(tmp_path): assert RunFolder(str(tmp_path), 'train').path == tmp_path


@pytest.mark.parametrize('hidden', ['x', '.x'])
def test_a_folder_with_anything_in_it_is_refused_and_stays_as_it_was(tmp_path, hidden):
    (tmp_path/hidden).write_text('mine')
    with pytest.raises(FileExistsError, match=f'run folder {tmp_path} is not empty.*never overwritten.*--out'):
        RunFolder(str(tmp_path), 'train')
    assert [p.read_text() for p in tmp_path.iterdir()] == ['mine']


def test_a_file_in_the_folders_place_is_refused_and_stays_as_it_was(tmp_path):
    (tmp_path/'run').write_text('mine')
    with pytest.raises(FileExistsError, match='never overwritten'): RunFolder(str(tmp_path/'run'), 'train')
    assert (tmp_path/'run').read_text() == 'mine'


@pytest.mark.parametrize('make', [os.mkfifo, lambda p: p.symlink_to('nowhere')], ids=['pipe', 'broken link'])
def test_a_pipe_or_broken_link_in_the_folders_place_is_refused(tmp_path, make):
    make(tmp_path/'run')
    with pytest.raises(FileExistsError, match=f'run folder {tmp_path}/run is a file, pipe or broken link'):
        RunFolder(str(tmp_path/'run'), 'train')


def test_time_and_job_are_filled_in(tmp_path):
    name = RunFolder(str(tmp_path/'{job}'/'{time}-{job}'), 'lr-find').path.relative_to(tmp_path).as_posix()
    assert name.startswith('lr-find/20')
    assert name.endswith('-lr-find')
    assert not set('{}: ') & set(name)


def test_runs_of_the_same_second_get_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.time, 'strftime', lambda f: 'now')
    names = [RunFolder(str(tmp_path/'{time}-{job}'), 'train').path.name for _ in range(3)]
    assert names == ['now-train', 'now-train-2', 'now-train-3']


def test_runs_that_start_together_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.time, 'strftime', lambda f: 'now')
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: RunFolder(str(tmp_path/'{time}'), 'train').path, range(40)))
    assert len(set(paths)) == 40


def test_where_no_number_is_free_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.time, 'strftime', lambda f: 'now')
    (tmp_path/'gone').symlink_to(tmp_path/'nowhere')
    with pytest.raises(FileExistsError, match=r'cannot make a folder at .*now.*choose another name with --out'):
        RunFolder(str(tmp_path/'gone'/'{time}'), 'train')


# Complete files only

def test_what_is_written_is_read_and_replaces_the_old(folder):
    for text in ('one', 'zwei ü'): folder.write('a.txt', text)
    assert (folder.path/'a.txt').read_text('utf-8') == 'zwei ü'
    assert files(folder.path) == ['a.txt']


def test_a_write_that_fails_leaves_the_old_file_and_no_part(folder):
    class Broken:
        def savefig(self, p, **kwargs):
            p.write_bytes(b'half')
            raise OSError('disk full')
    folder.write('a.png', 'old')
    with pytest.raises(OSError, match='disk full'): folder.picture('a.png', Broken())
    assert files(folder.path) == ['a.png']
    assert (folder.path/'a.png').read_text() == 'old'


def test_a_picture_is_a_png_with_something_on_it(folder):
    fig = Figure()
    fig.add_subplot().plot([1, 2])
    folder.picture('a.png', fig)
    assert colors(folder.path/'a.png') > 2
    assert files(folder.path) == ['a.png']


def a_model(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())


@pytest.mark.parametrize('umask', [0o022, 0o027, 0o077])
def test_the_modes_of_all_files_follow_the_umask(folder, umask):
    old = os.umask(umask)
    try:
        folder.write('a.txt', 'x')
        folder.picture('a.png', Figure())
    finally: os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in folder.path.iterdir()} == {0o666 & ~umask}


# To understand the run later

def test_the_environment_has_versions_machine_device_and_command(folder):
    folder.write_environment('cpu')
    env = json.loads((folder.path/'environment.json').read_text())
    names = ('miniai-torch', 'torch', 'numpy', 'numba', 'safetensors', 'matplotlib', 'tqdm')
    assert env['versions'] == {nm: version(nm) for nm in names}
    assert env['python'] == platform.python_version()
    assert (env['platform'], env['machine'], env['cpus']) == (platform.platform(), platform.machine(), os.cpu_count())
    assert (env['threads'], env['device'], env['gpu']) == (torch.get_num_threads(), 'cpu', None)
    assert env['command'] == sys.argv


def test_a_process_that_resumes_the_run_adds_an_environment_and_keeps_the_first(folder, monkeypatch):
    for command, batch in (('first', None), ('second', 7), ('third', 9)):
        monkeypatch.setattr(sys, 'argv', [command])
        folder.write_environment('cpu', resumed_at=batch)
    names = ['environment.json', 'environment-2.json', 'environment-3.json']
    assert files(folder.path) == sorted(names)
    found = [json.loads((folder.path/name).read_text()) for name in names]
    assert [(e['command'], e['resumed_at']) for e in found] == [(['first'], None), (['second'], 7), (['third'], 9)]


def test_a_gpu_is_named(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'H100')
    folder.write_environment('cuda:0')
    assert json.loads((folder.path/'environment.json').read_text())['gpu'] == 'H100'


def test_a_package_that_is_not_installed_has_no_version(folder, monkeypatch):
    monkeypatch.setattr(environment, '_PACKAGES', ('no-such-package',))
    folder.write_environment('cpu')
    assert json.loads((folder.path/'environment.json').read_text())['versions'] == {'no-such-package': None}


def test_json_has_null_where_a_number_is_not_finite():
    assert as_json(dict(a=[1, math.nan, 0.5], b=dict(c=-math.inf), d=None, e='x', f=True)) == \
        '{"a": [1, null, 0.5], "b": {"c": null}, "d": null, "e": "x", "f": true}'


def test_each_epoch_and_phase_adds_its_row_as_it_comes(tmp_path):
    folder, learn = RunFolder(str(tmp_path), 'train'), SimpleNamespace(history=[])
    path = tmp_path/'metrics.jsonl'
    rows = [dict(epoch=0, phase='train', loss=0.5), dict(epoch=0, phase='eval', loss=math.nan)]
    for n, row in enumerate(rows, 1):
        learn.history.append(row)
        HistoryFileCB(folder).after_epoch(learn)
        assert len(path.read_text().splitlines()) == n
    assert [json.loads(s) for s in path.read_text().splitlines()] == [rows[0], rows[1] | dict(loss=None)]


def make_runs(folder, *names):
    "Runs' folders; of each the configuration was written later than those before, as at a run's end."
    for age, name in enumerate(names):
        (folder/name).mkdir(parents=True)
        (folder/name/'config.toml').write_text('')
        os.utime(folder/name/'config.toml', (age, age))


def test_the_folder_of_a_run_is_found_by_name_or_as_the_one_made_last(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no run to resume at .*: give its folder with --out'):
        RunFolder.find(str(tmp_path/'{time}-{job}'))
    make_runs(tmp_path, '2026-01-02_000000-train', '2026-01-01_235959-train', '2026-01-03_000000-lr-find', 'z-train')
    (tmp_path/'2026-01-04_000000-train').mkdir()
    assert RunFolder.find(str(tmp_path/'{time}-{job}')).path.name == '2026-01-02_000000-train'
    assert RunFolder.find(str(tmp_path/'2026-01-01_235959-train')).path.name == '2026-01-01_235959-train'


@given(st.lists(st.tuples(st.datetimes(datetime(2020, 1, 1), datetime(2020, 1, 3)), st.integers(1, 120)), min_size=1,
                unique_by=lambda made: (made[0].replace(microsecond=0), made[1])),
       st.sampled_from(['{time}-{job}', '{job}/{time}', 'a[{time}]/{job}', '{time}']))
def test_of_many_runs_the_one_made_last_is_found_by_time_then_number_whatever_was_written_last(tmp_path_factory, made,
                                                                                                name):
    folder, shown = tmp_path_factory.mktemp('runs'), '%Y-%m-%d_%H%M%S'
    def named(when, n): return name.replace('{time}', when.strftime(shown)).replace('{job}', 'train') + f'-{n}'*(n > 1)
    make_runs(folder, *(named(*m) for m in made))
    last = max(made, key=lambda m: (m[0].replace(microsecond=0), m[1]))
    assert RunFolder.find(str(folder/name)).path == folder/named(*last)


def test_a_folder_made_by_the_time_is_found_by_the_time(tmp_path):
    made = [RunFolder(str(tmp_path/'{time}-{job}'), 'train').path for _ in range(2)]
    for p in made: (p/'config.toml').write_text('')
    assert RunFolder.find(str(tmp_path/'{time}-{job}')).path == max(made, key=lambda p: p.name)


def test_the_folder_of_a_run_is_found_with_a_number_and_whatever_its_name(tmp_path, monkeypatch):
    make_runs(tmp_path, '2026-01-01_000000-train', '2026-01-01_000000-train-2', 'a[1]')
    assert RunFolder.find(str(tmp_path/'{time}-{job}')).path.name == '2026-01-01_000000-train-2'
    assert RunFolder.find(str(tmp_path/'a[1]')).path.name == 'a[1]'
    monkeypatch.chdir(tmp_path/'a[1]')
    assert RunFolder.find('.').path.resolve() == tmp_path/'a[1]'

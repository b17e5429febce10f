"Trackio's database, read back by Trackio in another process."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracked import CONFIG, expected, without_times

pytest.importorskip('trackio')

TRAIN = '''
import sys
from pathlib import Path
from tracked import followed
run = followed('trackio', Path(sys.argv[1]))
print(run.killed.run, run.resumed.run)
'''
READ = '''
import json, sys, trackio
from trackio.sqlite_storage import SQLiteStorage
runs = list(trackio.Api().runs('miniai'))
logs = SQLiteStorage.get_logs('miniai', 'first', run_id=runs[0].id)
artifact = trackio.init('miniai', 'reader').use_artifact('first-model.safetensors')
print('found ' + json.dumps(dict(names=[r.name for r in runs], logs=logs, config=runs[0].config,
                                 alerts=runs[0].alerts(), size=artifact.size)))
'''


def python(script, *args, **env):
    run = subprocess.run([sys.executable, '-c', script, *map(str, args)], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_run_that_was_killed_and_resumed_is_one_run_with_every_figure_once(tmp_path):
    env = {k: x for k, x in os.environ.items() if k != 'TRACKIO_DIR'}
    env['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    printed = python(TRAIN, tmp_path, **env).splitlines()
    assert [line for line in printed if not line.startswith('epoch ')] == ['first first']
    found = json.loads(python(READ, **env, TRACKIO_DIR=str(tmp_path/'trackio')).split('found ')[1].splitlines()[0])
    assert found['names'] == ['first']
    figures = {}
    for log in found['logs']:
        for nm, x in log.items():
            if isinstance(x, float | int) and '/' in nm: figures.setdefault(nm, []).append((log['step'], x))
    assert without_times({nm: sorted(points) for nm, points in figures.items()}) == expected()
    assert CONFIG.items() <= found['config'].items()
    assert [(a['title'], a['text'], a['step']) for a in found['alerts']] == [
        ('dead layer 1.ReLU', '99 % is 0. Raise it.', 8)]
    assert found['size'] == (tmp_path/'first'/'model.safetensors').stat().st_size
    pictures = [x for log in found['logs'] for nm, x in log.items() if nm == 'pictures/a curve']
    assert len(pictures) == 1

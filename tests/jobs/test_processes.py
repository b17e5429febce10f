"`miniai train` under torchrun: one folder, one output, the results of one process, and an end if one process dies."
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from miniai.inference.model_file import load
from miniai.jobs.config import ConfigError, LRFindConfig, TrainConfig
from miniai.jobs.processes import join, placed
from miniai.jobs.train import train
from tiny import RUN_FILES, files, history

TORCHRUN = Path(sys.executable).with_name('torchrun')
DYING = '''
import os, signal
from miniai.data.loaders import DataLoaders
import torch

class Dying:
    "Targets of a loader whose process 1 ends once, in the fourth batch, or in that of the second epoch."
    n = 0
    def __init__(self, how): self.how = how
    def __call__(self, batch):
        self.n += 1
        at = 14 if self.how == 'kill' else 4
        if self.n == at and os.environ.get('RANK') == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
            if self.how == 'kill': os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError('this process has had enough')
        return batch

def loaders(how):
    g, dying = torch.Generator().manual_seed(0), Dying(how)
    batches = [(torch.randn(40, 3, generator=g), torch.randint(2, (40,), generator=g)) for _ in range(10)]
    class Loader:
        def __len__(self): return len(batches)
        def __iter__(self): return map(dying, batches)
    return DataLoaders(Loader(), batches)

def raising(): return loaders('raise')
def killed(): return loaders('kill')
def net(): return torch.nn.Linear(3, 2)
'''
DIES = '--model', 'dying:net', '--batch-size', '40', '--epochs', '1', '--device', 'cpu'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a table, and a module of data that end a process."
    folder = tmp_path_factory.mktemp('home')
    torch.manual_seed(3)
    xs = torch.randn(300, 3).tolist()
    rows = [f"{a:.4f},{b:.4f},{c:.4f},{'yes' if a > b*c else 'no'}" for a, b, c in xs]
    (folder/'table.csv').write_text('\n'.join(['a,b,c,y', *rows, '']))
    (folder/'dying.py').write_text(DYING)
    return folder


def torchrun(home, *args, restarts=0, timeout=100):
    "The exit code and output of two processes of `miniai train args`; no process of them is left behind."
    command = [TORCHRUN, '--standalone', '--nproc-per-node', '2', '--max-restarts', f'{restarts}', '-m', 'miniai',
               'train', *args]
    mark = f'{time.time_ns()}'
    environment = os.environ | dict(OMP_NUM_THREADS='1', MARK=mark, GLOO_SOCKET_IFNAME='lo')
    ran = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=timeout)
    assert not [p for p in Path('/proc').glob('[0-9]*') if mark in environment_of(p)]
    return ran


def environment_of(process):
    try: return (process/'environ').read_text(errors='replace')
    except OSError: return ''


def test_a_run_of_two_processes_leaves_one_folder_and_the_model_and_figures_of_one(home, monkeypatch):
    options = ['--data', 'table.csv', '--target', 'y', '--net.dropout', '0', '--epochs', '2', '--batch-size', '40',
               '--device', 'cpu', '--no-stats']
    ran = torchrun(home, *options, '--out', 'two')
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    assert said[0] == 'torchrun started 2 processes: training with --distributed ddp'
    assert any(line.endswith('; cpu, 2 processes, ddp') for line in said)
    assert len([line for line in said if line.startswith('epoch ')]) == 4
    assert re.fullmatch(r'finished after .* s; results in two', said[-1])
    assert len(set(said)) == len(said)  # nothing is said twice
    assert files(home/'two') == [name for name in RUN_FILES if name != 'activations.png']
    assert json.loads((home/'two'/'environment.json').read_text())['processes'] == 2
    monkeypatch.chdir(home)
    one = train(TrainConfig.from_toml(home/'two'/'config.toml'))
    for a, b in zip(history(home/'two'), one.history, strict=True):
        assert a['phase'] == b['phase']
        assert {nm: v for nm, v in a.items() if nm not in ('phase', 'seconds')} == pytest.approx(
            {nm: v for nm, v in b.items() if nm not in ('phase', 'seconds')}, rel=1e-6)
    two = load(home/'two').model.state_dict()
    for name, v in one.model.state_dict().items(): torch.testing.assert_close(two[name], v, rtol=1e-5, atol=1e-6)


def test_a_process_that_raises_ends_the_run_within_seconds_with_its_traceback(home):
    ran = torchrun(home, *DIES, '--data', 'dying:raising', '--out', 'raising')
    assert ran.returncode == 1
    assert 'this process has had enough' in ran.stderr
    assert ran.stderr.count('Traceback') == 2  # its own, and torchrun's
    assert float(re.search(r'stopped after ([\d.]+) s', ran.stdout)[1]) < 60  # half an hour if the others waited for it
    assert 'model.safetensors' not in files(home/'raising')


def test_a_process_that_is_killed_is_restarted_with_the_others_and_the_sharded_run_resumes(home, monkeypatch):
    ran = torchrun(home, *DIES, '--data', 'dying:killed', '--out', 'killed', '--epochs', '2', '--distributed', 'fsdp',
                   restarts=1, timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert 'exitcode: -9' in ran.stderr
    assert 'failed to connect' not in ran.stderr  # to the processes before the restart
    assert 'resuming killed' in ran.stdout
    assert len(re.findall('epoch 1  phase train', ran.stdout)) == 1
    assert {'model.safetensors', 'environment-2.json'} <= {*files(home/'killed')}
    assert sorted(p.name for p in (home/'killed'/'checkpoints').glob('[!.]*')) == [
        'checkpoint-00001-1-00000000', 'checkpoint-00002-3-00000000']
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    one = train(replace(TrainConfig.from_toml(home/'killed'/'config.toml'), out='one'))
    for a, b in zip(history(home/'killed'), one.history, strict=True): assert a['loss'] == pytest.approx(b['loss'])


def test_a_way_to_train_together_needs_torchrun():
    with pytest.raises(ConfigError, match=r'--distributed fsdp needs .*: torchrun --nproc-per-node N -m miniai train'):
        join(TrainConfig(distributed='fsdp', device='cpu'))
    config = LRFindConfig(device='cpu')
    assert join(config) == (config, 'cpu')
    assert placed(config, 'cpu') == 'cpu'


def test_options_of_a_run_do_not_say_how_its_processes_train_and_it_may_resume_in_another_way():
    run = TrainConfig(distributed='fsdp')
    assert 'distributed' not in run.to_toml()
    assert TrainConfig(distributed='ddp', resume=True).for_resume(replace(run, epochs=3)).distributed == 'ddp'

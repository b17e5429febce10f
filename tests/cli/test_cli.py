"The command line, as somebody meets it: exit codes, messages, help, a terminal and none, Ctrl-C."
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_model

from miniai import cli
from miniai.checkpoint import CheckpointError, save
from miniai.cli import main
from miniai.data import fmnist
from miniai.jobs import prove
from miniai.jobs import train as job
from miniai.jobs.build import build_model
from miniai.jobs.config import TrainConfig
from miniai.resume.prove import Proof
from tiny import Screen, colours, write_tiny

MINIAI = Path(sys.executable).with_name('miniai')
ALL = ['activations.png', 'checkpoints', 'config.toml', 'curves.png', 'environment.json', 'metrics.jsonl',
       'model.safetensors']
STARTED = []
QUICK = ['--epochs', '1', '--batch-size', '100', '--device', 'cpu']


@pytest.fixture(scope='module')
def data(tmp_path_factory): return str(write_tiny(tmp_path_factory.mktemp('fmnist')))


@pytest.fixture
def here(data, tmp_path, monkeypatch):
    "An empty current folder, the small set in MINIAI_DATA, and no width but the terminal's."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MINIAI_DATA', data)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.delenv('COLUMNS', raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def _none_left_running():
    yield
    while STARTED: STARTED.pop().kill()


def files(folder): return sorted(p.name for p in folder.iterdir())
def history(folder): return [json.loads(s) for s in (folder/'metrics.jsonl').read_text().splitlines()]
def miniai(*args): return subprocess.run([MINIAI, *args], capture_output=True, text=True, timeout=100)


def run(*args):
    "The exit code of `miniai args`, in this process."
    with pytest.raises(SystemExit) as e: main(args)
    return e.value.code


def started(*args, **kwargs):
    "A `miniai` process that hears Ctrl-C, even where these tests run in the background."
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try: STARTED.append(subprocess.Popen([MINIAI, *args], **kwargs))
    finally: signal.signal(signal.SIGINT, old)
    return STARTED[-1]


def wait_for(there, seconds=60):
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, 'it never came'
        time.sleep(0.02)


# Help

def test_help_is_a_real_programs_and_fits_80_columns(here, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    done = miniai('--help')
    assert (done.returncode, done.stderr) == (0, '')
    assert all(w in done.stdout for w in ('usage: miniai', 'train', 'lr-find', '--config FILE.toml'))
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_no_arguments_show_the_help(here, capsys):
    assert run() == 0
    assert 'usage: miniai' in capsys.readouterr().out


DEFAULTS = {'--config': 'None', '--data': 'auto', '--model': 'simple', '--optimizer': 'adamw', '--batch-size': '1024',
            '--seed': '42', '--device': 'auto', '--precision': 'float32', '--layout': 'auto', '--compile': 'False',
            '--out': "'runs/{time}-{job}'"}
TRAIN = DEFAULTS | {'--schedule': 'onecycle', '--lr': 'auto', '--epochs': '5', '--resume': 'False',
                    '--profile': 'False'}
PROVE = {k: v for k, v in TRAIN.items() if k not in ('--out', '--resume', '--profile')} | {'--batches': '6'}


@pytest.mark.parametrize(('command', 'options'), [('train', TRAIN), ('lr-find', DEFAULTS), ('prove-resume', PROVE)])
def test_the_help_of_a_command_lists_its_options_with_words_and_defaults_in_80_columns(here, monkeypatch, capsys,
                                                                                       command, options):
    monkeypatch.setenv('COLUMNS', '80')
    assert run(command, '--help') == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    flat = ' '.join(re.sub('[│─╭╮╰╯|+]|-{3,}', ' ', said).split())
    flat = re.sub(r'(--([a-z]+)), --no-\2', r'\1', flat)
    entries = dict(re.findall(r'(--[a-z-]+) (?:\S+ )?(.*?) \(default: (?=\S)', flat.replace('-h, --help', '')))
    defaults = dict(zip(entries, re.findall(r"\(default: ('[^']*'|[^)]*)\)", flat), strict=True))
    assert defaults == options
    assert min(map(len, entries.values())) > 10


def test_the_choices_are_in_the_help(here, capsys):
    run('train', '--help')
    said = capsys.readouterr().out
    choices = '{simple,resnet}', '{sgd,momentum,rmsprop,adam,adamw}', '{onecycle,cosine,constant}'
    assert all(c in said for c in choices)


# Exit codes of a real process

def test_a_run_exits_0_with_a_plain_line_an_epoch_and_phase_and_leaves_its_folder(here):
    done = miniai('train', '--epochs', '2', '--batch-size', '100', '--device', 'cpu')
    assert (done.returncode, done.stderr) == (0, '')
    source, model, *rows, last = done.stdout.splitlines()
    assert source == f'Fashion-MNIST, 600 training and 200 test images, from {os.environ["MINIAI_DATA"]}'
    assert model == 'simple model of 30,274 parameters, adamw, onecycle, lr 0.06, on cpu'
    assert [re.sub(r'\d+\.\d{3}', 'x', r) for r in rows] == [f'accuracy x  loss x  epoch {e}  train {phase}'
                                                             for e in (0, 1) for phase in ('train', 'eval')]
    folder, = (here/'runs').iterdir()
    assert re.fullmatch(r'[\d.]+ s; the run is in runs/\d{4}-\d\d-\d\d_\d{6}-train', last)
    assert last.endswith(folder.name)
    assert files(folder) == ALL


def test_a_job_that_cannot_be_done_exits_1_without_a_traceback(here):
    done = miniai('train', '--data', 'no/such/folder')
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.startswith("miniai: error: no folder 'no/such/folder'")
    assert len(done.stderr.splitlines()) == 1
    assert files(here) == []


def test_options_that_cannot_be_meant_exit_2_without_a_traceback(here):
    (here/'a.toml').write_text('epoch = 3\n')
    done = miniai('train', '--config', 'a.toml')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == "miniai: error: a.toml: unknown key 'epoch'; did you mean 'epochs'?\n"


# Messages

def complaint(capsys):
    said = capsys.readouterr().err
    assert 'Traceback' not in said
    return ' '.join(said.replace('│', ' ').split())


@pytest.mark.parametrize(('args', 'said'), [
    (['trian'], ['trian', 'train, lr-find']), (['train', '--epoch', '2'], ['--epoch', 'Perhaps you meant', '--epochs']),
    (['train', '--model', 'vgg'], ["invalid choice 'vgg' for argument '--model'", "'simple'", "'resnet'"]),
    (['train', '--epochs', 'two'], ['--epochs', 'two']), (['train', '--epochs', '0'], ['epochs must be 1 or more']),
    (['train', '--lr', '-1'], ['lr must be above 0, got -1.0']), (['train', '--lr', 'nan'], ['lr must be above 0']),
    (['train', '--lr', 'fast'], ['--lr', 'fast']), (['train', '--batch-size', '0'], ['batch_size must be 1 or more']),
    (['lr-find', '--seed', '-1'], ['seed must be 0 or more']), (['lr-find', '--epochs', '2'], ['--epochs', 'lr-find']),
    (['train', '--config'], ["Missing value for argument '--config'"]), (['train', 'x'], ['Unrecognized', 'x']),
    (['train', '--config', 'no.toml'], ['error: cannot read the config file no.toml: No such file']),
    (['train', '--config=no.toml'], ['error: cannot read the config file no.toml: No such file']),
    (['train', '--device', 'nope'], ["error: device 'nope' cannot be used here", 'try cpu or auto']),
    (['lr-find', '--device', 'cuda:99'], ["error: device 'cuda:99' cannot be used here", 'try cpu or auto']),
    (['train', '--model', 'resnet', '--batch-size', '599'], ['error: batch_size 599 leaves a last batch of one'])])
def test_options_that_cannot_be_meant_get_code_2_and_words_that_help(here, capsys, args, said):
    assert run(*args) == 2
    heard = complaint(capsys)
    assert all(w in heard for w in said), heard
    assert files(here) == []


@pytest.mark.parametrize(('text', 'said'), [
    ('epochs = 0', 'bad.toml: epochs must be 1 or more, got 0'), ('lr = "x"', 'bad.toml: lr must be auto or float'),
    ('batch-size = 3', "bad.toml: unknown key 'batch-size'; did you mean 'batch_size'?"),
    ('epochs', 'bad.toml is not valid TOML: ')])
def test_a_bad_config_gets_code_2_and_is_named(here, capsys, text, said):
    (here/'bad.toml').write_text(text)
    assert run('train', '--config', 'bad.toml') == 2
    assert complaint(capsys).startswith(f'miniai: error: {said}')


@pytest.mark.parametrize('command', ['train', 'lr-find'])
def test_a_missing_folder_of_data_gets_code_1_and_is_named_with_what_it_should_hold(here, capsys, command):
    assert run(command, '--data', 'nowhere') == 1
    assert re.match("miniai: error: no folder 'nowhere'.*holds train-images-idx3", complaint(capsys))


def test_a_variable_that_names_no_folder_gets_code_1_and_is_named(here, capsys, monkeypatch):
    monkeypatch.setenv('MINIAI_DATA', '/nowhere')
    assert run('train') == 1
    assert 'MINIAI_DATA' in complaint(capsys)


def test_a_damaged_data_file_gets_code_1_and_is_named(here, capsys):
    write_tiny(here, 20, 10)
    (here/'train-labels-idx1-ubyte').write_bytes(b'\0\0\x08\x01\0\0\0\x14' + b'\x63'*20)
    assert run('train', '--data', '.') == 1
    assert complaint(capsys).startswith('miniai: error: train-labels-idx1-ubyte: labels must be from 0 to 9')
    assert not (here/'runs').exists()


def test_a_run_folder_with_something_in_it_gets_code_1_and_stays(here, capsys):
    (here/'run').mkdir()
    (here/'run'/'mine').write_text('precious')
    assert run('train', '--out', 'run') == 1
    assert re.match('miniai: error: the run folder run is not empty.*--out', complaint(capsys))
    assert (here/'run'/'mine').read_text() == 'precious'
    assert files(here/'run') == ['mine']


def test_a_loss_that_is_not_finite_gets_code_1_and_names_epoch_and_batch(here, capsys):
    assert run('train', '--lr', '1e38', '--out', 'run', *QUICK) == 1
    assert re.match('miniai: error: the training loss is .* in epoch 0, batch ', complaint(capsys))
    assert 'model.safetensors' in files(here/'run')


def test_the_hub_without_its_package_gets_code_1_and_says_what_to_install(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    assert run('train', '--data', 'hub') == 1
    assert re.search(r"needs the package datasets: pip install 'miniai-torch\[hf\]'", complaint(capsys))


def test_without_tyro_a_message_says_what_to_install(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tyro', None)
    assert run('train') == 2
    assert complaint(capsys) == ("miniai: error: the command line needs tyro and rich: "
                                 "pip install 'miniai-torch[cli]'")


def test_an_error_of_the_librarys_own_is_shown_whole(here, monkeypatch):
    monkeypatch.setattr(job, 'build_model', lambda config: 1/0)
    with pytest.raises(ZeroDivisionError): main(['train', *QUICK])


# Options

def config_of(monkeypatch, *args):
    monkeypatch.setattr(cli, '_run', lambda config: config)
    with pytest.raises(SystemExit) as e: main(args)
    return e.value.code


@pytest.mark.parametrize('size', [['--batch-size', '7'], ['--batch_size', '7'], ['--batch-size=7']])
def test_options_may_have_dashes_or_underscores_or_equals_signs(here, monkeypatch, size):
    assert config_of(monkeypatch, 'train', *size) == TrainConfig(batch_size=7)


def test_every_option_reaches_the_configuration(here, monkeypatch):
    said = dict(data='d', model='resnet', optimizer='sgd', batch_size=3, seed=4, device='x', out='o',
                schedule='cosine', lr=0.5, epochs=6)
    args = [a for k, v in said.items() for a in (f'--{k.replace("_", "-")}', str(v))]
    assert config_of(monkeypatch, 'train', *args) == TrainConfig(**said)


OPTIONS = dict(data=st.sampled_from(['auto', 'd']), model=st.sampled_from(['simple', 'resnet']),
               batch_size=st.sampled_from([1024, 64]), seed=st.just(42), device=st.just('auto'), lr=st.just('auto'),
               epochs=st.sampled_from([5, 9]), compile=st.booleans(), out=st.just('runs/{time}-{job}'),
               resume=st.booleans())


def argument(name, value, dash):
    name = name.replace('_', dash)
    return [f'--{"" if value else f"no{dash}"}{name}'] if isinstance(value, bool) else [f'--{name}', str(value)]


@settings(max_examples=30)
@given(st.fixed_dictionaries({}, optional=OPTIONS), st.fixed_dictionaries({}, optional=OPTIONS), st.sampled_from('-_'))
def test_what_was_given_is_known_were_it_the_default_on_the_command_line_or_in_the_file(tmp_path_factory, line, toml,
                                                                                         dash):
    file = tmp_path_factory.mktemp('config')/'a.toml'
    file.write_text(''.join(f'{k} = {json.dumps(v)}\n' for k, v in toml.items()))
    args = [a for k, v in line.items() for a in argument(k, v, dash)]
    assert cli._parsed(['train', *args, '--config', str(file)]).given == {*line, *toml, 'config'}
    assert cli._parsed(['train', *args]).given == set(line)


def test_an_option_given_to_a_run_that_goes_on_is_heard_were_it_the_default(here, capsys):
    (here/'a.toml').write_text('batch_size = 1024')
    assert run('train', *QUICK, '--out', 'run') == 0
    capsys.readouterr()
    for more in (['--batch-size', '1024'], ['--batch-size=1024'], ['--config', 'a.toml']):
        assert run('train', '--resume', '--out', 'run', *more) == 2
        assert complaint(capsys) == ('miniai: error: the run goes on with batch_size = 100, and 1024 was asked for: '
                                     'leave it out')
    assert run('train', '--resume', '--out', 'run', '--batch-size', '100', '--lr', 'auto', '--device', 'auto') == 0


def test_a_run_that_goes_on_may_be_given_the_default_number_of_epochs(here):
    args = ['train', '--batch-size', '300', '--device', 'cpu', '--out', 'run', '--schedule', 'constant']
    assert run(*args, '--epochs', '3') == 0
    assert run('train', '--resume', '--out', 'run', '--epochs', '5') == 0
    assert [r['epoch'] for r in history(here/'run') if r['phase'] == 'eval'] == [0, 1, 2, 3, 4]
    assert run('train', '--resume', '--out', 'run') == 0
    assert tomllib.loads((here/'run'/'config.toml').read_text())['epochs'] == 5


@pytest.mark.parametrize(('args', 'profile'), [(['--profile'], True), (['--no-profile'], False), ([], True)])
def test_what_is_on_or_off_is_said_by_a_flag_that_wins_over_the_file(here, monkeypatch, args, profile):
    (here/'a.toml').write_text('profile = true\n')
    assert config_of(monkeypatch, 'train', '--config', 'a.toml', *args).profile is profile


def test_a_profile_is_printed_and_left_in_the_run_folder(here, capsys):
    assert run('train', *QUICK, '--profile', '--out', 'run') == 0
    assert re.search(r'^waiting for data +\d+\.\d{3} +\d+\.\d{3} +\d+\.\d%$', capsys.readouterr().out, re.M)
    assert files(here/'run') == sorted([*ALL, 'profile.json', 'profile.png'])


@pytest.mark.parametrize('form', [['--config', 'a.toml'], ['--config=a.toml']])
def test_what_the_command_line_says_wins_over_the_file_which_wins_over_the_defaults(here, monkeypatch, form):
    (here/'a.toml').write_text('epochs = 2\nlr = 0.25\noptimizer = "sgd"\n')
    wanted = TrainConfig(epochs=3, lr=0.25, optimizer='sgd', config=Path('a.toml'))
    assert config_of(monkeypatch, 'train', *form, '--epochs', '3') == wanted
    assert config_of(monkeypatch, 'train', '--epochs', '3', *form) == wanted


def test_the_last_of_two_files_counts(here, monkeypatch):
    for nm, n in (('a.toml', 2), ('b.toml', 3)): (here/nm).write_text(f'epochs = {n}\n')
    config = config_of(monkeypatch, 'train', '--config=a.toml', '--config', 'b.toml')
    assert (config.epochs, config.config) == (3, Path('b.toml'))


def test_a_runs_own_configuration_can_be_run_again(here, capsys):
    (here/'a.toml').write_text('batch_size = 200\nseed = 3\nout = "one"\ndevice = "cpu"\n')
    assert run('train', '--config', 'a.toml', '--epochs', '1') == 0
    assert run('train', '--config', 'one/config.toml', '--out', 'two') == 0
    one, two = ([r['loss'] for r in history(here/nm)] for nm in ('one', 'two'))
    assert one == two
    assert tomllib.loads((here/'one'/'config.toml').read_text())['epochs'] == 1


def test_lr_find_runs_from_the_command_line(here, capsys):
    assert run('lr-find', '--out', 'run', '--batch-size', '100', '--device', 'cpu') == 0
    assert 'suggested learning rate for adamw: ' in capsys.readouterr().out
    assert files(here/'run') == ['config.toml', 'environment.json', 'lr_find.json', 'lr_find.png']


def test_the_arguments_default_to_the_processs_own(here, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['miniai', '--help'])
    with pytest.raises(SystemExit, match='0'): main()
    assert 'usage: miniai' in capsys.readouterr().out


def test_where_no_set_is_installed_the_sample_is_trained_on(here, capsys, monkeypatch):
    monkeypatch.delenv('MINIAI_DATA')
    monkeypatch.setattr(fmnist, 'DEBIAN', here/'not installed')
    monkeypatch.setattr(job, 'build_model', lambda config: 1/0)
    with pytest.raises(ZeroDivisionError): main(['train'])
    assert 'from the sample inside miniai' in capsys.readouterr().out


# Ctrl-C

def test_ctrl_c_in_this_process_gets_code_130_and_a_line(here, capsys, monkeypatch):
    def stop(config): raise KeyboardInterrupt
    monkeypatch.setattr(job, 'build_model', stop)
    assert run('train', *QUICK) == 130
    assert complaint(capsys) == 'stopped'


NOTED = 'SIGINT: finishing the batch and saving; once more to leave at once'
GOES_ON = 'stopped: miniai train --resume --out run goes on with it'


def is_a_stopped_run(folder):
    assert files(folder) == ALL
    rows = history(folder)
    assert len(rows) >= 2
    assert [(r['epoch'], r['phase']) for r in rows] == [(i//2, ('train', 'eval')[i % 2]) for i in range(len(rows))]
    model = build_model(TrainConfig())
    assert load_model(model, folder/'model.safetensors') == (set(), [])
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert min(colours(folder/nm) for nm in ('curves.png', 'activations.png')) > 10


def test_ctrl_c_leaves_model_metrics_and_pictures_and_exits_130(here):
    p = started('train', '--epochs', '5000', '--batch-size', '50', '--out', 'run', '--device', 'cpu', text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: ((here/'run'/'metrics.jsonl').exists() and len(history(here/'run')) >= 2) or p.poll() is not None)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert (p.returncode, err.splitlines()[1:]) == (130, [NOTED, GOES_ON])
    assert out.splitlines()[-1].endswith('s; the run is in run')
    is_a_stopped_run(here/'run')


def test_a_run_in_a_folder_with_a_space_is_named_as_a_shell_takes_it(here, monkeypatch, capsys):
    def stop(self, *args, **kwargs): raise SystemExit(143)
    monkeypatch.setattr(job.Learner, 'fit', stop)
    assert run('train', '--out', 'my run', '--device', 'cpu') == 143
    assert capsys.readouterr().err == "stopped: miniai train --resume --out 'my run' goes on with it\n"


def test_a_run_in_a_folder_named_by_the_time_is_named_too(here, monkeypatch, capsys):
    def stop(self, *args, **kwargs): raise SystemExit(143)
    monkeypatch.setattr(job.Learner, 'fit', stop)
    assert run('train', '--device', 'cpu') == 143
    folder, = (here/'runs').iterdir()
    assert capsys.readouterr().err == f"stopped: miniai train --resume --out runs/{folder.name} goes on with it\n"


# A proof

def test_a_run_of_a_proof_that_fails_exits_1_with_one_error_and_no_traceback(here):
    done = miniai('prove-resume', '--batch-size', '200', '--device', 'cpu', '--lr', '1e38')
    assert done.returncode == 1
    assert done.stderr.startswith('miniai: error: the run left alone failed: NonFiniteLossError: the training loss is ')
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(('differs', 'code'), [({}, 0), (dict(a='b'), 1)])
def test_a_proof_exits_0_where_all_is_the_same_and_1_where_it_is_not(here, monkeypatch, differs, code):
    monkeypatch.setattr(prove, 'prove_learner', lambda *args: Proof([(0, 1)], 'things', differs))
    assert run('prove-resume', '--batch-size', '100', '--device', 'cpu') == code


def test_sigterm_ends_a_proof_with_143_and_leaves_no_process_and_no_folder(here, monkeypatch):
    (here/'tmp').mkdir()
    monkeypatch.setenv('TMPDIR', str(here/'tmp'))
    monkeypatch.setenv('PYTHONUNBUFFERED', '1')
    p = started('prove-resume', '--batches', '900', '--epochs', '900', '--device', 'cpu', text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while 'left alone' not in p.stdout.readline(): assert p.poll() is None
    wait_for(lambda: list((here/'tmp').glob('*/log')))  # the run in its own process has begun
    p.terminate()
    _, err = p.communicate(timeout=20)  # which ends when no process holds the pipes any more
    assert (p.returncode, err) == (143, '')
    assert list((here/'tmp').glob('miniai-prove-*')) == []


def test_a_proof_without_its_data_gets_code_1_and_starts_nothing(here, capsys):
    assert run('prove-resume', '--data', 'nowhere') == 1
    assert complaint(capsys).startswith("miniai: error: no folder 'nowhere'")


# Checkpoints

@pytest.fixture
def checkpoint(here):
    "A checkpoint of more words than a pipe holds."
    save(here/'a.safetensors', {f'a {i}': i for i in range(9000)})
    return 'a.safetensors'


@pytest.mark.parametrize(('command', 'times'), [('show', 1), ('verify', 1), ('verify', 500)])
def test_a_reader_that_goes_away_is_no_fault_of_the_file(checkpoint, command, times):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'w') as gone:
        done = subprocess.run([MINIAI, 'checkpoint', command, *[checkpoint]*times], stdout=gone,
                              stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, '')


def test_a_file_that_cannot_be_read_is_its_own_fault(checkpoint, capsys):
    assert run('checkpoint', 'show', 'none') == 1
    assert complaint(capsys) == 'miniai: error: none: No such file or directory'
    assert run('checkpoint', 'verify', checkpoint, 'none') == 1
    assert re.fullmatch(r'a.safetensors: whole, sha256 [0-9a-f]{64}\nnone: No such file or directory\n',
                        capsys.readouterr().out)


def test_the_files_to_verify_are_said_to_be_required_and_none_is_an_error(here, capsys):
    assert run('checkpoint', 'verify', '--help') == 0
    said = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    assert said.startswith('usage: miniai checkpoint verify [-h] PATH [PATH ...] Say of each file whether it is whole')
    assert 'PATH [PATH ...] The files. (required)' in said
    assert run('checkpoint', 'verify') == 2
    assert 'name one checkpoint or more' in complaint(capsys)


HOSTILE = {'\x1b]0;owned\x07\nfile  forged': 1, 'emoji 😀': '😀\x1b[31m', 'n': 10**5000}


def looked_at(*args, encoding='utf-8:strict', **kwargs):
    "What `miniai checkpoint args` says, as bytes, where the environment names an encoding."
    env = os.environ | dict(PYTHONIOENCODING=encoding)
    return subprocess.run([MINIAI, 'checkpoint', *args], capture_output=True, timeout=60, env=env, **kwargs)


@pytest.mark.parametrize('encoding', ['utf-8:strict', 'ascii'])
def test_what_a_stream_cannot_take_is_escaped_and_all_files_are_looked_at(here, encoding):
    save('a', HOSTILE)
    names = ['b\udcff', 'no\nfile', 'emoji 😀', 'a']
    shown, done = looked_at('show', 'a', encoding=encoding), looked_at('verify', *names, encoding=encoding)
    assert (shown.returncode, done.returncode) == (0, 1)
    assert all(c == 10 or c >= 32 for c in shown.stdout + done.stdout)
    lines = [ln.partition(':')[0] for ln in done.stdout.decode().splitlines()]
    assert lines == [r'b\udcff', r'no\nfile', 'emoji 😀' if encoding != 'ascii' else r'emoji \U0001f600', 'a']
    assert shown.stderr + done.stderr == b''


def test_an_error_that_quotes_a_file_is_printable_too(here, capsys, monkeypatch):
    def refuse(config): raise CheckpointError('a\x1b[2J', 'the tensor \x07 is\nforged')
    monkeypatch.setattr(cli, 'show_file', refuse)
    assert run('checkpoint', 'show', 'a') == 1
    assert capsys.readouterr().err == 'miniai: error: a\\x1b[2J: the tensor \\x07 is\\nforged\n'
    assert cli._complain('our own\nlines \x1b', 1) == 1
    assert capsys.readouterr().err == 'miniai: error: our own\nlines \\x1b\n'


@pytest.mark.parametrize('args', [('verify', 'a'), ('show', 'a'), ('--help',)])
def test_where_standard_output_is_closed_a_line_says_so_with_code_1(here, args):
    save('a', {})
    done = subprocess.run(['sh', '-c', 'exec "$@" >&-', 'sh', MINIAI, 'checkpoint', *args], stderr=subprocess.PIPE,
                          text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, 'miniai: error: standard output is closed: there is nowhere to say '
                                                 'what comes of it\n')


def test_where_standard_error_is_closed_the_code_says_it_and_nothing_is_written_elsewhere(here):
    done = subprocess.run(['sh', '-c', 'exec "$@" 2>&-', 'sh', MINIAI, 'checkpoint', 'show', 'none'],
                          stdout=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stdout) == (1, b'')


# Warnings

def test_a_warning_is_one_line_without_a_place_in_the_code(here):
    done = miniai('train', *QUICK, '--out', 'run')
    for p in (here/'run'/'checkpoints').glob('*.safetensors'): p.write_bytes(p.read_bytes()[:-1])
    done = miniai('train', '--resume', '--out', 'run', '--epochs', '2')
    assert done.returncode == 1
    *warned, error = done.stderr.splitlines()
    assert warned
    assert all(w.startswith('miniai: warning: skipped run/checkpoints/') for w in warned)
    assert error.startswith('miniai: error: ')


def test_what_is_said_of_a_warning_is_printable():
    assert cli._warning(UserWarning('a\nb  \x1b[2J'), UserWarning, 'file.py', 3, None) == \
        'miniai: warning: a b \\x1b[2J\n'


def test_streams_and_warnings_are_as_before_after_a_command(here, capsys):
    before = warnings.formatwarning, sys.stdout.errors, sys.stderr.errors
    run('checkpoint', 'show', 'none')
    assert (warnings.formatwarning, sys.stdout.errors, sys.stderr.errors) == before


# A terminal

class Terminal:
    "A `miniai` on a pseudo-terminal of `width` columns."
    def __init__(self, *args, width=80):
        self.fd, tty = pty.openpty()
        fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack('HHHH', 24, width, 0, 0))
        self.p = started(*args, stdin=tty, stdout=tty, stderr=tty, start_new_session=True)
        os.close(tty)
        self.raw, self.width = b'', width

    def read_until(self, words=None):
        "Read until `words` came, or to the end."
        while not (words and words in self.text):
            assert select.select([self.fd], [], [], 60)[0], 'it says no more'
            try: got = os.read(self.fd, 1 << 16)
            except OSError: got = b''
            if not got: break
            self.raw += got
        if not words: os.close(self.fd)

    @property
    def text(self): return self.raw.decode(errors='replace')
    @property
    def screen(self): return Screen(self.text, self.width)


def bars(text): return re.findall(r'\r(epoch \d+/[^\r\n]*\d/\d[^\r\n]*)', text)


ROW = r' +\d\.\d{3} +\d+\.\d{3} +%d +%s'


@pytest.mark.parametrize('width', [80, 50])
def test_in_a_terminal_a_bar_comes_and_goes_rows_stay_and_nothing_wraps(here, width):
    t = Terminal('train', '--epochs', '2', '--batch-size', '20', '--device', 'cpu', '--out', 'r', width=width)
    t.read_until()
    assert t.p.wait(60) == 0
    labels = {re.match(r'epoch \d/\d \w+', b)[0] for b in bars(t.text)}
    assert labels == {f'epoch {e}/2 {phase}' for e in (1, 2) for phase in ('train', 'eval')}
    assert max(map(len, bars(t.text))) < width
    assert any(re.search(r' \d+/30 (\[.*\] )?\d\.\d{3} *$', b) for b in bars(t.text))
    shown = [ln for ln in t.screen.shown if ln]
    header = next(i for i, ln in enumerate(shown) if ln.split() == ['accuracy', 'loss', 'epoch', 'train'])
    rows = shown[header + 1:-1]
    assert all(re.fullmatch(ROW % (i//2, ('train', 'eval')[i % 2]), r) for i, r in enumerate(rows))
    assert len(rows) == 4
    assert len({len(r) for r in shown[header:-1]}) == 1
    assert shown[-1].endswith('s; the run is in r')
    whole = ('Fashion-MNIST, ', 'simple model')[:1 if width == 80 else 2]  # a path or a setting is never cut
    assert not [ln for ln in t.screen.wrapped if not ln.startswith(whole)]
    assert not any('| ' in ln for ln in shown)


def test_ctrl_c_leaves_the_terminal_clean_and_everything_on_disk(here):
    t = Terminal('train', '--epochs', '5000', '--batch-size', '50', '--device', 'cpu', '--out', 'run')
    t.read_until('epoch 2/5000 train')
    time.sleep(0.05)
    t.p.send_signal(signal.SIGINT)
    t.read_until()
    assert t.p.wait(60) == 130
    shown = [ln for ln in t.screen.shown if ln]
    assert shown[-1] == GOES_ON
    assert not [ln for ln in shown if '| ' in ln or 'Traceback' in ln]
    assert t.screen.col == 0
    assert t.text.count('\x1b[?25l') == t.text.count('\x1b[?25h')
    is_a_stopped_run(here/'run')

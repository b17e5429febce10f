"The command line as a user meets it: exit codes, messages, a terminal, Ctrl-C."
import json
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from miniai import cli
from miniai.checkpoint import CheckpointError, save
from miniai.cli import main
from miniai.data import fmnist
from miniai.inference.model_file import load
from miniai.jobs import prove
from miniai.jobs import train as job
from miniai.jobs.config import TrainConfig
from miniai.resume.prove import Proof
from recorded import write_run
from screen import Screen, environment, in_terminals
from tiny import RUN_FILES, colors, files, history, run, write_tiny

MINIAI = Path(sys.executable).with_name('miniai')
QUICK = ['--epochs', '1', '--batch-size', '100', '--device', 'cpu']


@pytest.fixture(scope='module')
def data(tmp_path_factory): return str(write_tiny(tmp_path_factory.mktemp('fmnist')))


@pytest.fixture
def here(data, tmp_path, monkeypatch):
    "An empty current folder, the tiny data in MINIAI_DATA, and one thread."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MINIAI_DATA', data)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    return tmp_path


def complaint(capsys):
    said = capsys.readouterr().err
    assert 'Traceback' not in said
    return said


def wait_for(there, seconds=60):
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, 'it never came'
        time.sleep(0.02)


# Success

def test_a_run_exits_with_0_and_prints_a_line_per_epoch_and_phase(here, capsys):
    assert run('train', '--epochs', '2', '--batch-size', '100', '--device', 'cpu') == 0
    out, err = capsys.readouterr()
    source, model, *rows, health, last = out.splitlines()
    assert (err, source.startswith('Fashion-MNIST')) == ('', True)
    assert model == 'simple model, 30,274 parameters; adamw, onecycle, lr 0.02; cpu'
    assert [re.sub(r'\d+\.\d+', 'x', r) for r in rows] == [
        f'epoch {e}  phase {phase}  accuracy x  loss x  seconds x' for e in (1, 2) for phase in ('train', 'valid')]
    assert health.startswith('no problems found: checked ')
    folder, = (here/'runs').iterdir()
    assert re.fullmatch(r'finished after [\d.]+ s; results in runs/\d{4}-\d\d-\d\d_\d{6}-train', last)
    assert last.endswith(folder.name)
    assert files(folder) == RUN_FILES


@pytest.mark.parametrize(('args', 'error'), [
    (['--epochs', '0'], 'ConfigError: epochs must be 1 or more, got 0'),
    (['--bogus', '1'], 'ConfigError: miniai train has no option --bogus; see miniai train --help'),
    (['surplus'], 'ConfigError: invalid options'), (['--data', 'nowhere'], "ConfigError: no data at 'nowhere'")])
def test_json_says_that_options_are_invalid(here, capsys, args, error):
    code = run('train', *args, '--json')
    out, err = capsys.readouterr()
    last, = map(json.loads, out.splitlines())
    assert (last['event'], last['status'], last['folder']) == ('end', 'failed', None)
    assert last['error'].startswith(error)
    assert code == 2
    assert err


def test_json_and_help_is_the_help(here, capsys):
    assert run('train', '--json', '--help') == 0
    assert '"event"' not in capsys.readouterr().out


def test_json_lines_are_all_that_a_program_reads_and_say_what_metrics_jsonl_says(here, capsys):
    assert run('train', '--epochs', '2', *QUICK[2:], '--json', '--track', 'csv') == 0
    out, err = capsys.readouterr()
    first, *rows, last = map(json.loads, out.splitlines())
    folder, = (here/'runs').iterdir()
    assert (first['event'], first['folder'], first['config']['batch_size']) == ('start', f'runs/{folder.name}', 100)
    epochs = [{k: v for k, v in row.items() if k != 'event'} for row in rows if row['event'] == 'epoch']
    assert epochs == history(folder)
    assert (last['event'], last['status'], last['result']) == ('end', 'finished', epochs[-1])
    assert set(RUN_FILES) <= set(last['files'])
    assert 'results in' in err
    assert 'json' not in (folder/'config.toml').read_text()


@pytest.mark.parametrize('shell', ['bash', 'zsh', 'fish'])
def test_a_script_completes_commands_and_options(capsys, shell):
    assert run('--completion', shell) == 0
    script = capsys.readouterr().out
    for word in ('miniai', 'prove-resume', '--batch-size', 'channels-last'): assert word in script
    spec, = (line for line in script.splitlines() if line.startswith('COMPLETION_SPEC'))
    assert r'\n' not in spec


def test_bash_completes_a_command_an_option_and_a_value(capsys):
    assert run('--completion', 'bash') == 0
    script = capsys.readouterr().out
    asks = ['miniai tra', 'miniai train --tra', 'miniai train --precision bfl']
    for words in asks:
        n = len(words.split()) - 1
        script += f'\nCOMP_WORDS=({words}); COMP_CWORD={n}; _tyro_miniai; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(['bash', '-c', script], capture_output=True, text=True)
    assert done.stdout.split('\n')[:3] == ['train', '--track', 'bfloat16'], done.stderr


def test_the_config_of_a_run_starts_the_same_run_in_a_new_folder(here, monkeypatch):
    (here/'a.toml').write_text('batch_size = 200\nseed = 3\nout = "one"\ndevice = "cpu"\nepochs = 1\n')
    assert run('train', '--config', 'a.toml') == 0
    assert run('train', '--config', 'one/config.toml') == 0
    again, = (here/'runs').iterdir()
    one, two = ([r['loss'] for r in history(folder)] for folder in (here/'one', again))
    assert one == two
    configs = []
    for job_type in (cli.LRFindConfig, cli.ProveConfig): monkeypatch.setitem(cli.JOBS, job_type, configs.append)
    for command in ('lr-find', 'prove-resume'): assert run(command, '--config', 'one/config.toml') == 0
    assert [c.batch_size for c in configs] == [200, 200]


def test_lr_find_runs_from_the_command_line(here, capsys):
    assert run('lr-find', '--out', 'run', '--batch-size', '100', '--device', 'cpu') == 0
    assert 'suggested learning rate for adamw: ' in capsys.readouterr().out
    assert files(here/'run') == ['config.toml', 'environment.json', 'lr_find.json', 'lr_find.png']


def test_without_data_on_this_machine_the_sample_is_used(here, capsys, monkeypatch):
    monkeypatch.delenv('MINIAI_DATA')
    monkeypatch.setattr(fmnist, 'DEBIAN', here/'not installed')
    monkeypatch.setattr(job, 'build_model', lambda config, dls: 1/0)
    with pytest.raises(ZeroDivisionError): main(['train'])  # an error of the library's own is shown whole
    assert 'from the sample inside miniai' in capsys.readouterr().out


def test_the_version_is_printed_and_arguments_default_to_those_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['miniai', '--version'])
    with pytest.raises(SystemExit, match='0'): main()
    assert re.fullmatch(r'miniai [\d.]+, torch [\d.]+\S*, Python [\d.]+\n', capsys.readouterr().out)


# Failure

@pytest.mark.parametrize(('args', 'message'), [
    ('tran', "unknown command 'tran'; did you mean 'train'?"),
    ('train --epoch 3', 'miniai train has no option --epoch; did you mean --epochs?'),
    ('train --config bad.toml', 'bad.toml: epochs must be 1 or more, got 0'),
    ('train --device nope', "cannot use device 'nope' here: .*; try cpu or auto"),
    ('lr-find --device cuda:99', "cannot use device 'cuda:99' here: .*; try cpu or auto"),
    ('train --model resnet --batch-size 599', 'batch_size 599 leaves a last batch of 1 .*'),
    ('checkpoint verify', 'name at least one checkpoint: .*')])
def test_invalid_options_exit_with_2_and_one_line(here, capsys, args, message):
    (here/'bad.toml').write_text('epochs = 0')
    assert run(*args.split()) == 2
    assert re.fullmatch(f'miniai: error: {message.replace("?", "[?]")}\n', complaint(capsys))
    assert files(here) == ['bad.toml']


@pytest.mark.parametrize(('args', 'message'), [
    ('predict none a.jpg', '.*none.*'), ('evaluate none', '.*none.*'),
    ('train --data damaged', 'damaged/train-labels-idx1-ubyte: labels must be from 0 to 9.*'),
    ('train --data hub', r"source='hub' needs the package datasets: pip install 'miniai-torch\[hf\]'"),
    ('train --out damaged', 'the run folder damaged is not empty.*--out'),
    ('train --resume', 'no run to resume at .*--out'),
    ('checkpoint show none', 'none: No such file or directory')])
def test_a_job_that_fails_exits_with_1_and_one_line(here, capsys, monkeypatch, args, message):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    (here/'damaged').mkdir()
    write_tiny(here/'damaged', 20, 10)
    (here/'damaged'/'train-labels-idx1-ubyte').write_bytes(b'\0\0\x08\x01\0\0\0\x14' + b'\x63'*20)
    before = files(here/'damaged')
    assert run(*args.split()) == 1
    assert re.fullmatch(f'miniai: error: {message}\n', complaint(capsys))
    assert (files(here), files(here/'damaged')) == (['damaged'], before)


def write_photos(folder, classes):
    for i, name in enumerate(classes*10):
        (folder/name).mkdir(parents=True, exist_ok=True)
        Image.new('L', (8, 8), i).save(folder/name/f'{i}.png')


@pytest.fixture
def used(here):
    "A run on photos, next to what it cannot use; the model of another was a function that is not there."
    write_photos(here/'photos', ['cat', 'dog'])
    write_photos(here/'others', ['cat', 'owl'])
    (here/'gone.py').write_text('from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))')
    for out, model in (('run', 'simple'), ('gone_run', 'gone:net')):
        subprocess.run([MINIAI, 'train', '--data', 'photos', '--model', model, '--out', out, '--no-stats', *QUICK],
                       check=True, capture_output=True)  # which finds gone.py in the current folder
    (here/'gone.py').unlink()
    return here


def test_what_a_trained_model_cannot_use_is_an_error_line_and_no_traceback(used, capsys):
    cases = {'evaluate run --data others': (1, 'unknown class owl: the model knows cat, dog'),
             'evaluate run --data nowhere': (2, "no data at 'nowhere': .*"),
             'evaluate run --device nope': (2, "cannot use device 'nope' here: .*"),
             'evaluate gone_run': (1, 'gone_run/.* names the function gone:net, .*: pass --allow-code .*'),
             'predict run gone.py': (1, 'no picture at gone.py'),
             'predict gone_run photos --allow-code': (1, "cannot import 'gone:net': .*"),
             'export gone_run m.pt2 --allow-code': (1, "cannot import 'gone:net': .*"),
             'script photos train.py': (2, 'photos is not the folder of a finished run'),
             'train --data others --valid others/cat': (2, 'the validation folder others/cat is inside others: .*'),
             'train --data run/config.toml --target y': (1, '.*is no table that can be read.*')}
    for args, (code, message) in cases.items():
        assert run(*args.split()) == code, args
        assert re.fullmatch(f'miniai: error: {message}\n', complaint(capsys)), args


def test_messages_name_the_options_of_the_command_line(used, capsys):
    (used/'photos'/'cat'/'0.png').write_bytes(b'')
    assert run('train', '--data', 'photos') == 1
    assert '1 of 20 pictures cannot be read. Delete or replace them, or skip them with --skip-bad:' in complaint(capsys)
    (used/'t.csv').write_text('a,y\n' + ''.join(f'{i},name {i}\n' for i in range(100)))
    assert run('train', '--data', 't.csv', '--target', 'y') == 1
    assert 'correct the table if they should be numbers, or pass --classes yes' in complaint(capsys)


def test_a_variable_that_names_no_folder_exits_with_1_and_is_named(here, capsys, monkeypatch):
    monkeypatch.setenv('MINIAI_DATA', '/nowhere')
    assert run('train') == 1
    assert 'MINIAI_DATA' in complaint(capsys)


def test_a_loss_that_is_not_finite_exits_with_1_and_names_epoch_and_batch(here, capsys):
    assert run('train', '--lr', '1e38', '--out', 'run', *QUICK) == 1
    assert re.match('miniai: error: the training loss is .* in epoch 0, batch ', complaint(capsys))
    assert 'model.safetensors' in files(here/'run')


@pytest.mark.parametrize(('differs', 'code'), [({}, 0), (dict(a='b'), 1)])
def test_a_proof_exits_with_0_if_all_is_the_same_and_1_if_not(here, monkeypatch, differs, code):
    monkeypatch.setattr(prove, 'prove_learner', lambda *args: Proof([(0, 1)], 'things', differs))
    assert run('prove-resume', '--batch-size', '100', '--device', 'cpu') == code


def test_an_error_that_quotes_a_file_is_safe_to_print(here, capsys, monkeypatch):
    def refuse(config): raise CheckpointError('a\x1b[2J', 'the tensor \x07 is\nforged')
    monkeypatch.setitem(cli.JOBS, cli.ShowConfig, refuse)
    assert run('checkpoint', 'show', 'a') == 1
    assert capsys.readouterr().err == 'miniai: error: a\\x1b[2J: the tensor \\x07 is\nforged\n'


def test_a_warning_is_one_printable_line_without_its_place_in_the_code(here, capsys, monkeypatch):
    before = warnings.formatwarning
    monkeypatch.setitem(cli.JOBS, cli.ShowConfig, lambda config: sys.stderr.write(
        warnings.formatwarning(UserWarning('a\nb  \x1b[2J'), UserWarning, 'file.py', 3)))
    assert run('checkpoint', 'show', 'a') == 0
    assert capsys.readouterr().err == 'miniai: warning: a b \\x1b[2J\n'
    assert warnings.formatwarning is before


# Resuming

def test_options_given_to_resume_are_checked_even_if_they_are_the_defaults(here, capsys):
    (here/'a.toml').write_text('batch_size = 1024')
    assert run('train', *QUICK, '--out', 'run', '--schedule', 'constant') == 0
    capsys.readouterr()
    for more in (['--batch-size', '1024'], ['--batch-size=1024'], ['--config', 'a.toml']):
        assert run('train', '--resume', '--out', 'run', *more) == 2
        assert complaint(capsys) == ('miniai: error: cannot resume with batch_size = 1024: the run has 100. '
                                     'Leave this option out\n')
    assert run('train', '--resume', '--out', 'run', '--batch-size', '100', '--lr', 'auto', '--epochs', '5') == 0
    assert [r['epoch'] for r in history(here/'run') if r['phase'] == 'eval'] == [0, 1, 2, 3, 4]
    assert run('train', '--resume', '--out', 'run') == 0
    assert TrainConfig.from_toml(here/'run'/'config.toml').epochs == 5


# Ctrl-C and SIGTERM

def test_ctrl_c_exits_with_130_and_one_line(here, capsys, monkeypatch):
    def stop(config, dls): raise KeyboardInterrupt
    monkeypatch.setattr(job, 'build_model', stop)
    assert run('train', *QUICK) == 130
    assert complaint(capsys) == 'stopped\n'


def test_ctrl_c_exits_with_130_from_a_report_too_and_leaves_the_old_one(here, capsys, monkeypatch):
    folder = write_run(here/'run')
    assert run('report', str(folder)) == 0
    before = (folder/'report.html').read_bytes()
    def stop(self, *args, **options):
        Path.write_bytes(self, b'half')
        raise KeyboardInterrupt
    monkeypatch.setattr(Path, 'write_text', stop)
    for args in (('report', str(folder)), ('report', str(folder), '--out', str(folder/'report.html'))):
        assert run(*args) == 130
        assert complaint(capsys) == 'stopped\n'
        assert (folder/'report.html').read_bytes() == before
        assert not [*folder.glob('.*')]


def test_a_report_is_the_same_with_and_without_options_and_says_what_is_wrong(here, capsys):
    folder = write_run(here/'run')
    pages = []
    for args in ([], ['--out', str(folder)]):
        assert run('report', str(folder), *args) == 0
        assert capsys.readouterr().out == f'{folder}/report.html\n'
        pages.append((folder/'report.html').read_text())
    assert re.sub('written.*', '', pages[0]) == re.sub('written.*', '', pages[1])
    assert run('report', 'no-such-run') == 1
    assert 'no-such-run is not the folder of a run' in complaint(capsys)


@pytest.mark.parametrize('out', ['my run', 'runs/{time}-{job}'])
def test_a_run_that_was_stopped_says_how_to_continue_it(here, monkeypatch, capsys, out):
    def stop(self, *args, **kwargs): raise SystemExit(143)
    monkeypatch.setattr(job.Learner, 'fit', stop)
    assert run('train', '--device', 'cpu', '--out', out) == 143
    name = "'my run'" if out == 'my run' else f'runs/{next((here/"runs").iterdir()).name}'
    assert complaint(capsys) == f'to continue: miniai train --resume --out {name}\n'


def started(*args, **kwargs):
    "A `miniai` process that hears Ctrl-C, even if these tests run in the background."
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try: return subprocess.Popen([MINIAI, *args], **kwargs)
    finally: signal.signal(signal.SIGINT, old)


def test_ctrl_c_leaves_a_clean_terminal_and_everything_on_disk(here):
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    args = 'train', '--epochs', '5000', '--batch-size', '50', '--device', 'cpu', '--out', 'run'
    env = environment() | dict(PYTHONPATH=os.environ.get('PYTHONPATH', ''))
    with started(*args, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=env) as p:
        os.close(theirs)
        raw, sent = b'', False
        try:
            while select.select([ours], [], [], 60)[0]:
                try: chunk = os.read(ours, 1 << 16)
                except OSError: break
                raw += chunk
                if sent or b'epoch 2/5000 train' not in raw: continue
                p.send_signal(signal.SIGINT)
                sent = True
            assert p.wait(60) == 130
        finally: p.kill()
    seen = Screen(80).feed(raw.decode().replace('\r\n', '\n\r')).seen
    assert seen[-1] == 'to continue: miniai train --resume --out run'
    assert re.fullmatch(r'stopped after [\d.]+ s; results in run', seen[-2])
    assert not [line for line in seen if '| ' in line or 'Traceback' in line]
    assert files(here/'run') == RUN_FILES
    rows = history(here/'run')
    assert [(r['epoch'], r['phase']) for r in rows] == [(i//2, ('train', 'eval')[i % 2]) for i in range(len(rows))]
    assert len(rows) >= 2
    assert all(torch.isfinite(q).all() for q in load(here/'run').model.parameters())
    assert min(colors(here/'run'/name) for name in ('curves.png', 'activations.png')) > 10


def test_sigterm_ends_a_proof_with_143_and_leaves_no_process_and_no_folder(here, monkeypatch):
    (here/'tmp').mkdir()
    monkeypatch.setenv('TMPDIR', str(here/'tmp'))
    with started('prove-resume', '--batches', '900', '--epochs', '900', '--device', 'cpu', text=True,
                 stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        try:
            wait_for(lambda: list((here/'tmp').glob('*/log')) or p.poll() is not None)  # the first run has started
            p.terminate()
            _, err = p.communicate(timeout=30)  # which ends when no process holds the pipes any more
        finally: p.kill()
    assert (p.returncode, err) == (143, '')
    assert list((here/'tmp').glob('miniai-prove-*')) == []


# Streams

def test_a_reader_that_goes_away_ends_the_command_with_141(here):
    save('a', {f'a {i}': i for i in range(9000)})  # more than a pipe holds
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'w') as gone:
        done = subprocess.run([MINIAI, 'checkpoint', 'show', 'a'], stdout=gone, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (141, b'')


def test_characters_that_a_stream_cannot_encode_are_escaped(here):
    save('emoji 😀', {'emoji 😀': 1})
    done = subprocess.run([MINIAI, 'checkpoint', 'verify', 'emoji 😀', 'b\udcff'], capture_output=True, timeout=60,
                          env=os.environ | dict(PYTHONIOENCODING='ascii'))
    assert (done.returncode, done.stderr) == (1, b'')
    assert [line.partition(b':')[0] for line in done.stdout.splitlines()] == [rb'emoji \U0001f600', rb'b\udcff']


# A terminal

@pytest.fixture(scope='module')
def terminals(data, tmp_path_factory):
    "What a terminal gets from a run and a search at two widths, and from the help with and without NO_COLOR."
    out = tmp_path_factory.mktemp('runs')
    def script(*args, before=''):
        return (f"import os; from miniai.cli import main\n{before}\ntry: main({list(args)!r})\n"
                f"except SystemExit as e: assert e.code == 0")
    train = 'train', '--epochs', '2', '--batch-size', '20'
    rest = '--data', data, '--device', 'cpu', '--out', f'{out}/{{time}}'
    color = "os.environ.pop('NO_COLOR', None)"
    return in_terminals({'train': script(*train, *rest), 'lr-find': script('lr-find', '--batch-size', '100', *rest),
                         'help': script('--help', before=color),
                         'plain help': script('--help', before="os.environ['NO_COLOR'] = '1'")}, [80, 60])


ROW = r' +%d +%s +\d\.\d{3} +\d+\.\d{3} +\d+\.\d'


@pytest.mark.parametrize('width', [80, 60])
def test_in_a_terminal_a_bar_comes_and_goes_and_rows_stay(terminals, width):
    text = terminals['train', width]
    bars = re.findall(r'\r(epoch \d+/[^\r\n]*\d/\d[^\r\n]*)', text)
    labels = {re.match(r'epoch \d/\d \w+', bar)[0] for bar in bars}
    assert labels == {f'epoch {e}/2 {phase}' for e in (1, 2) for phase in ('train', 'valid')}
    assert max(map(len, bars)) < width
    moved = [bar for bar in bars if not re.search(r' 0/\d', bar)]  # none in an epoch of under 0.1 s
    assert all(re.search(r' \d+/\d+ (\[.*\] )?\d\.\d{3} *$', bar) for bar in moved)
    seen = Screen(width).feed(text).seen
    header = next(i for i, line in enumerate(seen) if line.split() == ['epoch', 'phase', 'accuracy', 'loss', 'seconds'])
    rows = seen[header + 1:header + 5]
    assert all(re.fullmatch(ROW % (i//2 + 1, ('train', 'valid')[i % 2]), row) for i, row in enumerate(rows))
    assert len({len(row) for row in seen[header:header + 5]}) == 1
    assert any(line.startswith('finished after ') for line in seen[header + 5:])
    assert not any('| ' in line for line in seen)


@pytest.mark.parametrize('width', [80, 60])
def test_a_search_ends_with_the_rates_and_the_curve(terminals, width):
    seen = Screen(width).feed(terminals['lr-find', width]).seen
    first = next(i for i, line in enumerate(seen) if line.startswith('suggested learning rate for adamw: '))
    assert seen[first + 1].startswith('or, as the peak of a schedule: ')
    rest = seen[first + 2:]
    assert '--lr auto with the onecycle schedule: 0.02' in rest
    at = rest.index('curve:')  # a path that is too long for the line begins the next one, and stays whole
    assert ''.join(rest[at + 1:]).strip().endswith('.png')


def test_no_color_is_honoured(terminals):
    assert '\x1b[' in terminals['help', 80]
    assert '\x1b' not in terminals['plain help', 80]

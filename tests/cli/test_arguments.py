"Arguments become configurations; mistakes get a short message with a suggestion; help is complete."
import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai.cli.arguments import completion, parse
from miniai.jobs.checkpoint import GatherConfig, ShowConfig, VerifyConfig
from miniai.jobs.config import JOBS, ConfigError, TrainConfig
from miniai.jobs.registry import MODELS, OPTIMIZERS, SCHEDULES


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('COLUMNS', '80')


def help_of(capsys, *args):
    "The help text, which but for the list of all commands must fit into 80 columns, as one line without boxes."
    with pytest.raises(SystemExit, match='0'): parse([*args])
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines() if '{train,' not in line) <= 80
    return ' '.join(re.sub('[│─╭╮╰╯|+]|-{3,}', ' ', said).split())


# Help

@pytest.mark.parametrize('args', [[], ['--help']])
def test_miniai_alone_shows_all_commands(capsys, args):
    said = help_of(capsys, *args)
    assert all(w in said for w in ('usage: miniai', *JOBS, 'checkpoint', '--config FILE.toml', '--version'))


@pytest.mark.parametrize('command', JOBS)
def test_the_help_of_a_job_has_every_option_with_a_text_and_its_default(capsys, command):
    said = re.sub(r'(--([a-z-]+)), --no-\2', r'\1', help_of(capsys, command, '--help')).replace('-h, --help', '')
    found = re.findall(r"--([a-z-]+) (?:(?:\{[^}]*\}|[A-Z|]+\S*) )*(.*?) \(default: ('[^']*'|[^)]*)\)", said)
    wanted = {f.name.replace('_', '-'): str(getattr(JOBS[command](), f.name)) for f in fields(JOBS[command])}
    assert {name: default.strip("'") for name, _, default in found} == wanted
    assert min(len(text) for _, text, _ in found) > 10


@pytest.mark.parametrize('command', JOBS)
def test_no_text_of_an_option_breaks_within_a_sentence(capsys, monkeypatch, command):
    monkeypatch.setenv('COLUMNS', '2000')
    with pytest.raises(SystemExit, match='0'): parse([command, '--help'])
    lines = [line.strip('│| ') for line in capsys.readouterr().out.splitlines()]
    texts = [line for line in lines if re.search('[a-z] [a-z]', line)][2:]  # after usage and description
    assert len(texts) > 20
    for line in texts: assert '(default: ' in line or line.endswith('exit'), line


def test_the_choices_and_their_texts_are_in_the_help(capsys):
    said = help_of(capsys, 'train', '--help').replace(', ', ',')
    assert ','.join(OPTIMIZERS) in said
    assert all(f'{name}: {row.about.split(",")[0]}' in said for name, row in (MODELS | SCHEDULES).items())


def test_the_help_of_verify_says_that_it_needs_files(capsys):
    said = help_of(capsys, 'checkpoint', 'verify', '--help')
    assert said.startswith('usage: miniai checkpoint verify [-h] PATH [PATH ...] Check that files ')
    assert 'PATH [PATH ...] The checkpoints. (required)' in said


# Options

@pytest.mark.parametrize('size', [['--batch-size', '7'], ['--batch_size', '7'], ['--batch-size=7']])
def test_options_can_have_dashes_underscores_or_equals_signs(size):
    assert parse(['train', *size]) == TrainConfig(batch_size=7)


def test_every_option_reaches_the_configuration():
    chosen = dict(data='d', model='resnet', optimizer='lion', batch_size=3, seed=4, device='x', out='o',
                  schedule='cosine', lr=0.5, epochs=6, precision='bfloat16', layout='channels-first')
    args = [a for name, value in chosen.items() for a in (f'--{name.replace("_", "-")}', str(value))]
    assert parse(['train', *args, '--compile', '--no-stats', '--profile']) == \
        TrainConfig(**chosen, compile=True, stats=False, profile=True)


def test_paths_reach_the_checkpoint_commands():
    assert parse(['checkpoint', 'verify', 'a', 'b']) == VerifyConfig((Path('a'), Path('b')))
    assert parse(['checkpoint', 'show', 'a']) == ShowConfig(Path('a'))
    assert parse(['checkpoint', 'gather', 'a', 'b']) == GatherConfig(Path('a'), Path('b'))


@pytest.mark.parametrize('form', [['--config', 'a.toml'], ['--config=a.toml']])
def test_the_command_line_overrides_the_file_and_the_file_the_defaults(form):
    Path('a.toml').write_text('epochs = 2\nlr = 0.25\noptimizer = "sgd"\nprofile = true\nstats = false\n')
    wanted = TrainConfig(epochs=3, lr=0.25, optimizer='sgd', profile=False, stats=False, config=Path('a.toml'))
    for args in ([*form, '--epochs', '3', '--no-profile'], ['--epochs', '3', '--no-profile', *form]):
        assert parse(['train', *args]) == wanted


def test_the_last_of_two_files_counts():
    for name, n in (('a.toml', 2), ('b.toml', 3)): Path(name).write_text(f'epochs = {n}\n')
    config = parse(['train', '--config=a.toml', '--config', 'b.toml'])
    assert (config.epochs, config.config) == (3, Path('b.toml'))


OPTIONS = dict(data=st.sampled_from(['auto', 'd']), model=st.sampled_from(['simple', 'resnet']),
               batch_size=st.sampled_from([1024, 64]), seed=st.just(42), device=st.just('auto'), lr=st.just('auto'),
               epochs=st.sampled_from([5, 9]), compile=st.booleans(), out=st.just('runs/{time}-{job}'),
               resume=st.booleans())


def argument(name, value, dash):
    name = name.replace('_', dash)
    return [f'--{"" if value else f"no{dash}"}{name}'] if isinstance(value, bool) else [f'--{name}', str(value)]


@settings(max_examples=30)
@given(st.fixed_dictionaries({}, optional=OPTIONS), st.fixed_dictionaries({}, optional=OPTIONS), st.sampled_from('-_'))
def test_given_are_the_options_on_the_command_line_and_in_the_file_even_if_they_are_the_defaults(
        tmp_path_factory, line, toml, dash):
    file = tmp_path_factory.mktemp('config')/'a.toml'
    file.write_text(''.join(f'{k} = {json.dumps(v)}\n' for k, v in toml.items()))
    args = [a for k, v in line.items() for a in argument(k, v, dash)]
    assert parse(['train', *args, '--config', str(file)]).given == {*line, *toml, 'config'}
    assert parse(['train', *args]).given == set(line)


def test_trackers_may_be_repeated_and_joined():
    args = ['train', '--track', 'csv', '--epochs', '2', '--track=tensorboard,mlflow']
    config = parse(args)
    assert (config.track, config.epochs, config.given) == ('csv,tensorboard,mlflow', 2, {'track', 'epochs'})


# Mistakes

@pytest.mark.parametrize(('args', 'message'), [
    ('tran', "unknown command 'tran'; did you mean 'train'?"),
    ('zzz', "unknown command 'zzz'; choose from train, lr-find, prove-resume, evaluate, .*, checkpoint"),
    ('train --track csw', "track must be .*, got 'csw'; did you mean 'csv'?"),
    ('train --track', '--track needs a value, such as tensorboard'),
    ('train --opt.beta2', '--opt.beta2 needs a value'), ('train --valid 1', 'valid must be between 0 and 1, got 1.0'),
    ('train --opt nonsense', "opt must have options such as beta2=0.95, separated by spaces, got 'nonsense'"),
    ('checkpoint verfy a', "unknown checkpoint command 'verfy'; did you mean 'verify'?"),
    ('train --optimiser lion', 'miniai train has no option --optimiser; did you mean --optimizer?'),
    ('train --batchsize=3', 'miniai train has no option --batchsize; did you mean --batch-size?'),
    ('train --no-profil', 'miniai train has no option --no-profil; did you mean --no-profile?'),
    ('lr-find --epochs 2', 'miniai lr-find has no option --epochs; see miniai lr-find --help'),
    ('train --optimizer lyon', "optimizer must be sgd, .*, lion or module:name, got 'lyon'; did you mean 'lion'?"),
    ('train --model=vgg', "model must be auto, simple, resnet, table or module:name, got 'vgg'"),
    ('train --epochs two', "epochs must be auto or a whole number, got 'two'"),
    ('train --lr -1', 'lr must be finite and above 0, got -1.0'),
    ('lr-find --seed -1', 'seed must be from 0 to 2**64 - 1, got -1'),
    ('train --config no.toml', 'cannot read the config file no.toml: No such file or directory')])
def test_a_mistake_gets_one_short_message_with_a_suggestion(args, message):
    with pytest.raises(ConfigError) as e: parse(args.split())
    assert re.fullmatch(re.escape(message).replace(r'\.\*', '.*'), str(e.value))


@pytest.mark.parametrize(('args', 'word'), [('train --config', '--config'), ('train --out', '--out'), ('train x', 'x'),
                                            ('checkpoint', 'verify'), ('checkpoint show', 'PATH')])
def test_a_missing_value_or_an_extra_word_exits_with_2_and_names_it(capsys, args, word):
    with pytest.raises(SystemExit, match='2'): parse(args.split())
    assert word in capsys.readouterr().err


def test_without_tyro_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tyro', None)
    with pytest.raises(ConfigError, match=r"the command line needs tyro: pip install 'miniai-torch\[cli\]'"):
        parse(['train'])


@pytest.mark.parametrize('shell', ['tcsh', ''])
def test_another_shell_than_those_known_is_an_error(shell):
    with pytest.raises(ConfigError, match=f"--completion must be bash, zsh or fish, got '{shell}'"): completion(shell)

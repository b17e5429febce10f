"Configurations: what they accept, refuse and say, and TOML in both directions."
import copy
import math
import os
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniai.jobs.config import JOBS, ConfigError, LRFindConfig, ProveConfig, TrainConfig, check_text, suggestion
from miniai.jobs.registry import MODELS, OPTIMIZERS, SCHEDULES

COMMON = dict(data=st.text().filter(lambda word: not os.path.exists(os.path.expanduser(word))),
              model=st.sampled_from([*MODELS]), optimizer=st.sampled_from([*OPTIMIZERS]),
              schedule=st.sampled_from([*SCHEDULES]), batch_size=st.integers(1), seed=st.integers(0, 2**64 - 1),
              device=st.text(), precision=st.sampled_from(['float32', 'bfloat16', 'float16']), compile=st.booleans(),
              layout=st.sampled_from(['auto', 'channels-first', 'channels-last']))
lrs = st.just('auto') | st.floats(0, exclude_min=True, allow_infinity=False) | st.integers(1, 10**300)
trains = st.builds(TrainConfig, **COMMON, epochs=st.integers(1), lr=lrs, profile=st.booleans(), stats=st.booleans())
lr_finds = st.builds(LRFindConfig, **COMMON)


@pytest.fixture(scope='module')
def file(tmp_path_factory): return tmp_path_factory.mktemp('config')/'some.toml'


def read(file, text, cls=TrainConfig):
    file.write_text(text, 'utf-8')
    return cls.from_toml(file)


@given(trains | lr_finds)
def test_a_configuration_written_as_toml_is_read_back_the_same(file, config):
    assert read(file, config.to_toml(), type(config)) == replace(config, config=file)


def test_the_toml_has_every_option_but_those_that_place_and_resume_the_run():
    config = TrainConfig(out='elsewhere', resume=True, distributed='fsdp')
    saved = tomllib.loads(config.to_toml())
    assert {*saved, 'config', 'out', 'resume', 'distributed', 'json'} == {f.name for f in fields(config)}
    assert all(saved[name] == getattr(config, name) for name in saved)


def test_the_paths_in_a_saved_configuration_hold_in_every_folder(tmp_path, monkeypatch):
    (tmp_path/'photos').mkdir()
    (tmp_path/'later').mkdir()
    for name in ('t.csv', 'part'): (tmp_path/name).write_text('a,part')
    monkeypatch.chdir(tmp_path)
    for data, valid, absolute in (('photos', 'later', True), ('t.csv', 't.csv', True), ('t.csv', 'later', False),
                                  ('sample', 'later', None), ('hub:photos', 'later', None), ('photos', .3, False)):
        saved = tomllib.loads(TrainConfig(data=data, valid=valid).to_toml())
        assert saved['data'] == (data if absolute is None else str(tmp_path/data))
        assert saved['valid'] == (str(tmp_path/valid) if absolute else valid)
    run = TrainConfig(data=str(tmp_path/'photos'))
    assert TrainConfig(data='photos').for_resume(run).data == run.data
    with pytest.raises(ConfigError, match=r"cannot resume with data = '.*later'"):
        TrainConfig(data='later').for_resume(run)


@pytest.mark.parametrize('cls', JOBS.values())
def test_jobs_can_share_a_file(file, cls):
    config = read(file, TrainConfig().to_toml() + 'batches = 4\nout = "x"\nresume = false\n', cls)
    assert config == cls(config=file, **{name: value for name, value in dict(batches=4, out='x').items()
                                         if name in {f.name for f in fields(cls)}})
    with pytest.raises(ConfigError, match="unknown option 'batchs'"): read(file, 'batchs = 4\n', cls)


def test_a_file_from_before_an_option_existed_is_read(file):
    lines = TrainConfig(optimizer='lion').to_toml().splitlines()
    older = '\n'.join(line for line in lines if not line.startswith(('stats', 'compile')))
    assert read(file, older) == TrainConfig(optimizer='lion', config=file)


@pytest.mark.parametrize('text', ['\x7f', '\U0001f600', '"\\\b\f\n\r\t\x1b', "'", 'é\u2028', '# = ["'])
def test_any_character_survives_in_toml(file, text):
    assert read(file, TrainConfig(data=text).to_toml()).data == text


def test_an_empty_file_means_the_defaults(file):
    assert read(file, '') == TrainConfig(config=file)
    assert read(file, '', LRFindConfig) == LRFindConfig(config=file)


def test_the_defaults_are_adamw_with_1cycle_and_what_suits_the_data():
    config = TrainConfig()
    assert (config.epochs, config.optimizer, config.schedule, config.model) == ('auto', 'adamw', 'onecycle', 'auto')
    assert (config.lr, config.data, config.device, config.batch_size) == ('auto', 'auto', 'auto', 128)


def test_what_a_file_sets_is_taken_and_the_rest_stays_at_its_default(file):
    config = read(file, 'epochs = 2\nlr = 1\noptimizer = "sgd"\n')
    assert config == TrainConfig(epochs=2, lr=1, optimizer='sgd', config=file)


# Refused

@pytest.mark.parametrize(('key', 'near'), [
    ('epoch', 'epochs'), ('batch-size', 'batch_size'), ('batchsize', 'batch_size'), ('optimiser', 'optimizer'),
    ('schedul', 'schedule'), ('devise', 'device'), ('LR', None), ('zzz', None), ('config', 'cont')])
def test_an_unknown_option_is_refused_with_the_file_and_the_nearest_name_or_all(file, key, near):
    with pytest.raises(ConfigError) as e: read(file, f'{key} = 1\n')
    names = [f.name for f in fields(TrainConfig) if f.name != 'config']
    hint = f"did you mean '{near}'?" if near else f"known options: {', '.join(names)}"
    assert str(e.value) == f"{file}: unknown option {key!r}; {hint}"


def test_a_section_is_an_unknown_option(file):
    with pytest.raises(ConfigError, match="unknown option 'train'; did you mean 'track'"):
        read(file, '[train]\nepochs = 2\n')


WHOLE, YES_NO = 'must be a whole number, got ', 'must be true or false, got '
WRONG = [('epochs', '"2"', "must be auto or a whole number, got '2'"), ('size', '2.0', fr'{WHOLE}2\.0'),
         ('size', 'true', f'{WHOLE}True'),
         ('seed', '[1]', fr'{WHOLE}\[1\]'), ('batch_size', '1e3', fr'{WHOLE}1000\.0'),
         ('out', '3', 'must be text, got 3'),
         ('data', '2020-01-01', r'must be text, got datetime\.date'), ('device', '{}', r'must be text, got \{'),
         ('model', '1', 'must be text, got 1'),
         ('model', '"vgg"', "must be auto, simple, resnet, table or module:name, got 'vgg'$"),
         ('optimizer', '"lyon"', "must be sgd, momentum, .*, lion or module:name, got 'lyon'; did you mean 'lion'"),
         ('schedule', '"1cycle"', "must be onecycle, .* or module:name, got '1cycle'; did you mean 'onecycle'"),
         ('compile', '1', f'{YES_NO}1'), ('compile', '"yes"', f"{YES_NO}'yes'"), ('profile', '0', f'{YES_NO}0'),
         ('precision', '"half"', "must be float32, bfloat16 or float16, got 'half'"),
         ('layout', '"nhwc"', "must be auto, channels-first or channels-last, got 'nhwc'"),
         ('lr', '"fast"', "must be auto or a number, got 'fast'"), ('lr', 'false', 'must be auto or a .*, got False'),
         ('epochs', '0', 'must be 1 or more, got 0'), ('epochs', '-3', 'must be 1 or more, got -3'),
         ('batch_size', '0', 'must be 1 or more, got 0'), ('seed', '-1', 'must be from 0 to .*, got -1'),
         ('seed', str(2**64), fr'must be from 0 to 2\*\*64 - 1, got {2**64}'),
         *(('lr', lr, 'must be finite and above 0, got ') for lr in ('0', '0.0', '-1e-3', '-2', 'inf', '-inf', 'nan'))]


@pytest.mark.parametrize(('key', 'value', 'said'), WRONG, ids=[f'{k}={v}' for k, v, _ in WRONG])
def test_a_wrong_type_or_range_is_refused_with_the_file_the_option_and_what_it_may_be(file, key, value, said):
    with pytest.raises(ConfigError, match=f'^{file}: {key} {said}'): read(file, f'{key} = {value}\n')


def test_options_given_in_python_are_checked_alike_without_a_file():
    with pytest.raises(ConfigError, match=r'^epochs must be 1 or more, got 0'): TrainConfig(epochs=0)
    with pytest.raises(ConfigError, match=r"^config must be a path, got 'a"): TrainConfig(config='a.toml')
    assert TrainConfig(config=Path('a.toml')).config == Path('a.toml')
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize('lr', [math.nan, math.inf, -math.inf, 0, -1])
def test_a_rate_is_a_finite_number_above_zero(lr):
    with pytest.raises(ConfigError, match='lr must be finite and above 0'): TrainConfig(lr=lr)


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path):
    with pytest.raises(ConfigError, match=f'cannot read the config file {tmp_path}/no.toml: No such file'):
        TrainConfig.from_toml(tmp_path/'no.toml')
    with pytest.raises(ConfigError, match=f'cannot read the config file {tmp_path}: Is a directory'):
        TrainConfig.from_toml(tmp_path)


@pytest.mark.parametrize('raw', [b'epochs 2', b'epochs = 1\nepochs = 2', b'data = "a', b'\xff\xfe\x00'])
def test_a_file_that_is_not_toml_is_named_with_the_reason(file, raw):
    file.write_bytes(raw)
    with pytest.raises(ConfigError, match=f'^{file} is not valid TOML: .'): TrainConfig.from_toml(file)


# Text from the command line

@pytest.mark.parametrize(('name', 'text'), [('epochs', '3'), ('lr', '0.1'), ('lr', '1e-3'), ('lr', '2'), ('lr', 'auto'),
                                            ('data', 'any'), ('config', 'a.toml'), ('optimizer', 'lion')])
def test_valid_text_passes(name, text): check_text(TrainConfig, name, text)


@pytest.mark.parametrize(('name', 'text', 'message'), [
    ('epochs', 'two', "epochs must be auto or a whole number, got 'two'"), ('epochs', '1.5', "whole number, got '1.5'"),
    ('epochs', '0', 'epochs must be 1 or more, got 0'), ('lr', 'fast', "lr must be auto or a number, got 'fast'"),
    ('lr', 'nan', 'lr must be finite and above 0, got nan'), ('optimizer', 'lyon', "did you mean 'lion'?")])
def test_invalid_text_gets_the_message_of_the_configuration(name, text, message):
    with pytest.raises(ConfigError) as e: check_text(TrainConfig, name, text)
    assert message in str(e.value)


def test_a_suggestion_is_the_nearest_name_or_nothing():
    assert suggestion('tran', ['train', 'lr-find']) == "did you mean 'train'?"
    assert suggestion('zzz', ['train', 'lr-find']) == ''


# Resuming

RUN = TrainConfig(batch_size=64, epochs=10, lr=.25, device='cpu', layout='channels-last', precision='bfloat16',
                  schedule='constant')


@given(st.fixed_dictionaries({}, optional=dict(batch_size=st.sampled_from([64, 1024]), epochs=st.sampled_from([5, 12]),
                                               optimizer=st.sampled_from(['adamw', 'sgd']), profile=st.booleans(),
                                               seed=st.sampled_from([42, 1]), out=st.just('x'))))
def test_a_given_option_must_be_the_runs_own_even_if_it_is_the_default_but_epochs_may_change(options):
    asked = TrainConfig(**options, resume=True)
    assert asked.given == {*options, 'resume'}
    own = dict(batch_size=64, optimizer='adamw', seed=42, profile=False)
    differing = sorted(name for name in own if options.get(name, own[name]) != own[name])
    if differing:
        with pytest.raises(ConfigError, match=f'^cannot resume with {differing[0]} = .*the run has '):
            asked.for_resume(RUN)
    else: assert asked.for_resume(RUN) == replace(RUN, resume=True, epochs=options.get('epochs', 10))


def test_more_epochs_are_refused_if_the_runs_schedule_depends_on_their_number():
    asked = TrainConfig(epochs=12, resume=True)
    for schedule in SCHEDULES.keys() - {'constant'}:
        run = replace(RUN, schedule=schedule)
        says = f"^cannot resume with epochs = 12: the run's {schedule} schedule was made for 10 epochs. Leave"
        with pytest.raises(ConfigError, match=says): asked.for_resume(run)
        assert TrainConfig(epochs=10, resume=True).for_resume(run).epochs == 10
    assert asked.for_resume(replace(RUN, schedule='my_schedules:mine')).epochs == 12  # it may not depend on it


def test_what_the_run_chose_stays():
    run = replace(RUN, profile=True, stats=False)
    resumed = TrainConfig(resume=True).for_resume(run)
    assert (resumed.profile, resumed.stats) == (True, False)


@pytest.mark.parametrize('option', ['lr', 'device', 'layout', 'data'])
def test_auto_leaves_the_choice_to_the_run(option):
    assert TrainConfig(**{option: 'auto'}).for_resume(RUN) == replace(RUN, resume=True)


def test_float16_on_a_cpu_matches_the_bfloat16_that_it_became():
    asked = TrainConfig(precision='float16')
    assert asked.for_resume(RUN).precision == 'bfloat16'
    for run in (replace(RUN, device='cuda'), replace(RUN, precision='float32')):
        with pytest.raises(ConfigError, match="cannot resume with precision = 'float16'"): asked.for_resume(run)


def test_given_are_the_options_in_a_file_and_those_of_replace(file):
    assert read(file, 'batch_size = 1024\n').given == {'batch_size', 'config'}
    assert replace(TrainConfig()).given == {f.name for f in fields(TrainConfig)}
    assert replace(RUN, resume=True).for_resume(RUN) == replace(RUN, resume=True)
    assert copy.copy(TrainConfig(epochs=5)).given == {'epochs'}


def test_a_proof_has_no_folder_and_at_least_two_batches():
    assert {f.name for f in fields(ProveConfig)}.isdisjoint(('out', 'resume', 'profile'))
    with pytest.raises(ConfigError, match='batches must be 2 or more, got 1'): ProveConfig(batches=1)

"The main job: what it trains, and what it saves."
import json
import subprocess
import tomllib
from dataclasses import replace

import pytest
import torch

from miniai.data.fmnist import DataError
from miniai.inference.model_file import load
from miniai.jobs import recording
from miniai.jobs import train as job
from miniai.jobs.config import ConfigError, TrainConfig
from miniai.jobs.data import build_data
from miniai.jobs.registry import OPTIMIZERS, SCHEDULES
from miniai.jobs.train import train
from miniai.learner import NonFiniteLossError
from miniai.resume.restore import ResumeError
from recorded import Page
from tiny import AFTER_EPOCH, RUN_FILES, colors, files, history, write_tiny


@pytest.fixture(scope='module')
def data(tmp_path_factory): return str(write_tiny(tmp_path_factory.mktemp('fmnist'), 384, 100))


@pytest.fixture(scope='module')
def done(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'run'
    return out, train(TrainConfig(data=data, out=str(out), epochs=2, batch_size=64, device='cpu'))


@pytest.fixture
def config(data, tmp_path):
    return TrainConfig(data=data, out=str(tmp_path/'run'), epochs=1, batch_size=64, device='cpu')


# What it saves

def test_the_run_folder_has_its_files_and_a_line_per_epoch_and_phase_that_equals_the_history(done):
    assert files(done[0]) == RUN_FILES
    out, learn = done
    assert history(out) == learn.history
    assert [(r['epoch'], r['phase']) for r in learn.history] == [(0, 'train'), (0, 'eval'), (1, 'train'), (1, 'eval')]
    assert all({'loss', 'accuracy', 'seconds'} < r.keys() for r in learn.history)


def test_the_report_has_the_figures_of_the_run(done):
    out, learn = done
    found = Page((out/'report.html').read_text('utf-8'))
    rows = [[r[nm] for nm in ('loss', 'accuracy', 'seconds') for r in phases]
            for phases in zip(learn.history[::2], learn.history[1::2], strict=True)]
    assert [row[1:] for row in found.tables['Figures of every epoch'][1:]] == rows
    c = learn.results().confusion
    confusion = found.tables['Confusion: true classes down, predicted classes across']
    assert [row[1:] for row in confusion[1:]] == c.tolist()
    assert found.facts['validation accuracy'] == learn.history[-1]['accuracy']
    assert found.facts['parameters'] == sum(p.numel() for p in learn.model.parameters())
    assert found.sections['configuration']['lr'] == tomllib.loads((out/'config.toml').read_text())['lr']
    assert len(found.where('img')) > 12
    assert not found.where('aside')
    assert 'finished' in found.text


def test_the_model_on_disk_is_the_model_in_memory(done):
    out, learn = done
    saved = load(out).model.state_dict()
    assert saved.keys() == learn.model.state_dict().keys()
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in saved.items())


def test_the_pictures_show_something(done):
    assert min(colors(done[0]/name) for name in ('curves.png', 'activations.png')) > 10


def test_the_saved_configuration_has_auto_filled_in_and_gives_the_same_run_again(done, data, tmp_path):
    out, learn = done
    saved = TrainConfig.from_toml(out/'config.toml')
    assert saved == TrainConfig(data=data, epochs=2, batch_size=64, device='cpu', lr=2e-2, layout='channels-last',
                                model='simple', config=out/'config.toml')
    assert 'auto' not in tomllib.loads((out/'config.toml').read_text()).values()
    again = train(replace(saved, out=str(tmp_path/'again')))
    assert [r['loss'] for r in again.history] == [r['loss'] for r in learn.history]
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in again.model.state_dict().items())


def test_it_says_what_it_trains_and_where_the_results_are(config, capsys):
    train(config)
    said = capsys.readouterr().out.splitlines()
    assert said[1] == 'simple model, 30,274 parameters; adamw, onecycle, lr 0.02; cpu'
    assert said[-1].startswith('finished after ')
    assert said[-1].endswith(f' s; results in {config.out}')


def test_a_profile_is_printed_and_saved_also_if_the_run_is_stopped(config, tmp_path, capsys, monkeypatch):
    learn = train(replace(config, profile=True))
    assert files(tmp_path/'run') == sorted([*RUN_FILES, 'profile.json', 'profile.png'])
    rows = json.loads((tmp_path/'run'/'profile.json').read_text())
    for phase, shown in (('train', 'train'), ('eval', 'valid')):
        parts = {r['part']: r['seconds'] for r in rows if r['phase'] == shown}
        assert {'waiting for data', 'copying', 'forward', 'loss', 'MetricsCB', 'loop'} < parts.keys()
        measured = next(r['seconds'] for r in learn.history if r['phase'] == phase)
        assert measured <= sum(parts.values()) < measured + 1
    assert {'backward', 'optimizer', 'zero_grad', 'ActivationStats'} < {r['part'] for r in rows}
    assert '\ntrain: 6 batches, ' in capsys.readouterr().out
    stopping_at(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): train(replace(config, profile=True, out=str(tmp_path/'stopped')))
    assert {'profile.json', 'profile.png'} < set(files(tmp_path/'stopped'))


def test_without_statistics_nothing_records_them(config, tmp_path):
    learn = train(replace(config, stats=False))
    assert files(tmp_path/'run') == [name for name in RUN_FILES if name != 'activations.png']
    assert 'ActivationStats' not in {type(cb).__name__ for cb in learn.cbs}


# What it trains

@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_with_every_schedule(config, monkeypatch, optimizer, schedule):
    monkeypatch.setattr(recording.Recording, 'save', lambda *args: None)
    learn = train(replace(config, optimizer=optimizer, schedule=schedule, epochs=3, batch_size=32, stats=False))
    first, *_, last = (r['loss'] for r in learn.history if r['phase'] == 'train')
    assert last < first
    assert last < 1.2


def test_a_resnet_trains_and_saves_the_same_files(config, tmp_path):
    learn = train(replace(config, model='resnet', batch_size=192, optimizer='momentum'))
    assert files(tmp_path/'run') == RUN_FILES
    assert len(learn.history) == 2


def test_a_rate_that_is_given_is_the_rate_of_the_schedule(config, tmp_path):
    learn = train(replace(config, lr=0.01, schedule='constant'))
    assert learn.opt.param_groups[0]['lr'] == 0.01
    assert tomllib.loads((tmp_path/'run'/'config.toml').read_text())['lr'] == 0.01


def test_a_single_batch_is_enough(config, tmp_path):
    train(replace(config, batch_size=4096))
    assert files(tmp_path/'run') == RUN_FILES


# When something goes wrong

def stopping_at(monkeypatch, n, e):
    "Make the `n`-th batch raise `e`."
    class Stop(recording.ProgressCB):
        seen = 0
        def after_batch(self, learn):
            super().after_batch(learn)
            self.seen += 1
            if self.seen == n: raise e
    Stop.__name__ = 'ProgressCB'  # by which a checkpoint knows its records
    monkeypatch.setattr(recording, 'ProgressCB', Stop)


def test_ctrl_c_in_the_second_epoch_saves_everything_so_far(config, tmp_path, monkeypatch, capsys):
    stopping_at(monkeypatch, 6 + 1 + 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): train(replace(config, epochs=3))
    assert files(tmp_path/'run') == RUN_FILES
    assert [(r['epoch'], r['phase']) for r in history(tmp_path/'run')] == [(0, 'train'), (0, 'eval')]
    assert min(colors(tmp_path/'run'/nm) for nm in ('curves.png', 'activations.png')) > 10
    page = Page((tmp_path/'run'/'report.html').read_text('utf-8'))
    assert 'It ended with Ctrl-C.' in page.text
    assert len(page.tables['Figures of every epoch']) == 2
    assert f'miniai train --resume --out {config.out}' in page.text
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith('stopped after ')
    assert last.endswith(f'results in {config.out}')


def test_ctrl_c_in_the_first_epoch_saves_model_and_pictures(config, tmp_path, monkeypatch):
    stopping_at(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): train(config)
    assert files(tmp_path/'run') == [f for f in RUN_FILES if f not in AFTER_EPOCH]


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_everything_so_far(config, tmp_path):
    with pytest.raises(NonFiniteLossError, match='epoch 0, batch'): train(replace(config, lr=1e30, optimizer='sgd'))
    assert files(tmp_path/'run') == [f for f in RUN_FILES if f not in AFTER_EPOCH]


def test_an_error_before_the_first_batch_saves_the_model_and_no_pictures(config, tmp_path, monkeypatch):
    monkeypatch.setattr(job, 'build_schedule', lambda config, steps: lambda opt: 1/0)
    with pytest.raises(ZeroDivisionError): train(config)
    assert files(tmp_path/'run') == ['config.toml', 'environment.json', 'model.safetensors', 'report.html',
                                     'status.json']


def test_a_run_is_never_overwritten(done, data):
    out, _ = done
    def contents(): return {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    before = contents()
    with pytest.raises(FileExistsError, match='never overwritten'):
        train(TrainConfig(data=data, out=str(out), device='cpu'))
    assert contents() == before


@pytest.mark.parametrize('wrong', [dict(device='nope'), dict(data='/no/such/folder')])
def test_invalid_options_leave_no_folder(config, tmp_path, wrong):
    with pytest.raises((ConfigError, FileNotFoundError)): train(replace(config, **wrong))
    assert not (tmp_path/'run').exists()


def test_a_damaged_file_leaves_no_folder(config, tmp_path):
    (tmp_path/'data').mkdir()
    folder = write_tiny(tmp_path/'data', 20, 10)
    (folder/'t10k-labels-idx1-ubyte').write_bytes(b'oops')
    with pytest.raises(DataError, match='t10k-labels-idx1-ubyte: wrong magic'): train(replace(config, data=str(folder)))
    assert not (tmp_path/'run').exists()


def test_the_loaders_are_those_of_the_configuration(done):
    _, learn = done
    config = TrainConfig(data='sample', batch_size=64)
    assert type(learn.dls.train) is type(build_data(config).train)
    assert (learn.dls.train.bs, learn.dls.valid.bs, learn.dls.train.seed) == (64, 128, config.seed)


# Resuming

def test_a_run_that_was_stopped_resumes_in_its_folder_and_ends_as_if_uninterrupted(config, tmp_path, monkeypatch):
    whole = train(replace(config, epochs=2, out=str(tmp_path/'whole')))
    with monkeypatch.context() as m:
        stopping_at(m, 6 + 1 + 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt): train(replace(config, epochs=2))
    first = (tmp_path/'run'/'environment.json').read_bytes()
    ended = subprocess.Popen(['true'])
    ended.wait()
    (tmp_path/'run'/f'.report.html.{ended.pid}.0123abcd.part').write_text('what a killed run was writing')
    learn = train(TrainConfig(out=config.out, resume=True))
    assert [r['loss'] for r in learn.history] == [r['loss'] for r in whole.history]
    assert [r['loss'] for r in history(tmp_path/'run')] == [r['loss'] for r in whole.history]
    assert all(torch.equal(p, q) for p, q in zip(learn.model.parameters(), whole.model.parameters(), strict=True))
    assert files(tmp_path/'run') == sorted([*RUN_FILES, 'environment-2.json'])
    assert (tmp_path/'run'/'environment.json').read_bytes() == first
    assert json.loads((tmp_path/'run'/'environment-2.json').read_text())['resumed_at'] == 6
    batches = json.loads((tmp_path/'run'/'health.json').read_text())['records']['batches']
    assert (batches[0], 6 in batches, batches) == (0, True, sorted({*batches}))
    assert 'Resumed at batch 6, after epoch 1.' in (tmp_path/'run'/'report.html').read_text()
    with pytest.raises(ConfigError, match="cannot resume with optimizer = 'sgd': the run has 'adamw'"):
        train(TrainConfig(out=config.out, resume=True, optimizer='sgd'))


def test_a_resumed_run_keeps_its_profile_and_statistics_and_takes_more_epochs(config, tmp_path):
    train(replace(config, schedule='constant', profile=True, stats=False))
    (tmp_path/'run'/'profile.json').unlink()
    learn = train(TrainConfig(out=config.out, epochs=2, resume=True))
    assert [r['epoch'] for r in learn.history if r['phase'] == 'eval'] == [0, 1]
    assert {'profile.json', 'profile.png'} < set(files(tmp_path/'run'))
    assert 'activations.png' not in files(tmp_path/'run')
    assert TrainConfig.from_toml(tmp_path/'run'/'config.toml').epochs == 2


def test_resuming_a_finished_run_restores_files_that_a_kill_at_its_end_took(config, tmp_path, capsys):
    learn = train(config)
    lost = 'model.safetensors', 'curves.png', 'activations.png'
    for nm in lost: (tmp_path/'run'/nm).unlink()
    capsys.readouterr()
    train(TrainConfig(out=config.out, resume=True))
    assert {*RUN_FILES} < {*files(tmp_path/'run')}
    assert all(map(torch.equal, load(tmp_path/'run').model.state_dict().values(), learn.model.state_dict().values()))
    assert min(colors(tmp_path/'run'/nm) for nm in lost[1:]) > 10
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f'resuming {config.out}'
    assert 'nothing to train: all 1 epochs are done' in said[:-1]
    assert said[-1].endswith(f'results in {config.out}')


def test_the_latest_run_is_resumed_and_named_even_if_an_earlier_one_ended_later(config, tmp_path, capsys):
    times = '2026-01-02_000000', '2026-01-01_000000'
    for t in times: train(replace(config, out=str(tmp_path/f'{t}-train'), schedule='constant'))
    capsys.readouterr()
    learn = train(TrainConfig(out=str(tmp_path/'{time}-{job}'), epochs=2, resume=True))
    said = capsys.readouterr().out
    assert said.startswith(f'resuming {tmp_path/"2026-01-02_000000-train"}\n')
    assert 'nothing to train' not in said
    assert len(learn.history) == 4


def test_a_resume_that_is_refused_changes_no_file(config, tmp_path):
    train(config)
    def kept():
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path/'run').rglob('[!.]*') if p.is_file()}
    before, threads = kept(), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(ResumeError, match='threads'): train(TrainConfig(out=config.out, resume=True))
    finally: torch.set_num_threads(threads)
    assert kept() == before

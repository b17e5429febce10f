"The job that looks for a rate: what it finds, says and leaves."
import json
import math
from dataclasses import replace

import pytest

from miniai.jobs import lr_find as job
from miniai.jobs.config import LRFindConfig
from miniai.jobs.lr_find import lr_find_job
from miniai.learner import CancelFitException
from tiny import colours, write_tiny


@pytest.fixture(scope='module')
def data(tmp_path_factory): return str(write_tiny(tmp_path_factory.mktemp('fmnist'), 384, 10))


@pytest.fixture
def config(data, tmp_path): return LRFindConfig(data=data, out=str(tmp_path/'run'), batch_size=64, device='cpu')


def files(folder): return sorted(p.name for p in folder.iterdir())
def figures(folder): return json.loads((folder/'lr_find.json').read_text(), parse_constant=pytest.fail)


def test_it_suggests_a_rate_that_trains_says_so_and_leaves_curve_and_figures(config, tmp_path, capsys):
    rate = lr_find_job(config)
    assert 1e-4 < rate < 1e-1
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == f'suggested learning rate for adamw: {rate:.2g}'
    assert said[-1] == f'the curve is in {tmp_path}/run/lr_find.png'
    assert files(tmp_path/'run') == ['config.toml', 'environment.json', 'lr_find.json', 'lr_find.png']
    assert colours(tmp_path/'run'/'lr_find.png') > 10


def test_the_figures_are_rates_from_1e_5_each_1_3_times_the_last_with_their_losses(config, tmp_path):
    rate = lr_find_job(config)
    left = figures(tmp_path/'run')
    n = len(left['lrs'])
    assert left['lrs'] == pytest.approx([1e-5*1.3**i for i in range(n)])
    assert len(left['losses']) == n > 10
    assert left['suggestion'] == rate
    assert rate in left['lrs'] or any(math.isclose(rate, lr) for lr in left['lrs'])


def test_the_configuration_left_is_the_one_that_ran(config, tmp_path):
    lr_find_job(replace(config, device='auto'))
    left = LRFindConfig.from_toml(tmp_path/'run'/'config.toml')
    assert 'auto' not in (left.device, left.layout)
    assert replace(left, config=None, device='cpu', layout='auto') == config


class Finder(job.LRFinderCB):
    "Stops by raising `how` after its third batch."
    how = CancelFitException()
    def after_batch(self, learn):
        super().after_batch(learn)
        if len(self.losses) == 3: raise self.how


def test_where_the_loss_never_fell_it_says_so_and_leaves_the_curve(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, 'LRFinderCB', Finder)
    assert lr_find_job(config) is None
    assert 'no suggestion: the loss never fell clearly' in capsys.readouterr().out
    assert figures(tmp_path/'run')['suggestion'] is None
    assert (tmp_path/'run'/'lr_find.png').is_file()


def test_ctrl_c_leaves_the_curve_so_far(config, tmp_path, monkeypatch):
    monkeypatch.setattr(job, 'LRFinderCB', type('Stopped', (Finder,), dict(how=KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt): lr_find_job(config)
    assert len(figures(tmp_path/'run')['losses']) == 3
    assert colours(tmp_path/'run'/'lr_find.png') > 2


def test_an_error_before_the_first_batch_leaves_no_curve(config, tmp_path, monkeypatch):
    monkeypatch.setitem(job.OPTIMIZERS, 'adamw', lambda params, lr: 1/0)
    with pytest.raises(ZeroDivisionError): lr_find_job(config)
    assert files(tmp_path/'run') == ['config.toml', 'environment.json']


def test_a_loss_that_is_not_finite_ends_the_search_and_is_null_in_the_figures(config, tmp_path, monkeypatch):
    class AtOnce(job.LRFinderCB):
        def before_fit(self, learn):
            super().before_fit(learn)
            self.gamma = self.sched.gamma = 1e12
            self.max_mult = math.inf
    monkeypatch.setattr(job, 'LRFinderCB', AtOnce)
    lr_find_job(replace(config, optimizer='sgd'))
    assert figures(tmp_path/'run')['losses'][-1] is None


@pytest.mark.parametrize('optimizer', ['sgd', 'momentum', 'rmsprop', 'adam'])
def test_every_optimizer_gets_a_suggestion(config, capsys, optimizer):
    assert 1e-5 < lr_find_job(replace(config, optimizer=optimizer)) < 10
    assert f'suggested learning rate for {optimizer}: ' in capsys.readouterr().out

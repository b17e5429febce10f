"The job that suggests a learning rate: what it finds, says and saves."
import json
import math
from dataclasses import replace

import pytest

from miniai.callbacks.lr_suggestions import LRSuggestions
from miniai.jobs import lr_find as job
from miniai.jobs.build import auto_lr
from miniai.jobs.config import LRFindConfig
from miniai.jobs.lr_find import lr_find_job
from miniai.jobs.registry import OPTIMIZERS, OptimizerRow
from miniai.learner import CancelFitException
from tiny import colors, files, write_tiny


@pytest.fixture(scope='module')
def data(tmp_path_factory): return str(write_tiny(tmp_path_factory.mktemp('fmnist'), 384, 10))


@pytest.fixture
def config(data, tmp_path): return LRFindConfig(data=data, out=str(tmp_path/'run'), batch_size=64, device='cpu')


def values(folder): return json.loads((folder/'lr_find.json').read_text(), parse_constant=pytest.fail)


def test_it_suggests_a_rate_and_leaves_curve_and_values(config, tmp_path, capsys):
    rate = lr_find_job(config)
    assert 1e-4 < rate < 1e-1
    said = capsys.readouterr().out.splitlines()
    saved = values(tmp_path/'run')
    assert f'suggested learning rate for adamw: {rate:.2g}' in said
    assert f"or, as the peak of a schedule: {saved['peak']:.2g}" in said
    assert '--lr auto with the onecycle schedule: 0.02' in said
    assert said[-1] == f'curve: {tmp_path}/run/lr_find.png'
    assert files(tmp_path/'run') == ['config.toml', 'environment.json', 'lr_find.json', 'lr_find.png']
    assert colors(tmp_path/'run'/'lr_find.png') > 10
    n = len(saved['lrs'])
    assert saved['lrs'] == pytest.approx([1e-5*1.3**i for i in range(n)])
    assert len(saved['losses']) == n > 10
    assert (saved['suggestion'], saved['half'], saved['auto']) == (rate, rate, 0.02)
    others = [f"{name} {saved[nm]:.2g}" for nm, name in dict(
        steepest='steepest fall', valley='valley', tenth='minimum/10').items()]
    assert f"others: {', '.join(others)}" in said
    assert f"all but the peak agree within a factor of {saved['spread']:.1f}" in said
    rates = [saved[nm] for nm in ('half', 'steepest', 'valley', 'tenth')]
    assert saved['spread'] == pytest.approx(max(rates)/min(rates))
    assert any(math.isclose(rate, lr) for lr in saved['lrs'])


def test_the_picture_marks_both_rates_with_labels(config, monkeypatch):
    figures = []
    monkeypatch.setattr(job.RunFolder, 'picture', lambda self, name, figure: figures.append(figure))
    rate = lr_find_job(replace(config, optimizer='lion', schedule='constant'))
    ax, = figures[0].axes
    marks = {line.get_label(): line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2}
    assert [marks[k] for k in marks if 'peak' not in k] == [rate, auto_lr('lion', 'constant')]
    assert [*marks.values()][1] > rate
    assert [t.get_text() for t in ax.get_legend().texts] == [*marks]
    assert [*marks][2] == '--lr auto: 1.5e-03'


@pytest.mark.parametrize(('schedule', 'rate', 'explained'), [
    ('onecycle', 0.03, False), ('onecycle', 0.011, False), ('onecycle', 0.009, True), ('onecycle', 0.1, True),
    ('constant', 0.003, False), ('constant', 0.013, True)])
def test_it_says_why_the_rates_differ_where_they_differ_by_more_than_3(schedule, rate, explained):
    config, constant = LRFindConfig(schedule=schedule), schedule == 'constant'
    half, peak = (rate, 9.) if constant else (9., rate)
    found = LRSuggestions(half, 1., 2., 3., peak, 9., '', [], [])
    said = job._report(config, found, 0.004 if constant else 0.03)
    assert ('They differ: auto was tuned for' in said) is explained
    assert said.splitlines()[0 if constant else 1].endswith(f': {rate:.2g}')


def test_the_saved_configuration_is_the_one_that_ran(config, tmp_path):
    lr_find_job(replace(config, device='auto'))
    saved = LRFindConfig.from_toml(tmp_path/'run'/'config.toml')
    assert 'auto' not in (saved.device, saved.layout)
    assert replace(saved, config=None, device='cpu', layout='auto', out=config.out) == config


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
    assert values(tmp_path/'run')['suggestion'] is None
    assert (tmp_path/'run'/'lr_find.png').is_file()


def test_ctrl_c_leaves_the_curve_so_far(config, tmp_path, monkeypatch):
    monkeypatch.setattr(job, 'LRFinderCB', type('Stopped', (Finder,), dict(how=KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt): lr_find_job(config)
    assert len(values(tmp_path/'run')['losses']) == 3
    assert colors(tmp_path/'run'/'lr_find.png') > 2


def test_an_error_before_the_first_batch_leaves_no_curve(config, tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, 'adamw', OptimizerRow(lambda params, lr: 1/0, dict(constant=1, onecycle=1)))
    with pytest.raises(ZeroDivisionError): lr_find_job(config)
    assert files(tmp_path/'run') == ['config.toml', 'environment.json']


def test_a_loss_that_is_not_finite_ends_the_search_and_is_null_in_the_values(config, tmp_path, monkeypatch):
    class AtOnce(job.LRFinderCB):
        def before_fit(self, learn):
            super().before_fit(learn)
            self.gamma = self.sched.gamma = 1e12
            self.max_mult = math.inf
    monkeypatch.setattr(job, 'LRFinderCB', AtOnce)
    lr_find_job(replace(config, optimizer='sgd'))
    assert values(tmp_path/'run')['losses'][-1] is None


@pytest.mark.parametrize('optimizer', [name for name in OPTIMIZERS if name != 'adamw'])
def test_every_optimizer_gets_a_suggestion(config, capsys, optimizer):
    assert 1e-5 < lr_find_job(replace(config, optimizer=optimizer)) < 10
    assert f'suggested learning rate for {optimizer}: ' in capsys.readouterr().out


def test_a_doubt_is_said():
    found = LRSuggestions(.1, .1, .1, .1, .2, 1., 'the loss fell from the first rates on', [], [])
    said = job._report(LRFindConfig(), found, .1).splitlines()
    assert said[4] == 'do not rely on them: the loss fell from the first rates on'

"Facts about data and model are those that the objects have."
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from miniai.callbacks.compile import CompileCB
from miniai.datasets import DataLoaders
from miniai.inference.facts import data_facts, device_of, model_facts, name_of, step_facts
from miniai.learner import MetricsCB, ProgressCB
from miniai.optim import AdamW
from small import copied, equal, learner, loaders


def test_the_data_their_shape_and_the_samples_of_each_class():
    x, y = torch.zeros(30, 4, 4, dtype=torch.uint8), torch.tensor([0]*18 + [1]*12)
    dls = DataLoaders.from_arrays(x, y, valid=range(0, 30, 3), bs=5, source='my files')
    dls.classes = ['a', 'b']
    assert data_facts(dls) == dict(source='my files', kind=dls.recipe.kind, train=20, valid=10, batch_size=5,
                                   shape=[4, 4], classes=['a', 'b'], counts=dict(train=[12, 8], valid=[6, 4]))


def test_what_is_not_known_of_other_loaders_is_none():
    found = data_facts(loaders())
    assert found.pop('classes') == []
    assert found.pop('counts') == {}
    assert set(found.values()) == {None}


def test_the_model_its_parameters_and_what_trains_it():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    found = model_facts(learner(model=model, opt_func=partial(AdamW, wd=.1), lr=.5))
    assert found == {
        'name': 'Sequential', 'class': 'torch.nn.modules.container.Sequential', 'parameters': 83, 'trained': 43,
        'optimizer': 'AdamW', 'loss': 'cross_entropy', 'lr': .5, 'modules': [
            dict(name='0', type='Linear', shape=[8, 4], parameters=40),
            dict(name='1', type='BatchNorm1d', shape=[8], parameters=16),
            dict(name='3', type='Linear', shape=[3, 8], parameters=27)]}


def test_layers_without_a_shape_yet_are_left_out():
    found = model_facts(learner(model=nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))))
    assert (found['parameters'], [m['name'] for m in found['modules']]) == (27, ['1'])


def test_a_step_takes_what_a_summary_counts_and_changes_nothing():
    learn = learner(model=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), opt_func=AdamW, lr=.1)
    learn.fit(1)
    before, history = copied(learn.model), list(learn.history)
    found = step_facts(learn)['step']
    assert found['mflops']*1e6 == 4*8 + 8*3
    n = 67*4  # bytes of all parameters
    assert found['memory'] | dict(activations=0) == dict(parameters=n, gradients=n, optimizer=2*n, activations=0)
    assert found['samples'] == len(next(iter(learn.dls.train))[0])
    assert equal(before, copied(learn.model))
    assert learn.history == history


def test_counting_a_step_shows_no_bar(capsys):
    learn = learner([MetricsCB(), ProgressCB()])
    learn.fit(1)
    capsys.readouterr()
    cbs = list(learn.cbs)
    assert step_facts(learn)['step']['samples']
    assert capsys.readouterr() == ('', '')
    assert list(learn.cbs) == cbs


def test_a_model_that_cannot_be_counted_or_would_be_compiled_again_has_no_step():
    class Shy(nn.Linear):
        def forward(self, x): raise RuntimeError('not now')
    assert step_facts(learner(model=Shy(4, 3))) == {}
    assert step_facts(learner(CompileCB())) == {}


class Sensitive(nn.Linear):
    "Adds the slope of its own mean, which torch's counter cannot follow."
    def forward(self, x):
        return super().forward(x + torch.func.grad(lambda z: (z*z).sum())(x))


def test_multiply_adds_that_torch_cannot_count_are_left_out_of_the_report_of_a_run(tmp_path):
    learn = learner(model=Sensitive(4, 3), opt_func=AdamW, lr=.1)
    learn.fit(1)
    step = step_facts(learn)['step']
    assert (step['mflops'], step['memory']['activations']) == (None, None)
    page = learn.report(tmp_path/'report.html').read_text('utf-8')
    assert ('memory of a step' in page, 'multiply-adds' in page) == (True, False)


def test_names_and_devices():
    assert [name_of(f) for f in (F.mse_loss, nn.MSELoss(), partial(F.mse_loss), None)] == [
        'mse_loss', 'MSELoss', 'mse_loss', None]
    assert [device_of(nn.Linear(1, 1)), device_of(nn.ReLU())] == ['cpu', 'cpu']

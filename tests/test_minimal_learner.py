"Every callback of the library in a user's own Learner that has only the attributes of the first lessons."
import inspect
import pkgutil
import tempfile
from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import StepLR

import miniai
from miniai import CheckpointCB, accuracy, warmup_cosine
from miniai.accel import AccumulateCB
from miniai.datasets import DataLoaders
from miniai.events import Callback, run_cbs, with_cbs
from miniai.learner import MetricsCB, TrainLearner
from miniai.optim import SGD
from miniai.steps.average import AverageCB
from resuming import Quiet

# Base classes, those that methods of a Learner of miniai add, those that need other models, and those tested below.
LEFT_OUT = {'Callback', 'BaseSchedCB', 'TrainLossCB', 'HFCB', 'AccelerateCB', 'CompileCB', 'ClosureCB', 'StepsCB',
            'ResumedPassCB', 'FirstBatchCB', 'AverageCB', 'AccumulateCB', 'CheckpointCB',
            'FewBatchesCB', 'OverfitCB', 'ProbeCB'}
ARGUMENTS = dict(
    MetricsCB=lambda C: Quiet(acc=accuracy), BatchTransformCB=lambda C: C(lambda b: b),
    BatchSchedCB=lambda C: C(partial(StepLR, step_size=1)), EpochSchedCB=lambda C: C(partial(StepLR, step_size=1)),
    RecorderCB=lambda C: C(lr=lambda cb: cb.pg['lr'], loss=lambda learn: learn.loss),
    HooksCallback=lambda C: C(lambda *args: None), ActivationStats=lambda C: C(),
    TrackCB=lambda C: C('csv', tempfile.mkdtemp()), FreezeCB=lambda C: C('0', 1))
NEEDS_METRICS = {'BestCB', 'EarlyStoppingCB', 'PlateauCB'}


class Small:
    "The Learner of the lessons: it knows nothing of history, phases, dry runs or displays."
    def __init__(self, model, dls, loss_func, lr, cbs, opt_func=torch.optim.SGD):
        self.model, self.dls, self.loss_func, self.lr = model, dls, loss_func, lr
        self.cbs, self.opt_func = cbs, opt_func

    def callback(self, name): run_cbs(self.cbs, name, self)
    def predict(self): self.preds = self.model(self.batch[0])
    def get_loss(self): self.loss = self.loss_func(self.preds, self.batch[1])
    def backward(self): self.loss.backward()
    def step(self): self.opt.step()
    def zero_grad(self): self.opt.zero_grad()

    @with_cbs('batch')
    def _one_batch(self):
        self.predict()
        self.callback('after_predict')
        self.get_loss()
        self.callback('after_loss')
        if not self.model.training: return
        self.backward()
        self.callback('after_backward')
        self.step()
        self.callback('after_step')
        self.zero_grad()

    @with_cbs('epoch')
    def _one_epoch(self):
        for self.iter, self.batch in enumerate(self.dl): self._one_batch()  # noqa: B020

    def one_epoch(self, training):
        self.model.train(training)
        self.dl = self.dls.train if training else self.dls.valid
        self._one_epoch()

    @with_cbs('fit')
    def _fit(self):
        for self.epoch in self.epochs:  # noqa: B020
            self.one_epoch(True)
            with torch.no_grad(): self.one_epoch(False)

    def fit(self, n_epochs):
        self.n_epochs, self.epochs = n_epochs, range(n_epochs)
        self.opt = self.opt_func(self.model.parameters(), self.lr)
        self._fit()


def data(n):
    g = torch.Generator().manual_seed(n)
    return [(torch.randn(6, 1, 4, 4, generator=g), torch.randint(0, 3, (6,), generator=g)) for _ in range(n)]


def small(cbs, cls=Small, **kwargs):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    return cls(model, DataLoaders(data(4), data(2)), F.cross_entropy, .1, cbs, **kwargs)


def library_callbacks():
    found = {}
    for m in pkgutil.walk_packages(miniai.__path__, 'miniai.'):
        if m.name.split('.')[1] not in ('callbacks', 'metrics', 'steps', 'diagnosis', 'resume'): continue
        for nm, c in vars(import_module(m.name)).items():
            if inspect.isclass(c) and issubclass(c, Callback) and c.__module__ == m.name and nm[0] != '_': found[nm] = c
    return {nm: c for nm, c in found.items() if nm not in LEFT_OUT}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', sorted(library_callbacks()))
def test_every_callback_works_in_a_learner_with_only_the_attributes_of_the_lessons(name):
    C = library_callbacks()[name]
    cbs = [ARGUMENTS.get(name, lambda C: C())(C), *([Quiet()] if name in NEEDS_METRICS else [])]
    small(cbs).fit(2)


def test_accumulation_and_checkpoints_say_what_they_need_of_a_learner(tmp_path):
    with pytest.raises(TypeError, match='Small has no hold_step: use a Learner of miniai'):
        small([AccumulateCB(2)]).fit(1)
    with pytest.raises(TypeError, match='CheckpointCB needs a Learner of miniai, got a Small'):
        small([CheckpointCB(tmp_path)]).fit(1)


@pytest.mark.parametrize('cbs', [lambda: [], lambda: [miniai.BatchSchedCB(warmup_cosine())], lambda: [AverageCB()]],
                         ids=['plain', 'schedule', 'averages'])
def test_its_metrics_and_weights_are_those_of_the_librarys_learner(cbs, capsys):
    kwargs = dict(opt_func=partial(SGD, ema=.5))
    ours, full = (small([*cbs(), Quiet(acc=accuracy)], cls, **kwargs) for cls in (Small, TrainLearner))
    for learn in (ours, full): learn.fit(2)
    figures = [[{k: v for k, v in r.items() if k != 'seconds'} for r in learn.history] for learn in (ours, full)]
    assert figures[0] == figures[1]
    for a, b in zip(ours.model.parameters(), full.model.parameters(), strict=True): assert torch.equal(a, b)


def test_progress_shows_a_row_per_epoch_and_phase(capsys):
    learn = small([MetricsCB(acc=accuracy), miniai.ProgressCB(plot=False)])
    learn.fit(2)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('epoch')]
    assert len(rows) == 4
    assert all('acc' in row for row in rows)
    learn.fit(1)
    assert [(r['epoch'], r['phase']) for r in learn.history] == [(0, 'train'), (0, 'eval')]


@pytest.mark.parametrize('watcher', [miniai.EarlyStoppingCB, miniai.PlateauCB])
def test_a_metric_that_a_callback_of_the_user_does_not_supply_is_an_error_that_names_it(watcher):
    class Mine(Callback):
        def after_epoch(self, learn): pass
    with pytest.raises(ValueError, match=r"needs a validation metric 'score'; there are none: add MetricsCB"):
        small([Mine(), watcher('score')]).fit(1)

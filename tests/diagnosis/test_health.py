"HealthCB does not change training, costs nothing where it does not look, and says what it found."
import gc
import io
import json
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import (
    AccumulateCB,
    Adam,
    Callback,
    DataLoaders,
    HealthCB,
    Learner,
    MixedPrecision,
    ProgressCB,
    TrainCB,
    TrainLearner,
)
from miniai.distributed import DistributedCB
from miniai.learner import CancelFitException, LRFinderCB
from miniai.randomness import random_states, same_states
from miniai.show.displays import TerminalDisplay
from ranks import run_ranks
from small import Heard, hooks_on, learner, loaders, mlp, raising, same, weights
from wards import check_up, net


def trained(cbs, model=None, **options):
    "Weights, buffers and random states after two epochs."
    torch.manual_seed(1)
    learn = learner(cbs, model=model or nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3),
                                                      nn.Linear(8, 3)), **options)
    learn.fit(2)
    return weights(learn), random_states()


@pytest.mark.parametrize('others', [[], [AccumulateCB(2)], [MixedPrecision()]], ids=['plain', 'accumulate', 'amp'])
@pytest.mark.parametrize('every', [1, None])
def test_training_has_the_same_bits_with_and_without_it(others, every):
    cls = Learner if isinstance((others or [0])[0], MixedPrecision) else TrainLearner
    (a, states_a), (b, states_b) = (trained([*others, *cbs], cls=cls) for cbs in ([], [HealthCB(every, quiet=True)]))
    assert same(a, b)
    assert same_states(states_a, states_b)


def test_hooks_are_only_there_in_sampled_batches():
    seen = []
    class Look(Callback):
        def before_batch(self, learn):
            if learn.model.training: seen.append(hooks_on(learn.model) > 0)
    model = mlp()
    learner([HealthCB(every=3, quiet=True), Look()], model=model).fit(1)
    assert seen == [True, False, False, True]
    assert hooks_on(model) == 0


@pytest.mark.parametrize('event', ['after_predict', 'after_loss', 'after_backward', 'after_step', 'after_batch'])
@pytest.mark.parametrize('error', [CancelFitException, ValueError])
def test_a_fit_that_fails_or_is_cancelled_leaves_no_hook_and_has_a_report(event, error):
    health, model = HealthCB(every=1, quiet=True), mlp()
    learn = learner([health, Heard({event: raising(error('planned'))}, events=[event])], model=model)
    if error is ValueError:
        with pytest.raises(ValueError, match='planned'): learn.fit(1)
    else: learn.fit(1)
    assert hooks_on(model) == 0
    assert health.report().startswith(('no problems found', 'nothing was checked'))
    json.dumps(health.as_dict())


def test_a_fit_without_a_training_batch_says_nothing(capsys):
    health = HealthCB()
    for options in (dict(n_epochs=0), dict(train=False)): learner([health]).fit(**options)
    assert capsys.readouterr().out == ''
    assert (health.verdicts, health.checked) == ([], [])
    assert health.report() == 'nothing was checked: no batch was trained'
    assert health.records['batches'] == []


def test_new_verdicts_come_once_as_warnings_and_all_at_the_end(capsys):
    model = mlp()
    nn.init.constant_(model[0].bias, -100.)
    learn = learner([HealthCB(every=1), ProgressCB()], model=model)
    learn.fit(3)
    out = capsys.readouterr().out
    assert out.count('warning: 1: 100 % of the units are 0') == 1
    assert out.index('warning: 1:') < out.index('epoch 2')
    assert 'dead layer (sure): 1: 100 % of the units are 0 for every sample since batch 0. Lower the' in out
    assert 'problems found, checked ' in out.splitlines()[-4] + out.splitlines()[-3] + out.splitlines()[-2]


def test_quiet_says_nothing_and_one_line_says_what_was_checked(capsys):
    learner([HealthCB(quiet=True)]).fit(1)
    assert capsys.readouterr().out == ''
    learner([HealthCB()]).fit(1)
    line, = capsys.readouterr().out.splitlines()
    assert line.startswith('no problems found: checked 1')
    assert 'dead layer' in line


def test_samples_are_paced_and_every_is_kept():
    assert check_up(every=7, epochs=3).records['batches'] == [0, 7, 14, 21, 28]
    batches = check_up(every=None, epochs=6).records['batches']
    assert batches[:2] == [0, 1]
    assert len(batches) < 60
    with pytest.raises(ValueError, match='every must be 1 or more batches, got 0'): HealthCB(every=0)


def test_a_dry_run_is_not_looked_at():
    health = HealthCB(every=1, quiet=True)
    learn = learner([health])
    learn.fit(1)
    before = health.as_dict()
    learn.summary()
    assert health.as_dict() == before


def test_a_search_for_a_rate_is_not_judged():
    health = HealthCB(every=1, quiet=True)
    learner([health, LRFinderCB()]).fit(2)
    assert (health.checked, health.records['batches']) == ([], [])


class Dicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.act = nn.Linear(4, 3), nn.ReLU()

    def forward(self, x): return dict(out=self.act(self.lin(x)), more=(x,))


def test_loaders_of_dicts_outputs_of_dicts_and_streams_work():
    class Stream:
        def __iter__(self): return iter([dict(x=x, y=y) for x, y in loaders().train])
    health = HealthCB(every=1, quiet=True)
    dls = type('Dls', (), dict(train=Stream(), valid=Stream()))()
    learn = learner([health, TrainCB(inputs='x', targets='y')], cls=Learner, model=Dicts2(), dls=dls,
                    loss_func=lambda p, y: F.cross_entropy(p['out'], y))
    learn.fit(2)
    assert len(health.records['batches']) == 8
    assert health.records['layers']['act']['mean'][0] > 0
    assert health.checked


class Dicts2(Dicts):
    def forward(self, x): return super().forward(x)


def test_tied_weights_frozen_parts_and_own_phases_work():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()
            self.b.weight, self.b.bias.requires_grad = self.a.weight, False

        def forward(self, x): return self.b(self.act(self.a(x)))[:, :3]
    class Gan(TrainLearner):
        def backward(self): (self.loss + 0).backward()
        def step(self):
            self.opt.step()
            self.opt.zero_grad()
            self.model(self.batch[0]).sum().backward()
            self.opt.step()
    for cls in (TrainLearner, Gan):
        health = HealthCB(every=1, quiet=True)
        learner([health], model=Tied(), cls=cls).fit(1)
        assert 'parameter in no group' in health.checked
        assert not [v for v in health.verdicts if v.certain == 'sure']


def test_lbfgs_evaluates_a_batch_several_times_and_is_sampled_once():
    health = HealthCB(every=1, quiet=True)
    learner([health], opt_func=torch.optim.LBFGS).fit(1)
    assert health.records['batches'] == [0, 1, 2, 3]
    assert health.records['epochs'][0]['batch'] == 4
    assert all(u > 0 for u in health.records['parameters']['0.weight']['update'])


def test_verdicts_are_up_to_date_after_each_epoch():
    seen, model = [], net()
    nn.init.constant_(model[2].bias, -20.)
    health = HealthCB(every=1, quiet=True)
    class Look(Callback):
        order = 50
        def cleanup_epoch(self, learn): seen.append([v.name for v in health.verdicts])
    learner([health, Look()], model=nn.Sequential(nn.Linear(4, 12), model, nn.Linear(4, 3))).fit(1)
    assert all('dead layer' in names for names in seen)
    assert len(seen) == 2


def test_the_model_is_let_go_after_the_fit():
    health, model = HealthCB(every=1, quiet=True), mlp()
    learner([health], model=model).fit(1)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def on_two(kind):
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    health = HealthCB(every=1, quiet=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    dls = DataLoaders.from_arrays(x, x[:, :1], bs=8)
    learn = TrainLearner(model, dls, F.mse_loss, 0.05, [DistributedCB(kind), health], Adam)
    learn.fit(2)
    return health.records, [v.name for v in health.verdicts], health.checked


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_of_several_processes_the_first_one_looks(kind):
    (first, verdicts, checked), (second, _, nothing) = run_ranks(on_two, 2, kind)
    assert list(first['layers']) == ['0', '1', '2']
    assert set(first['parameters']) == (set() if kind == 'fsdp' else {'0.weight', '0.bias', '2.weight', '2.bias'})
    assert verdicts == []
    assert 'dead layer' in checked
    assert (second['batches'], nothing) == ([], [])


def test_gradients_within_the_model_are_those_of_the_loss_that_is_not_scaled():
    class Scaled(MixedPrecision):
        def before_fit(self, learn):
            super().before_fit(learn)
            self.scaler = torch.amp.GradScaler('cpu', init_scale=1024.)
        def backward(self, learn): self.scaler.scale(learn.loss).backward()
        def step(self, learn): self.scaler.step(learn.opt), self.scaler.update()
    found = []
    for cb in (Scaled(dtype=torch.bfloat16), MixedPrecision(dtype=torch.bfloat16)):
        health = HealthCB(every=1, quiet=True)
        learner([health, cb], cls=Learner).fit(1)
        found.append(health.records['layers']['1']['gradient'][0])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_long_verdicts_are_wrapped_in_a_terminal(monkeypatch):
    monkeypatch.setenv('COLUMNS', '40')
    file, health = io.StringIO(), HealthCB()
    health._show(SimpleNamespace(display=TerminalDisplay(file)), 'warning: ' + 'word '*20)
    lines = file.getvalue().split('\n')
    assert max(map(len, lines)) <= 40
    assert ' '.join(file.getvalue().split()) == 'warning: ' + ' '.join(['word']*20)


class Mapped(nn.Module):
    "A model in a transform of torch.func, with a complex parameter and a batch norm that is called by keyword."
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.turn = nn.Parameter(torch.ones(3, dtype=torch.cfloat))

    def forward(self, x): return self.norm(input=(torch.func.vmap(self.layer)(x)*self.turn).real)


def test_models_with_transforms_complex_parameters_and_keywords_work():
    health = HealthCB(every=1, quiet=True)
    learner([health], model=Mapped(), opt_func=torch.optim.Adam).fit(1)
    assert health.records['parameters']['turn']['gradient'][0] > 0
    assert health.checked


@pytest.mark.parametrize('where', ['layers', 'parameters', 'data'])
def test_an_error_while_looking_ends_the_looking_and_not_the_fit(monkeypatch, where):
    def fail(*args): raise RuntimeError('odd')
    method = dict(layers='layer_watch.LayerWatch._find_zeros', data='data_watch.DataWatch.look_at_batch',
                  parameters='parameter_watch.ParameterWatch.look_at_step')[where]
    learn, plain = learner([HealthCB(every=1)]), learner()
    plain.model.load_state_dict(learn.model.state_dict())
    torch.manual_seed(1)
    plain.fit(1)
    monkeypatch.setattr(f'miniai.diagnosis.{method}', fail)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match='HealthCB could not look.*RuntimeError: odd'): learn.fit(1)
    assert same(weights(learn), weights(plain))
    assert not hooks_on(learn.model)

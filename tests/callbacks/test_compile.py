"CompileCB: training with and without a working compiler, and the model afterwards."
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import nn

from miniai.activations import ActivationStats
from miniai.callbacks.compile import CompileCB, reason
from small import batches, learner, same, weights


def failing(gm, example_inputs): raise OSError('no compiler found\nand a long trace')


# Raised inside torch, when it splits a graph in two.
pytestmark = pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor:UserWarning')


@pytest.fixture(autouse=True)
def _forget_compiled():
    yield
    torch._dynamo.reset()


def counting(calls):
    def backend(gm, example_inputs):
        calls.append(gm)
        return gm.forward
    return backend


# With a compiler

def test_the_model_is_compiled_and_trains_the_same():
    calls, plain = [], learner()
    cb = CompileCB(backend=counting(calls))
    ours = learner(cb)
    for learn in (ours, plain): learn.fit(2)
    assert calls
    assert cb.failure == ''
    assert same(weights(ours), weights(plain))


def test_the_model_and_its_names_are_the_same_during_and_after_a_fit():
    learn, seen = learner(CompileCB(backend='eager')), []
    class Sees:
        def after_batch(self, learn): seen.append((learn.model, list(learn.model.state_dict())))
    model, names, own = learn.model, list(learn.model.state_dict()), set(vars(learn.model))
    learn.fit(1, cbs=Sees())
    assert all(m is model and nms == names for m, nms in seen)
    assert set(vars(model)) == own


def test_a_forward_set_on_the_model_is_restored():
    learn = learner(CompileCB(backend='eager'))
    own = learn.model.forward = learn.model.forward
    learn.fit(1)
    assert learn.model.forward is own


def test_activation_statistics_are_those_of_the_eager_model():
    both = []
    for cbs in ([CompileCB(backend='eager')], []):
        stats = ActivationStats(lambda m: isinstance(m, nn.ReLU))
        learner([*cbs, stats]).fit(1)
        both.append(stats.hooks[0].stats)
    assert len(both[0][0]) == 4
    torch.testing.assert_close(both[0], both[1])


def test_hooks_do_not_cause_recompilation_at_every_batch():
    calls, counts = [], []
    class Counts:
        def after_batch(self, learn): counts.append(len(calls))
    stats = ActivationStats(lambda m: isinstance(m, nn.ReLU))
    learner([CompileCB(backend=counting(calls)), stats, Counts()]).fit(3)
    assert counts[0] > 0
    assert counts[6:] == [counts[6]]*12


def test_lr_find_summary_and_capture_preds_work_with_it():
    learn = learner(CompileCB(backend='eager'))
    before = weights(learn)
    learn.lr_find(max_epochs=2)
    assert learn.summary().params == 67
    assert learn.capture_preds()[0].shape == (12, 3)
    assert same(before, weights(learn))


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.skipif(not (shutil.which('g++') and Path(sysconfig.get_path('include'), 'Python.h').is_file()),
                    reason='needs a C++ compiler and the headers of Python')
def test_the_default_compiler_trains_the_same_except_for_rounding():
    cb, plain = CompileCB(), learner()
    ours = learner(cb)
    for learn in (ours, plain): learn.fit(1)
    assert cb.failure == ''
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-4, atol=1e-5)


# Without one

def test_a_model_that_cannot_be_compiled_trains_eagerly_with_one_warning_that_says_why():
    cb, plain = CompileCB(backend=failing), learner()
    ours = learner(cb)
    with pytest.warns(UserWarning, match=r'^the model cannot be compiled .*: OSError: no compiler found$') as seen:
        ours.fit(2)
    plain.fit(2)
    assert len(seen) == 1
    assert cb.failure == 'OSError: no compiler found'
    assert same(weights(ours), weights(plain))


def test_a_python_without_torch_compile_trains_eagerly(monkeypatch):
    def unsupported(*args, **kwargs): raise RuntimeError('torch.compile is not supported on Python 3.99+')
    monkeypatch.setattr(torch, 'compile', unsupported)
    ours, plain = learner(CompileCB()), learner()
    with pytest.warns(UserWarning, match=r'compilation: RuntimeError: torch\.compile is not supported'): ours.fit(1)
    plain.fit(1)
    assert same(weights(ours), weights(plain))
    assert 'forward' not in vars(ours.model)


def test_the_next_fit_tries_again():
    cb = CompileCB(backend=failing)
    learn = learner(cb)
    with pytest.warns(UserWarning, match='no compiler'): learn.fit(1)
    torch._dynamo.reset()
    cb.options = dict(backend='eager')
    learn.fit(1)
    assert cb.failure == ''


def test_an_error_of_the_model_is_raised_unchanged():
    learn = learner(CompileCB(backend='eager'))
    learn.dls.train = [(torch.randn(6, 5), y) for _, y in batches()]
    with pytest.raises(RuntimeError, match='mat1 and mat2 shapes cannot be multiplied'): learn.fit(1)
    assert 'forward' not in vars(learn.model)


def test_unknown_options_are_an_error():
    with pytest.raises(TypeError): learner(CompileCB(speed='high')).fit(1)


def test_a_reason_is_one_line():
    assert reason(ValueError('\n a\nb')) == 'ValueError: a'
    assert reason(KeyError()) == 'KeyError'


class Raises(nn.Module):
    "A model that raises in `forward` or in a hook, and counts its forwards."
    def __init__(self, where):
        super().__init__()
        self.lin, self.where, self.calls = nn.Linear(4, 3), where, []
        self.lin.register_forward_hook(torch.compiler.disable(self.count))

    def count(self, *args):
        self.calls.append(1)
        if self.where == 'hook': raise OverflowError('mine')

    def forward(self, x):
        x = self.lin(x)
        if self.where == 'forward': raise ValueError('mine')
        return x


@pytest.mark.parametrize(('where', 'error'), [('forward', ValueError), ('hook', OverflowError)])
def test_an_error_of_the_model_is_not_blamed_on_the_compiler_and_takes_one_forward(where, error):
    cb, model = CompileCB(backend='eager'), Raises(where)
    with pytest.raises(error, match='mine') as e: learner(cb, model=model).fit(1)
    assert str(e.value) == 'mine'
    assert e.value.__context__ is None
    assert len(model.calls) == 1
    assert cb.failure == ''

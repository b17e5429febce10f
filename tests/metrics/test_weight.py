"What a batch weighs: means over batches equal PyTorch's loss of all samples together, in double precision."
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import miniai
from miniai import CancelBatchException
from miniai.accel import AccumulateCB
from miniai.datasets import DataLoaders
from miniai.learner import Learner, TrainCB
from miniai.metrics.weight import hides_weights, is_sum
from resuming import Quiet
from small import Gradients, learner, mlp

W = torch.tensor([.2, 1., 3.], dtype=torch.double)
LOSSES = {  # each with what it is for all samples in double precision
    'plain': F.cross_entropy, 'ignore_index': partial(F.cross_entropy, ignore_index=1), 'module': nn.CrossEntropyLoss(),
    'class weights': partial(F.cross_entropy, weight=W), 'weighted module': nn.CrossEntropyLoss(W, ignore_index=0),
    'smoothed': partial(F.cross_entropy, weight=W, label_smoothing=.1),
    'nll': partial(F.nll_loss, weight=W), 'sum': partial(F.cross_entropy, reduction='sum'),
    'sum module': nn.CrossEntropyLoss(W, reduction='sum'),
}


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=7)
IGNORED = {'ignore_index': 1, 'weighted module': 0}


def data(sizes, ignored=.4, seed=0, index=-100):
    g = torch.Generator().manual_seed(seed)
    found = []
    for n in sizes:
        y = torch.randint(0, 3, (n,), generator=g)
        y[1:][torch.rand(n - 1, generator=g) < ignored] = index
        y[0] = 2
        found.append((torch.randn(n, 4, generator=g, dtype=torch.double), y))
    return found


def joined(bs): return tuple(map(torch.cat, zip(*bs, strict=True)))


def gradients(cbs, bs, loss_func, model=None):
    got = Gradients()
    dls, model = DataLoaders(bs, []), (model or mlp)().double()
    learn = learner([*cbs, got], dls=dls, loss_func=loss_func, model=model, lr=0.)
    learn.fit(1, valid=False)
    return got.steps


def assert_accumulates(n, bs, loss_func, **kwargs):
    torch.manual_seed(5)
    model = mlp().double()
    ours = gradients([AccumulateCB(n, **kwargs)], bs, loss_func, lambda: model)
    large = gradients([], [joined(bs[i:i + n]) for i in range(0, len(bs), n)], loss_func, lambda: model)
    torch.testing.assert_close(ours, large, rtol=1e-9, atol=1e-12)


MODELS = {'linear': lambda: nn.Linear(4, 3), 'mlp': mlp,
          'norm': lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))}
OPTIMIZERS = {'SGD': partial(torch.optim.SGD, momentum=.9), 'Adam': torch.optim.Adam, 'AdamW': miniai.AdamW}


class Cancels:
    "Cancels some batches before their backward."
    def __init__(self, batches, event):
        self.batches = batches
        setattr(self, event, self.cancel)

    def cancel(self, learn):
        if learn.iter in self.batches: raise CancelBatchException()


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(1, 4), st.sampled_from(sorted(LOSSES)), st.sampled_from(sorted(MODELS)),
       st.sampled_from(sorted(OPTIMIZERS)), st.sets(st.integers(0, 6), max_size=3),
       st.sampled_from(['before_batch', 'after_predict', 'after_loss']), st.integers(0, 99))
def test_accumulation_trains_as_plain_pytorch_does_with_large_batches(
        sizes, n, loss, model, opt, cancelled, event, seed):
    bs, loss_func = data(sizes, seed=seed, index=IGNORED.get(loss, -100)), LOSSES[loss]
    torch.manual_seed(seed)
    model = MODELS[model]().double()
    plain, opt_func = deepcopy(model), OPTIMIZERS[opt]
    learner([AccumulateCB(n), Cancels(cancelled, event)], model=model, dls=DataLoaders(bs, []), loss_func=loss_func,
            lr=.01, opt_func=opt_func).fit(2, valid=False)
    plain_opt, kept = opt_func(plain.parameters(), .01), [b for i, b in enumerate(bs) if i not in cancelled]
    for x, y in [joined(kept[i:i + n]) for i in range(0, len(kept), n)]*2:
        plain_opt.zero_grad()
        loss_func(plain(x), y).backward()
        plain_opt.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(SIZES, st.sampled_from(sorted(set(LOSSES) - {'sum', 'sum module'})), st.integers(0, 99))
def test_the_reported_loss_is_that_of_all_samples_together(sizes, loss, seed):
    bs = data(sizes, seed=seed, index=IGNORED.get(loss, -100))
    learn = learner(Quiet(), dls=DataLoaders([], bs), loss_func=LOSSES[loss], model=mlp().double())
    learn.fit(train=False)
    x, y = joined(bs)
    assert learn.history[0]['loss'] == pytest.approx(LOSSES[loss](learn.model(x), y).item(), rel=1e-9)


@pytest.mark.parametrize('weight', [None, 'sum'])
def test_the_batches_of_a_summed_loss_count_alike(weight):
    bs, loss = data([5, 3, 1]), partial(F.cross_entropy, reduction='sum')
    unknown = (lambda p, y: loss(p, y)) if weight else loss
    learn = learner(Quiet(weight=weight), dls=DataLoaders([], bs), loss_func=unknown, model=mlp().double())
    learn.fit(train=False)
    assert learn.history[0]['loss'] == pytest.approx(sum(loss(learn.model(x), y).item() for x, y in bs)/3, rel=1e-9)
    assert_accumulates(2, bs, unknown, weight=weight)


def test_one_weight_serves_both_for_losses_that_are_not_known():
    bs = data([5, 3, 8, 1])
    def loss(p, y): return F.cross_entropy(p, y)  # hidden in a function of the user's
    def tokens(learn): return (learn.batch[1] != -100).sum()
    assert_accumulates(3, bs, loss, weight=tokens)
    learn = learner(Quiet(weight=tokens), dls=DataLoaders([], bs), loss_func=loss, model=mlp().double())
    learn.fit(train=False)
    x, y = joined(bs)
    assert learn.history[0]['loss'] == pytest.approx(loss(learn.model(x), y).item(), rel=1e-9)
    with pytest.raises(AssertionError): assert_accumulates(3, bs, loss)  # by samples it would be wrong


def test_probabilities_of_classes_weigh_by_samples():
    bs = [(x, torch.rand(len(x), 3, dtype=torch.double).softmax(1)) for x, _ in data([5, 3, 8, 1])]
    assert_accumulates(2, bs, partial(F.cross_entropy, weight=W))


@pytest.mark.parametrize('loss', [
    lambda p, y: F.cross_entropy(p, y, reduction='sum'), lambda p, y: (p**2).sum(),
    lambda p, y: F.cross_entropy(p, y, reduction='sum') + p.abs().mean(),
    lambda p, y: F.mse_loss(p, p*2, reduction='sum'), lambda p, y: -p.log_softmax(1).sum(),
    lambda p, y: 0.5*(p**2).sum(), lambda p, y: p.abs().mean() - 0.5*(1 + p - p.exp()).sum()])
def test_accumulation_refuses_a_sum_that_is_not_known(loss):
    with pytest.raises(ValueError, match=r"is a sum over the batch, or a part of it is.*weight='sum'"):
        gradients([AccumulateCB(2)], data([8, 8]), loss)


def test_a_module_of_ones_own_that_sums_is_refused_by_both():
    class Mine(nn.Module):
        reduction = 'sum'
        def forward(self, p, y): return p.sum()*1.
    for cb in (AccumulateCB(2), Quiet()):
        with pytest.raises(ValueError, match='the loss Mine is a sum'): gradients([cb], data([3, 3]), Mine())


@pytest.mark.parametrize('loss', [lambda p, y: (p**2).mean(0).sum(), lambda p, y: F.cross_entropy(p, y) + (p**2).mean(),
                                  lambda p, y: F.cross_entropy(p, y, reduction='sum')/len(y),
                                  lambda p, y: -p.log_softmax(1).sum()*(1/len(y)), lambda p, y: -p.mean()*0.5,
                                  lambda p, y: (p*(y > 0)[:, None]).sum()/(y > 0).sum()])
def test_means_by_other_formulas_are_not_taken_for_sums(loss):
    assert len(gradients([AccumulateCB(2)], data([4, 4], ignored=0), loss)) == 1


def test_batches_without_any_counted_target_add_nothing_not_even_nan():
    bs = data([4, 3])
    bs.insert(1, (torch.randn(3, 4, dtype=torch.double), torch.full((3,), -100)))
    learn = learner(Quiet(), dls=DataLoaders([], bs), model=mlp().double())
    learn.fit(train=False)
    x, y = joined(bs)
    assert learn.history[0]['loss'] == pytest.approx(F.cross_entropy(learn.model(x), y).item(), rel=1e-9)


def test_the_targets_after_several_inputs_are_weighed():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 3).double()
        def forward(self, a, b): return self.lin(a + b)
    bs = [(x, x*2, y) for x, y in data([5, 3, 8])]
    learn = learner([TrainCB(n_inp=2), Quiet()], Learner, model=Two(), dls=DataLoaders([], bs))
    learn.fit(train=False)
    a, b, y = joined(bs)
    assert learn.history[0]['loss'] == pytest.approx(F.cross_entropy(learn.model(a, b), y).item(), rel=1e-9)


def test_batches_that_are_no_tuples_weigh_by_samples():
    class Phases(TrainCB):
        def predict(self, learn): learn.preds = learn.model(learn.batch['x'])
        def get_loss(self, learn): learn.loss = F.cross_entropy(learn.preds, learn.batch['y'])
    bs = [dict(x=x, y=y) for x, y in data([5, 3], ignored=0)]
    learn = learner([Phases(), Quiet()], Learner, dls=DataLoaders([], bs), model=mlp().double())
    learn.fit(train=False)
    x, y = (torch.cat([b[k] for b in bs]) for k in 'xy')
    assert learn.history[0]['loss'] == pytest.approx(F.cross_entropy(learn.model(x), y).item(), rel=1e-9)


@pytest.mark.parametrize('cb', [Quiet, lambda weight: AccumulateCB(2, weight)])
def test_a_weight_is_a_function_or_sum(cb):
    with pytest.raises(TypeError, match=r"weight must be a function of the Learner.*got 3"): cb(weight=3)


class Pooled(nn.Module):
    "Rows of several samples, one after another, and the number of each: one prediction per sample."
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 1).double()
    def forward(self, x, n): return torch.stack([part.mean(0) for part in self.out(x).split(n.tolist())])


def pooled_batches():
    g = torch.Generator().manual_seed(3)
    for size in (2, 5, 3):
        n = torch.randint(1, 9, (size,), generator=g)
        yield (torch.randn(int(n.sum()), 4, generator=g, dtype=torch.double), n,
               torch.randn(size, 1, generator=g, dtype=torch.double))


def test_a_batch_weighs_its_targets_where_inputs_have_other_rows():
    bs = list(pooled_batches())
    def gradients_of(cbs, bs):
        got = Gradients()
        learn = learner([TrainCB(n_inp=2), *cbs, got], cls=Learner, model=model, dls=DataLoaders(bs, bs), lr=0.,
                        loss_func=F.mse_loss)
        learn.fit(1)
        return learn, got.steps
    model = Pooled()
    learn, ours = gradients_of([Quiet(), AccumulateCB(3)], bs)
    _, large = gradients_of([], [joined(bs)])
    torch.testing.assert_close(ours, large, rtol=1e-9, atol=1e-12)
    x, n, y = joined(bs)
    assert learn.history[-1]['loss'] == pytest.approx(F.mse_loss(model(x, n), y).item(), rel=1e-9)


def hidden(loss):
    "Does the graph of `loss(logits, targets)`, for targets of which one is ignored, say that it weighs them?"
    out, y = torch.zeros(4, 3, requires_grad=True), torch.tensor([0, 1, -100, 2])
    return hides_weights(SimpleNamespace(loss=loss(out, y), batch=(out, y), cbs=[TrainCB()], loss_func=loss))


@pytest.mark.parametrize(('loss', 'is_hidden'), [
    (F.cross_entropy, False), (lambda out, y: F.cross_entropy(out, y), True),
    (lambda out, y: 2*F.cross_entropy(out, y, label_smoothing=.1) + .1, True),
    (lambda out, y: F.cross_entropy(out, y.clamp(min=0)), False),
    (lambda out, y: F.cross_entropy(out, y.clamp(min=0), W.float()), True),
    (lambda out, y: F.cross_entropy(out[None].mT, y[None]), True),
    (lambda out, y: F.cross_entropy(out, y, reduction='none').mean(), False),
    (lambda out, y: out.square().mean(), False), (lambda out, y: 0., False)])
def test_a_users_loss_that_weighs_targets_is_known_by_its_graph(loss, is_hidden): assert hidden(loss) == is_hidden


def test_a_loss_added_up_in_thousands_of_steps_is_looked_through():
    assert not hidden(lambda out, y: sum(out[:, 0].mean() for _ in range(3000)))
    loss = sum(torch.ones(4, requires_grad=True).mean() for _ in range(3000))
    assert not is_sum(SimpleNamespace(loss=loss, preds=loss, batch=(torch.ones(4), torch.ones(4))))


def test_a_penalty_of_as_many_weights_as_samples_is_not_taken_for_a_sum():
    w = nn.Linear(4, 8).double()
    def loss(p, y): return F.cross_entropy(p, y) + w.weight.square().sum() + 0.5*w.bias.abs().sum()
    assert len(gradients([AccumulateCB(2)], data([8, 8], ignored=0), loss)) == 1

"Captured predictions and pictures of a batch, without training."
from contextlib import suppress
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniai.augment import CapturePreds
from miniai.datasets import DataLoaders
from miniai.init import BatchTransformCB
from miniai.learner import DeviceCB, Learner, MetricsCB, ProgressCB, SingleBatchCB, TrainCB
from miniai.sgd import BatchSchedCB
from small import Heard, TwoInputs, batches, copied, equal, everything, learner, raising, two_inputs


def joined(dl): return tuple(torch.cat(t) for t in zip(*dl, strict=True))


def test_predictions_and_targets_of_the_whole_validation_set_are_captured_in_order():
    learn = learner()
    preds, targs = learn.capture_preds()
    x, y = joined(learn.dls.valid)
    torch.testing.assert_close(preds, learn.model(x))
    assert torch.equal(targs, y)
    assert not preds.requires_grad


def test_inputs_come_last_if_asked_for():
    learn = learner()
    preds, targs, inps = learn.capture_preds(inps=True)
    assert torch.equal(inps, joined(learn.dls.valid)[0])
    assert len(preds) == len(targs) == len(inps)


def test_given_callbacks_work_on_the_batches_and_are_removed():
    learn = learner()
    zeros = BatchTransformCB(lambda b: (b[0]*0, b[1]))
    for cbs in (zeros, [zeros]): assert learn.capture_preds(cbs=cbs, inps=True)[2].eq(0).all()
    assert learn.cbs == []


def test_capturing_changes_nothing():
    learn = learner(MetricsCB())
    learn.fit(1)
    before, history, opt = copied(everything(learn)), learn.history, learn.opt
    learn.capture_preds()
    assert equal(everything(learn), before)
    assert learn.history is history
    assert learn.opt is opt


def test_capturing_needs_no_optimizer_train_loader_loss_function_or_targets():
    only_inputs = [(x,) for x, _ in batches()]
    preds, targs = learner(dls=DataLoaders([], only_inputs), opt_func=None, lr=None).capture_preds()
    assert (preds.shape, targs) == ((24, 3), None)
    preds, targs = learner(dls=DataLoaders([], batches()), opt_func=None, loss_func=None).capture_preds()
    assert (preds.shape, targs.shape) == ((24, 3), (24,))


def test_several_inputs_and_targets_are_tuples():
    learn = learner(TrainCB(n_inp=2), cls=Learner, model=TwoInputs(), dls=two_inputs())
    _, targs, (a, b) = learn.capture_preds(inps=True)
    x, x2, y = joined(learn.dls.valid)
    assert torch.equal(a, x)
    assert torch.equal(b, x2)
    assert torch.equal(targs, y)
    two_targets = learner(TrainCB(), cls=Learner, dls=two_inputs(), loss_func=lambda p, *t: p.mean())
    assert [t.shape for t in two_targets.capture_preds()[1]] == [(6, 4), (6,)]


def test_tensors_in_nests_are_joined_and_other_objects_listed():
    class Nest:
        def after_predict(self, learn):
            learn.preds = (learn.preds, [dict(half=learn.preds.half())], learn.preds.mean(), 'name')
        def after_loss(self, learn): learn.loss = None
    preds, _ = learner(Nest(), loss_func=lambda p, y: None).capture_preds()
    assert preds[0].shape == (12, 3)
    assert preds[1][0]['half'].shape == (12, 3)
    assert preds[1][0]['half'].dtype == torch.float32
    assert preds[2].shape == (2,)
    assert preds[3] == ['name', 'name']


def test_a_capture_that_a_callback_ends_early_is_joined_too():
    learn = learner()
    preds, targs = learn.capture_preds(cbs=SingleBatchCB())
    assert torch.equal(targs, learn.dls.valid[0][1])
    assert preds.shape == (6, 3)


def test_capture_preds_is_a_callback_too():
    cb = CapturePreds()
    learner(cb).fit(1, train=False)
    assert cb.all_preds.shape == (12, 3)
    assert cb.all_targs.shape == (12,)
    assert cb.all_inps.shape == (12, 4)


def test_a_capture_that_fails_keeps_history_and_callbacks():
    learn = learner(MetricsCB())
    learn.fit(1)
    history = learn.history
    broken = Heard({'after_predict': raising(ValueError('oh'))})
    with pytest.raises(ValueError, match='oh'): learn.capture_preds(cbs=broken)
    assert learn.history is history
    assert len(learn.cbs) == 1


@pytest.mark.parametrize('ends', [None, ValueError('oh'), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize('look', ['capture_preds', 'tta'])
def test_every_module_keeps_its_mode_however_a_capture_ends(look, ends):
    learn = learner(model=nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(.5)))
    learn.dls.valid = [(x.view(-1, 1, 2, 2), y) for x, y in learn.dls.valid]
    learn.model.train()[1].eval()
    if ends: learn.cbs.append(Heard({'after_predict': raising(ends)}))
    with suppress(ValueError, KeyboardInterrupt): getattr(learn, look)()
    assert [m.training for m in learn.model.modules()] == [True, True, False, True]


# Batches of any shape, from any loader

class Doubled(nn.Module):
    def forward(self, x): return x*2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=5),
       st.booleans(), st.integers(0, 99))
def test_each_sample_has_its_prediction_and_target_whatever_the_batches_are_padded_to(shapes, labelled, seed):
    g = torch.Generator().manual_seed(seed)
    bs = [(torch.randn(*shape, generator=g), torch.randint(0, 3, shape[:2], generator=g)) for shape in shapes]
    learn = learner(model=Doubled(), dls=DataLoaders([], batches()), loss_func=lambda p, y: p.mean(), opt_func=None)
    preds, targets, inps = learn.capture_preds(dl=bs if labelled else [x for x, _ in bs], inps=True)
    xs, ys = ([row for b in bs for row in b[i]] for i in (0, 1))
    assert len(preds) == len(xs)
    for found, x in zip(preds, xs, strict=True): assert torch.equal(found, x*2)
    for found, x in zip(inps, xs, strict=True): assert torch.equal(found, x)
    if labelled:
        for found, y in zip(targets, ys, strict=True): assert torch.equal(found, y)
    else: assert targets is None
    assert isinstance(preds, torch.Tensor) == (len({x.shape for x in xs}) == 1)


def test_inputs_that_nobody_asked_for_need_not_be_joined():
    class Pooled(nn.Module):
        def forward(self, x): return x.mean(1)
    bs = [(torch.randn(2, t, 3), torch.zeros(2)) for t in (4, 7)]
    learn = learner(model=Pooled(), dls=DataLoaders([], bs), loss_func=lambda p, y: p.mean(), opt_func=None)
    preds, targets = learn.capture_preds()
    assert torch.equal(preds, torch.cat([x.mean(1) for x, _ in bs]))
    assert targets.shape == (4,)
    assert isinstance(learn.capture_preds(inps=True)[2], list)


def test_another_loader_is_used_for_this_capture_only():
    learn, other = learner(), DataLoaders.from_arrays(torch.randn(12, 4), torch.zeros(12).long(), valid=.5, bs=2).train
    dls, epoch = learn.dls, other.epoch
    preds, targets = learn.capture_preds(dl=other)
    assert (len(preds), len(targets)) == (6, 6)
    assert learn.dls is dls
    assert other.epoch == epoch


# Pictures of a batch

class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.norm = nn.Linear(64, 3), nn.BatchNorm1d(3)

    def forward(self, x): return self.norm(self.lin(x.flatten(1)))


def images(n=12): return [(torch.rand(n, 1, 8, 8), torch.randint(0, 3, (n,)))]
def pictures(): return [ax.images[0].get_array() for ax in plt.gcf().axes if ax.images]
def image_learner(cbs=None, **kwargs):
    return learner(cbs, model=Images(), dls=DataLoaders(images(), images()), **kwargs)


@pytest.mark.parametrize(('max_n', 'n'), [(9, 9), (4, 4), (100, 12)])
def test_up_to_max_n_inputs_of_the_first_training_batch_are_drawn(max_n, n):
    learn = image_learner()
    learn.show_image_batch(max_n=max_n)
    drawn = pictures()
    assert len(drawn) == n
    np.testing.assert_allclose(drawn[1], learn.dls.train[0][0][1, 0].numpy())


def test_inputs_are_drawn_after_all_callbacks_have_changed_them():
    learn = image_learner([DeviceCB('cpu'), BatchTransformCB(lambda b: (b[0]*0 + .25, b[1]))])
    learn.show_image_batch(cbs=BatchTransformCB(lambda b: (b[0]*2, b[1])))
    assert all(np.allclose(p, .5) for p in pictures())
    assert len(learn.cbs) == 2


def test_arguments_go_to_show_images():
    image_learner().show_image_batch(max_n=2, titles=['a', 'b'], figsize=(5, 2))
    assert [ax.get_title() for ax in plt.gcf().axes] == ['a', 'b']
    assert plt.gcf().get_size_inches().tolist() == [5, 2]


@pytest.mark.parametrize('fails', [False, True])
@pytest.mark.parametrize('look', ['show_image_batch', 'summary'])
def test_a_look_changes_nothing(look, fails):
    learn = image_learner([MetricsCB(), ProgressCB()], opt_func=torch.optim.Adam)
    learn.fit(1)
    before, history, opt = copied(everything(learn)), learn.history, learn.opt
    if fails: learn.cbs.append(Heard({'before_batch': raising(ValueError('oh'))}))
    with suppress(ValueError): getattr(learn, look)()
    assert equal(everything(learn), before)
    assert learn.history is history
    assert learn.opt is opt


@pytest.mark.parametrize('look', ['show_image_batch', 'summary'])
@pytest.mark.parametrize('lacks', [dict(lr=None), dict(opt_func=None), dict(lr=None, opt_func=None)])
def test_a_look_needs_no_rate_and_no_optimizer(look, lacks):
    learn = image_learner(**lacks)
    getattr(learn, look)()
    assert learn.opt is None


@pytest.mark.parametrize('look', ['show_image_batch', 'summary'])
def test_a_look_works_with_a_schedule_and_leaves_the_optimizers_rates(look):
    sched = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=.1, total_steps=6, cycle_momentum=False)
    learn = image_learner(BatchSchedCB(sched), opt_func=torch.optim.AdamW)
    learn.fit(1)
    learn.opt_func, before = None, copied(learn.opt.state_dict())
    getattr(learn, look)()
    assert equal(learn.opt.state_dict(), before)

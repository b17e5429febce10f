"Test-time augmentation, against averages taken by hand."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai.accel import MixedPrecision
from miniai.augment import mirror, rand_erase, tta
from miniai.datasets import DataLoaders
from miniai.init import BatchTransformCB
from miniai.learner import Learner, MetricsCB, ProgressCB, TrainCB, TrainLearner
from small import TwoInputs, copied, equal, everything, learner, raising, two_inputs


def images(*sizes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.rand(n, 1, 6, 5, generator=g), torch.randint(0, 3, (n,), generator=g)) for n in sizes]


def image_learner(cbs=None, **kwargs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Dropout(.5), nn.Linear(8, 3))
    return learner(cbs, model=model, dls=DataLoaders(images(6, 6), images(7, 4, seed=1)), **kwargs)


def by_hand(learn, *views, act=lambda p: p):
    x = torch.cat([x for x, _ in learn.dls.valid])
    with torch.no_grad(): return sum(act(learn.model.eval()(f(x))) for f in views)/len(views)


def same_image(x): return x
def darker(x): return x*.5


@pytest.mark.parametrize('own_phases', [True, False])
def test_predictions_are_averaged_over_images_and_mirror_images(own_phases):
    learn = image_learner() if own_phases else image_learner(TrainCB(), cls=Learner)
    learn.fit(1)
    preds, targs = learn.tta()
    torch.testing.assert_close(preds, by_hand(learn, same_image, lambda x: x[..., [4, 3, 2, 1, 0]]))
    assert torch.equal(targs, torch.cat([y for _, y in learn.dls.valid]))
    assert Learner.tta is tta


def test_tfms_are_one_function_or_several():
    learn = image_learner()
    torch.testing.assert_close(learn.tta(darker)[0], by_hand(learn, same_image, darker))
    torch.testing.assert_close(learn.tta([darker, mirror])[0], by_hand(learn, same_image, darker, mirror))
    layers = nn.Sequential(nn.ReLU(), nn.Hardtanh(0, .3))
    torch.testing.assert_close(learn.tta(layers)[0], by_hand(learn, same_image, layers))
    torch.testing.assert_close(learn.tta(())[0], learn.capture_preds()[0])


def test_act_is_applied_before_averaging():
    learn = image_learner()
    softmax = lambda p: F.softmax(p, -1)  # noqa: E731
    preds, _ = learn.tta(darker, act=softmax)
    torch.testing.assert_close(preds, by_hand(learn, same_image, darker, act=softmax))
    torch.testing.assert_close(preds.sum(1), torch.ones(11))


def test_views_are_made_after_callbacks_and_given_callbacks_are_removed():
    learn = image_learner()
    preds, _ = learn.tta(cbs=BatchTransformCB(lambda b: (b[0] + 1, b[1])))
    torch.testing.assert_close(preds, by_hand(learn, lambda x: x + 1, lambda x: mirror(x) + 1))
    assert learn.cbs == []


def test_callbacks_see_the_mean_once_and_the_original_batch():
    seen = []
    class Look:
        def after_predict(self, learn): seen.append((learn.preds.clone(), learn.batch))
    learn = image_learner(Look())
    preds, _ = learn.tta(darker)
    assert torch.equal(torch.cat([p for p, _ in seen]), preds)
    assert [b is d for (_, b), d in zip(seen, learn.dls.valid, strict=True)] == [True, True]


def test_views_made_in_place_do_not_change_the_data():
    learn = image_learner()
    before = copied(learn.dls.valid)
    learn.tta(lambda x: rand_erase(x, .9, 9).mul_(0))
    assert equal(learn.dls.valid, before)


@pytest.mark.parametrize('fails', [False, True])
def test_nothing_is_changed(fails):
    learn = image_learner([MetricsCB(), ProgressCB()], opt_func=torch.optim.Adam)
    learn.fit(1)
    learn.model.train()[0].eval()
    before, records = copied(everything(learn)), copied([learn.history, learn.cbs[1].losses, learn.cbs[1].val_losses])
    tfms = raising(ValueError('oh')) if fails else mirror
    try: learn.tta(tfms)
    except ValueError: assert fails
    assert equal(everything(learn), before)
    assert equal([learn.history, learn.cbs[1].losses, learn.cbs[1].val_losses], records)
    assert len(learn.cbs) == 2


def test_predictions_in_nests_are_averaged_inside():
    class Nest(nn.Module):
        def forward(self, x): return x.mean((1, 2, 3)), dict(half=x[:, 0, 0].half()), 'name'
    learn = learner(model=Nest(), dls=DataLoaders([], images(3)), loss_func=lambda p, y: None, opt_func=None)
    (mean, d, _), _ = learn.tta()
    x = learn.dls.valid[0][0]
    torch.testing.assert_close(mean, x.mean((1, 2, 3)))
    torch.testing.assert_close(d['half'], (x[:, 0, 0].half().float() + x[:, 0, 0].flip(-1).half().float())/2)


def test_only_the_first_of_several_inputs_is_transformed():
    learn = learner(TrainCB(n_inp=2), cls=Learner, model=TwoInputs(), dls=two_inputs())
    batches = list(learn.dls.valid)
    with torch.no_grad(): hand = torch.cat([(learn.model(a, b) + learn.model(a*.5, b))/2 for a, b, _ in batches])
    torch.testing.assert_close(learn.tta(darker)[0], hand)


def test_it_works_in_mixed_precision():
    learn = image_learner(MixedPrecision(), cls=Learner)
    torch.testing.assert_close(learn.tta(darker)[0], by_hand(learn, same_image, darker), atol=.03, rtol=.03)


def test_wrong_transforms_and_inputs_are_errors():
    said = "functions of a batch's first input, got 'flip'"
    with pytest.raises(TypeError, match=said): image_learner().tta(['flip'])
    with pytest.raises(ValueError, match=r'must have shape \(N, C, H, W\), got \(6, 4\)'): learner().tta()


def test_integer_outputs_are_those_of_the_original_batch():
    class Both(torch.nn.Module):
        def forward(self, x):
            logits = x.flatten(1)[:, :3]
            return logits, logits.argmax(1)
    x, y = torch.randn(4, 1, 2, 3), torch.zeros(4, dtype=torch.long)
    learn = TrainLearner(Both(), DataLoaders([], [(x, y)]), lambda p, t: p[0].sum(), cbs=[])
    (logits, classes), _ = learn.tta()
    assert torch.equal(classes, x.flatten(1)[:, :3].argmax(1))
    assert torch.allclose(logits, (x.flatten(1)[:, :3] + x.flip(-1).flatten(1)[:, :3])/2)


# Predictions with a place for each pixel

def up(x): return x.flip(-2)
def mask_learner(): return learner(model=nn.Conv2d(1, 2, 3, padding=1), dls=DataLoaders([], images(4, 3)),
                                   loss_func=lambda p, y: p.mean())


def masks_by_hand(learn, *views):
    x = torch.cat([x for x, _ in learn.dls.valid])
    with torch.no_grad(): return sum(undo(learn.model(f(x))) for f, undo in views)/len(views)


def test_masks_of_mirror_images_are_mirrored_back_before_they_are_averaged():
    learn = mask_learner()
    torch.testing.assert_close(learn.tta()[0], masks_by_hand(learn, (same_image, same_image), (mirror, mirror)))


def test_a_view_may_say_how_its_masks_are_moved_back():
    learn = mask_learner()
    torch.testing.assert_close(learn.tta([(up, up), (darker, same_image), mirror])[0], masks_by_hand(
        learn, (same_image, same_image), (up, up), (darker, same_image), (mirror, mirror)))


def test_masks_that_may_have_moved_are_refused():
    says = r'predictions of shape \(4, 2, 6, 5\) may depend on where things are.*pass tfms=\[\(up, undo\)\]'
    with pytest.raises(ValueError, match=says): mask_learner().tta(up)
    smaller = learner(model=nn.Conv2d(1, 2, 3), dls=DataLoaders([], images(4)), loss_func=lambda p, y: p.mean())
    with pytest.raises(ValueError, match=r'predictions of shape \(4, 2, 4, 3\) may'): smaller.tta()
    with pytest.raises(TypeError, match=r'and of pairs \(tfm, undo\)'): mask_learner().tta([(up, up, up)])


def test_another_loader_may_be_given():
    learn = image_learner()
    other = [(x,) for x, _ in images(3, 2, seed=5)]
    preds, targets = learn.tta(darker, dl=other)
    assert targets is None
    learn.dls = DataLoaders([], [(x, None) for x, in other])
    torch.testing.assert_close(preds, by_hand(learn, same_image, darker))

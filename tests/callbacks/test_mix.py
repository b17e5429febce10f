"MixUp and CutMix, against the formulas of the papers."
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniai.accel import MixedPrecision
from miniai.augment import CutMixCB, LabelSmoothingCB, MixUpCB
from miniai.datasets import DataLoaders
from miniai.init import BatchTransformCB
from miniai.learner import CancelBatchException, Learner, MetricsCB, TrainCB, TrainLearner
from miniai.metrics.accuracy import accuracy
from small import Heard, TwoInputs, learner, raising, same, weights

MIXERS = pytest.mark.parametrize('mixer', [MixUpCB, CutMixCB])
seeds = st.integers(0, 10**6)


def seeded(seed): return torch.Generator().manual_seed(seed)
def images(n, size=(1, 9, 7), seed=0):
    g = seeded(seed)
    x = torch.rand(n, *size, generator=g) + torch.arange(n).view(-1, 1, 1, 1)*2
    return x, torch.randint(0, 3, (n,), generator=g)


def net(): return nn.Sequential(nn.Flatten(), nn.Linear(63, 3))
def image_learner(cbs=None, **kwargs):
    dls = kwargs.pop('dls', None) or DataLoaders([images(8), images(5, seed=1)], [images(6, seed=2)])
    return learner(cbs, model=net(), dls=dls, lr=1e-3, **kwargs)


class Seen:
    "Keeps each batch when its loss is final, and what its mixer drew."
    order = 50
    def __init__(self, mixer=None): self.mixer, self.batches = mixer, []
    def after_loss(self, learn):
        drawn = (self.mixer.lam, self.mixer.perm) if self.mixer else ()
        self.batches.append((learn.training, learn.batch, learn.preds.detach(), learn.loss.detach(), *drawn))


@MIXERS
@pytest.mark.parametrize('own_phases', [True, False])
@pytest.mark.parametrize('loss_func', [F.cross_entropy, nn.CrossEntropyLoss(torch.tensor([1., 3., 2.])),
                                       lambda p, y: F.multi_margin_loss(p, y)])
def test_the_loss_mixes_both_targets_in_the_proportion_of_the_inputs(mixer, own_phases, loss_func):
    mix = mixer(generator=seeded(1))
    seen = Seen(mix)
    cbs = [mix, seen] if own_phases else [TrainCB(), mix, seen]
    learn = image_learner(cbs, cls=TrainLearner if own_phases else Learner, loss_func=loss_func)
    learn.fit(2)
    trained = [b for b in seen.batches if b[0]]
    assert len(trained) == 4
    for _, (_, y), preds, loss, lam, perm in trained:
        torch.testing.assert_close(loss, lam*loss_func(preds, y) + (1 - lam)*loss_func(preds, y[perm]))
        assert sorted(perm.tolist()) == list(range(len(y)))
        assert 0 < lam <= 1


@MIXERS
def test_targets_stay_and_inputs_are_new_tensors(mixer):
    data = [images(8)]
    before = [t.clone() for t in data[0]]
    seen = Seen()
    image_learner([mixer(), seen], dls=DataLoaders(data, [])).fit(3, valid=False)
    assert all(map(torch.equal, data[0], before))
    for _, (x, y), *_ in seen.batches:
        assert y is data[0][1]
        assert x is not data[0][0]


@MIXERS
def test_validation_keeps_its_inputs_and_loss_and_draws_no_random_numbers(mixer):
    seen = Seen()
    learn = image_learner([mixer(), seen])
    state = torch.get_rng_state()
    learn.fit(1, train=False)
    assert torch.equal(torch.get_rng_state(), state)
    (_, batch, preds, loss), = seen.batches
    assert batch is learn.dls.valid[0]
    assert torch.equal(loss, F.cross_entropy(preds, batch[1]))


def mixed(mixer, x, seed):
    "A batch as `mixer` changes it, in a fit that trains nothing."
    mix, out = mixer(generator=seeded(seed)), []
    def look(learn):
        out.append(learn.batch[0])
        raise CancelBatchException
    dls = DataLoaders([(x, torch.zeros(len(x)))], [])
    learner([mix, Heard({'before_batch': look}, order=50)], model=nn.Linear(1, 1), dls=dls).fit(1, valid=False)
    return mix, out[0]


sizes = st.tuples(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
formats = st.sampled_from([torch.contiguous_format, torch.channels_last])


@MIXERS
@settings(max_examples=40)
@given(sizes, dtypes, formats, seeds)
def test_mixing_keeps_shape_dtype_format_and_range_and_repeats_under_a_seed(mixer, size, dtype, fmt, seed):
    x = torch.randn(size, generator=seeded(0)).to(dtype).contiguous(memory_format=fmt)
    mix, out = mixed(mixer, x, seed)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert out.is_contiguous(memory_format=fmt)
    assert (out.min() >= x.min(), out.max() <= x.max()) == (True, True)
    again, same_out = mixed(mixer, x, seed)
    assert torch.equal(out, same_out)
    assert again.lam == mix.lam


@settings(max_examples=40)
@given(sizes, seeds)
def test_mixup_blends_each_example_with_its_partner(size, seed):
    x = torch.randn(size, generator=seeded(0), dtype=torch.float64)
    mix, out = mixed(MixUpCB, x, seed)
    slow = [mix.lam*x[i] + (1 - mix.lam)*x[j] for i, j in enumerate(mix.perm.tolist())]
    torch.testing.assert_close(out, torch.stack(slow))
    assert .5 <= mix.lam <= 1


@settings(max_examples=60)
@given(sizes, seeds)
def test_cutmix_pastes_one_rectangle_and_lam_is_the_share_that_stayed(size, seed):
    n, _, h, w = size
    x = torch.arange(float(n)).view(-1, 1, 1, 1).expand(size).contiguous()
    mix, out = mixed(CutMixCB, x, seed)
    for i, j in enumerate(mix.perm.tolist()):
        pasted = out[i] == j
        if i == j: continue
        assert (pasted | (out[i] == i)).all()
        rows, cols = pasted[0].any(1), pasted[0].any(0)
        assert (pasted == rows[:, None] & cols).all()
        for line in (rows, cols): assert line.nonzero().diff(dim=0).eq(1).all()
        assert 1 - rows.sum().item()*cols.sum().item()/(h*w) == pytest.approx(mix.lam)


def test_lam_is_beta_distributed():
    draws = torch.distributions.Beta(.4, .4).sample((100_000,))
    lams = torch.tensor([mixed(MixUpCB, torch.zeros(2, 1, 1, 1), s)[0].lam for s in range(800)])
    want = torch.maximum(draws, 1 - draws)
    assert abs(lams.mean() - want.mean()) < 4*want.std()/800**.5
    for q in (.25, .5, .75): assert abs(lams.quantile(q) - want.quantile(q)) < .04


def test_cutmix_with_alpha_1_pastes_rectangles_of_uniform_area_cut_off_at_the_edges():
    shares = torch.tensor([1 - mixed(CutMixCB, torch.zeros(2, 1, 32, 32), s)[0].lam for s in range(600)])
    g = torch.Generator().manual_seed(0)
    side = torch.rand(100_000, generator=g).sqrt()
    y, x = torch.rand(2, 100_000, generator=g)
    def cut(at): return (at + side/2).clamp(max=1) - (at - side/2).clamp(min=0)
    assert abs(shares.mean() - (cut(y)*cut(x)).mean()) < .05


@MIXERS
def test_without_a_generator_torchs_seed_repeats_a_run(mixer):
    def trained(seed):
        torch.manual_seed(0)
        learn = image_learner(mixer())
        torch.manual_seed(seed)
        learn.fit(2)
        return weights(learn)
    assert same(trained(1), trained(1))
    assert not same(trained(1), trained(2))


@MIXERS
def test_a_fit_draws_one_number_and_every_batch_of_it_has_its_own_mixture(mixer):
    g = seeded(1)
    mix, seen = mixer(generator=g), Seen()
    seen.mixer = mix
    learn = image_learner([mix, seen])
    for epochs in (1, 3): learn.fit(epochs)
    drawn = {(lam, *perm.tolist()) for training, *_, lam, perm in seen.batches if training}
    assert len(drawn) == 2*(1 + 3)
    expected = seeded(1)
    for _ in range(2): torch.randint(2**62, (), generator=expected)
    assert torch.equal(g.get_state(), expected.get_state())


@MIXERS
@pytest.mark.parametrize('event', ['before_batch', 'after_predict', 'after_loss', 'after_backward'])
@pytest.mark.parametrize('e', [CancelBatchException(), KeyError('oh')])
def test_a_cancel_or_an_error_leaves_loss_function_and_targets_for_the_next_fit(mixer, event, e):
    learn = image_learner(mixer())
    with suppress(KeyError): learn.fit(1, cbs=Heard({event: raising(e)}, order=100))
    assert learn.loss_func is F.cross_entropy
    assert any(learn.batch[1] is y for dl in (learn.dls.train, learn.dls.valid) for _, y in dl)
    learn.fit(1)


@MIXERS
def test_a_loss_that_fails_on_the_second_targets_leaves_the_batch(mixer):
    calls = []
    def second_fails(preds, y):
        calls.append(y)
        if len(calls) == 2: raise KeyError('oh')
        return F.cross_entropy(preds, y)
    learn = image_learner(mixer(), loss_func=second_fails)
    with pytest.raises(KeyError, match='oh'): learn.fit(1)
    assert learn.batch[1] is learn.dls.train[0][1]


def test_label_smoothing_and_mixup_compose_in_either_order():
    def trained(*cbs):
        mix = MixUpCB(generator=seeded(4))
        seen = Seen(mix)
        learn = image_learner([dict(mix=mix, smooth=LabelSmoothingCB(.2))[nm] for nm in cbs] + [seen])
        learn.fit(1)
        return seen.batches
    for batches in (trained('mix', 'smooth'), trained('smooth', 'mix')):
        for training, (_, y), p, loss, lam, perm in batches:
            def smooth(t, p=p): return F.cross_entropy(p, t, label_smoothing=.2)
            want = lam*smooth(y) + (1 - lam)*smooth(y[perm]) if training else F.cross_entropy(p, y)
            torch.testing.assert_close(loss, want)


def test_a_custom_get_loss_is_called_for_both_targets():
    class Penalised(TrainCB):
        def get_loss(self, learn): learn.loss = F.cross_entropy(learn.preds, learn.batch[1]) + 7
    mix = MixUpCB()
    seen = Seen(mix)
    image_learner([Penalised(), mix, seen], cls=Learner).fit(1, valid=False)
    for _, (_, y), p, loss, lam, perm in seen.batches:
        torch.testing.assert_close(loss, 7 + lam*F.cross_entropy(p, y) + (1 - lam)*F.cross_entropy(p, y[perm]))


@pytest.mark.parametrize('reverse', [False, True])
def test_inputs_are_mixed_after_transforms_and_both_losses_use_autocast(reverse):
    autocast = []
    def loss_func(preds, y):
        autocast.append(torch.is_autocast_enabled('cpu'))
        return F.cross_entropy(preds, y)
    to_float = BatchTransformCB(lambda b: (b[0].float(), b[1]))
    x, y = images(8)
    cbs = [MixUpCB(), MixedPrecision(), to_float]
    dls = DataLoaders([(x.to(torch.uint8), y)], [])
    image_learner(cbs[::-1] if reverse else cbs, cls=Learner, loss_func=loss_func, dls=dls).fit(1, valid=False)
    assert autocast == [True, True]


@MIXERS
@pytest.mark.parametrize('order', [float('-inf'), -10, 0, 4, 6, 100])
def test_what_a_callback_of_any_order_adds_to_the_loss_is_added_once(mixer, order):
    penalty = type('Penalty', (), dict(order=order))()
    def add(learn): learn.loss = learn.loss + 7
    penalty.after_loss = add
    mix = mixer()
    seen = Seen(mix)
    seen.order = 200
    image_learner([penalty, mix, seen]).fit(1, valid=False)
    for _, (_, y), p, loss, lam, perm in seen.batches:
        torch.testing.assert_close(loss, 7 + lam*F.cross_entropy(p, y) + (1 - lam)*F.cross_entropy(p, y[perm]))


@MIXERS
def test_after_a_cancelled_batch_validation_has_the_plain_loss(mixer):
    seen = Seen()
    class Cancels:
        def after_predict(self, learn):
            if learn.training: raise CancelBatchException
    learn = image_learner([mixer(), Cancels(), seen])
    learn.fit(1)
    (_, (_, y), preds, loss), = seen.batches
    assert torch.equal(loss, F.cross_entropy(preds, y))
    assert 'get_loss' not in vars(learn)


@MIXERS
def test_a_mixer_that_is_removed_mid_batch_leaves_the_loss_phase(mixer):
    mix, losses = mixer(), []
    class Takes:
        def after_predict(self, learn):
            if mix in learn.cbs: learn.cbs.remove(mix)
        def after_batch(self, learn): losses.append((learn.loss, F.cross_entropy(learn.preds, learn.batch[1])))
    learn = image_learner([mix, Takes()])
    learn.fit(1, valid=False)
    assert torch.equal(*losses[1])
    assert 'get_loss' not in vars(learn)


def test_several_inputs_are_mixed_with_the_same_partner():
    x, x2, y = torch.randn(6, 4), torch.randn(6, 4), torch.randint(0, 3, (6,))
    mix = MixUpCB()
    seen = Seen(mix)
    dls = DataLoaders([(x, x2, y)], [])
    learner([TrainCB(n_inp=2), mix, seen], cls=Learner, model=TwoInputs(), dls=dls).fit(1, valid=False)
    (_, (a, b, t), _, _, lam, perm), = seen.batches
    for out, inp in ((a, x), (b, x2)): torch.testing.assert_close(out, lam*inp + (1 - lam)*inp[perm])
    assert t is y


def test_metrics_work_on_mixed_batches():
    learn = image_learner([MixUpCB(), MetricsCB(accuracy=accuracy)])
    learn.fit(1)
    assert all(0 <= row['accuracy'] <= 1 for row in learn.history)


def test_inputs_that_cannot_be_mixed_are_an_error():
    def fit(cbs, x): learner(cbs, dls=DataLoaders([(x, torch.zeros(2).long())], [])).fit(1, valid=False)
    with pytest.raises(TypeError, match=r'needs inputs that are floats, got torch\.uint8'):
        fit(MixUpCB(), torch.zeros(2, 4, dtype=torch.uint8))
    said = r'must have shape \(N, C, H, W\), got \(2, 4\)'
    with pytest.raises(ValueError, match=said): fit(CutMixCB(), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r'needs inputs of one size, got images of sizes \[\(2, 2\), \(3, 3\)\]'):
        fit(CutMixCB(), (torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 3, 3)))
    with pytest.raises(TypeError, match='MixUpCB mixes tensors'): fit(MixUpCB(), 'ab')


@MIXERS
@pytest.mark.parametrize('at', [0, 1, 2])
def test_an_item_without_rows_is_an_error_that_names_it(mixer, at):
    batch = [*images(4), dict(w=torch.rand(4))]
    batch[at] = dict(w=torch.tensor(1.)) if at == 2 else torch.tensor(1.)
    learn = image_learner(mixer(), dls=DataLoaders([tuple(batch)], []))
    with pytest.raises(ValueError, match=f'{mixer.__name__} mixes the rows .* item {at} of the batch has a tensor'):
        learn.fit(1, valid=False)


@MIXERS
def test_a_bad_alpha_is_an_error(mixer):
    for alpha in (0, -1, float('nan')):
        with pytest.raises(ValueError, match=f'{mixer.__name__}: alpha must be above 0'): mixer(alpha)


def test_two_mixers_are_an_error():
    learn = image_learner([MixUpCB(), CutMixCB()])
    with pytest.raises(ValueError, match='MixUpCB and CutMixCB cannot be used in the same fit'): learn.fit(1)


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([(), (1,), (2,)]))
def test_cutmix_pastes_into_masks_what_it_pastes_into_images(seed, channels):
    x, _ = images(6, seed=seed)
    masks = x.reshape(6, 1, 9, 7).expand(6, *(channels or (1,)), 9, 7).reshape(6, *channels, 9, 7).clone()
    seen = Seen(CutMixCB(generator=seeded(seed)))
    loss = lambda p, y: (p - y.flatten(1)[:, :3]).abs().mean()  # noqa: E731
    image_learner([seen.mixer, seen], dls=DataLoaders([(x, masks)], []), loss_func=loss).fit(1, valid=False)
    (_, (mixed, y), preds, seen_loss, *_), = seen.batches
    assert torch.equal(y.reshape(6, -1, 9, 7), mixed.expand(6, *(channels or (1,)), 9, 7))
    torch.testing.assert_close(seen_loss, loss(preds, y))


def test_cutmix_mixes_the_loss_of_a_class_beside_a_mask_in_the_share_of_the_area():
    x, y = images(6)
    seen = Seen(CutMixCB(generator=seeded(3)))
    loss = lambda p, mask, y: F.cross_entropy(p, y) + mask.mean()  # noqa: E731
    image_learner([TrainCB(), seen.mixer, seen], cls=Learner, dls=DataLoaders([(x, x[:, 0], y)], []), loss_func=loss
                  ).fit(1, valid=False)
    (_, (_, mask, same_y), preds, seen_loss, lam, perm), = seen.batches
    assert torch.equal(same_y, y)
    expected = lam*F.cross_entropy(preds, y) + (1 - lam)*F.cross_entropy(preds, y[perm]) + mask.mean()
    torch.testing.assert_close(seen_loss, expected)


def test_cutmix_refuses_masks_of_another_size():
    x, _ = images(4)
    learn = image_learner(CutMixCB(), dls=DataLoaders([(x, x[:, 0, :4, :3])], []), loss_func=lambda p, y: p.mean())
    with pytest.raises(ValueError, match=r'as large as the images, \(9, 7\): got targets of shape \(4, 4, 3\)'):
        learn.fit(1, valid=False)

"ChannelsLastCB: the memory layout of images and weights during a fit and after it."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import TrainLearner
from miniai.accel import ChannelsLastCB
from miniai.datasets import DataLoaders
from miniai.learner import SingleBatchCB
from miniai.optim import AdamW
from small import raising, same, weights


def images(n=3): return [(torch.randn(6, 3, 8, 8), torch.randint(0, 4, (6,))) for _ in range(n)]


def convs(): return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3),
                                  nn.AdaptiveAvgPool2d(1), nn.Flatten())


def conv_learner(cbs, opt_func=AdamW):
    torch.manual_seed(1)
    data, model = images(), convs()
    return TrainLearner(model, type('Pair', (), dict(train=data, valid=data)), F.cross_entropy, 1e-2, cbs, opt_func)


def is_last(x): return x.is_contiguous(memory_format=torch.channels_last)
def strides(model): return [p.stride() for p in model.state_dict().values()]


class Sees:
    order = 100
    def __init__(self): self.seen = []
    def after_predict(self, learn): self.seen.append((is_last(learn.batch[0]), is_last(learn.model[0].weight)))
    def after_step(self, learn):
        p = learn.model[3].weight
        self.seen += [(is_last(p.grad), is_last(x)) for x in learn.opt.state[p].values() if getattr(x, 'ndim', 0) == 4]


@pytest.mark.parametrize('opt', [AdamW, torch.optim.AdamW])
def test_batches_weights_gradients_and_state_are_channels_last_during_a_fit(opt):
    sees = Sees()
    conv_learner([ChannelsLastCB(), sees], opt).fit(1)
    assert len(sees.seen) == 3 + 3*2 + 3
    assert set(sees.seen) == {(True, True)}


def test_our_optimizer_stays_fused():
    paths = []
    class Path:
        def after_backward(self, learn): paths.append(learn.opt.path)
    conv_learner([ChannelsLastCB(), Path(), SingleBatchCB()]).fit(1)
    assert 'eager' not in paths[0]


def test_it_trains_the_same_except_for_rounding():
    ours, plain = conv_learner(ChannelsLastCB()), conv_learner([])
    for learn in (ours, plain): learn.fit(2)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('fails', [False, True])
def test_after_a_fit_the_layout_is_as_before_with_the_same_values_and_parameters(fails):
    learn, kept = conv_learner(ChannelsLastCB()), {}
    class Keeps:
        def after_batch(self, learn):
            kept.update(weights(learn))
            if fails: raise RuntimeError('stop')
    params, lay = list(learn.model.parameters()), strides(learn.model)
    if fails:
        with pytest.raises(RuntimeError, match='stop'): learn.fit(1, cbs=Keeps())
    else: learn.fit(1, cbs=Keeps())
    assert strides(learn.model) == lay
    assert all(p is q for p, q in zip(learn.model.parameters(), params, strict=True))
    assert same(kept, weights(learn))


@pytest.mark.parametrize('opt', [AdamW, torch.optim.AdamW])
def test_an_optimizer_that_is_kept_works_in_either_layout(opt):
    ours, plain = conv_learner([], opt), conv_learner([], opt)
    for learn in (ours, plain):
        learn.fit(1)
        learn.opt_func = None
    ours.fit(1, cbs=ChannelsLastCB())
    p = ours.model[3].weight
    assert {x.stride() for x in ours.opt.state[p].values() if getattr(x, 'ndim', 0) == 4} == {p.stride()}
    plain.fit(1)
    for learn in (ours, plain): learn.fit(1)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-2, atol=1e-3)


def test_an_optimizer_that_is_kept_is_fused_again_after_the_fit():
    learn = conv_learner(ChannelsLastCB())
    learn.fit(1)
    F.cross_entropy(learn.model(images()[0][0]), images()[0][1]).backward()
    assert 'eager' not in learn.opt.path


def test_a_model_that_is_channels_last_already_stays_so():
    learn = conv_learner(ChannelsLastCB())
    learn.model.to(memory_format=torch.channels_last)
    lay = strides(learn.model)
    learn.fit(1)
    assert strides(learn.model) == lay


def test_tensors_without_four_dimensions_are_left_alone():
    x, kept = torch.randn(4, 5), {}
    class Keeps:
        order = 100
        def before_batch(self, learn): kept['x'] = learn.batch[0]
    learn = TrainLearner(nn.Linear(5, 2), type('Pair', (), dict(train=[(x, torch.zeros(4, 2))], valid=[])), F.mse_loss,
                         cbs=[ChannelsLastCB(), Keeps()])
    learn.fit(1, valid=False)
    assert kept['x'] is x


def test_validation_without_an_optimizer_works():
    learn = conv_learner(ChannelsLastCB(), None)
    lay = strides(learn.model)
    learn.fit(1, train=False)
    assert strides(learn.model) == lay


def test_an_error_before_before_fit_leaves_nothing_behind():
    class Fails:
        order = -1
        before_fit = staticmethod(raising(RuntimeError('early')))
    learn = conv_learner([ChannelsLastCB(), Fails()])
    with pytest.raises(RuntimeError, match='early'): learn.fit(1)


def test_expanded_buffers_stay_as_they_are():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(3))
    model(torch.randn(1, 1, 8, 8))
    model.register_buffer('b', torch.ones(3, 1, 1, 1).expand(3, 2, 4, 4))
    batch = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    TrainLearner(model, DataLoaders([batch], [batch]), nn.functional.cross_entropy, .1, cbs=ChannelsLastCB()).fit(1)
    assert model.b.stride() == (1, 0, 0, 0)

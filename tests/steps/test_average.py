"AverageCB: validation uses the averages of weights and buffers, training the weights themselves."
import copy
import shutil
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniai import AverageCB, Callback, CancelFitException, CheckpointCB, Learner, MetricsCB, TrainLearner
from miniai.callbacks.accelerate import AccelerateCB
from miniai.checkpoint import load
from miniai.datasets import DataLoaders
from miniai.inference.model_file import load as load_model
from miniai.optim import AdamW
from ranks import needs_distributed, run_ranks
from resuming import CancelCB
from small import learner, loaders, mlp, same, weights

EPOCHS, LR = 4, .05


def bn_net(width=8, momentum=.1):
    torch.manual_seed(5)
    norm = nn.BatchNorm1d(width, momentum=momentum)
    return nn.Sequential(nn.Linear(4, width, bias=False), norm, nn.Tanh(), nn.Linear(width, 3))


def trained(cbs, model=None, decay=.9, cls=TrainLearner, opt_func=None, **kw):
    model = model or bn_net()
    opt_func = opt_func or partial(AdamW, ema=decay, eps=1e-3)
    learn = learner([MetricsCB(), *cbs], cls=cls, model=model, lr=LR, opt_func=opt_func)
    learn.fit(EPOCHS, **kw)
    return learn


def fit_of_parts():
    """Validation losses, averages as AverageCB gives them, predictions and weights after fits: of FSDP2 where there is
    a group, else of one process."""
    torch.manual_seed(5)
    model = mlp().double()
    if dist.is_initialized():
        from torch.distributed.fsdp import fully_shard
        for m in (model[0], model): fully_shard(m)
    g = torch.Generator().manual_seed(3)
    batches = [(torch.randn(6, 4, generator=g).double(), torch.randint(3, (6,), generator=g)) for _ in range(4)]
    average, during = AverageCB(), []
    class DuringValidation(Callback):
        def after_epoch(self, learn):
            if learn.model.training: return
            state = {nm: torch.zeros_like(x) for nm, x in learn.model.state_dict().items()}
            with torch.no_grad(): learn.model(batches[0][0])  # gathers the root's parameters
            during.append(average.averaged(learn, state))
    def fit(*cbs):
        learn = learner([MetricsCB(), *cbs], model=model, dls=DataLoaders(batches[1:], batches[:1]), lr=LR,
                        opt_func=partial(AdamW, ema=.9, eps=1e-3))
        learn.fit(EPOCHS)
        return learn
    learn = fit(average, DuringValidation())
    averages = average.averaged(learn, model.state_dict())
    with torch.no_grad(): preds = model.eval()(batches[0][0])
    losses = valid_losses(learn)
    learn.fit(1)  # a new optimizer, made after a forward pass
    kept = fit(AverageCB(keep=True))
    with torch.no_grad(): preds_kept = model.eval()(batches[0][0])
    tensors = [*averages.values(), *during[-1].values(), *model.state_dict().values()]
    tensors = [x.full_tensor() if hasattr(x, 'full_tensor') else x for x in tensors]
    return losses + valid_losses(kept), [preds, preds_kept, *tensors]


def valid_losses(learn): return [r['loss'] for r in learn.history if r['phase'] == 'eval']
def state(model): return {nm: x for nm, x in model.state_dict().items() if x.is_floating_point()}


def by_hand(model, decay, dls=None):
    "Plain PyTorch in double precision: torch's AdamW, averages that warm up; validation losses, averages, weights."
    model, dls, t, losses = model.double(), dls or loaders(), 0, []
    opt = torch.optim.AdamW(model.parameters(), lr=LR, eps=1e-3)
    params = [nm for nm, _ in model.named_parameters()]
    averages = {nm: x.clone() for nm, x in state(model).items()}
    for _ in range(EPOCHS):
        model.train()
        for x, y in dls.train:
            opt.zero_grad()
            F.cross_entropy(model(x.double()), y).backward()
            opt.step()
            t += 1
            d = min(decay, (1 + t)/(10 + t))
            for nm, x in state(model).items():
                averages[nm] = x.clone() if t == 1 and nm not in params else d*averages[nm] + (1 - d)*x
        other = copy.deepcopy(model).eval()
        other.load_state_dict(averages, strict=False)
        with torch.no_grad(): sums = [(F.cross_entropy(other(x.double()), y)*len(y), len(y)) for x, y in dls.valid]
        losses.append((sum(s for s, _ in sums)/sum(n for _, n in sums)).item())
    return losses, averages, state(model)


@settings(max_examples=15)
@given(width=st.integers(1, 9), momentum=st.sampled_from([.1, .5, None]), decay=st.sampled_from([0., .5, .9, .999]))
def test_validation_sees_the_averages_of_weights_and_of_batchnorms_statistics(width, momentum, decay):
    want, _, end = by_hand(bn_net(width, momentum), decay)
    learn = trained([AverageCB()], bn_net(width, momentum), decay)
    assert valid_losses(learn) == pytest.approx(want, rel=2e-3, abs=1e-4)
    for nm, x in state(learn.model).items(): torch.testing.assert_close(x.double(), end[nm], rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize('keep', [True, False])
def test_accelerates_wrapper_does_not_hide_the_averages(keep):
    learn = trained([AverageCB(keep), AccelerateCB(mixed_precision='no')], cls=Learner)
    want, averages, raw = by_hand(bn_net(), .9)
    assert valid_losses(learn) == pytest.approx(want, rel=1e-3)
    for nm, x in state(learn.model).items():
        torch.testing.assert_close(x.double(), (averages if keep else raw)[nm], rtol=1e-3, atol=1e-4)


class StopAt(Callback):
    def __init__(self, how): self.how = how
    def cleanup_epoch(self, learn):
        if learn.epoch == EPOCHS - 1 and not learn.training: raise self.how


@pytest.mark.parametrize('cbs', [[], [StopAt(CancelFitException())]])
def test_keep_leaves_the_averages_in_the_model(cbs):
    learn = trained([AverageCB(keep=True), *cbs])
    averages = by_hand(bn_net(), .9)[1]
    for nm, x in state(learn.model).items(): torch.testing.assert_close(x.double(), averages[nm], rtol=1e-3, atol=1e-4)
    before, last = weights(learn), valid_losses(learn)[-1]
    assert not learn.opt.shows_averages
    learn.fit(1, train=False)
    assert valid_losses(learn) == [last]
    assert same(before, weights(learn))
    with torch.no_grad(): learn.model[0].weight.zero_()  # the user's own weights are validated as they are
    learn.fit(1, train=False)
    assert valid_losses(learn) != [last]


def test_an_error_leaves_the_weights_and_a_search_for_a_rate_leaves_everything():
    learn = learner([AverageCB(keep=True), StopAt(RuntimeError('stop'))], model=bn_net(), lr=LR,
                    opt_func=partial(AdamW, ema=.9, eps=1e-3))
    with pytest.raises(RuntimeError, match='stop'): learn.fit(EPOCHS)
    raw = by_hand(bn_net(), .9)[2]
    for nm, x in state(learn.model).items(): torch.testing.assert_close(x.double(), raw[nm], rtol=1e-3, atol=1e-4)
    before = weights(learn)
    del learn.cbs[1]
    learn.lr_find(max_epochs=2)
    assert same(before, weights(learn))


class SpoilCB(Callback):
    def after_loss(self, learn):
        if learn.training and learn.iter == 2: learn.loss.register_hook(lambda g: g*torch.inf)


@pytest.mark.filterwarnings('ignore:.*were skipped')
def test_a_skipped_step_changes_no_average():
    cb = AverageCB()
    learn = learner([cb, SpoilCB()], model=bn_net(), lr=LR, opt_func=partial(AdamW, ema=.9, skip_nonfinite=True))
    learn.fit(1)
    steps, buffers = cb.state_dict().values()
    assert steps == 3*len([*learn.model.parameters()])
    dls = loaders()
    del dls.train[2]
    other = AverageCB()
    learner(other, model=bn_net(), lr=LR, dls=dls, opt_func=partial(AdamW, ema=.9)).fit(1)
    assert buffers.keys() == {'1.running_mean', '1.running_var'}
    assert same(buffers, other.state_dict()['buffers'])


def test_buffers_are_averaged_on_when_other_layers_train_in_turn():
    "In the first epoch the head trains, in the second the body alone."
    class Turns:
        def before_epoch(self, learn):
            if learn.model.training: learn.model[3].requires_grad_(learn.epoch == 0)
            if learn.model.training: learn.model[:3].requires_grad_(learn.epoch == 1)
    class Sees:
        def after_step(self, learn): seen.append(learn.model[1].running_mean.double())
    cb, seen, average = AverageCB(), [], None
    learner([cb, Turns(), Sees()], model=bn_net(), lr=LR, opt_func=partial(AdamW, ema=.9)).fit(2)
    for i, x in enumerate(seen):
        t = min(i, 3) + 1  # as many steps as the layer has that has most
        d = min(.9, (1 + t)/(10 + t))
        average = x if average is None else d*average + (1 - d)*x
    torch.testing.assert_close(cb.state_dict()['buffers']['1.running_mean'].double(), average, rtol=1e-4, atol=1e-5)


# Checkpoints

def test_the_best_checkpoint_loads_as_the_model_that_was_validated_and_resumes_from_the_weights(tmp_path):
    def saved(folder, **kw): return [AverageCB(), CheckpointCB(folder, best='-loss', keep=99, **kw)]
    learn = trained(saved(tmp_path/'a'))
    losses, best = valid_losses(learn), load(tmp_path/'a'/'best.safetensors')
    model = bn_net()
    model.load_state_dict(best['model'])
    check = learner(MetricsCB(), model=model, opt_func=None)
    check.fit(1, train=False)
    assert valid_losses(check) == [min(losses)]
    assert any((best['raw'][nm] != x).any() for nm, x in best['model'].items())
    (tmp_path/'b').mkdir()
    epoch = losses.index(min(losses)) + 1
    name = next(p.name for p in sorted((tmp_path/'a').glob('checkpoint-*')) if f'-{epoch:05d}-' in p.name)
    shutil.copy(tmp_path/'a'/'best.safetensors', tmp_path/'b'/name)
    again = trained(saved(tmp_path/'b'), resume=True)
    assert valid_losses(again) == losses
    assert same(weights(again), weights(learn))


@pytest.mark.parametrize(('training', 'at'), [(True, 1), (False, 0)])
def test_a_run_resumes_with_the_averages_of_its_buffers_also_from_within_validation(tmp_path, training, at):
    whole = trained([AverageCB()])
    trained([AverageCB(), CheckpointCB(tmp_path), CancelCB(1, at, training)])
    resumed = trained([AverageCB(), CheckpointCB(tmp_path)], resume=True)
    assert valid_losses(resumed) == valid_losses(whole)
    assert same(weights(resumed), weights(whole))


def test_an_optimizer_without_averages_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match='AverageCB needs an optimizer that keeps weight averages'):
        learner(AverageCB(), opt_func=AdamW).fit(1)


def test_a_new_fit_starts_new_averages_and_one_that_keeps_its_optimizer_continues_them():
    cb = AverageCB()
    learn = learner([MetricsCB(), cb], model=bn_net(), lr=LR, opt_func=partial(AdamW, ema=.9, eps=1e-3))
    learn.fit(2)
    learn.opt_func = None
    learn.fit(2)
    assert valid_losses(learn) == valid_losses(trained([AverageCB()]))[2:]
    learn.opt_func = partial(AdamW, ema=.9, eps=1e-3)
    learn.fit(1)
    assert cb.state_dict()['steps'] == 4*len([*learn.model.parameters()])


@needs_distributed
def test_an_fsdp_model_validates_with_averages_and_trains_with_weights_as_one_process_does():
    losses, wanted = fit_of_parts()
    for its_losses, found in run_ranks(fit_of_parts, 2):
        assert its_losses == pytest.approx(losses, rel=1e-12)
        for a, b in zip(found, wanted, strict=True): assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize('keep', [False, True])
def test_what_validation_judged_is_what_is_evaluated_predicted_saved_and_exported(keep, tmp_path):
    learn = trained([AverageCB(keep)])
    raw = weights(learn)
    x, y = next(iter(learn.dls.valid))
    state = dict(raw) if keep else raw | {nm: learn.opt.state[p]['ema'] for nm, p in learn.model.named_parameters()}
    if not keep: state |= learn.cbs[1]._buffers
    judged = bn_net().eval()
    judged.load_state_dict(state)
    with torch.no_grad(): want = judged(x).softmax(1)
    found = learn.predictor().probabilities([x])
    assert torch.equal(found, want)
    assert keep or not torch.equal(want, copy.deepcopy(learn.model).eval()(x).softmax(1))
    assert torch.equal(learn.results([(x, y)]).probabilities, want)
    assert learn.evaluate([(x, y)])['loss'] == pytest.approx(F.nll_loss(want.log(), y).item(), abs=1e-6)
    learn.save_model(tmp_path/'m.safetensors')
    assert torch.equal(load_model(tmp_path/'m.safetensors', bn_net()).probabilities([x]), want)
    learn.export(tmp_path/'m.pt2')
    torch.testing.assert_close(torch.export.load(tmp_path/'m.pt2').module()(x), want)
    assert same(raw, weights(learn))
    assert learn.cbs[1]._model is None


def test_a_predictor_made_during_a_fit_has_the_averages_and_leaves_the_fit_as_it_is():
    class Predicts(Callback):
        def after_batch(self, learn): learn.predictor()
        def after_epoch(self, learn): learn.predictor()
    assert same(weights(trained([AverageCB(), Predicts()])), weights(trained([AverageCB()])))


def test_with_a_tail_average_buffers_are_the_mean_of_the_same_steps():
    seen, model = [], bn_net()
    class Record(Callback):
        order = 100
        def after_step(self, learn): seen.append((model[0].weight.detach().clone(), model[1].running_var.clone()))
    trained([AverageCB(keep=True), Record()], model=model, opt_func=partial(AdamW, tail=5, eps=1e-3))
    for found, xs in zip((model[0].weight, model[1].running_var), zip(*seen[4:], strict=True), strict=True):
        assert torch.allclose(found, torch.stack(xs).mean(0), rtol=1e-5, atol=1e-7)

"Hooks for the length of a fit, and statistics of activations, against numpy."
from itertools import chain

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from miniai.activations import ActivationStats, Hook, HooksCallback, append_stats, get_hist, get_min
from miniai.learner import CancelBatchException, CancelFitException
from small import Heard, hooks_on, learner, mlp, raising


def relu(m): return isinstance(m, nn.ReLU)


def hooked(cb, **kwargs):
    learn = learner(cb)
    learn.fit(1, **kwargs)
    return learn


@pytest.mark.parametrize('on_train', [True, False])
@pytest.mark.parametrize('on_valid', [True, False])
def test_hooks_call_in_the_phases_asked_for(on_train, on_valid):
    seen = []
    cb = HooksCallback(lambda hook, mod, inp, outp: seen.append(mod.training), relu, on_train, on_valid)
    hooked(cb)
    assert (seen.count(True), seen.count(False)) == (4*on_train, 2*on_valid)


def test_by_default_every_module_is_hooked_in_training_alone():
    seen = []
    cb = HooksCallback(lambda hook, mod, inp, outp: seen.append(type(mod).__name__))
    hooked(cb)
    assert seen == ['Linear', 'ReLU', 'Linear', 'Sequential']*4
    assert len(cb) == len(cb.hooks) == len(list(cb)) == 4


def test_given_modules_are_hooked_whatever_the_filter_says():
    model, seen = mlp(), []
    cb = HooksCallback(lambda hook, mod, inp, outp: seen.append(mod), relu, mods=[model[0]])
    learner(cb, model=model).fit(1)
    assert set(seen) == {model[0]}


@pytest.mark.parametrize('ends', [None, CancelFitException(), KeyboardInterrupt()])
def test_hooks_come_off_however_the_fit_ends_and_keep_what_they_recorded(ends):
    cb = ActivationStats(relu)
    learn = learner([cb, *([Heard({'after_step': raising(ends)})] if ends else [])])
    if isinstance(ends, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt): learn.fit(1)
    else: learn.fit(1)
    assert hooks_on(learn.model) == 0
    assert len(cb.hooks[0].stats[0]) == (1 if ends else 4)


def test_hooks_come_off_when_the_hook_function_fails():
    learn = learner(HooksCallback(raising(ZeroDivisionError('oh'))))
    with pytest.raises(ZeroDivisionError): learn.fit(1)
    assert hooks_on(learn.model) == 0


def test_a_second_fit_starts_with_new_hooks():
    cb = ActivationStats(relu)
    learn = hooked(cb)
    first = cb.hooks[0]
    learn.fit(1)
    assert cb.hooks[0] is not first
    assert len(cb.hooks[0].stats[0]) == 4


def test_the_value_of_a_hook_function_does_not_replace_the_output():
    a, b = learner(HooksCallback(lambda h, m, i, o: o*0)), learner()
    a.fit(1)
    b.fit(1)
    assert torch.equal(a.model[0].weight, b.model[0].weight)


def test_without_any_module_to_hook_it_says_so():
    with pytest.warns(UserWarning, match='no module of the model passes mod_filter, so nothing is recorded'):
        hooked(ActivationStats(lambda m: False))


def test_before_any_fit_there_are_no_hooks():
    assert len(ActivationStats()) == 0
    assert list(HooksCallback(print)) == []


# Statistics

def recorded(*outputs):
    hook = Hook(nn.Identity(), append_stats)
    for o in outputs: append_stats(hook, None, None, o)
    return hook


def test_mean_deviation_and_histogram_are_numpys():
    acts = [torch.randn(5, 7)*4 for _ in range(3)]
    hook = recorded(*acts)
    for a, mean, std, hist in zip(acts, *hook.stats, strict=True):
        a = a.numpy()
        assert float(mean) == pytest.approx(a.mean(), rel=1e-5, abs=1e-6)
        assert float(std) == pytest.approx(a.std(ddof=1), rel=1e-5)
        assert hist.tolist() == np.histogram(np.abs(a), 40, (0, 10))[0].tolist()


def test_statistics_are_of_the_first_tensor_of_an_output_and_keep_no_graph():
    acts = torch.randn(4, 4, requires_grad=True)
    hook = recorded((dict(a=acts*1),), (acts*2).half())
    assert not any(x.requires_grad for stat in hook.stats for x in stat)
    assert float(hook.stats[0][0]) == pytest.approx(acts.mean().item(), rel=1e-5)
    assert {x.dtype for stat in hook.stats for x in stat} == {torch.float32}


def test_get_hist_is_the_log_histogram_bins_by_batches():
    acts = [torch.rand(50)*10 for _ in range(3)]
    expected = np.log1p(np.stack([np.histogram(a.numpy(), 40, (0, 10))[0] for a in acts], axis=1))
    hist = get_hist(recorded(*acts))
    assert hist.shape == (40, 3)
    np.testing.assert_allclose(hist.numpy(), expected, rtol=1e-5)


def test_get_min_is_the_share_in_the_lowest_bin():
    share = get_min(recorded(torch.tensor([0., .1, 5., 6.]), torch.tensor([3., -3.]), torch.zeros(4)))
    assert share.tolist() == [.5, 0., 1.]


def test_the_statistics_of_a_fit_are_those_of_its_training_batches():
    cb, seen = ActivationStats(relu), []
    class Look:
        def after_predict(self, learn):
            w, b = learn.model[0].parameters()
            if learn.training: seen.append((learn.batch[0] @ w.t() + b).clamp(min=0).mean().item())
    learner([Look(), cb]).fit(1)
    assert [x.item() for x in cb.hooks[0].stats[0]] == pytest.approx(seen, rel=1e-5)


# Pictures

def trained(mod_filter=lambda m: True):
    cb = ActivationStats(mod_filter)
    hooked(cb)
    return cb


def visible(fig): return [ax for ax in fig.axes if ax.images or ax.lines]


def test_color_dim_draws_a_panel_a_layer_with_low_activations_at_the_bottom():
    cb = trained()
    cb.color_dim(figsize=(8, 4))
    fig = plt.gcf()
    assert fig.get_size_inches().tolist() == [8, 4]
    panels = visible(fig)
    assert len(panels) == 4
    for h, ax in zip(cb, panels, strict=True):
        im, = ax.images
        np.testing.assert_allclose(im.get_array(), get_hist(h).numpy())
        assert im.origin == 'lower'


def test_dead_chart_draws_the_share_near_zero_from_0_to_1():
    cb = trained()
    cb.dead_chart()
    panels = visible(plt.gcf())
    assert len(panels) == 4
    for h, ax in zip(cb, panels, strict=True):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), get_min(h).numpy())
        assert ax.get_ylim() == (0, 1)


def test_plot_stats_draws_means_and_deviations_of_every_layer():
    cb = trained()
    cb.plot_stats(figsize=(9, 3))
    means, stds = plt.gcf().axes
    assert (means.get_title(), stds.get_title()) == ('Means', 'Stdevs')
    for ax, i in ((means, 0), (stds, 1)):
        assert [line.get_ydata().tolist() for line in ax.lines] == [torch.stack(h.stats[i]).tolist() for h in cb]
    assert [t.get_text() for t in stds.get_legend().get_texts()] == ['0', '1', '2', '3']


@pytest.mark.parametrize('picture', ['color_dim', 'dead_chart', 'plot_stats'])
def test_without_a_fit_the_pictures_say_what_to_do(picture):
    says = r'no activations recorded yet: train with this callback first, learn\.fit\(1, cbs=\.\.\.\)'
    with pytest.raises(ValueError, match=says): getattr(ActivationStats(), picture)()


@pytest.mark.parametrize('picture', ['color_dim', 'dead_chart', 'plot_stats'])
def test_one_layer_has_its_picture_and_modules_that_never_ran_have_none(picture):
    model = mlp()
    model[1].unused = nn.ReLU()
    cb = ActivationStats(relu)
    learner(cb, model=model).fit(1)
    getattr(cb, picture)()
    assert len(cb) == 2
    assert len(visible(plt.gcf())) == (2 if picture == 'plot_stats' else 1)


# Every k-th batch, and gradients

def test_every_third_batch_is_recorded_where_asked_for():
    cb = ActivationStats(relu, every=3)
    hooked(cb)
    assert len(cb.hooks[0].stats[0]) == 2  # of 4 batches: the first and the fourth
    with pytest.raises(ValueError, match=r'every.*must be 1 or more, got 0'): ActivationStats(relu, every=0)


def test_records_go_on_from_a_state_as_a_tensor_a_figure_and_from_the_lists_of_earlier_files():
    stats = ActivationStats(lambda m: isinstance(m, nn.ReLU), gradients=True)
    learn = learner([stats])
    learn.fit(2)
    saved, hook = stats.state_dict(), stats.hooks[0]
    assert [x.shape for x in saved['hooks'][0]['stats']] == [(8,), (8,), (8, 40)]
    want = [[x.clone() for x in figures] for figures in (*hook.stats, *hook.gradient_stats)]
    lists = dict(hooks=[{nm: tuple(map(list, getattr(hook, nm))) for nm in ('stats', 'gradient_stats')}])
    for state in (saved, lists):
        learn.fit(1)
        stats.load_state_dict(state)
        got = [*stats.hooks[0].stats, *stats.hooks[0].gradient_stats]
        assert all(map(torch.equal, chain(*got), chain(*want)))
        assert all(type(figures) is list for figures in got)


def test_gradients_are_those_that_reach_each_layers_output():
    cb, want = ActivationStats(relu, gradients=True), []
    class Keep:
        def after_predict(self, learn):
            if learn.training: learn.preds.retain_grad()
        def after_backward(self, learn): want.append((learn.preds.grad @ learn.model[2].weight).std().item())
    learner([cb, Keep()]).fit(1)
    means, stds, hists = cb.hooks[0].gradient_stats
    assert [s.item() for s in stds] == pytest.approx(want, rel=1e-4)
    assert [h.sum().item() for h in hists] == [6*8]*4
    assert len(means) == len(cb.hooks[0].stats[0]) == 4


def test_recording_gradients_changes_no_weight():
    a, b = learner(), learner(ActivationStats(gradients=True))
    a.fit(1)
    b.fit(1)
    assert all(map(torch.equal, a.model.parameters(), b.model.parameters()))


@pytest.mark.parametrize('picture', ['color_dim', 'dead_chart', 'plot_stats'])
def test_pictures_of_gradients_are_drawn_where_they_were_recorded(picture):
    cb = ActivationStats(relu, every=2, gradients=True)
    hooked(cb)
    getattr(cb, picture)(of='gradients')
    assert plt.gcf().axes
    with pytest.raises(ValueError, match="of must be 'activations' or 'gradients', got 'weights'"):
        getattr(cb, picture)(of='weights')
    plain = ActivationStats(relu)
    hooked(plain)
    with pytest.raises(ValueError, match=r'gradients=True'): getattr(plain, picture)(of='gradients')


# A forward that runs twice

class Checkpointed(nn.Module):
    "The small model, whose first two layers are run again in the backward."
    def __init__(self, reentrant):
        super().__init__()
        self.inside, self.reentrant = mlp(), reentrant

    def forward(self, x):
        x = x.clone().requires_grad_()
        if self.reentrant is None: return self.inside(x)
        return self.inside[2](checkpoint(self.inside[:2], x, use_reentrant=self.reentrant))


@pytest.mark.parametrize('reentrant', [True, False])
def test_a_checkpointed_module_is_recorded_once_a_step_as_without_checkpointing(reentrant):
    def stats(how):
        torch.manual_seed(5)
        cb = ActivationStats(lambda m: isinstance(m, nn.Linear | nn.ReLU), gradients=True)
        learner(cb, model=Checkpointed(how)).fit(2)
        return [triple for h in cb for triple in (h.stats, h.gradient_stats)]
    ours, plain = stats(reentrant), stats(None)
    assert [len(record) for triple in ours for record in triple] == [8]*18
    torch.testing.assert_close(ours, plain)


def test_a_module_used_twice_in_a_forward_is_recorded_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.act = nn.Linear(4, 3), nn.ReLU()
        def forward(self, x): return self.act(self.act(self.lin(x)))
    cb = ActivationStats(relu)
    learner([cb, Heard({'after_loss': raising(CancelBatchException())}, order=1)], model=Twice()).fit(1)
    assert len(cb.hooks[0].stats[0]) == 8


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.fft = nn.Linear(4, 3), Spectrum()
    def forward(self, x): return self.fft(self.lin(x)).abs()


class Spectrum(nn.Module):
    def forward(self, x): return torch.fft.fft(x)


def test_complex_activations_and_their_gradients_count_by_their_size():
    cb, seen = ActivationStats(lambda m: isinstance(m, Spectrum), gradients=True), []
    class Look:
        def after_predict(self, learn):
            if learn.training: seen.append(np.fft.fft(learn.model.lin(learn.batch[0]).detach().numpy()))
    learner([Look(), cb], model=Complex()).fit(1)
    for z, mean, std, hist in zip(seen, *cb.hooks[0].stats, strict=True):
        assert float(mean) == pytest.approx(np.abs(z).mean(), rel=1e-5)
        assert float(std) == pytest.approx(np.abs(z).std(ddof=1), rel=1e-4)
        assert hist.tolist() == np.histogram(np.abs(z), 40, (0, 10))[0].tolist()
    assert [int(h.sum()) for h in cb.hooks[0].gradient_stats[2]] == [6*3]*4


def test_records_lie_many_in_a_block_of_memory_and_keep_their_values():
    hook = Hook(nn.Identity(), append_stats)
    batches = [torch.randn(3, 5)*(i + 1) for i in range(600)]
    for x in batches: append_stats(hook, None, None, x)
    homes = [{x.untyped_storage().data_ptr() for x in figures} for figures in zip(*hook.stats, strict=True)]
    assert all(len(home) == 1 for home in homes)
    assert len(set.union(*homes)) == 3
    assert [x.item() for x in hook.stats[0]] == pytest.approx([x.double().mean().item() for x in batches], abs=1e-4)
    for x, hist in zip(batches, hook.stats[2], strict=True): assert torch.equal(hist, x.abs().histc(40, 0, 10))

"Hooks during a fit, and statistics of activations compared with numpy."
from itertools import chain

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex
from torch import nn
from torch.utils.checkpoint import checkpoint

from miniai.activations import ActivationStats, Hook, HooksCallback, append_stats, get_hist, get_min
from miniai.learner import CancelBatchException, CancelFitException
from small import Heard, hooks_on, learner, mlp, raising, same, weights


def relu(m): return isinstance(m, nn.ReLU)


def fitted(cb, *others, model=None):
    "The callback after one epoch of 4 training and 2 validation batches."
    learner([*others, cb], model=model).fit(1)
    return cb


@pytest.mark.parametrize('on_train', [True, False])
@pytest.mark.parametrize('on_valid', [True, False])
def test_hooks_run_in_the_chosen_phases(on_train, on_valid):
    seen = []
    fitted(HooksCallback(lambda hook, mod, inp, outp: seen.append(mod.training), relu, on_train, on_valid))
    assert (seen.count(True), seen.count(False)) == (4*on_train, 2*on_valid)


def test_by_default_every_module_is_hooked_in_training_only():
    seen = []
    cb = fitted(HooksCallback(lambda hook, mod, inp, outp: seen.append(type(mod).__name__)))
    assert seen == ['Linear', 'ReLU', 'Linear', 'Sequential']*4
    assert len(cb) == len(cb.hooks) == len(list(cb)) == 4


def test_given_modules_are_hooked_even_if_the_filter_rejects_them():
    model, seen = mlp(), []
    fitted(HooksCallback(lambda hook, mod, inp, outp: seen.append(mod), relu, mods=[model[0]]), model=model)
    assert set(seen) == {model[0]}


def test_the_callback_knows_the_names_of_the_modules_and_its_repr_shows_them():
    cb, model = ActivationStats(), nn.Sequential(mlp(), nn.ReLU())
    assert repr(cb) == '<ActivationStats on 0 modules>'
    fitted(cb, model=model)
    assert cb.names == ['Sequential', '0 Sequential', '0.0 Linear', '0.1 ReLU', '0.2 Linear', '1 ReLU']
    assert repr(cb) == '<ActivationStats on 6 modules: Sequential, 0 Sequential, 0.0 Linear, ...>'
    one = fitted(HooksCallback(lambda *args: None, mods=[model[0][1]]), model=model)
    assert repr(one) == '<HooksCallback on 1 module: 0.1 ReLU>'


@pytest.mark.parametrize('ends', [None, CancelFitException(), KeyboardInterrupt()])
def test_hooks_are_removed_however_the_fit_ends_and_keep_their_records(ends):
    cb = ActivationStats(relu)
    learn = learner([cb, *([Heard({'after_step': raising(ends)})] if ends else [])])
    if isinstance(ends, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt): learn.fit(1)
    else: learn.fit(1)
    assert hooks_on(learn.model) == 0
    assert len(cb.hooks[0].stats[0]) == (1 if ends else 4)


def test_hooks_are_removed_when_the_hook_function_fails():
    learn = learner(HooksCallback(raising(ZeroDivisionError('oh'))))
    with pytest.raises(ZeroDivisionError): learn.fit(1)
    assert hooks_on(learn.model) == 0


def test_a_second_fit_starts_with_new_hooks():
    cb = ActivationStats(relu)
    learn = learner(cb)
    learn.fit(1)
    first = cb.hooks[0]
    learn.fit(1)
    assert cb.hooks[0] is not first
    assert len(cb.hooks[0].stats[0]) == 4


@pytest.mark.parametrize('watching', [HooksCallback(lambda h, m, i, o: o*0), ActivationStats(gradients=True)])
def test_watching_changes_no_weight(watching):
    a, b = learner(watching), learner()
    a.fit(1)
    b.fit(1)
    assert same(weights(a), weights(b))


def test_a_warning_says_that_the_filter_accepts_no_module():
    with pytest.warns(UserWarning, match='mod_filter accepts no module of the model, so nothing is recorded'):
        fitted(ActivationStats(lambda m: False))


def test_before_the_first_fit_there_are_no_hooks():
    assert len(ActivationStats()) == 0
    assert list(HooksCallback(print)) == []


# Statistics

def recorded(*outputs):
    hook = Hook(nn.Identity(), append_stats)
    for o in outputs: append_stats(hook, None, None, o)
    return hook


def check(hook, activations):
    "The statistics are those that numpy computes from the activations."
    for a, mean, std, hist in zip(activations, *hook.stats, strict=True):
        assert float(mean) == pytest.approx(np.mean(a), rel=1e-5, abs=1e-6)
        assert float(std) == pytest.approx(np.std(a, ddof=1), rel=1e-4)
        assert hist.tolist() == np.histogram(np.abs(a), 40, (0, 10))[0].tolist()


def test_mean_deviation_and_histogram_equal_numpys():
    acts = [torch.randn(5, 7)*4 for _ in range(3)]
    check(recorded(*acts), [a.numpy() for a in acts])


def test_statistics_are_of_the_first_tensor_of_an_output_and_keep_no_graph():
    acts = torch.randn(4, 4, requires_grad=True)
    hook = recorded((dict(a=acts*1),), 'no tensor', (acts*2).half())
    assert [len(column) for column in hook.stats] == [2, 2, 2]
    assert not any(x.requires_grad for stat in hook.stats for x in stat)
    assert float(hook.stats[0][0]) == pytest.approx(acts.mean().item(), rel=1e-5)
    assert {x.dtype for stat in hook.stats for x in stat} == {torch.float32}


def test_get_hist_is_the_log_histogram_bins_by_batches():
    acts = [torch.rand(50)*10 for _ in range(3)]
    expected = np.log1p(np.stack([np.histogram(a.numpy(), 40, (0, 10))[0] for a in acts], axis=1))
    hist = get_hist(recorded(*acts))
    assert hist.shape == (40, 3)
    np.testing.assert_allclose(hist.numpy(), expected, rtol=1e-5)


def test_get_min_is_the_fraction_in_the_lowest_bin():
    fraction = get_min(recorded(torch.tensor([0., .1, 5., 6.]), torch.tensor([3., -3.]), torch.zeros(4)))
    assert fraction.tolist() == [.5, 0., 1.]


class Spectrum(nn.Module):
    def forward(self, x): return torch.fft.fft(x)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.fft = nn.Linear(4, 3), Spectrum()
    def forward(self, x): return self.fft(self.lin(x)).abs()


@pytest.mark.parametrize(('model', 'kind', 'output'), [
    (mlp, nn.ReLU, lambda m, x: F.linear(x, *m[0].parameters()).clamp(min=0)),
    (Complex, Spectrum, lambda m, x: torch.fft.fft(m.lin(x)).abs())])
def test_statistics_of_a_fit_are_those_of_its_training_batches_and_complex_numbers_count_by_size(model, kind, output):
    seen = []
    class Look:
        def before_batch(self, learn):
            if learn.training: seen.append(output(learn.model, learn.batch[0]).detach().numpy())
    cb = fitted(ActivationStats(lambda m: isinstance(m, kind), gradients=True), Look(), model=model())
    assert len(seen) == len(cb.hooks[0].stats[0]) == 4
    check(cb.hooks[0], seen)
    assert [int(h.sum()) for h in cb.hooks[0].gradient_stats[2]] == [seen[0].size]*4


def test_every_third_batch_is_recorded_if_asked_for():
    cb = fitted(ActivationStats(relu, every=3))
    assert len(cb.hooks[0].stats[0]) == 2  # of 4 batches: the first and the fourth
    with pytest.raises(ValueError, match='every must be 1 or more batches, got 0'): ActivationStats(relu, every=0)


def test_gradients_are_those_of_each_layers_output():
    expected = []
    class Keep:
        def after_predict(self, learn):
            if learn.training: learn.preds.retain_grad()
        def after_backward(self, learn): expected.append((learn.preds.grad @ learn.model[2].weight).std().item())
    means, stds, hists = fitted(ActivationStats(relu, gradients=True), Keep()).hooks[0].gradient_stats
    assert [s.item() for s in stds] == pytest.approx(expected, rel=1e-4)
    assert [h.sum().item() for h in hists] == [6*8]*4
    assert len(means) == 4


class Checkpointed(nn.Module):
    "The small model; unless `reentrant` is None, its first two layers run again in the backward pass."
    def __init__(self, reentrant):
        super().__init__()
        self.inside, self.reentrant = mlp(), reentrant

    def forward(self, x):
        x = x.clone().requires_grad_()
        if self.reentrant is None: return self.inside(x)
        return self.inside[2](checkpoint(self.inside[:2], x, use_reentrant=self.reentrant))


@pytest.mark.parametrize('reentrant', [True, False])
def test_a_checkpointed_module_is_recorded_once_per_step_as_without_checkpointing(reentrant):
    def stats(how):
        torch.manual_seed(5)
        cb = fitted(ActivationStats(lambda m: isinstance(m, nn.Linear | nn.ReLU), gradients=True),
                    model=Checkpointed(how))
        return [triple for h in cb for triple in (h.stats, h.gradient_stats)]
    ours, plain = stats(reentrant), stats(None)
    assert [len(column) for triple in ours for column in triple] == [4]*18
    torch.testing.assert_close(ours, plain)


def test_a_module_used_twice_in_a_forward_pass_is_recorded_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.act = nn.Linear(4, 3), nn.ReLU()
        def forward(self, x): return self.act(self.act(self.lin(x)))
    stop = Heard({'after_loss': raising(CancelBatchException())}, order=1)
    assert len(fitted(ActivationStats(relu), stop, model=Twice()).hooks[0].stats[0]) == 8


def test_many_records_share_a_block_of_memory_and_keep_their_values():
    batches = [torch.randn(3, 5)*(i + 1) for i in range(600)]
    hook = recorded(*batches)
    homes = [{x.untyped_storage().data_ptr() for x in values} for values in zip(*hook.stats, strict=True)]
    assert all(len(home) == 1 for home in homes)
    assert len(set.union(*homes)) == 3
    assert [x.item() for x in hook.stats[0]] == pytest.approx([x.double().mean().item() for x in batches], abs=1e-4)
    for x, hist in zip(batches, hook.stats[2], strict=True): assert torch.equal(hist, x.abs().histc(40, 0, 10))


def test_records_continue_from_a_state_of_tensors_and_from_the_lists_in_earlier_files():
    stats = ActivationStats(relu, gradients=True)
    learn = learner([stats])
    learn.fit(2)
    saved, hook = stats.state_dict(), stats.hooks[0]
    assert [x.shape for x in saved['hooks'][0]['stats']] == [(8,), (8,), (8, 40)]
    expected = [[x.clone() for x in column] for column in (*hook.stats, *hook.gradient_stats)]
    lists = dict(hooks=[{nm: tuple(map(list, getattr(hook, nm))) for nm in ('stats', 'gradient_stats')}])
    for state in (saved, lists):
        learn.fit(1)
        stats.load_state_dict(state)
        got = [*stats.hooks[0].stats, *stats.hooks[0].gradient_stats]
        assert all(map(torch.equal, chain(*got), chain(*expected)))
        assert all(type(column) is list for column in got)
    with pytest.raises(ValueError, match='statistics of 1 modules were saved, but 4 are hooked now'):
        fitted(ActivationStats()).load_state_dict(saved)


# Pictures

PICTURES = ['color_dim', 'dead_chart', 'plot_stats']
NAMES = ['Sequential', '0 Linear', '1 ReLU', '2 Linear']


def drawn(picture, cb, **kwargs):
    "The figure, and those of its axes that show data."
    getattr(cb, picture)(**kwargs)
    fig = plt.gcf()
    fig.canvas.draw()
    return fig, [ax for ax in fig.axes if ax.images or ax.lines]


def test_color_dim_has_a_panel_per_layer_with_batches_to_the_right_and_activations_upwards():
    cb = fitted(ActivationStats())
    fig, panels = drawn('color_dim', cb, figsize=(8, 4))
    assert fig.get_size_inches().tolist() == [8, 4]
    assert [ax.get_title() for ax in panels] == NAMES
    assert (fig.get_supxlabel(), fig.get_supylabel()) == ('batch', '|activation|')
    for h, ax in zip(cb, panels, strict=True):
        im, = ax.images
        np.testing.assert_allclose(im.get_array(), get_hist(h).numpy())
        assert (im.origin, im.get_extent()) == ('lower', [0, 4, 0, 10])


def test_dead_chart_draws_the_fraction_near_0_from_0_to_1():
    cb = fitted(ActivationStats())
    fig, panels = drawn('dead_chart', cb)
    assert [ax.get_title() for ax in panels] == NAMES
    assert (fig.get_supxlabel(), fig.get_supylabel()) == ('batch', 'fraction of activations near 0')
    for h, ax in zip(cb, panels, strict=True):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), get_min(h).numpy())
        assert ax.get_ylim() == (0, 1)


def test_plot_stats_draws_means_and_deviations_with_a_legend_of_names():
    cb = fitted(ActivationStats())
    fig, (means, stds) = drawn('plot_stats', cb, figsize=(9, 3))
    assert (means.get_title(), stds.get_title(), fig.get_supxlabel()) == ('Means', 'Stdevs', 'batch')
    for ax, i in ((means, 0), (stds, 1)):
        assert [line.get_ydata().tolist() for line in ax.lines] == [torch.stack(h.stats[i]).tolist() for h in cb]
    legend, = fig.legends
    assert [t.get_text() for t in legend.get_texts()] == NAMES
    def colors(lines): return [to_hex(line.get_color()) for line in lines]
    assert colors(legend.get_lines()) == colors(means.lines) == colors(stds.lines)
    assert len(set(colors(means.lines))) == 4


@pytest.mark.parametrize('picture', PICTURES)
def test_without_records_the_pictures_say_what_to_do(picture):
    says = r'no activations recorded yet: train with this callback first, learn\.fit\(1, cbs=\.\.\.\)'
    with pytest.raises(ValueError, match=says): drawn(picture, ActivationStats())


@pytest.mark.parametrize('picture', PICTURES)
def test_modules_that_never_ran_have_no_panel_and_one_layer_is_enough(picture):
    model = mlp()
    model[1].unused = nn.ReLU()
    cb = fitted(ActivationStats(relu), model=model)
    fig, panels = drawn(picture, cb)
    assert cb.names == ['1 ReLU', '1.unused ReLU']
    assert len(panels) == (2 if picture == 'plot_stats' else 1)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ['1 ReLU'] if fig.legends else True


@pytest.mark.parametrize('picture', PICTURES)
def test_pictures_show_gradients_if_they_were_recorded(picture):
    cb = fitted(ActivationStats(relu, every=2, gradients=True))
    fig, panels = drawn(picture, cb, of='gradients')
    assert panels
    assert fig.get_supxlabel() == 'record (one every 2 batches)'
    with pytest.raises(ValueError, match="of must be 'activations' or 'gradients', got 'weights'"):
        drawn(picture, cb, of='weights')
    plain = fitted(ActivationStats(relu))
    with pytest.raises(ValueError, match=r'gradients=True'): drawn(picture, plain, of='gradients')


def test_pictures_of_gradients_are_on_a_log_scale():
    cb = fitted(ActivationStats(relu, gradients=True))
    fig, (panel,) = drawn('color_dim', cb, of='gradients')
    assert (panel.images[0].get_extent(), fig.get_supylabel()) == ([0, 4, -32, 8], 'log2 |gradient|')
    assert [ax.get_yscale() for ax in drawn('plot_stats', cb, of='gradients')[1]] == ['linear', 'log']

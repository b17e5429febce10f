"Seeds, and the names for looking at activations that user code imports."
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import miniai.activations
import miniai.diagnosis.activations
import miniai.diagnosis.hooks
from miniai.activations import ActivationStats, Hook, Hooks, HooksCallback, append_stats, get_hist, get_min, set_seed
from small import hooks_on, learner


def drawn(): return torch.rand(3).tolist(), torch.randperm(50).tolist(), np.random.rand(3).tolist(), random.random()


@given(st.integers(-2**31, 2**40))
def test_set_seed_repeats_torch_numpy_and_random(seed):
    set_seed(seed)
    first = drawn()
    assert all(a != b for a, b in zip(first, drawn(), strict=True))
    set_seed(seed)
    assert drawn() == first


def test_set_seed_seeds_torch_as_manual_seed_numpy_and_random_as_their_own():
    set_seed(42)
    ours = drawn()
    torch.manual_seed(42)
    np.random.seed(42)
    random.seed(42)
    assert drawn() == ours


def test_set_seed_asks_for_deterministic_algorithms_only_where_told():
    try:
        set_seed(1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        set_seed(1)
        assert not torch.are_deterministic_algorithms_enabled()
    finally: torch.use_deterministic_algorithms(False)


def test_the_names_are_the_library_s_own():
    for name in miniai.activations.__all__:
        homes = miniai.diagnosis.hooks, miniai.diagnosis.activations
        home = next((m for m in homes if name in m.__all__), miniai.activations)
        assert getattr(miniai.activations, name) is getattr(home, name)


def test_a_hook_calls_f_with_itself_module_input_and_output_until_removed():
    seen, m, x = [], nn.Linear(2, 3), torch.rand(1, 2)
    hook = Hook(m, lambda *args: seen.append(args))
    out = m(x)
    (h, mod, inp, outp), = seen
    assert (h, mod) == (hook, m)
    assert inp[0] is x
    assert outp is out
    hook.remove()
    m(x)
    assert len(seen) == 1


def test_hooks_are_removed_on_leaving_and_one_by_one_when_deleted():
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.ReLU()), []
    with Hooks(model, lambda h, mod, i, o: seen.append(mod)) as hooks:
        assert (len(hooks), hooks_on(model)) == (3, 3)
        del hooks[0]
        assert (len(hooks), hooks_on(model)) == (2, 2)
        model(torch.rand(1, 2))
    assert seen == list(model)[1:]
    assert hooks_on(model) == 0


def test_append_stats_keeps_mean_deviation_and_a_40_bin_histogram_of_abs_from_0_to_10():
    hook, acts = Hook(nn.ReLU(), append_stats), torch.linspace(-12, 12, 1001)
    append_stats(hook, None, None, acts)
    append_stats(hook, None, None, acts*0 + .1)
    means, stds, hists = hook.stats
    assert means[0].item() == pytest.approx(0, abs=1e-5)
    assert stds[0].item() == pytest.approx(np.std(acts.numpy(), ddof=1), rel=1e-5)
    counts = np.histogram(acts.abs().numpy(), bins=40, range=(0, 10))[0]
    assert np.abs(hists[0].numpy() - counts).max() <= 1  # a value on an edge may fall on either side
    assert hists[1].tolist() == [1001] + [0]*39
    assert torch.equal(get_hist(hook), torch.stack(hists, 1).log1p())
    assert get_min(hook).tolist() == pytest.approx([counts[0]/counts.sum(), 1], abs=1e-3)


def test_activation_stats_record_each_training_batch_of_the_layers_that_pass_the_filter():
    stats = ActivationStats(lambda m: isinstance(m, nn.ReLU))
    learn = learner(stats)
    learn.fit(2)
    assert isinstance(stats, HooksCallback)
    assert (len(stats), list(stats)) == (1, list(stats.hooks))
    assert [len(s) for s in stats.hooks[0].stats] == [8, 8, 8]
    assert hooks_on(learn.model) == 0


@pytest.mark.parametrize('picture', ['color_dim', 'dead_chart', 'plot_stats'])
def test_each_picture_of_the_statistics_is_drawn(picture):
    import matplotlib.pyplot as plt
    stats = ActivationStats(lambda m: isinstance(m, nn.Linear))
    learner(stats).fit(1)
    getattr(stats, picture)(figsize=(4, 2))
    assert tuple(plt.gcf().get_size_inches()) == (4, 2)
    assert [bool(ax.images or ax.lines) for ax in plt.gcf().axes] == [True, True]

"Figures of a run show what was recorded, where it happened, and say what they show."
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from miniai.report.pictures import activations_figure, curves_figure


def rows(*phases): return [dict(epoch=i//2, phase=p, loss=1/(i + 1), accuracy=i/10) for i, p in enumerate(phases)]
def lines(ax): return {ln.get_label(): (list(ln.get_xdata()), list(ln.get_ydata())) for ln in ax.lines}


TWO = rows('train', 'eval', 'train', 'eval')
LOSSES, LRS = [2., 1.5, 1., .9, .8, .7], [1., 2., 3., 2., 1., 0.]


def test_the_curves_show_what_was_recorded_and_name_it():
    fig = curves_figure(TWO, LOSSES, LRS, 3)
    loss, acc, lr = map(lines, fig.axes)
    assert loss == dict(train=([0, 1, 2, 3, 4, 5], LOSSES), valid=([2, 5], [1/2, 1/4]))
    assert acc == dict(train=([1, 2], [0., .2]), valid=([1, 2], [.1, .3]))
    assert [ys for _, ys in lr.values()] == [LRS]
    assert [ax.get_title() for ax in fig.axes] == ['loss', 'accuracy', 'learning rate']
    assert [ax.get_xlabel() for ax in fig.axes] == ['batch', 'epoch', 'batch']
    assert [[t.get_text() for t in ax.get_legend().texts] for ax in fig.axes[:2]] == [['train', 'valid']]*2


@pytest.mark.parametrize('epochs', [1, 2, 3, 30])
def test_epochs_and_batches_are_whole_numbers(epochs):
    fig = curves_figure(rows(*['train', 'eval']*epochs), LOSSES, LRS, 3)
    assert all(float(x).is_integer() for ax in fig.axes for x in ax.get_xticks())


def test_validation_is_drawn_at_the_end_of_its_epoch_in_a_run_that_was_cut_short():
    assert lines(curves_figure(TWO[:2], LOSSES[:5], LRS[:5], 3).axes[0])['valid'] == ([2], [1/2])


def test_a_run_cut_short_in_its_first_epoch_still_shows_its_losses():
    fig = curves_figure([], LOSSES[:2], LRS[:2], 3)
    assert lines(fig.axes[0])['train'] == ([0, 1], LOSSES[:2])
    assert lines(fig.axes[1]) == dict(train=([], []), valid=([], []))


def test_a_loss_that_exploded_does_not_flatten_the_rest():
    assert curves_figure(TWO, [1e9, *LOSSES[1:]], LRS, 3).axes[0].get_ylim() == (0, 3)
    assert 0.5 < curves_figure(TWO, [x/3 for x in LOSSES], LRS, 3).axes[0].get_ylim()[1] < 1


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_loss_that_is_not_finite_can_be_drawn(tmp_path, bad):
    for losses in ([2., bad], [bad]): curves_figure([], losses, LRS[:len(losses)], 3).savefig(tmp_path/'a.png')


def test_activations_have_a_panel_per_layer_with_shares_by_size_and_batch():
    counts = np.zeros((40, 8))
    counts[0], counts[20] = 30, 10
    names = ['0.2 GeneralRelu', '1.2 GeneralRelu', '2 ReLU', '3 ReLU', '4 ReLU']
    fig = activations_figure({name: counts*i for i, name in enumerate(names, 1)})
    panels = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title() for ax in panels] == names
    for ax in panels:
        assert np.allclose(ax.images[0].get_array()[[0, 20]], [[.75]*8, [.25]*8])
        assert ax.images[0].get_extent() == [0, 8, 0, 10]
        assert all(float(x).is_integer() for x in ax.get_xticks())
    labels = fig.get_supxlabel(), fig.get_supylabel(), fig.axes[-1].get_ylabel()
    assert labels == ('batch', 'size of activation', 'share of activations')


def test_a_batch_without_activations_is_drawn_empty(tmp_path):
    activations_figure(dict(a=np.zeros((40, 3)))).savefig(tmp_path/'a.png')


def test_figures_leave_pyplot_alone():
    figures = curves_figure(TWO, LOSSES, LRS, 3), activations_figure(dict(a=np.ones((40, 3))))
    assert all(isinstance(f, Figure) for f in figures)
    assert plt.get_fignums() == []

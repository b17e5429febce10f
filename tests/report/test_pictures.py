"Pictures of a run: they show what was recorded, where it happened."
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from miniai.activations import ActivationStats
from miniai.diagnosis.profile import ProfileCB
from miniai.report.pictures import activations_figure, curves_figure, profile_figure
from small import learner


def rows(*phases): return [dict(epoch=i//2, phase=p, loss=1/(i + 1), accuracy=i/10) for i, p in enumerate(phases)]
def lines(ax): return {ln.get_label(): (list(ln.get_xdata()), list(ln.get_ydata())) for ln in ax.lines}


TWO = rows('train', 'eval', 'train', 'eval')
LOSSES, LRS = [2., 1.5, 1., .9, .8, .7], [1., 2., 3., 2., 1., 0.]


def test_three_panels_show_loss_accuracy_and_rate_with_their_axes_named():
    fig = curves_figure(TWO, LOSSES, LRS, 3)
    assert [ax.get_title() for ax in fig.axes] == ['loss', 'accuracy', 'learning rate']
    assert [ax.get_xlabel() for ax in fig.axes] == ['batch', 'epoch', 'batch']
    assert [bool(ax.get_legend()) for ax in fig.axes] == [True, True, False]


def test_the_curves_are_what_was_recorded():
    loss, acc, lr = (lines(ax) for ax in curves_figure(TWO, LOSSES, LRS, 3).axes)
    assert loss['train'] == ([0, 1, 2, 3, 4, 5], LOSSES)
    assert loss['eval'] == ([2, 5], [1/2, 1/4])
    assert acc == dict(train=([1, 2], [0., .2]), eval=([1, 2], [.1, .3]))
    assert [ys for _, ys in lr.values()] == [LRS]


def test_a_validation_stands_at_its_epochs_end_in_a_run_that_was_cut_short():
    loss = lines(curves_figure(TWO[:2], LOSSES[:5], LRS[:5], 3).axes[0])
    assert loss['eval'] == ([2], [1/2])


def test_a_run_cut_in_its_first_epoch_still_has_its_losses():
    fig = curves_figure([], LOSSES[:2], LRS[:2], 3)
    assert lines(fig.axes[0])['train'] == ([0, 1], LOSSES[:2])
    assert lines(fig.axes[1]) == dict(train=([], []), eval=([], []))


def test_a_loss_that_exploded_does_not_flatten_the_rest():
    assert curves_figure(TWO, [1e9, *LOSSES[1:]], LRS, 3).axes[0].get_ylim() == (0, 3)
    assert 0.5 < curves_figure(TWO, [x/3 for x in LOSSES], LRS, 3).axes[0].get_ylim()[1] < 1


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_loss_that_is_not_finite_is_drawn_without_complaint(tmp_path, bad):
    for losses in ([2., bad], [bad]): curves_figure([], losses, LRS[:len(losses)], 3).savefig(tmp_path/'a.png')


def test_curves_leave_pyplot_alone():
    assert isinstance(curves_figure(TWO, LOSSES, LRS, 3), Figure)
    assert plt.get_fignums() == []


def test_activations_have_a_panel_a_layer_and_a_column_a_batch():
    stats = ActivationStats(lambda m: isinstance(m, nn.ReLU))
    learner(cbs=[stats], model=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU())).fit(2)
    fig = activations_figure(stats)
    shapes = [ax.images[0].get_array().shape for ax in fig.axes if ax.images]
    assert shapes == [(40, 8), (40, 8)]
    assert torch.tensor(fig.axes[0].images[0].get_array()).max() > 0
    assert plt.get_fignums() == []


def test_a_profile_has_a_panel_for_training_and_one_for_validation_with_every_part_and_leaves_pyplot_alone():
    profile = ProfileCB(quiet=True)
    learner().fit(1, cbs=profile)
    fig = profile_figure(profile)
    assert [ax.get_title().split(':')[0] for ax in fig.axes] == ['train', 'eval']
    parts = [sum(r['phase'] == phase for r in profile.rows) for phase in ('train', 'eval')]
    assert [len(ax.patches) for ax in fig.axes] == parts
    assert plt.get_fignums() == []

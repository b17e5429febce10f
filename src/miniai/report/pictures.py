"Pictures of a run, for its folder. Knows figures and what was recorded, no training."
from collections.abc import Sequence
from typing import Any

from miniai.activations import ActivationStats
from miniai.diagnosis.profile import ProfileCB

__all__ = ['curves_figure', 'activations_figure', 'profile_figure']


def curves_figure(history: Sequence[dict[str, Any]], losses: Sequence[float], lrs: Sequence[float],
                  per_epoch: int) -> Any:
    "Loss by batch with the validation losses, `per_epoch` batches apart, accuracy by epoch, and the learning rate."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(13, 3.8), layout='constrained')
    loss, acc, lr = fig.subplots(1, 3)
    loss.plot(losses, label='train', lw=1)
    evals = [r for r in history if r['phase'] == 'eval']
    loss.plot([per_epoch*(i + 1) - 1 for i in range(len(evals))], [r['loss'] for r in evals], 'o-', label='eval')
    for phase in ('train', 'eval'):
        rows = [r for r in history if r['phase'] == phase]
        acc.plot([r['epoch'] + 1 for r in rows], [r['accuracy'] for r in rows], 'o-', label=phase)
    lr.plot(lrs)
    loss.set(title='loss', xlabel='batch')
    acc.set(title='accuracy', xlabel='epoch')
    lr.set(title='learning rate', xlabel='batch')
    loss.set_ylim(0, min(loss.get_ylim()[1], 3))
    for ax in (loss, acc, lr): ax.xaxis.get_major_locator().set_params(integer=True)
    for ax in (loss, acc): ax.legend()
    return fig


def activations_figure(stats: ActivationStats) -> Any:
    "The colour picture of every layer's activations, with what it shows in words."
    import matplotlib.pyplot as plt
    stats.color_dim()
    fig = plt.gcf()
    for i, ax in enumerate(fig.axes[:len(stats)], 1): ax.set_title(f'layer {i}')
    fig.suptitle('Activations, batch by batch: sizes from 0 at the bottom to 10, brighter where there are more')
    fig.set_layout_engine('constrained')
    plt.close(fig)
    return fig


def profile_figure(profile: ProfileCB) -> Any:
    "Where the time of a batch went, in training and in validation."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(12, 4.5), layout='constrained')
    profile.plot(fig)
    return fig

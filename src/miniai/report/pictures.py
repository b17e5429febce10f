"Figures of a finished run, drawn from what it recorded."
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ['curves_figure', 'activations_figure']


def curves_figure(history: Sequence[dict[str, Any]], losses: Sequence[float], lrs: Sequence[float],
                  per_epoch: int) -> Any:
    """Three panels: loss, the first metric and learning rate. `history` is the Learner's; `losses` and `lrs` have a
    value per training batch, `per_epoch` of them to an epoch."""
    from matplotlib.figure import Figure
    fig = Figure(figsize=(13, 3.8), layout='constrained')
    loss, metric, lr = fig.subplots(1, 3)
    name = next((nm for row in history for nm in row if nm not in ('epoch', 'phase', 'loss', 'seconds')), 'loss')
    train, valid = ([row for row in history if row['phase'] == phase] for phase in ('train', 'eval'))
    loss.plot(losses, label='train', lw=1)
    loss.plot([per_epoch*(row['epoch'] + 1) - 1 for row in valid], [row['loss'] for row in valid], 'o-', label='valid')
    loss.set_ylim(0, min(loss.get_ylim()[1], 3))  # a loss that exploded must not flatten the rest
    for rows, label in ((train, 'train'), (valid, 'valid')):
        metric.plot([row['epoch'] + 1 for row in rows], [row[name] for row in rows], 'o-', label=label)
    lr.plot(lrs)
    for ax, title, xlabel in ((loss, 'loss', 'batch'), (metric, name, 'epoch'), (lr, 'learning rate', 'batch')):
        ax.set(title=title, xlabel=xlabel)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.grid(alpha=0.3)
    for ax in (loss, metric): ax.legend()
    return fig


def activations_figure(histograms: Mapping[str, Any]) -> Any:
    """A panel per layer shows how large its activations were in each batch. `histograms` maps the name of a layer to an
    array of counts: 40 bins for sizes from 0 to 10, by batches."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    columns = min(4, len(histograms))
    rows = -(-len(histograms)//columns)
    fig = Figure(figsize=(3*columns + 1, 2.4*rows + .6), layout='constrained')
    axs = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in axs.flat[len(histograms):]: ax.set_axis_off()
    for ax, (name, counts) in zip(axs.flat, histograms.items(), strict=False):
        counts = np.asarray(counts)
        shares = counts / np.maximum(counts.sum(0), 1)
        image = ax.imshow(np.maximum(shares, 1e-9), norm=LogNorm(1e-4, 1), origin='lower', aspect='auto',
                          extent=(0, counts.shape[1], 0, 10))
        ax.set_title(name, fontsize='medium')
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for ax in axs.flat[len(histograms) - columns:len(histograms)]: ax.tick_params(labelbottom=True)
    fig.colorbar(image, ax=axs, label='share of activations', extend='min', pad=0.02)
    fig.supxlabel('batch', fontsize='medium')
    fig.supylabel('size of activation', fontsize='medium')
    return fig

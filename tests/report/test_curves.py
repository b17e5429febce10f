"The curves of a run are at the places of its batches and epochs, and their titles and descriptions have the numbers."
import math
import re

from miniai.report.batches import thinned
from miniai.report.curves import curves, epochs_figure, loss_span
from miniai.report.record import read_run
from recorded import HISTORY, write_run


def drawn(folder):
    blocks = curves(read_run(folder), 'r').blocks
    return {f['title']: f['svg'] for b in blocks if b.kind == 'figures' for f in b.content['figures']}


def titles(svg, tag): return re.findall(rf'<{tag}[^>]*><title>([^<]*)</title>', svg)
def marks(svg): return sorted(float(x) for x in re.findall(r'<circle[^>]* cx="([\d.]+)"', svg))


def test_losses_are_titled_by_batch_with_the_rate_and_validation_is_at_the_ends_of_epochs(tmp_path):
    found = drawn(write_run(tmp_path/'run'))
    assert list(found) == ['Loss', 'Accuracy', 'Learning rate']
    assert titles(found['Loss'], 'rect') == [f'batch {i}: loss {2 - i/10:.4g}, lr {.1*i:.3g}' for i in range(12)]
    valid = [r for r in HISTORY if r['phase'] == 'eval']
    words = [f"epoch {r['epoch'] + 1}: validation loss {r['loss']:.4g}" for r in valid]
    assert titles(found['Loss'], 'circle') == words
    width = 420 - 52 - 10
    assert marks(found['Loss']) == [round(52 + width*x/12, 1) for x in (4, 8, 12)]
    assert 'Training loss from 2 to 0.9, lowest 0.9 over 12 batches.' in found['Loss']
    assert 'Starts at 0, is highest at 1.1 and ends at 1.1.' in found['Learning rate']


def test_metrics_have_a_dot_for_each_epoch_and_phase(tmp_path):
    svg = drawn(write_run(tmp_path/'run'))['Accuracy']
    assert titles(svg, 'circle') == [f"{words}, epoch {r['epoch'] + 1}: accuracy {r['accuracy']:.3g}"
                                     for phase, words in (('train', 'training'), ('eval', 'validation'))
                                     for r in HISTORY if r['phase'] == phase]


def test_without_batches_the_loss_is_that_of_the_epochs(tmp_path):
    found = drawn(write_run(tmp_path/'run', batches=None))
    assert list(found) == ['Loss', 'Accuracy']
    assert len(titles(found['Loss'], 'circle')) == 6


def test_a_long_run_is_a_line_in_a_band_with_few_titles(tmp_path):
    folder = write_run(tmp_path/'run', batches=thinned([1 + i % 7 for i in range(9000)], [], [9000]))
    svg = drawn(folder)['Loss']
    assert len(titles(svg, 'rect')) <= 160
    assert svg.count('class="band') == 1


def test_a_few_exploding_losses_do_not_flatten_the_others():
    assert loss_span([1.]*99 + [1e9])[1] < 3
    assert loss_span([2., 1., .5])[1] > 2
    assert loss_span([math.nan, None]) == (0, 1)


def test_losses_of_very_different_size_have_a_logarithmic_axis():
    def marks(*losses):
        svg = epochs_figure('loss', [('s1', 'a', [1, 2], list(losses))], 'x')['svg']
        return re.findall('text-anchor="end">([^<]*)<', svg)
    assert marks(.5, 500.) == ['1', '10', '100']
    assert marks(.5, 1.) == ['0', '0.5', '1']


def test_metrics_that_are_missing_or_no_numbers_in_some_epochs_are_gaps(tmp_path):
    rows = [dict(r, odd=None if r['epoch'] else .5, words='x') for r in HISTORY]
    found = drawn(write_run(tmp_path/'run', rows))
    assert len(titles(found['Odd'], 'circle')) == 2
    assert 'Words' not in found

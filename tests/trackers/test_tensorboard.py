"TensorBoard's event files, read back by TensorBoard."
import json

import pytest

from tracked import expected, followed, without_times

pytest.importorskip('tensorboard')


def test_a_run_that_was_killed_and_resumed_is_one_run_with_every_figure_once(tmp_path):
    run = followed('tensorboard', tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    store = EventAccumulator(str(tmp_path/'tensorboard'/'first')).Reload()
    assert [p.name for p in (tmp_path/'tensorboard').iterdir()] == ['first']
    figures = {nm: [(e.step, e.value) for e in store.Scalars(nm)] for nm in store.Tags()['scalars']}
    wanted = {nm: [(step, pytest.approx(x, rel=1e-6)) for step, x in points] for nm, points in expected().items()}
    assert without_times(figures) == wanted
    def text(name): return [e.tensor_proto.string_val[0].decode() for e in store.Tensors(f'{name}/text_summary')]
    config = json.loads(text('config')[0])
    assert (config['note'], config['optimizer'], config['epochs']) == ('a run', 'SGD', 3)
    assert text('verdicts/dead layer 1.ReLU') == ['99 % is 0. Raise it.']
    assert text('files') == [str(run.model)]
    picture, = store.Images('a curve')
    assert (picture.width, picture.height, picture.step) == (200, 100, 12)
    assert run.resumed.view == f'tensorboard --logdir {tmp_path}/tensorboard'

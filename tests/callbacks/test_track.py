"What TrackCB gives a tracker, on one that writes it down; tests/trackers tests real ones."
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from torch import nn

from miniai.callbacks.track import TrackCB
from miniai.datasets import DataLoaders
from miniai.learner import CancelFitException, MetricsCB, ProgressCB
from miniai.resume.checkpoint import CheckpointCB
from miniai.trackers import TRACKERS
from miniai.training import accuracy
from small import Heard, batches, learner, loaders, raising
from tracked import Judge


class Notes:
    "Writes down what it gets. `broken`: the method that fails."
    package = 'notes'
    def __init__(self, made, broken, folder, name, run, step, **options):
        if broken == 'open': raise OSError('no room')
        self.name, self.began, self.options, self.run = name, (run, step), options, run or f'id of {name}'
        self.got, self.ended, self.broken, self.view = [], None, broken, 'see it'
        made.append(self)

    def __getattr__(self, method):
        if method == self.broken: raise OSError('no room')
        return lambda *args: self.got.append((method, *args))

    def close(self, how): self.ended = how
    def of(self, method): return [args for kind, *args in self.got if kind == method]

    @property
    def figures_got(self): return [row for rows, in self.of('figures') for row in rows]


@pytest.fixture
def notes(monkeypatch):
    made = SimpleNamespace(runs=[], broken='')
    monkeypatch.setitem(TRACKERS, 'csv', lambda *args, **options: Notes(made.runs, made.broken, *args, **options))
    monkeypatch.setattr(TRACKERS['csv'], 'package', 'notes', raising=False)
    return made


def fit(folder, n=2, cbs=(), resume=False, dls=None, **options):
    cb = TrackCB('csv', folder, **options)
    learn = learner([MetricsCB(accuracy=accuracy), cb, *cbs], dls=dls)
    learn.fit(n, resume=resume)
    return learn, cb


def test_a_fit_gives_its_rows_and_the_loss_and_rate_of_each_batch(notes, tmp_path):
    losses = []
    learn, _ = fit(tmp_path, cbs=[Heard({'after_batch': lambda learn: losses.append(learn.loss.item())})])
    run, = notes.runs
    by_batch = [values for step, values in run.figures_got if 'batch/loss' in values]
    assert by_batch == [{'batch/loss': x, 'batch/lr': .1} for x in losses[:4] + losses[6:10]]
    rows = [(step, values) for step, values in run.figures_got if 'epoch' in values]
    named = dict(train='train', eval='valid')
    assert rows == [(4*(r['epoch'] + 1), {'epoch': r['epoch'] + 1} | {
        f"{named[r['phase']]}/{nm}": r[nm] for nm in ('accuracy', 'loss', 'seconds')}) for r in learn.history]
    assert [step for step, _ in run.figures_got] == sorted(step for step, _ in run.figures_got)
    assert run.ended == 'finished'


@pytest.mark.parametrize(('every', 'points'), [(1, 30), (4, 7), (None, 15)])
def test_figures_of_batches_are_thinned(notes, tmp_path, monkeypatch, every, points):
    monkeypatch.setattr('miniai.callbacks.track.MOST_POINTS', 15)
    fit(tmp_path, 3, dls=loaders(10, 1), every=every)
    assert len([1 for _, values in notes.runs[0].figures_got if 'batch/loss' in values]) == points


def test_a_loader_without_length_is_thinned_to_each_tenth_batch(notes, tmp_path):
    fit(tmp_path, 1, dls=DataLoaders(iter(batches(25)), iter(batches(1))))
    assert [step for step, values in notes.runs[0].figures_got if 'batch/loss' in values] == [10, 20]


def test_lists_and_dicts_in_a_row_are_figures_with_names(notes, tmp_path):
    def changes(learn): learn.history[-1] |= dict(per_class=[.1, .2], more=dict(a=1), text='no')
    fit(tmp_path, 1, cbs=[Heard({'after_epoch': changes})])
    row = notes.runs[0].figures_got[-1][1]
    assert {k: v for k, v in row.items() if 'valid/per' in k or 'more' in k or 'text' in k} == {
        'valid/per_class/0': .1, 'valid/per_class/1': .2, 'valid/more/a': 1.}


def test_the_configuration_is_what_the_learner_trains_and_what_the_user_says(notes, tmp_path):
    fit(tmp_path, name='mine', config=dict(note=1), place='there')
    run, = notes.runs
    (config,), = run.of('config')
    assert config.items() >= dict(model='Sequential', parameters=67, optimizer='SGD', loss='cross_entropy', lr=.1,
                                  epochs=2, batches=4, note=1).items()
    assert config['opt.momentum'] == 0
    assert (run.name, run.options) == ('mine', dict(place='there'))


def test_a_verdict_is_an_alert_once_and_in_time(notes, tmp_path):
    fit(tmp_path, 3, cbs=[Judge()])
    run, = notes.runs
    assert run.of('alert') == [['dead layer 1.ReLU', '99 % is 0. Raise it.', 8]]
    assert run.got.index(('alert', *run.of('alert')[0])) < len(run.got) - 3


def test_the_model_is_saved_at_the_end_unless_the_fit_failed_or_nobody_wants_it(notes, tmp_path):
    fit(tmp_path, name='a')
    assert notes.runs[0].of('file') == [[tmp_path/'a'/'model.safetensors']]
    fit(tmp_path, name='b', model=False)
    with pytest.raises(ValueError, match='oh'):
        fit(tmp_path, name='c', cbs=[Heard({'after_step': raising(ValueError('oh'))})])
    assert [(run.of('file'), run.ended) for run in notes.runs[1:]] == [([], 'finished'), ([], 'failed')]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ['a']


def test_a_model_that_cannot_be_saved_is_a_warning(notes, tmp_path):
    (tmp_path/'a').write_text('a file where the folder should be')
    with pytest.warns(UserWarning, match='TrackCB: the model was not saved: FileExistsError'): fit(tmp_path, name='a')
    assert notes.runs[0].ended == 'finished'


@pytest.mark.parametrize(('error', 'how'), [(CancelFitException(), 'finished'), (KeyboardInterrupt(), 'stopped')])
def test_a_fit_that_a_callback_ends_is_finished_and_one_that_the_user_ends_is_stopped(notes, tmp_path, error, how):
    cbs = [Heard({'after_step': raising(error)})]
    if how == 'finished': fit(tmp_path, cbs=cbs)
    else:
        with pytest.raises(KeyboardInterrupt): fit(tmp_path, cbs=cbs)
    assert notes.runs[0].ended == how


def test_a_picture_is_a_png_also_after_the_fit_when_it_continues_the_run(notes, tmp_path):
    kept = []
    def keep(self, name, path, step): kept.append((name, path.read_bytes()[:4], step))
    Notes.picture, figure = keep, Figure()
    try:
        _, cb = fit(tmp_path)
        cb.picture('curve', figure)
        figure.savefig(tmp_path/'x.png')
        cb.picture('again', tmp_path/'x.png')
    finally: del Notes.picture
    assert kept == [('curve', b'\x89PNG', 8), ('again', b'\x89PNG', 8)]
    assert [run.began for run in notes.runs] == [(None, 0), (notes.runs[0].run, 8), (notes.runs[0].run, 8)]
    assert [run.ended for run in notes.runs] == ['finished']*3


def test_kept_open_the_tracker_ends_when_it_is_closed(notes, tmp_path):
    _, cb = fit(tmp_path, keep_open=True)
    cb.file(tmp_path/'x')
    assert notes.runs[0].ended is None
    cb.close()
    assert (len(notes.runs), notes.runs[0].ended) == (1, 'finished')


# Tracking must not stop a run

@pytest.mark.parametrize('broken', ['open', 'config', 'figures', 'file', 'alert'])
def test_a_tracker_that_fails_gives_one_warning_and_the_fit_goes_on(notes, tmp_path, broken):
    notes.broken = broken
    with pytest.warns(UserWarning, match='TrackCB') as warned: learn, cb = fit(tmp_path, 3, cbs=[Judge()])
    cb.picture('x', Figure())
    assert [str(w.message) for w in warned] == [
        f'TrackCB: csv failed, and the rest of this run is not tracked: OSError: no room. Check the options of TrackCB '
        f'and its folder {tmp_path}']
    assert len(learn.history) == 6


def test_a_tracker_that_is_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(TRACKERS['wandb'], '__init__', lambda *args, **options: raising(ImportError("no wandb"))())
    learn = learner([MetricsCB(), TrackCB('wandb', tmp_path)])
    with pytest.warns(UserWarning, match='this run is not tracked: no wandb. To track it: pip install wandb$'):
        learn.fit(1)


def test_the_next_fit_tries_again_as_another_run(notes, tmp_path):
    notes.broken = 'figures'
    with pytest.warns(UserWarning, match='no room'): learn, _ = fit(tmp_path)
    notes.broken = ''
    learn.fit(1)
    assert [run.began for run in notes.runs] == [(None, 0)]*2
    assert notes.runs[1].ended == 'finished'


def test_only_the_first_process_tracks(notes, tmp_path, monkeypatch):
    monkeypatch.setattr('miniai.callbacks.track.is_first', lambda: False)
    fit(tmp_path, model=False)
    assert notes.runs == []


def test_dry_runs_and_fits_that_only_validate_are_not_tracked(notes, tmp_path):
    learn = learner([MetricsCB(), ProgressCB(), TrackCB('csv', tmp_path)])
    learn.fit(1, train=False)
    learn.evaluate()
    learn.summary()
    assert notes.runs == []


def test_wrong_options_are_errors_at_once(tmp_path):
    with pytest.raises(ValueError, match="got 'tensorbord'; did you mean 'tensorboard'"):
        TrackCB('tensorbord')
    for every in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match='every must be a whole number'): TrackCB('csv', every=every)


def test_a_learner_that_tracks_can_be_pickled(notes, tmp_path):
    _, cb = fit(tmp_path, keep_open=True)
    assert pickle.loads(pickle.dumps(cb)).tracker is None


# Resume

class Shown(Heard): only_shows = True


def test_a_run_that_resumes_is_the_same_run_with_its_steps_and_tells_no_verdict_twice(notes, tmp_path):
    def run(resume=False, **act):
        cbs = [Judge(), CheckpointCB(tmp_path/'checkpoints', batches=1), Shown(act, order=1e9)]
        return fit(tmp_path, 3, cbs=cbs, resume=resume)
    def kill(learn):
        if learn.training and (learn.epoch, learn.iter) == (1, 2): raise KeyError
    with pytest.raises(KeyError): run(after_batch=kill)
    _, cb = run(resume=True)
    first, second = notes.runs
    assert second.began == (first.run, 6)
    assert cb.step == 12
    steps = [step for step, values in second.figures_got if 'batch/loss' in values]
    assert steps == list(range(7, 13))
    assert len(first.of('alert') + second.of('alert')) == 1


def test_a_named_run_that_was_killed_before_its_first_checkpoint_is_the_same_run(notes, tmp_path):
    def run(resume):
        fit(tmp_path, 1, cbs=[CheckpointCB(tmp_path/'checkpoints'), Shown({} if resume else {
            'after_step': raising(KeyError())})], resume=resume, name='mine')
    with pytest.raises(KeyError): run(False)
    run(True)
    first, second = notes.runs
    assert second.began == (first.run, 0)


def test_the_state_of_another_tracker_is_left_alone():
    cb = TrackCB('csv')
    cb.load_state_dict(dict(kind='wandb', run='x', step=5, told=[]))
    assert (cb.run, cb.step) == (None, 0)


def test_a_duck_of_a_model_without_parameters_has_facts(notes, tmp_path):
    class Duck(nn.Module):
        def forward(self, x): return x
    learn = learner([TrackCB('csv', Path(tmp_path)), MetricsCB()], model=nn.Sequential(nn.LazyLinear(3)))
    learn.fit(1)
    assert notes.runs[0].of('config')[0][0]['parameters'] in (0, 15)

"Progress of a fit: bars, rows and curves on a face that writes down what it is asked to show."
import functools
from itertools import count
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from miniai import MaxBatchesCB
from miniai.datasets import DataLoaders
from miniai.learner import CancelBatchException, CancelFitException, MetricsCB, ProgressCB
from miniai.training import accuracy
from small import Heard, batches, learner, loaders, raising


class Face:
    "Writes down bars, rows, lines and curves; knows whether a bar is on the screen."
    seconds_between_updates, time_left, losses = 0, None, ()
    def shows_losses(self): return True
    def __init__(self):
        self.bars, self.rows, self.lines, self.graphs = [], [], [], []
        self.barred, self.closed = False, 0

    def bar(self, *args): self.barred = self.bars.append(args) is None
    def end_bar(self): self.barred = False
    def row(self, d): self.rows.append(d)
    def text(self, line): self.lines.append(line)
    def curves(self, curves, labels): self.graphs.append(([(list(x), list(y)) for x, y in curves], list(labels)))
    def close(self): self.closed += 1


@pytest.fixture
def faces(monkeypatch):
    made = []
    def face():
        made.append(Face())
        return made[-1]
    monkeypatch.setattr('miniai.callbacks.progress.best_display', face)
    return made


def fit(cbs, n=1, **kwargs):
    learn = learner(cbs, **kwargs)
    learn.fit(n)
    return learn


# Rows

@pytest.mark.parametrize('first', [True, False])
def test_a_row_an_epoch_and_phase_of_the_metrics_listed_before_or_after(faces, first):
    cbs = [MetricsCB(accuracy=accuracy), ProgressCB()]
    learn = fit(cbs if first else cbs[::-1], 2)
    rows = faces[0].rows
    assert ProgressCB.order == MetricsCB.order + 1
    assert [(r['epoch'], r['phase']) for r in rows] == [('1', 'train'), ('1', 'valid'), ('2', 'train'), ('2', 'valid')]
    assert [float(r['loss']) for r in rows] == pytest.approx([h['loss'] for h in learn.history], abs=5e-4)
    assert [(h['epoch'], h['phase']) for h in learn.history[:2]] == [(0, 'train'), (0, 'eval')]
    assert list(rows[0]) == ['epoch', 'phase', 'accuracy', 'loss', 'seconds']


def test_rows_are_data_too_without_any_metrics_and_the_learner_keeps_no_callback_of_ours(faces):
    learn = fit(ProgressCB(), 2)
    assert [(r['epoch'], r['phase']) for r in learn.history] == [(0, 'train'), (0, 'eval'), (1, 'train'), (1, 'eval')]
    assert len(faces[0].rows) == 4
    assert len(learn.cbs) == 1
    learn.fit(1)
    assert len(learn.history) == 2


def test_without_a_terminal_a_fit_is_one_plain_line_an_epoch_and_phase(capsys):
    fit([MetricsCB(accuracy=accuracy), ProgressCB(plot=True)], 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[::2] for line in lines] == [['epoch', 'phase', 'accuracy', 'loss', 'seconds']]*4
    rows = [['1', 'train'], ['1', 'valid'], ['2', 'train'], ['2', 'valid']]
    assert [line.split()[1:5:2] for line in lines] == rows


# The user's _log

class Own(MetricsCB):
    def __init__(self, **metrics):
        super().__init__(**metrics)
        self.logged = []

    def _log(self, d): self.logged.append(d)


def test_a_log_that_a_subclass_wrote_hears_every_row_with_and_without_progress(faces, capsys):
    cb = Own()
    fit(cb)
    assert len(cb.logged) == 2
    fit([cb, ProgressCB()])
    assert len(cb.logged) == 4
    assert len(faces[0].rows) == 2
    assert capsys.readouterr().out == ''


def test_a_log_replaced_on_the_instance_hears_every_row_and_is_there_after_the_fit(faces, capsys):
    cb, logged = MetricsCB(), []
    mine = cb._log = logged.append
    fit([cb, ProgressCB()])
    assert len(logged) == len(faces[0].rows) == 2
    assert cb._log is mine
    fit(cb)
    assert len(logged) == 4
    assert capsys.readouterr().out == ''


def test_the_librarys_own_log_prints_nothing_beside_a_table_and_prints_again_after(faces, capsys):
    cb = MetricsCB()
    fit([cb, ProgressCB()])
    assert capsys.readouterr().out == ''
    assert '_log' not in vars(cb)
    fit(cb)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_metrics_of_another_class_log_by_themselves_beside_the_rows_of_the_loss(faces):
    class Duck:
        "As a notebook may write it."
        def __init__(self): self.all_metrics, self.said = {}, []
        def _log(self, d): self.said.append(d)
        def before_fit(self, learn): learn.metrics = self
        def after_epoch(self, learn): self._log(dict(loss='1.0', epoch=learn.epoch))
    cb = Duck()
    learn = fit([cb, ProgressCB()])
    assert [list(r) for r in faces[0].rows] == [['epoch', 'phase', 'loss', 'seconds']]*2
    assert (cb.said, learn.metrics) == ([dict(loss='1.0', epoch=0)]*2, cb)


@pytest.mark.parametrize('ends', [CancelFitException(), ValueError('oh'), KeyboardInterrupt()])
def test_however_a_fit_ends_the_bar_is_gone_the_face_closed_and_the_log_as_it_was(faces, ends):
    metrics = MetricsCB()
    learn = learner([metrics, ProgressCB(), Heard({'after_loss': raising(ends)})])
    if isinstance(ends, CancelFitException): learn.fit(1)
    else:
        with pytest.raises(type(ends)): learn.fit(1)
    assert not faces[0].barred
    assert faces[0].closed == 1
    assert '_log' not in vars(metrics)


def test_a_fit_that_ends_before_progress_began_shows_its_own_error(faces):
    broken = Heard({'before_fit': raising(ValueError('mine'))})
    with pytest.raises(ValueError, match='mine'): fit([ProgressCB(), broken])
    fit([ProgressCB(), Heard({'before_fit': raising(CancelFitException())})])


def test_two_bars_leave_the_metrics_as_they_were(faces):
    metrics = MetricsCB()
    learn = learner([metrics, ProgressCB()])
    learn.fit(1, cbs=ProgressCB())
    assert '_log' not in vars(metrics)


# Bars

def test_a_bar_an_epoch_and_phase_counts_the_batches_and_shows_the_loss(faces):
    cb = ProgressCB()
    fit(cb, 2)
    face = faces[0]
    labels = list(dict.fromkeys(b[0] for b in face.bars))
    assert labels == ['epoch 1/2 train', 'epoch 1/2 valid', 'epoch 2/2 train', 'epoch 2/2 valid']
    assert [b[1:3] for b in face.bars[:4]] == [(i, 4) for i in range(4)]
    assert [b[3] for b in face.bars[:4]] == ['', *(f'{loss:.3f}' for loss in cb.losses[:3])]


def test_bars_and_rows_work_for_loaders_without_length(faces):
    fit(ProgressCB(), dls=DataLoaders(iter(batches(3)), iter(batches(2))))
    assert [b[1:3] for b in faces[0].bars] == [(i, None) for n in (3, 2) for i in range(n)]


def test_the_rate_that_an_optimizer_finds_is_beside_the_loss(faces):
    def finding(params, lr):
        opt = torch.optim.SGD(params, lr)
        opt.param_groups[0]['d'] = .25
        return opt
    cb = ProgressCB()
    fit(cb, opt_func=finding, lr=.1)
    assert [b[3] for b in faces[0].bars[:4]] == ['', *(f'{loss:.3f}  lr 0.025' for loss in cb.losses[:3])]


def test_the_comment_is_a_string_or_a_function_and_belongs_to_the_user(faces):
    class Comments(ProgressCB):
        def after_batch(self, learn):
            super().after_batch(learn)
            learn.dl.comment = f'lr {learn.opt.param_groups[0]["lr"]}' if learn.training else lambda: 'eval'
    fit(Comments())
    assert [b[3] for b in faces[0].bars] == ['', *['lr 0.1']*3, '', 'eval']


@pytest.mark.parametrize(('fit', 'totals'), [
    (dict(cbs=MaxBatchesCB(3, 1), n_epochs=2), [('1/2', 3), ('1/2', 1), ('2/2', 3), ('2/2', 1)]),
    (dict(steps=8, valid_every=5), [('1/2', 5), ('1/2', 2), ('2/2', 3), ('2/2', 2)]),
    (dict(steps=6), [('1/2', 4), ('1/2', 2), ('2/2', 2), ('2/2', 2)])])
def test_a_bar_knows_the_length_of_epochs_that_end_early_or_are_counted_in_steps(faces, fit, totals):
    learner(ProgressCB()).fit(**fit)
    assert [(label.split()[1], total) for label, done, total, _ in faces[0].bars if not done] == totals


def test_the_display_knows_the_time_left_once_a_pass_has_a_batch_and_the_losses_but_not_in_a_dry_run(faces):
    seen = []
    class Look:
        order = 5
        def before_batch(self, learn): seen.append((learn.display.time_left, len(learn.display.losses)))
    cb = ProgressCB()
    learn = fit([cb, Look()])
    assert [n for _, n in seen] == [0, 1, 2, 3, 4, 4]
    assert [left is not None for left, _ in seen] == [False, True, True, True, False, True]
    assert all(0 < left[0] <= left[1] for left, _ in seen if left)
    learn.evaluate()
    assert faces[-1].time_left is None


def test_the_loader_under_the_bar_keeps_its_length(faces):
    seen = []
    class Look:
        order = 5
        def before_batch(self, learn): seen.append(len(learn.dl))
    fit([ProgressCB(), Look()])
    assert seen == [4]*4 + [2]*2


def test_a_bar_is_not_moved_more_often_than_its_face_says(faces, monkeypatch):
    monkeypatch.setattr(Face, 'seconds_between_updates', 1e9)
    fit(ProgressCB())
    assert [b[1] for b in faces[0].bars] == [0, 0]


def test_a_loss_that_is_no_number_is_not_shown(faces):
    learn = learner(ProgressCB(), loss_func=functools.partial(F.cross_entropy, reduction='none'))
    learn.fit(train=False)
    assert {b[3] for b in faces[0].bars} == {''}


def test_a_first_batch_that_a_callback_leaves_out_needs_no_loss(faces):
    class SkipsFirst:
        def before_batch(self, learn):
            if learn.training and learn.iter == 0: raise CancelBatchException
    fit([ProgressCB(), SkipsFirst()])
    assert faces[0].bars[1][1:] == (1, 4, '')


# For subclasses

def test_subclasses_reach_the_bar_of_epochs(faces):
    class Writes(ProgressCB):
        def before_fit(self, learn):
            super().before_fit(learn)
            self.mbar.write(['a', 'b'], table=True)
            self.mbar.write([1, 2.5], table=True)
            self.mbar.write('hello')

        def after_epoch(self, learn):
            super().after_epoch(learn)
            self.mbar.update_graph([([0, 1], [1., 2.])])
    cb = Writes()
    learn = fit(cb)
    assert faces[0].rows[0] == dict(a='1', b='2.5')
    assert faces[0].lines == ['hello']
    assert faces[0].graphs == [([([0, 1], [1., 2.])], ['0'])]*2
    assert len(cb.mbar) == 1
    assert learn.epochs is cb.mbar


def test_a_subclass_may_replace_the_row(faces):
    class Short(ProgressCB):
        def _log(self, d): super()._log(dict(loss=d['loss']))
    fit([MetricsCB(accuracy=accuracy), Short()])
    assert [list(r) for r in faces[0].rows] == [['loss']]*2


# Curves

def test_losses_are_those_of_every_training_batch_and_validation(faces):
    cb, seen = ProgressCB(), []
    class Look:
        def after_batch(self, learn):
            if learn.training: seen.append(learn.loss.item())
    learn = fit([cb, Look()], 2)
    assert cb.losses == seen
    assert cb.val_losses == pytest.approx([r['loss'] for r in learn.history if r['phase'] == 'eval'])
    learn.fit(1)
    assert (len(cb.losses), len(cb.val_losses)) == (4, 1)


def test_before_a_fit_there_are_no_losses(): assert (ProgressCB().losses, ProgressCB().val_losses) == ([], [])


def test_with_plot_the_last_curves_hold_all_losses_and_validation_at_its_batches(faces):
    cb = ProgressCB(plot=True)
    fit(cb, 2)
    curves, labels = faces[0].graphs[-1]
    assert labels == ['train', 'valid']
    assert curves == [(list(range(8)), cb.losses), ([4, 8], cb.val_losses)]
    assert faces[0].graphs[0][1] == ['train']


def test_without_plot_and_without_losses_nothing_is_drawn(faces):
    fit(ProgressCB(), 2)
    learner(ProgressCB(plot=True)).fit(train=False)
    assert [f.graphs for f in faces] == [[], []]


def test_curves_are_drawn_again_when_time_has_passed_and_at_the_end_of_each_epoch(faces, monkeypatch):
    def with_clock(seconds):
        ticks = count(100, seconds)
        monkeypatch.setattr('miniai.callbacks.progress.time', SimpleNamespace(perf_counter=lambda: next(ticks)))
        fit(ProgressCB(plot=True), dls=loaders(50, 2))
        return [len(curves[0][0]) for curves, _ in faces[-1].graphs]
    stands_still, runs = with_clock(0), with_clock(1)
    assert stands_still == [1, 50, 50]
    assert 3 < len(runs) < 12


def test_validation_of_a_learner_without_targets_shows_a_row(faces):
    learner(ProgressCB(plot=True), dls=DataLoaders([], [(x,) for x, _ in batches()])).fit(train=False)
    assert faces[0].rows[0]['loss'] == 'nan'


def test_losses_that_are_replaced_by_python_numbers_are_taken(faces):
    class Swap:
        def after_batch(self, learn): learn.loss = 2.
    cb = ProgressCB()
    fit([Swap(), cb])
    assert cb.losses == [2.]*4
    assert torch.tensor(cb.losses).mean() == 2


def test_a_dry_run_such_as_evaluate_shows_a_bar_but_no_row(faces):
    learn = learner([MetricsCB(), ProgressCB()])
    learn.evaluate()
    assert faces[0].rows == []

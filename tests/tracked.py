"A run that a tracker follows, is killed and resumes, and what its store must hold then."
from types import SimpleNamespace
from typing import NamedTuple

from matplotlib.figure import Figure

from miniai.callbacks.track import TrackCB
from miniai.events import Callback
from miniai.learner import MetricsCB
from miniai.resume.checkpoint import CheckpointCB
from miniai.training import accuracy
from small import Heard, learner

CONFIG = dict(note='a run', sizes='[8, 16]')


class Verdict(NamedTuple):
    name: str
    where: str
    says: str
    do: str


class Judge(Callback):
    "Finds something in the second epoch, and knows that in each fit anew."
    only_shows = True
    def before_fit(self, learn): self.verdicts = []
    def after_epoch(self, learn):
        if learn.epoch != 1 or not learn.training: return
        self.verdicts.append(Verdict('dead layer', '1.ReLU', '99 % is 0.', 'Raise it.'))


class Killed(Exception): "As by a signal that nothing can catch: what runs after it does not count."


class Kill(Callback):
    "Ends the third epoch after two batches."
    order, only_shows = 1e9, True
    def after_batch(self, learn):
        if learn.epoch == 2 and learn.training and learn.iter == 1: raise Killed


def expected():
    "The figures of an uninterrupted run, by name: (batches trained, value). Epochs have 4 batches."
    losses = []
    learn = learner([MetricsCB(accuracy=accuracy), Heard({'after_loss': lambda learn: losses.append(learn.loss.item())
                                                          if learn.training else None}, events=['after_loss'])])
    learn.fit(3)
    found = {'batch/loss': [(i + 1, loss) for i, loss in enumerate(losses)],
             'batch/lr': [(i + 1, .1) for i in range(12)]}
    for row in learn.history:
        phase = dict(train='train', eval='valid')[row['phase']]
        for nm in ('loss', 'accuracy'): found.setdefault(f'{phase}/{nm}', []).append((4*(row['epoch'] + 1), row[nm]))
    return found


def followed(kind, folder, **options):
    "Train with a tracker, get killed in the third epoch, resume, and add a picture. The callbacks of both processes."
    def run(*more, resume=False):
        cb = TrackCB(kind, folder, name='first', config=CONFIG, **options)
        learn = learner([MetricsCB(accuracy=accuracy), Judge(), cb, CheckpointCB(folder/'checkpoints'), *more])
        try: learn.fit(3, resume=resume)
        except Killed: cb.close()
        return cb
    killed, resumed = run(Kill()), run(resume=True)
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 3, 2])
    resumed.picture('a curve', figure)
    return SimpleNamespace(killed=killed, resumed=resumed, model=folder/'first'/'model.safetensors')


def without_times(figures):
    "Figures without those that differ from run to run, and without the number of the epoch."
    return {nm: points for nm, points in figures.items() if nm != 'epoch' and not nm.endswith('/seconds')}

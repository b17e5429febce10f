"""A part of a program's run, in a process of its own: all of it, until it is stopped, or from its checkpoint on.

    python tests/half_runs.py    a server: forks a process for each job, one JSON per line of stdin

The server has imported torch and miniai, but none of the programs, so what they keep in modules starts fresh.
"""
import gc
import hashlib
import io
import json
import multiprocessing
import os
import random
import signal
import sys
import types
import warnings
from collections import deque
from copy import deepcopy
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import miniai
from miniai import Callback, CancelBatchException, CheckpointCB, set_seed

LIMIT = 60  # seconds


class Stopped(RuntimeError): pass


class StopCB(Callback):
    """Stops the run after a batch of training by an error, after one of validation by SIGTERM, or between epochs by an
    error. Comes after CheckpointCB."""
    order, only_shows = float('inf'), True
    def __init__(self, phase, epoch, batch): self.phase, self.at = phase, (epoch, batch)

    def cleanup_batch(self, learn):
        if self.phase == 'train' and learn.training and (learn.epoch, learn.iter) == self.at: raise Stopped
        if self.phase == 'valid' and not learn.training and (learn.epoch, learn.iter) == self.at:
            os.kill(os.getpid(), signal.SIGTERM)

    def cleanup_epoch(self, learn):
        if self.phase == 'between' and not learn.training and learn.epoch == self.at[0]: raise Stopped


class Snapshot:
    "What a resume cannot do without: model, optimizer and the global random states."
    def take(self, learn):
        self.model = {k: v.clone() for k, v in learn.model.state_dict().items()}
        self.opt = deepcopy(learn.opt.state_dict()) if hasattr(learn.opt, 'state_dict') else None
        self.random = random_states()

    def put(self, learn):
        learn.model.load_state_dict(self.model)
        if self.opt: learn.opt.load_state_dict(self.opt)
        set_random_states(self.random)


def random_states(): return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_random_states(states):
    torch.set_rng_state(states[0]), np.random.set_state(states[1]), random.setstate(states[2])


# The control: a resume that restores model, optimizer, random states and position, and nothing of the program's own

class RememberCB(Callback):
    "In the first half: the random states at the start of each pass, and a snapshot when the run is stopped."
    order = float('-inf')
    def __init__(self, stop): self.stop, self.passes, self.snapshot = stop, {}, Snapshot()
    def before_epoch(self, learn): self.passes[learn.epoch, learn.training] = random_states()
    def cleanup_batch(self, learn):
        if stopped_at(learn, self.stop): self.snapshot.take(learn)


class ForgetCB(Callback):
    "In the second half: skips batches until the stop, then puts the snapshot back."
    order = float('-inf')
    def __init__(self, remembered): self.remembered, self.skipping = remembered, True

    def before_fit(self, learn): learn.epochs = range(self.remembered.stop[1], learn.n_epochs)

    def before_epoch(self, learn):
        if self.skipping: set_random_states(self.remembered.passes[learn.epoch, learn.training])

    def before_batch(self, learn):
        if not self.skipping: return
        if stopped_at(learn, self.remembered.stop):
            self.skipping = False
            self.remembered.snapshot.put(learn)
        raise CancelBatchException


def stopped_at(learn, stop):
    phase, epoch, batch = stop
    if phase == 'between': return (learn.epoch, learn.training) == (epoch, False) and learn.iter + 1 == len(learn.dl)
    return (learn.epoch, learn.iter, learn.training) == (epoch, batch, phase == 'train')


# What is compared

def plain(x):
    "A value as nested lists of text: equal if and only if the value is."
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        return ['tensor', str(x.dtype), list(x.shape), hashlib.sha256(repr(x.tolist()).encode()).hexdigest()[:16]]
    if isinstance(x, np.ndarray): return ['array', str(x.dtype), list(x.shape), repr(x.tolist())]
    if isinstance(x, torch.Generator): return plain(x.get_state())
    if isinstance(x, random.Random): return repr(x.getstate())
    if isinstance(x, np.random.Generator): return repr(x.bit_generator.state)
    if isinstance(x, torch.nn.Module | torch.optim.Optimizer): return plain(x.state_dict())
    if isinstance(x, dict): return [type(x).__name__, *([plain(k), plain(v)] for k, v in x.items())]
    if isinstance(x, set | frozenset): return [type(x).__name__, *sorted(map(repr, x))]
    if isinstance(x, list | tuple | deque): return [type(x).__name__, *map(plain, x)]
    return repr(x)


def visible(learn, state):
    "Everything that should be the same in the end, as a digest for each name."
    out = {'model': learn.model, 'optimizer': learn.opt.state_dict() if hasattr(learn.opt, 'state_dict') else None,
           'history': [{k: v for k, v in row.items() if k != 'seconds'} for row in learn.history],
           'random states': random_states()}
    if state: out |= {f'state: {k}': v for k, v in state_of(learn, state).items()}
    return {k: hashlib.sha256(json.dumps(plain(v)).encode()).hexdigest()[:16] for k, v in out.items()}


def state_of(learn, state):
    try: return state(learn)
    except AttributeError as e: return {'missing': str(e)}  # not made again after a resume


# A job

def load_program(job):
    "The functions `make` and `state` of a program of the table, or of a script."
    set_seed(42)
    if job.get('module'):
        import_module(job['module'])
        from programs import PROGRAMS
        return PROGRAMS[job['name']].make, PROGRAMS[job['name']].state
    script = types.ModuleType('__main__')
    script.__file__ = job['script']
    sys.modules['__main__'] = script
    exec(compile(Path(job['script']).read_text(), job['script'], 'exec'), vars(script))
    return script.make, getattr(script, 'state', None)


def run(job):
    "Run one part and return what can be seen at its end."
    make, state = load_program(job)
    learn, part, epochs = kept(make()), job['part'], job['epochs']
    saving = CheckpointCB(job['folder'], **(dict(batches=1) | job.get('saving', {})))
    if part == 'stop': learn.cbs += [saving, StopCB(*job['stop'])]
    if part in ('resume', 'save'): learn.cbs.append(saving)
    learn.fit(epochs, resume=part == 'resume')
    return visible(learn, state)


def forget(job):
    "Both halves in two processes: the second has only what `Snapshot` holds."
    make, state = load_program(job)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        learn, remember = kept(make()), RememberCB(tuple(job['stop']))
        learn.cbs.append(remember)
        learn.fit(job['epochs'])
        with os.fdopen(write, 'wb') as f: torch.save(remember, f)
        leave()
    os.close(write)
    with os.fdopen(read, 'rb') as f: remembered = torch.load(io.BytesIO(f.read()), weights_only=False)
    os.waitpid(pid, 0)
    learn = kept(make())
    learn.cbs.append(ForgetCB(remembered))
    learn.fit(job['epochs'])
    return visible(learn, state)


def report(job):
    "Run the job and write what happened: the digests of the end, warnings, and the error if there was one."
    signal.alarm(LIMIT)
    out = dict(end=None, warnings=[], error=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try: out['end'] = forget(job) if job['part'] == 'forget' else run(job)
        except Stopped: pass
        except SystemExit as e: out['exit'] = e.code
        except BaseException as e: out['error'] = dict(type=type(e).__name__, text=str(e), deliberate=is_deliberate(e))
    out['warnings'] = [str(w.message) for w in caught]
    Path(job['out']).write_text(json.dumps(out))


alive = []


def kept(learn):
    "Keep a Learner until the process ends: to shut its workers down can take ten seconds."
    alive.append(learn)
    return learn


def leave():
    for worker in multiprocessing.active_children(): worker.kill()
    os._exit(0)


def is_deliberate(e):
    "Whether miniai itself raised this error, to say that it cannot save or resume the run."
    if type(e).__module__.startswith('miniai.'): return True
    tb = e.__traceback__
    while tb.tb_next: tb = tb.tb_next
    where = Path(tb.tb_frame.f_code.co_filename)
    return isinstance(e, TypeError | ValueError) and Path(miniai.__file__).parent in where.parents


def warm():
    "Import what the parts of torch and miniai import when first used. Starts no thread, since forks do not get them."
    import torchmetrics.classification  # noqa: F401
    torch.set_num_threads(1)
    batches = [(torch.randn(8, 2), torch.zeros(8, dtype=torch.long))]
    for opt_func in (torch.optim.Adam, miniai.AdamW):
        dls = miniai.DataLoaders(batches, batches)
        miniai.TrainLearner(torch.nn.Linear(2, 2), dls, F.cross_entropy, 0.1, opt_func=opt_func).fit(1)
    gc.collect()
    gc.freeze()  # so that forks do not copy these pages when they exit


def serve():
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what programs print
    warm()
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            job = json.loads(line)
            os.dup2(os.open(job['out'] + '.log', os.O_WRONLY | os.O_CREAT), 2)
            try: report(job)
            finally: leave()
        os.waitpid(pid, 0)
        print('done', file=answers, flush=True)


if __name__ == '__main__': serve()

"""A training run as a process that tells where it is: fresh, or forked from a server that has imported everything, and
then building all anew from the job's words. Either way it ends as any Python program does.

    python tests/forked.py JOB     the job, a dict as JSON, in this process
    python tests/forked.py         a server: forks a process for each line of stdin that holds a job
"""
import gc
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from itertools import islice

import torch

import crash
from miniai import Callback
from miniai.accel import AccumulateCB
from miniai.callbacks.lr_finder import LRFinderCB
from miniai.checkpoint import durable
from miniai.resume import loader as position
from miniai.resume import signals
from miniai.resume import start as resume
from miniai.resume import state as run_state
from miniai.resume.checkpoint import CheckpointCB
from resuming import StopCB, digest, run

PHASES = ('starting', 'fitting', 'validating', 'finding a rate', 'saving', 'calling back', 'over')
SIZE = 8  # bytes that are watched


class Watch:
    "A few bytes that a run and those who watch it share."
    def __init__(self, path):
        with open(path, 'r+b') as f: self.memory = mmap.mmap(f.fileno(), SIZE)

    def _phase(self): return PHASES[self.memory[0]]
    def _tell_phase(self, x): self.memory[0] = PHASES.index(x)
    def _writing(self): return bool(self.memory[1])
    def _tell_writing(self, x): self.memory[1] = x
    def _done(self): return int.from_bytes(self.memory[4:], 'little')
    def _tell_done(self, x): self.memory[4:] = x.to_bytes(4, 'little')

    phase, writing = property(_phase, _tell_phase), property(_writing, _tell_writing)
    done = property(_done, _tell_done, doc="training batches done")

    @contextmanager
    def within(self, phase):
        before, self.phase = self.phase, phase
        try: yield
        finally: self.phase = before


# The run's side

class TellCB(Callback):
    "Tells where the run is. Its callbacks' work, a nap, is part of what a signal may meet."
    def __init__(self, watch): self.watch = watch
    def before_epoch(self, learn): self.watch.phase = self._phase(learn)
    def before_batch(self, learn): self._nap()

    def after_batch(self, learn):
        if learn.training: self.watch.done = learn.epoch*len(learn.dls.train) + learn.iter + 1
        self._nap()

    def _nap(self):
        if self.watch.phase == 'finding a rate': return
        with self.watch.within('calling back'): time.sleep(.002)

    def _phase(self, learn):
        if any(isinstance(cb, LRFinderCB) for cb in learn.cbs): return 'finding a rate'
        return 'fitting' if learn.training else 'validating'


class OverCB(Callback):
    "Tells when a fit's signal handlers are gone; stands after CheckpointCB."
    order = CheckpointCB.order
    def __init__(self, watch): self.watch = watch
    def cleanup_fit(self, learn): self.watch.phase = 'starting' if learn.n_epochs > 2 else 'over'


def _tell_of_saving(watch):
    save, write = CheckpointCB.save, durable._Writer.write
    def told_save(self, *args, **kwargs):
        with watch.within('saving'): return save(self, *args, **kwargs)
    def told_write(self, *args):
        watch.writing = True
        try: return write(self, *args)
        finally: watch.writing = False
    CheckpointCB.save, durable._Writer.write = told_save, told_write


# Negative controls: ways to make a save or a resume worse

class FromStart(position.RemainingBatches):
    "As many batches as are left, from the first on."
    def __iter__(self):
        left, self.start = len(self) - self.start, 0
        return islice(super().__iter__(), left)


def _no_random_states(): run_state.set_random_states = position.set_random_states = lambda states: None
def _no_position(): resume.RemainingBatches = FromStart
def _no_group(): AccumulateCB.load_state_dict = lambda self, state: vars(self).update(_zeroing_is_known=True)
def _no_handler(): signals.stop_signals = lambda: []


def _no_temporary():
    def slowly(self, *args):
        with open(self.path, 'wb'): time.sleep(.005)
        crash.in_place(self, *args)
    durable._Writer.write = slowly


def _no_save():
    save = CheckpointCB.save
    CheckpointCB.save = lambda self, *args, **kwargs: None if self._run.watch.signal else save(self, *args, **kwargs)


def _no_records(): resume.restore_callbacks = lambda learn, state: None


LEFT_OUT = {'random states': _no_random_states, 'loader position': _no_position, 'accumulated group': _no_group,
            'temporary file': _no_temporary, 'handler': _no_handler, 'save at a signal': _no_save,
            'records': _no_records}


def train(job):
    """Do the run of `job`, from its folder's checkpoint where there is one: its digest goes to `job['end']`, what it
    says to `job['log']`."""
    os.setpgid(0, 0)
    with open(job['log'], 'ab') as f: os.dup2(f.fileno(), 1), os.dup2(f.fileno(), 2)
    torch.set_num_threads(1)
    watch = Watch(job['watch'])
    if job['leave_out']: LEFT_OUT[job['leave_out']]()
    _tell_of_saving(watch)
    stop = [StopCB(*job['stop'])] if job['stop'] else []
    learn = run(job['folder'], job['kind'], [TellCB(watch), OverCB(watch), *stop], batches=job['batches'],
                minutes=job['minutes'], background=job['background'], keep=job['keep'])
    if job['find']: learn.lr_find()
    learn.fit(2, resume=True)
    with open(job['end'], 'w') as f: f.write(digest(learn))
    os._exit(0)  # an interpreter's own end takes as long as all of the run; those that are stopped have it


def _warm():
    "Have all that a run needs in memory, with no thread started: a fork has none but its own."
    import matplotlib.pyplot  # noqa: F401
    torch.set_num_threads(1)
    learn = run()
    opt = learn.opt_func(learn.model.parameters(), 1e-3)
    for p in learn.model.parameters(): p.grad = torch.ones_like(p)
    opt.step()
    gc.collect()
    gc.freeze()  # forks then neither look at it nor copy its pages when they end


def serve():
    "Fork a process for each job read, which returns it; None, in the server, when there are no more."
    _warm()
    for line in sys.stdin:
        pid = os.fork()
        if not pid: return json.loads(line)
        print(pid, flush=True)
        sys.stdin.readline()  # until its starter asks, it is kept from having a successor of its number
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


# The watcher's side

class Server:
    "Starts runs by forking, one at a time."
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _ask(self, line):
        self.process.stdin.write(line + '\n')
        self.process.stdin.flush()

    def _answer(self): return self.process.stdout.readline().strip()

    def start(self, job):
        self._ask(json.dumps(job))
        return int(self._answer())

    def wait(self, pid):
        self._ask('')
        return int(self._answer())


class Fresh:
    "Starts runs in fresh interpreters, with `Server`'s methods."
    def start(self, job):
        self.process = subprocess.Popen([sys.executable, __file__, json.dumps(job)])
        return self.process.pid

    def wait(self, pid): return self.process.wait()


def send(pid, number, group=False):
    "Send a signal, which may come too late."
    with suppress(ProcessLookupError): (os.killpg if group else os.kill)(pid, number)


def wait_until(reached, seconds=60):
    until = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > until: return False
        time.sleep(1e-4)
    return True


if __name__ == '__main__':
    os.environ['MPLBACKEND'] = 'agg'
    signal.signal(signal.SIGINT, signal.default_int_handler)
    job = json.loads(sys.argv[1]) if sys.argv[1:] else serve()
    if job: train(job)

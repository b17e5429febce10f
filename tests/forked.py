"""A training run in its own process that reports where it is. The process is a fresh interpreter, or is forked from a
server that has imported everything and trained nothing.

    python tests/forked.py JOB     run the job, a dict as JSON, in this process
    python tests/forked.py         a server: forks a process for each job, one per line of stdin
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
from miniai.accel import AccumulateCB
from miniai.checkpoint import saving
from miniai.resume import loader, restore, signals, start
from miniai.resume.checkpoint import CheckpointCB
from resuming import StopCB, Watcher, digest, run

PHASES = ('starting', 'training', 'validating', 'finding a rate', 'saving', 'in a callback', 'done')
SIZE = 8  # bytes of shared memory
HANG = 600  # seconds, after which a run counts as hanging


class Watch:
    "A few bytes in which a run reports to those who watch it: its phase, whether it writes a file, batches done."
    def __init__(self, path):
        with open(path, 'r+b') as f: self.memory = mmap.mmap(f.fileno(), SIZE)

    def _phase(self): return PHASES[self.memory[0]]
    def _set_phase(self, x): self.memory[0] = PHASES.index(x)
    def _writing(self): return bool(self.memory[1])
    def _set_writing(self, x): self.memory[1] = x
    def _batches(self): return int.from_bytes(self.memory[4:], 'little')
    def _set_batches(self, x): self.memory[4:] = x.to_bytes(4, 'little')

    phase, writing = property(_phase, _set_phase), property(_writing, _set_writing)
    batches = property(_batches, _set_batches, doc="training batches done")

    @contextmanager
    def within(self, phase):
        before, self.phase = self.phase, phase
        try: yield
        finally: self.phase = before


# The run's side

class ReportCB(Watcher):
    "Reports where the run is. The work of this callback, a nap, is one of the things that a signal may interrupt."
    def __init__(self, watch): self.watch = watch
    def before_batch(self, learn): self._nap()

    def before_epoch(self, learn):
        self.watch.phase = 'finding a rate' if learn.dry_run else 'training' if learn.training else 'validating'

    def after_batch(self, learn):
        if learn.training: self.watch.batches = learn.epoch*len(learn.dls.train) + learn.iter + 1
        self._nap()

    def _nap(self):
        if self.watch.phase == 'finding a rate': return
        with self.watch.within('in a callback'): time.sleep(.002)


class DoneCB(Watcher):
    "Reports when a fit's signal handlers are gone; comes after CheckpointCB."
    order = CheckpointCB.order
    def __init__(self, watch): self.watch = watch
    def cleanup_fit(self, learn): self.watch.phase = 'starting' if learn.dry_run else 'done'


def _report_saves(watch):
    save, write = CheckpointCB.save, saving.write_durably
    def reporting_save(self, *args, **kwargs):
        with watch.within('saving'): return save(self, *args, **kwargs)
    def reporting_write(self, *args):
        watch.writing = True
        try: return write(self, *args)
        finally: watch.writing = False
    CheckpointCB.save, saving.write_durably = reporting_save, reporting_write


# Controls: saving and resuming with something left out, which tests must notice

class FromStart(loader.RemainingBatches):
    "As many batches as remain, but from the first one."
    def __iter__(self):
        remaining, self.first_batch = len(self) - self.first_batch, 0
        return islice(super().__iter__(), remaining)


def _no_random_states(): restore.set_random_states = lambda states: None
def _no_position(): start.RemainingBatches = FromStart
def _no_group(): AccumulateCB.load_state_dict = lambda self, state: vars(self).update(_zeroing_checked=True)
def _no_records(): restore._restore_stateful = lambda nodes, states, unpacker: None
def _no_handler(): signals.stop_signals = lambda: []


def _no_temporary():
    def slowly(paths, *args):
        for path in paths:
            with open(path, 'wb'): time.sleep(.005)
        crash.in_place(paths, *args)
    saving.write_durably = slowly


def _no_save():
    save = CheckpointCB.save
    CheckpointCB.save = lambda self, *args, **kwargs: None if self._run.watch.signal else save(self, *args, **kwargs)


LEFT_OUT = {'random states': _no_random_states, 'loader position': _no_position, 'accumulated group': _no_group,
            'temporary file': _no_temporary, 'handler': _no_handler, 'save at a signal': _no_save,
            'records': _no_records}


def train(job):
    """Run `job`, from its folder's checkpoint if there is one. A digest of its end goes to the file `job['end']`, its
    output to `job['log']`."""
    os.setpgid(0, 0)
    with open(job['log'], 'ab') as f: os.dup2(f.fileno(), 1), os.dup2(f.fileno(), 2)
    torch.set_num_threads(1)
    watch = Watch(job['watch'])
    if job['leave_out']: LEFT_OUT[job['leave_out']]()
    _report_saves(watch)
    stop = [StopCB(*job['stop'])] if job['stop'] else []
    learn = run(job['folder'], job['kind'], [ReportCB(watch), DoneCB(watch), *stop], batches=job['batches'],
                minutes=job['minutes'], background=job['background'], keep=job['keep'])
    if job['find']: learn.lr_find()
    learn.fit(2, resume=True)
    with open(job['end'], 'w') as f: f.write(digest(learn))
    os._exit(0)  # a normal exit takes as long as the run itself; runs that are stopped have one


def _warm():
    "Load everything that a run needs, without starting a thread, since forked processes do not get them."
    import matplotlib.pyplot  # noqa: F401
    torch.set_num_threads(1)
    learn = run()
    opt = learn.opt_func(learn.model.parameters(), 1e-3)
    for p in learn.model.parameters(): p.grad = torch.ones_like(p)
    opt.step()
    gc.collect()
    gc.freeze()  # so that forked processes do not copy these pages when they exit


def serve():
    "Fork a process for each job that is read. Returns the job in that process, and None in the server at the end."
    _warm()
    for line in sys.stdin:
        pid = os.fork()
        if not pid: return json.loads(line)
        print(pid, flush=True)
        sys.stdin.readline()  # until it is asked for, so that no other process gets the same pid before
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


# The side of those who watch

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
    "Starts runs in fresh interpreters; has the methods of Server."
    def start(self, job):
        self.process = subprocess.Popen([sys.executable, __file__, json.dumps(job)])
        return self.process.pid

    def wait(self, pid): return self.process.wait()


def send(pid, number, group=False):
    "Send a signal, perhaps too late."
    with suppress(ProcessLookupError): (os.killpg if group else os.kill)(pid, number)


def wait_until(reached):
    "Wait as long as it takes; the limit is for runs that hang."
    until = time.monotonic() + HANG
    while not reached():
        assert time.monotonic() < until, 'a run hangs'
        time.sleep(1e-4)


if __name__ == '__main__':
    os.environ['MPLBACKEND'] = 'agg'
    signal.signal(signal.SIGINT, signal.default_int_handler)
    job = json.loads(sys.argv[1]) if sys.argv[1:] else serve()
    if job: train(job)

"""Training runs that are stopped at each batch, killed or signalled, and then resumed: counts of what happened, for
bench/faults.py and, in a short version, for tests."""
import atexit
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory

from forked import HANG, SIZE, Fresh, Server, Watch, send, wait_until
from miniai.checkpoint import CheckpointError, load, verify
from resuming import loaders

KINDS = ('memory', '0', '2')  # batches from memory; DataLoaders without and with two workers
AIMS = ('training', 'validating', 'finding a rate', 'saving', 'in a callback')
UNWATCHED = ('starting', 'finding a rate')  # phases without signal handlers
WRONG = ('corrupt', 'stale', 'different', 'failed', 'lost', 'wrong_code', 'untidy')
SERVERS, KEEP = 2, 2
ALWAYS = 1e-9  # minutes: a save after every batch, also of validation
PLAIN = dict(kind='memory', batches=1, minutes=None, background=False, keep=KEEP, find=False, stop=None, leave_out=None)


class Trial:
    "A folder in which a run is stopped and resumed, each time in a new process, and what can be seen there."
    def __init__(self, base, starter, **job):
        self.base, self.starter = Path(base), starter
        self.checkpoints, self.end, self.log = self.base/'run', self.base/'end', self.base/'log'
        (self.base/'watch').write_bytes(bytes(SIZE))
        self.watch = Watch(self.base/'watch')
        paths = dict(folder=self.checkpoints, end=self.end, log=self.log, watch=self.base/'watch')
        self.job = PLAIN | {k: str(p) for k, p in paths.items()} | job

    def start(self, **changes):
        self.watch.memory[:] = bytes(SIZE)
        self.end.unlink(missing_ok=True)
        self.pid = self.starter.start(self.job | changes)

    def finish(self):
        "Wait for the process and return its exit code."
        timer = threading.Timer(HANG, send, (self.pid, signal.SIGKILL))
        timer.start()
        try: return self.starter.wait(self.pid)
        finally: timer.cancel()

    def run_to_end(self, **changes):
        "The digest of the run's end; '' if it failed."
        self.start(**changes)
        code = self.finish()
        return self.end.read_text() if code == 0 and self.end.exists() else ''

    def resume(self, server, leave_out=None):
        "Counts after resuming to the end: is it another end than that of a run that nothing stops?"
        end = self.run_to_end(leave_out=leave_out)
        if not end: print(f'failed: {self.job}\n{self.log.read_text()[-3000:]}', file=sys.stderr)
        return dict(failed=not end, different=bool(end) and end != uninterrupted(server, self.job))

    def files(self): return sorted(os.listdir(self.checkpoints)) if self.checkpoints.is_dir() else []
    def newest(self): return max(self.checkpoints.glob('checkpoint-*'), default=None)

    def stale(self):
        "How many files do not belong in the folder of a run that has ended."
        kept = [nm for nm in self.files() if re.fullmatch(r'checkpoint-[-\d]+\.safetensors', nm)]
        return len(self.files()) - len(kept) - ('.miniai.lock' in self.files()) + max(0, len(kept) - KEEP)

    def corrupt(self):
        if self.newest() is None: return False
        try: return not verify(self.newest())
        except CheckpointError: return True


@cache
def servers():
    found = Queue()
    for server in [Server() for _ in range(SERVERS)]:
        atexit.register(server.close)
        found.put(server)
    return found


def side_by_side(trial, cases, name):
    "The sum of the counts that `trial(server, case, folder)` returns for each case."
    total, shown = Counter(), time.monotonic()
    def one(case):
        server = servers().get()
        try:
            with TemporaryDirectory() as base: return trial(server, case, base)
        finally: servers().put(server)
    servers()
    with ThreadPoolExecutor(SERVERS) as pool:
        for i, counts in enumerate(pool.map(one, cases), 1):
            total += counts
            if time.monotonic() - shown > 2:
                shown = time.monotonic()
                print(f'{name}: {i} of {len(cases)}: {dict(total)}', file=sys.stderr, flush=True)
    return total


_ends = {}


def uninterrupted(server, job):
    "The digest of the end of a run of the job's kind that nothing stops."
    key = job['kind'], job['find']
    if key not in _ends:
        with TemporaryDirectory() as base:
            _ends[key] = Trial(base, server, kind=key[0], find=key[1]).run_to_end()
            assert _ends[key], 'an uninterrupted run failed'
    return _ends[key]


# Stopped at batches

def boundaries(kind):
    dls = loaders(kind)
    passes = (True, len(dls.train)), (False, len(dls.valid))
    return [(epoch, batch, training) for epoch in (0, 1) for training, n in passes for batch in range(n)]


def stop_and_resume(server, case, base):
    kind, stops, leave_out = case
    trial = Trial(base, server, kind=kind, minutes=ALWAYS)
    for at in stops:
        trial.start(stop=at)
        assert trial.finish() == 1, trial.log.read_text()
    return Counter(runs=1, **trial.resume(server, leave_out))


def every_boundary(name, every=1, leave_out=None, kinds=KINDS):
    "Counts over runs that are stopped after each batch of two epochs."
    return side_by_side(stop_and_resume, [(k, [at], leave_out) for k in kinds for at in boundaries(k)[::every]], name)


def three_in_a_row(name, n, seed=0):
    "Counts over runs that are stopped three times, at random batches."
    rng = random.Random(seed)
    there = {k: boundaries(k) for k in KINDS}
    cases = [(k, sorted(rng.sample(there[k], 3), key=there[k].index), None) for k in KINDS*(n//3 + 1)][:n]
    return side_by_side(stop_and_resume, cases, name)


# Killed

def random_job(rng, i): return dict(kind=KINDS[i % 3], batches=rng.choice((1, 2)), background=i % 2 == 1)


def wait_for(trial, rng, reached, at_most=.02):
    "Wait until a run is at a random batch, then until it has `reached` a state or is done, and then a little longer."
    n, watch = rng.randrange(2*len(loaders(trial.job['kind']).train)), trial.watch
    wait_until(lambda: (watch.phase not in UNWATCHED and watch.batches >= n) or watch.phase == 'done')
    wait_until(lambda: watch.phase == 'done' or reached())
    time.sleep(rng.uniform(0, at_most))


def kill(trial, rng, **changes):
    "Start a run and kill it at a random moment, half of the time while it writes a file. Was it still running?"
    writing = rng.random() < .5
    trial.start(**changes)
    wait_for(trial, rng, lambda: trial.watch.writing or not writing, .003 if writing else .03)
    send(trial.pid, signal.SIGKILL)
    return trial.finish() == -signal.SIGKILL


def kill_and_resume(server, case, base):
    i, worse_save, worse_resume = case
    rng, fresh = random.Random(f'kill {i}'), i % 10 == 9
    trial, out = Trial(base, Fresh() if fresh else server, **random_job(rng, i)), Counter(runs=1, fresh=fresh)
    def look():
        temporary = any(nm.endswith('.part') for nm in trial.files())
        out.update(kills=1, while_writing=temporary, none_yet=trial.newest() is None, corrupt=trial.corrupt())
    while not kill(trial, rng, leave_out=worse_save): shutil.rmtree(trial.checkpoints)
    look()
    while rng.random() < .25 and kill(trial, rng, leave_out=worse_save):
        look()
        out.update(again=1)
    out.update(trial.resume(server, worse_resume))
    out.update(stale=trial.stale())
    return out


def kills(n, name, worse_save=None, worse_resume=None):
    """Counts over `n` runs that are killed, some of them again after they resumed: kills while a file was written, or
    before the first checkpoint; corrupt checkpoints, stale files, and ends that differ from an uninterrupted run's."""
    return side_by_side(kill_and_resume, [(i, worse_save, worse_resume) for i in range(n)], name)


# Signalled

def send_signal(trial, rng, aim, **changes):
    """Start a run and send it a signal in its phase `aim`, at a random batch, and sometimes a second one. Returns what
    was sent, the phases just before and after, and the exit code; None if the run was done already."""
    number = rng.choice((signal.SIGTERM, signal.SIGINT))
    group = rng.random() < .5  # to the workers too, as Ctrl-C in a terminal and batch systems do
    trial.start(**changes)
    if aim != 'finding a rate': wait_for(trial, rng, lambda: trial.watch.phase == aim, rng.choice((0, 0, .002)))
    else:
        wait_until(lambda: trial.watch.phase == aim or trial.watch.batches)
        time.sleep(rng.uniform(0, .3))
    before, writing = trial.watch.phase, trial.watch.writing
    send(trial.pid, number, group)
    after, second = trial.watch.phase, None
    if rng.random() < .2:
        time.sleep(rng.uniform(0, .03))
        second = rng.choice((signal.SIGTERM, signal.SIGINT))
        send(trial.pid, second)
    code = trial.finish()
    if 'done' in (before, after): return None
    return dict(number=number, second=second, phases=(before, after), writing=writing, code=code)


def right_codes(sent):
    """A fit exits with 128 + the signal; other code, and a fit after a second signal, as any Python program; while a
    fit starts, either. If two signals come close together, Python handles the lower number first, so either may count
    as the second."""
    codes = {-sent['number'] if p in UNWATCHED else 128 + sent['number'] for p in sent['phases']}
    if 'starting' in sent['phases']: codes |= {-sent['number'], 128 + sent['number']}
    return codes | ({-sent['number'], -sent['second'], 128 + sent['second']} if sent['second'] else set())


def lost(trial):
    "Does the newest checkpoint of a run that exited after one signal miss the last batch that was done?"
    if trial.newest() is None: return True
    at, n = load(trial.newest())['position'], len(loaders(trial.job['kind']).train)
    return at['epoch']*n + (n if at['phase'] == 'valid' else at['batch']) != trial.watch.batches


def ignored_by_python(trial, sent):
    "Without handlers, Python prints and ignores a KeyboardInterrupt in the hook of a fork or in a finalizer."
    return (sent['code'] == 0 and sent['number'] == signal.SIGINT and set(sent['phases']) <= set(UNWATCHED)
            and 'Exception ignored in' in trial.log.read_text())


def signal_and_resume(server, case, base):
    i, aims, worse_save, worse_resume = case
    rng, aim, fresh = random.Random(f'signal {i}'), aims[i % len(aims)], (i + i//20) % 20 == 19
    job = random_job(rng, i//len(aims))
    if aim != 'saving': job['batches'] = rng.choice((None, job['batches']))
    trial = Trial(base, Fresh() if fresh else server, **job, find=aim == 'finding a rate')
    while not (sent := send_signal(trial, rng, aim, leave_out=worse_save)):
        shutil.rmtree(trial.checkpoints, ignore_errors=True)
        trial.log.unlink()
    ignored, exited = ignored_by_python(trial, sent), sent['code'] > 128 and not sent['second']
    wrong_code = not ignored and sent['code'] not in right_codes(sent)
    if wrong_code: print(f'wrong code: {trial.job} {sent}\n{trial.log.read_text()[-3000:]}', file=sys.stderr)
    out = Counter({sent['phases'][0]: 1}, signals=1, second=bool(sent['second']), writing=sent['writing'],
                  ignored=ignored, wrong_code=wrong_code, corrupt=trial.corrupt(), fresh=fresh,
                  untidy=exited and 'Traceback' in trial.log.read_text(), lost=exited and lost(trial))
    out.update(trial.resume(server, worse_resume))
    out.update(stale=trial.stale())
    return out


def signals(n, name, aims=AIMS, worse_save=None, worse_resume=None):
    """Counts over `n` runs that get a signal, a fifth of them a second one soon after: by phase; wrong exit codes,
    checkpoints that are corrupt or miss the last batch, stale files, ends that differ from an uninterrupted run's."""
    return side_by_side(signal_and_resume, [(i, aims, worse_save, worse_resume) for i in range(n)], name)

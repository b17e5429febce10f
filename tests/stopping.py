"""Training runs stopped at every batch, killed, and signalled, and what came of going on with them: counts, for the
table of bench/faults.py and, short, for tests."""
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

from forked import SIZE, Fresh, Server, Watch, send, wait_until
from miniai.checkpoint import CheckpointError, load, verify
from resuming import loaders

KINDS = ('memory', '0', '2')  # batches from memory; DataLoaders without and with two workers
AIMS = ('fitting', 'validating', 'finding a rate', 'saving', 'calling back')
LANES = 2
BEFORE = ('starting', 'finding a rate')  # phases in which no handlers watch
KEEP = 2
PLAIN = dict(kind='memory', batches=1, minutes=None, background=False, keep=KEEP, find=False, stop=None, leave_out=None)


class Place:
    "A folder in which runs of one job follow one another, and what can be seen of them."
    def __init__(self, base, starter, **job):
        self.base, self.starter = Path(base), starter
        self.runs, self.end, self.log = self.base/'run', self.base/'end', self.base/'log'
        (self.base/'watch').write_bytes(bytes(SIZE))
        self.watch = Watch(self.base/'watch')
        paths = dict(folder=self.runs, end=self.end, log=self.log, watch=self.base/'watch')
        self.job = PLAIN | {k: str(p) for k, p in paths.items()} | job

    def start(self, **changes):
        self.watch.memory[:] = bytes(SIZE)
        self.end.unlink(missing_ok=True)
        self.pid = self.starter.start(self.job | changes)
        return self.pid

    def finish(self):
        "How the process ends; it is killed where it does not within two minutes."
        timer = threading.Timer(120, send, (self.pid, signal.SIGKILL))
        timer.start()
        try: return self.starter.wait(self.pid)
        finally: timer.cancel()

    def ended_as(self, **changes):
        "Go on to the end: the digest, '' where it did not come to one."
        self.start(**changes)
        code = self.finish()
        return self.end.read_text() if code == 0 and self.end.exists() else ''

    def files(self): return sorted(os.listdir(self.runs)) if self.runs.is_dir() else []
    def newest(self): return max(self.runs.glob('checkpoint-*'), default=None)
    def temporaries(self): return [nm for nm in self.files() if nm.endswith('.part')]

    def stale(self, most=KEEP):
        "Files that have no business in the folder of a run that has ended."
        kept = [nm for nm in self.files() if re.fullmatch(r'checkpoint-[-\d]+\.safetensors', nm)]
        return len(self.files()) - len(kept) - ('.miniai.lock' in self.files()) + max(0, len(kept) - most)

    def corrupt(self):
        "Does the newest checkpoint, where there is one, not verify?"
        if self.newest() is None: return False
        try: return not verify(self.newest())
        except CheckpointError: return True


@cache
def lanes():
    "Servers, which stay for what else comes."
    servers = Queue()
    for server in [Server() for _ in range(LANES)]:
        atexit.register(server.close)
        servers.put(server)
    return servers


def in_lanes(trial, cases, what):
    "`trial(server, case, folder to work in)` for each case, a few side by side: the sum of their counts."
    total, told = Counter(), time.monotonic()
    def one(case):
        server = lanes().get()
        try:
            with TemporaryDirectory() as base: return trial(server, case, base)
        finally: lanes().put(server)
    lanes()
    with ThreadPoolExecutor(LANES) as pool:
        for i, counts in enumerate(pool.map(one, cases), 1):
            total += counts
            if time.monotonic() - told > 2:
                told = time.monotonic()
                print(f'{what}: {i} of {len(cases)}: {dict(total)}', file=sys.stderr, flush=True)
    return total


_wanted = {}


def wanted(server, job):
    "The digest of a run of the job's kind that nothing stops."
    key = job['kind'], job['find']
    if key not in _wanted:
        with TemporaryDirectory() as base:
            place = Place(base, server, kind=key[0], find=key[1])
            _wanted[key] = place.ended_as() or place.log.read_text()
    return _wanted[key]


def differs(place, server, leave_out=None):
    "Go on to the end: is it another than the uninterrupted run's?"
    return place.ended_as(leave_out=leave_out) != wanted(server, place.job)


# Every boundary

ALWAYS = 1e-9  # minutes: a save after every batch, of validation too


def boundaries(kind):
    dls = loaders(kind)
    passes = (True, len(dls.train)), (False, len(dls.valid))
    return [(epoch, batch, training) for epoch in (0, 1) for training, n in passes for batch in range(n)]


def stopped(server, case, base):
    "A run that is stopped after each of some batches, and then goes on to its end."
    kind, stops, leave_out = case
    place = Place(base, server, kind=kind, minutes=ALWAYS)
    for at in stops:
        place.start(stop=at)
        assert place.finish() == 1, place.log.read_text()
    return Counter(runs=1, different=differs(place, server, leave_out))


def every_boundary(what, every=1, leave_out=None, kinds=KINDS):
    "Counts over runs stopped after every batch of two epochs."
    return in_lanes(stopped, [(k, [at], leave_out) for k in kinds for at in boundaries(k)[::every]], what)


def three_in_a_row(what, n, seed=0):
    "Counts over runs stopped three times, at random batches."
    rng = random.Random(seed)
    there = {k: boundaries(k) for k in KINDS}
    cases = [(k, sorted(rng.sample(there[k], 3), key=there[k].index), None) for k in KINDS*(n//3 + 1)][:n]
    return in_lanes(stopped, cases, what)


# Kills

def drawn(rng, i): return dict(kind=KINDS[i % 3], batches=rng.choice((1, 2)), background=i % 2 == 1)


def wait_for(place, rng, reached, most=.02):
    "Wait until a run is at a random batch of its fit, and then in some state or over, and then a little."
    done, watch = rng.randrange(2*len(loaders(place.job['kind']).train)), place.watch
    wait_until(lambda: watch.phase not in BEFORE and (watch.done >= done or watch.phase == 'over'))
    wait_until(lambda: watch.phase == 'over' or reached(), 5)
    time.sleep(rng.uniform(0, most))


def killed(place, rng, **changes):
    "Start a run and kill it at a random moment of its fit, every other time of its saving: did that come in time?"
    saving = rng.random() < .5
    place.start(**changes)
    wait_for(place, rng, lambda: place.watch.writing if saving else True, .003 if saving else .03)
    send(place.pid, signal.SIGKILL)
    return place.finish() == -signal.SIGKILL


def kill(server, case, base):
    i, worse_save, worse_resume = case
    rng, fresh = random.Random(f'kill {i}'), i % 10 == 9
    place, out = Place(base, Fresh() if fresh else server, **drawn(rng, i)), Counter(runs=1, fresh=fresh)
    while not killed(place, rng, leave_out=worse_save): shutil.rmtree(place.runs)
    out.update(_seen_after_a_kill(place))
    while rng.random() < .25 and killed(place, rng, leave_out=worse_save):
        out.update(_seen_after_a_kill(place), again=1)
    out.update(different=differs(place, server, worse_resume), stale=place.stale())
    return out


def _seen_after_a_kill(place):
    return dict(kills=1, amid=bool(place.temporaries()), none_yet=place.newest() is None, corrupt=place.corrupt())


def kills(n, what, worse_save=None, worse_resume=None):
    """Counts over runs killed `n` times or a few more and gone on with: kills amid a write, before the first
    checkpoint, of a run gone on with already; checkpoints corrupt, files stale, ends different from the whole run's."""
    return in_lanes(kill, [(i, worse_save, worse_resume) for i in range(n)], what)


# Signals

def signalled(place, rng, aim, **changes):
    """Start a run and send it a signal soon after a random moment at which it is in phase `aim`, or a second one too:
    what was sent, in which phases before and after, and how the process ended; None where it was over already."""
    number = rng.choice((signal.SIGTERM, signal.SIGINT))
    group = rng.random() < .5  # as a terminal's Ctrl-C and batch systems do: workers get it too
    place.start(**changes)
    if aim != 'finding a rate': wait_for(place, rng, lambda: place.watch.phase == aim, rng.choice((0, 0, .002)))
    else: wait_until(lambda: place.watch.phase == aim), time.sleep(rng.uniform(0, .3))
    before, writing = place.watch.phase, place.watch.writing
    send(place.pid, number, group)
    after, second = place.watch.phase, None
    if rng.random() < .2:
        time.sleep(rng.uniform(0, .03))
        second = rng.choice((signal.SIGTERM, signal.SIGINT))
        send(place.pid, second)
    code = place.finish()
    late = 'over' in (before, after)
    return None if late else dict(number=number, second=second, phases=(before, after), writing=writing, code=code)


def right_codes(sent):
    """A fit leaves with 128 + the signal; what is none, or for a second signal, as any Python program; as a fit starts,
    either. Of two that come close together Python hears that of the lower number first, so either may be the second."""
    codes = {-sent['number'] if p in BEFORE else 128 + sent['number'] for p in sent['phases']}
    if 'starting' in sent['phases']: codes |= {-sent['number'], 128 + sent['number']}
    return codes | ({-sent['number'], -sent['second'], 128 + sent['second']} if sent['second'] else set())


def lost(place):
    "Is the newest checkpoint of a run that left for one signal not there, or not of the batch that was done last?"
    if place.newest() is None: return True
    at, n = load(place.newest())['position'], len(loaders(place.job['kind']).train)
    return at['epoch']*n + (n if at['phase'] == 'valid' else at['batch']) != place.watch.done


def ignored_by_python(place, sent):
    """Did KeyboardInterrupt, where no handlers watch, come amid a hook of a fork or a finaliser? There Python says so
    and goes on, in any program."""
    return (sent['code'] == 0 and sent['number'] == signal.SIGINT and set(sent['phases']) <= set(BEFORE)
            and 'Exception ignored in' in place.log.read_text())


def _seen_after_a_signal(place, sent):
    ignored, left = ignored_by_python(place, sent), sent['code'] > 128 and not sent['second']
    wrong_code = not ignored and sent['code'] not in right_codes(sent)
    if wrong_code: print(f'wrong code: {place.job} {sent}\n{place.log.read_text()[-3000:]}', file=sys.stderr)
    return {f'in {sent["phases"][0]}': 1, 'signals': 1, 'second': bool(sent['second']), 'writing': sent['writing'],
            'ignored': ignored, 'wrong_code': wrong_code, 'corrupt': place.corrupt(),
            'untidy': left and 'Traceback' in place.log.read_text(), 'lost': left and lost(place)}


def signal_one(server, case, base):
    i, aims, worse_save, worse_resume = case
    rng, aim, fresh = random.Random(f'signal {i}'), aims[i % len(aims)], (i + i//20) % 20 == 19
    job = drawn(rng, i//len(aims))
    if aim != 'saving': job['batches'] = rng.choice((None, job['batches']))
    place = Place(base, Fresh() if fresh else server, **job, find=aim == 'finding a rate')
    while not (sent := signalled(place, rng, aim, leave_out=worse_save)):
        shutil.rmtree(place.runs, ignore_errors=True)
        place.log.unlink()
    out = Counter(_seen_after_a_signal(place, sent), fresh=fresh)
    out.update(different=differs(place, server, worse_resume), stale=place.stale())
    return out


def signals(n, what, aims=AIMS, worse_save=None, worse_resume=None):
    """Counts over `n` runs that got a signal, a fifth of them a second one soon after: by phase, and what was wrong:
    exit codes, checkpoints corrupt or not of the batch done last, files stale, ends different from the whole run's."""
    return in_lanes(signal_one, [(i, aims, worse_save, worse_resume) for i in range(n)], what)

"""Ways to stop a save: kill its process, fail its calls, cut the power. Each looks at what is left; the long counts are
bench/faults.py's.

    python tests/crash.py N [rename]      N kills; with a word, of a save that writes in place: a negative control
"""
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from miniai.checkpoint import CheckpointError, SaveError, Saver, disk, durable, load, remove_stale, save
from miniai.checkpoint.header import sealed

NAME = 'c.safetensors'
SIZES = (10, 30_000, 500_000)  # elements


def version(v, n): return dict(version=v, weights=torch.full((n,), v, dtype=torch.int32), more=[torch.tensor(v)]*2)


def read_version(path):
    "The version of a whole checkpoint; AssertionError where it is a mixture."
    state = load(path)
    assert state['weights'].eq(state['version']).all()
    return state['version']


# Kills

def in_place(self, head, memories):
    "A save that writes over the old file: what kills must find."
    data = [m.numpy().tobytes() for m in memories]
    head, _ = sealed(head, hashlib.sha256(b''.join([head, *data])).hexdigest())
    with open(self.path, 'wb') as f:
        for piece in (head, *data): f.write(piece)
        f.flush()
        os.fsync(f.fileno())


def _save_for_ever(path, v, n, background, told):
    "The child: versions from `v` on, each number told through the pipe once `save` has returned."
    saver = Saver()
    while True:
        saver.save(path, version(v, n), background=background)
        saver.wait()
        os.write(told, v.to_bytes(8, 'little'))
        v += 1


def kill_once(path, v, rng):
    "Kill a child that saves, at a random moment; the last version that it acknowledged, or `v` itself."
    ours, theirs = os.pipe()
    n, background = rng.choice(SIZES), rng.random() < 0.3
    pid = os.fork()
    if not pid:
        try: _save_for_ever(path, v + 1, n, background, theirs)
        finally: os._exit(1)
    os.close(theirs)
    time.sleep(rng.uniform(0.005, 0.06))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    told = b''
    while piece := os.read(ours, 1 << 16): told += piece
    os.close(ours)
    return int.from_bytes(told[-8:], 'little') if told else v


def kills(n, seed=0):
    """Counts over `n` kills: corrupt checkpoints, acknowledged saves lost, temporaries met, left over, saves
    acknowledged."""
    rng, v, out = random.Random(seed), 0, dict(kills=n, corrupt=0, lost=0, temporaries=0, left_over=0, acknowledged=0)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, NAME)
        save(path, version(0, 10))
        for _ in range(n):
            acknowledged = kill_once(path, v, rng)
            out['acknowledged'] += acknowledged - v
            out['temporaries'] += len(os.listdir(folder)) > 1
            remove_stale(folder)
            out['left_over'] += os.listdir(folder) != [NAME]
            v = _looked_at(path, acknowledged, out)
    return out


def _looked_at(path, acknowledged, out):
    try: v = read_version(path)
    except (CheckpointError, AssertionError, FileNotFoundError):
        out['corrupt'] += 1
        save(path, version(acknowledged, 10))
        return acknowledged
    out['lost'] += v < acknowledged
    return v


# Calls that fail

CALLS = ['create', 'write', 'pwrite', 'fsync', 'fsync_dir', 'open_dir', 'open_regular', 'read_into', 'fstat', 'rename',
         'link',
         'unlink', 'close', 'close_dir']


@contextmanager
def patched(**functions):
    old = {nm: getattr(disk, nm) for nm in functions}
    try:
        for nm, f in functions.items(): setattr(disk, nm, f)
        yield
    finally:
        for nm, f in old.items(): setattr(disk, nm, f)


@contextmanager
def failing(name, error, first, for_good):
    """The `first`-th call of `disk.name`, from 0, and all later ones if `for_good`, raise `error`; close does its
    work before."""
    real, calls = getattr(disk, name), []
    def call(*args):
        calls.append(args)
        due = len(calls) > first if for_good else len(calls) == first + 1
        if due and error == 'short': return real(args[0], args[1][:len(args[1])//2 or 1], *args[2:])
        if not due or name.startswith('close'): out = real(*args)
        if due: raise error
        return out
    with patched(**{name: call}): yield calls


def count_calls(name, path):
    with failing(name, None, 10**9, False) as calls: save(path, version(2, 3000))
    return len(calls)


ERRORS = [OSError(28, 'No space left on device'), OSError(5, 'Input/output error'),
          PermissionError(13, 'Permission denied'), InterruptedError(4, 'Interrupted system call'),
          KeyboardInterrupt(), 'short']


def fault_cases(folder):
    "Every call of a save, every error, once and for good."
    path = os.path.join(folder, NAME)
    for name in CALLS:
        for k in range(count_calls(name, path)):
            for e in ERRORS:
                if e == 'short' and name not in ('write', 'pwrite', 'read_into'): continue
                for for_good in (False, True): yield name, k, e, for_good


def try_fault(folder, name, k, error, for_good):
    """Save version 2 over 1 with a call failing: what came of it ('saved', 'error', 'interrupt'), and whether all is as
    it should be. A disk that refuses to remove for good cannot be asked to leave nothing."""
    path = os.path.join(folder, NAME)
    save(path, version(1, 3000))
    outcome, said = 'saved', ''
    with failing(name, error, k, for_good):
        try: save(path, version(2, 3000))
        except SaveError as e: outcome, said = 'error', str(e)
        except KeyboardInterrupt: outcome = 'interrupt'
    if name == 'unlink': remove_stale(folder)
    left = read_version(path)
    clean = os.listdir(folder) == [NAME]
    told = (outcome == 'interrupt') == isinstance(error, KeyboardInterrupt) or outcome == 'saved'
    named = outcome != 'error' or (path in said and 'bytes were written' in said)
    stood = outcome == 'interrupt' and name in ('unlink', 'close_dir')  # the last calls: the new file stands already
    return outcome, clean and told and named and left == (2 if stood or outcome == 'saved' else 1)


# Power loss

class Recorder:
    "Writes down what a save asks of the disk, by file number and name, while it does it."
    def __init__(self, without=()):
        self.ops, self.files, self.without = [], {}, without
        real = {nm: getattr(disk, nm) for nm in CALLS}
        def create(path):
            fd = real['create'](path)
            self.files[fd] = len(self.ops)
            self.note('create', self.files[fd], os.path.basename(path))
            return fd
        def write(fd, data):
            n = real['write'](fd, data)
            self.note('write', self.files[fd], None, bytes(data[:n]))
            return n
        def pwrite(fd, data, at):
            self.note('write', self.files[fd], at, bytes(data))
            return real['pwrite'](fd, data, at)
        def names(what):
            def f(*paths):
                real[what](*paths)
                self.note(what, *map(os.path.basename, paths))
            return f
        def synced(what):
            def f(fd):
                real[what](fd)
                self.note(what, *([self.files[fd]] if what == 'fsync' else []))
            return f
        renames = {nm: names(nm) for nm in ('rename', 'link', 'unlink')}
        syncs = {nm: synced(nm) for nm in ('fsync', 'fsync_dir')}
        self.functions = dict(create=create, write=write, pwrite=pwrite, **renames, **syncs)

    def note(self, *op):
        if op[0] not in self.without: self.ops.append(op)

    def acknowledged(self, v): self.ops.append(('acknowledged', v))


class Disk:
    "A model of a disk: what is sure to be on it, and what was asked since and may be there or not, in any part."
    def __init__(self): self.sure, self.asked, self.names, self.renaming, self.version = {}, {}, {}, [], None

    def do(self, op, *args):
        if op == 'acknowledged': self.version = args[0]
        elif op == 'write': self.asked.setdefault(args[0], []).append(args[1:])
        elif op == 'fsync': self.sure[args[0]] = self.content(args[0], self.asked.pop(args[0], []))
        elif op == 'fsync_dir': self.names, self.renaming = self.named(self.renaming), []
        else: self.renaming.append((op, *args))

    def content(self, file, writes):
        data = bytearray(self.sure.get(file, b''))
        at = len(data)
        for where, piece in writes:
            begin = at if where is None else where
            data[len(data):] = bytes(max(0, begin + len(piece) - len(data)))
            data[begin:begin + len(piece)] = piece
            if where is None: at += len(piece)
        return bytes(data)

    def named(self, ops):
        names = dict(self.names)
        for op, *args in ops:
            if op == 'create': names[args[1]] = args[0]
            elif op == 'unlink': names.pop(args[0], None)
            elif args[0] in names:
                names[args[1]] = names[args[0]]
                if op == 'rename': del names[args[0]]
        return names

    def files_after_power_loss(self, file, rng):
        "What `file` may hold: nothing of what was asked, all, a beginning, holes of zeros, another order's rest."
        writes = self.asked.get(file, [])
        yield self.content(file, writes)
        if not writes: return
        yield self.content(file, [])
        for _ in range(3):
            yield self.content(file, writes[:rng.randrange(len(writes))])
            yield self.content(file, [(w, p if rng.random() < 0.5 else bytes(len(p))) for w, p in writes])
            whole = self.content(file, writes)
            cut = rng.randrange(len(whole) + 1)
            yield whole[:cut]
            yield whole[:cut] + bytes(len(whole) - cut)

    def folders_after_power_loss(self, rng):
        "Names as they may be: with the first few of the changes since the last sync, or any of them."
        for k in range(len(self.renaming) + 1): yield self.named(self.renaming[:k])
        for _ in range(4): yield self.named([op for op in self.renaming if rng.random() < 0.5])


def power_loss(saves=3, without=(), seed=0, background=False):
    """Counts over every cut through a few saves: disks looked at, those with no whole checkpoint or with an older
    one than acknowledged."""
    rng, out = random.Random(seed), dict(cuts=0, disks=0, wrong=0)
    with tempfile.TemporaryDirectory() as folder:
        recorder = _recorded(folder, saves, without, background)
        model = Disk()
        for op in recorder.ops:
            model.do(*op)
            out['cuts'] += 1
            for found in _possible(model, rng):
                out['disks'] += 1
                out['wrong'] += not _is_right(Path(folder)/'found', found, model.version, saves)
    return out


def _recorded(folder, saves, without, background):
    recorder, path = Recorder(without), os.path.join(folder, NAME)
    with patched(**recorder.functions):
        for v in range(1, saves + 1):
            pending = save(path, version(v, 3000), background=background)
            if pending: pending.wait()
            recorder.acknowledged(v)
    return recorder


def _possible(model, rng):
    "The contents that the checkpoint's name may have, None where it may be absent."
    for names in model.folders_after_power_loss(rng):
        if NAME not in names: yield None
        else: yield from model.files_after_power_loss(names[NAME], rng)


def _is_right(path, found, acknowledged, last):
    if found is None: return acknowledged is None
    path.write_bytes(found)
    try: return (acknowledged or 0) <= read_version(path) <= last
    except CheckpointError: return False


if __name__ == '__main__':
    torch.set_num_threads(1)
    if sys.argv[2:]: durable._Writing.run = in_place
    print(kills(int(sys.argv[1]), seed=random.randrange(10**6)))

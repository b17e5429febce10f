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
NAMES = NAME, 'b.safetensors', 'there/c.safetensors'  # of one file
SIZES = (10, 30_000, 500_000)  # elements


def version(v, n): return dict(version=v, weights=torch.full((n,), v, dtype=torch.int32), more=[torch.tensor(v)]*2)


def read_version(path):
    "The version of a whole checkpoint; AssertionError where it is a mixture."
    state = load(path)
    assert state['weights'].eq(state['version']).all()
    return state['version']


def save_as(folder, v, names=NAMES, n=3000, by=save, **how):
    "Save version `v` under all of `names`."
    os.makedirs(os.path.join(folder, 'there'), exist_ok=True)
    path, *also = (os.path.join(folder, nm) for nm in names)
    return by(path, version(v, n), also=also, **how)


def versions(folder, names=NAMES): return [read_version(os.path.join(folder, nm)) for nm in names]


def files_in(folder):
    "The names of all files, from `folder` on."
    return {os.path.relpath(os.path.join(at, nm), folder) for at, _, names in os.walk(folder) for nm in names}


def remove_all_stale(folder):
    for at in (folder, os.path.join(folder, 'there')): remove_stale(at)


# Kills

def in_place(self, head, memories):
    "A save that writes over the old file: what kills must find."
    data = [bytes(m) for m in memories]
    head, _ = sealed(head, hashlib.sha256(b''.join([head, *data])).hexdigest())
    with open(self.path, 'wb') as f:
        for piece in (head, *data): f.write(piece)
        f.flush()
        os.fsync(f.fileno())


def _save_for_ever(folder, v, n, background, told):
    "The child: versions from `v` on, each number told through the pipe once `save` has returned."
    saver = Saver()
    while True:
        save_as(folder, v, n=n, by=saver.save, background=background)
        saver.wait()
        os.write(told, v.to_bytes(8, 'little'))
        v += 1


def kill_once(folder, v, rng):
    "Kill a child that saves, at a random moment; the last version that it acknowledged, or `v` itself."
    ours, theirs = os.pipe()
    n, background = rng.choice(SIZES), rng.random() < 0.3
    pid = os.fork()
    if not pid:
        try: _save_for_ever(folder, v + 1, n, background, theirs)
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
    """Counts over `n` kills: corrupt checkpoints, acknowledged saves lost, temporaries met, left over, kills between
    the names of a file, saves acknowledged."""
    counts = 'corrupt', 'lost', 'temporaries', 'left_over', 'between', 'acknowledged'
    rng, v, out = random.Random(seed), 0, dict(kills=n) | dict.fromkeys(counts, 0)
    with tempfile.TemporaryDirectory() as folder:
        save_as(folder, 0, n=10)
        for _ in range(n):
            acknowledged = kill_once(folder, v, rng)
            out['acknowledged'] += acknowledged - v
            out['temporaries'] += files_in(folder) != set(NAMES)
            remove_all_stale(folder)
            out['left_over'] += files_in(folder) != set(NAMES)
            v = _looked_at(folder, acknowledged, out)
    return out


def _looked_at(folder, acknowledged, out):
    try: found = versions(folder)
    except (CheckpointError, AssertionError, FileNotFoundError):
        out['corrupt'] += 1
        save_as(folder, acknowledged, n=10)
        return acknowledged
    out['lost'] += min(found) < acknowledged
    out['between'] += min(found) < max(found)
    return min(found)


# Calls that fail

CALLS = ['create', 'write', 'pwrite', 'fsync', 'fsync_dir', 'open_dir', 'is_replaceable', 'open_regular', 'read_into',
         'fstat', 'rename', 'link', 'unlink', 'close', 'close_dir']


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


def no_links(*paths): raise PermissionError(1, 'Operation not permitted')


# By name, the names to save under, and what the disk does otherwise
WAYS = dict(alone=((NAME,), {}), linked=(NAMES, {}), copied=(NAMES, dict(link=no_links)))


def count_calls(name, folder, way):
    names, lacks = WAYS[way]
    with patched(**lacks), failing(name, None, 10**9, False) as calls: save_as(folder, 2, names)
    return len(calls)


ERRORS = [OSError(28, 'No space left on device'), OSError(5, 'Input/output error'),
          PermissionError(13, 'Permission denied'), InterruptedError(4, 'Interrupted system call'),
          KeyboardInterrupt(), 'short']


def fault_cases(folder, errors=ERRORS, ways=tuple(WAYS)):
    "Every call of a save, every error, once and for good: under one name, several, and several that are copies."
    for way, name in ((way, nm) for way in ways for nm in CALLS if nm not in WAYS[way][1]):
        for k in range(count_calls(name, folder, way)):
            for e in errors:
                if e == 'short' and name not in ('write', 'pwrite', 'read_into'): continue
                for for_good in (False, True): yield way, name, k, e, for_good


def try_fault(folder, way, name, k, error, for_good):
    """Save version 2 over 1 with a call failing: what came of it ('saved', 'error', 'interrupt'), and whether all is as
    it should be. A disk that refuses to remove for good cannot be asked to leave nothing."""
    names, lacks = WAYS[way]
    save_as(folder, 1)
    outcome, said, at = 'saved', '', len(names)
    with patched(**lacks), failing(name, error, k, for_good):
        try: save_as(folder, 2, names)
        except SaveError as e: outcome, said, at = 'error', str(e), names.index(os.path.relpath(e.path, folder))
        except KeyboardInterrupt: outcome = 'interrupt'
    if name == 'unlink': remove_all_stale(folder)
    left = versions(folder, names)
    clean = files_in(folder) == set(NAMES)
    told = (outcome == 'interrupt') == isinstance(error, KeyboardInterrupt) or outcome == 'saved'
    named = outcome != 'error' or (said.startswith(os.path.join(folder, names[at])) and 'bytes were written' in said)
    at += way == 'copied' and 'what stands there is the new file' in said  # which nothing could take back
    if name == 'is_replaceable': at = 0  # asked of all names before anything is written
    new = _after_interrupts(way, name) if outcome == 'interrupt' else [at]
    return outcome, clean and told and named and left in [[2]*k + [1]*(len(names) - k) for k in new]


def _after_interrupts(way, name):
    "Under how many names the new file may stand: where there is but one, from the last two calls on."
    return [name in ('unlink', 'close_dir')] if way == 'alone' else range(len(NAMES) + 1)


# Power loss

class Recorder:
    """Writes down what a save asks of the disk while it does it: of files by number, of folders by name. A change of
    names is the names that it gives, with their files, and those that it takes, with None."""
    def __init__(self, folder, without=()):
        self.ops, self.opened, self.names, self.without = [], {}, {}, without
        real = {nm: getattr(disk, nm) for nm in CALLS}
        def rel(path): return os.path.relpath(path, folder)
        def create(path):
            fd = real['create'](path)
            self.opened[fd] = len(self.ops)
            self.change({rel(path): self.opened[fd]})
            return fd
        def open_dir(path):
            fd = real['open_dir'](path)
            self.opened[fd] = rel(path)
            return fd
        def write(fd, data):
            n = real['write'](fd, data)
            self.note('write', self.opened[fd], None, bytes(data[:n]))
            return n
        def pwrite(fd, data, at):
            self.note('write', self.opened[fd], at, bytes(data))
            return real['pwrite'](fd, data, at)
        def rename(old, new):
            real['rename'](old, new)
            self.change({rel(new): self.names[rel(old)], rel(old): None})
        def link(old, new):
            real['link'](old, new)
            self.change({rel(new): self.names[rel(old)]})
        def unlink(path):
            real['unlink'](path)
            self.change({rel(path): None})
        def fsync(fd):
            real['fsync'](fd)
            self.note('fsync', self.opened[fd])
        def fsync_dir(fd):
            real['fsync_dir'](fd)
            self.note('fsync_dir', self.opened[fd])
        self.functions = dict(create=create, open_dir=open_dir, write=write, pwrite=pwrite, rename=rename, link=link,
                              unlink=unlink, fsync=fsync, fsync_dir=fsync_dir)

    def change(self, names):
        self.names |= names
        self.note('names', names)

    def note(self, *op):
        if op[0] not in self.without: self.ops.append(op)

    def acknowledged(self, v): self.ops.append(('acknowledged', v))


def folder_of(name): return os.path.dirname(name) or '.'


class Disk:
    "A model of a disk: what is sure to be on it, and what was asked since and may be there or not, in any part."
    def __init__(self): self.sure, self.asked, self.names, self.changes, self.version = {}, {}, {}, [], None

    def do(self, op, *args):
        if op == 'acknowledged': self.version = args[0]
        elif op == 'write': self.asked.setdefault(args[0], []).append(args[1:])
        elif op == 'fsync': self.sure[args[0]] = self.content(args[0], self.asked.pop(args[0], []))
        elif op == 'fsync_dir': self.sync_folder(args[0])
        else: self.changes.append(args[0])

    def sync_folder(self, folder):
        "No change is of two folders."
        of_it = [c for c in self.changes if folder_of(next(iter(c))) == folder]
        self.names, self.changes = self.named(of_it), [c for c in self.changes if c not in of_it]

    def content(self, file, writes):
        data = bytearray(self.sure.get(file, b''))
        at = len(data)
        for where, piece in writes:
            begin = at if where is None else where
            data[len(data):] = bytes(max(0, begin + len(piece) - len(data)))
            data[begin:begin + len(piece)] = piece
            if where is None: at += len(piece)
        return bytes(data)

    def named(self, changes):
        names = dict(self.names)
        for c in changes: names |= c
        return {nm: file for nm, file in names.items() if file is not None}

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
        for k in range(len(self.changes) + 1): yield self.named(self.changes[:k])
        for _ in range(4): yield self.named([c for c in self.changes if rng.random() < 0.5])


def power_loss(saves=3, without=(), seed=0, background=False, way='linked'):
    """Counts over every cut through a few saves: disks looked at, those with no whole checkpoint or with an older
    one than acknowledged, under any name."""
    rng, out = random.Random(seed), dict(cuts=0, disks=0, wrong=0)
    with tempfile.TemporaryDirectory() as folder:
        recorder = _recorded(os.path.realpath(folder), saves, without, background, way)
        model = Disk()
        for op in recorder.ops:
            model.do(*op)
            out['cuts'] += 1
            for found in _possible(model, WAYS[way][0], rng):
                out['disks'] += 1
                out['wrong'] += not _is_right(Path(folder)/'found', found, model.version, saves)
    return out


def _recorded(folder, saves, without, background, way):
    names, lacks = WAYS[way]
    recorder = Recorder(folder, without)
    with patched(**recorder.functions | lacks):
        for v in range(1, saves + 1):
            pending = save_as(folder, v, names, background=background)
            if pending: pending.wait()
            recorder.acknowledged(v)
    return recorder


def _possible(model, wanted, rng):
    "The contents that each of the names may have, None where it may be absent."
    for names, nm in ((names, nm) for names in model.folders_after_power_loss(rng) for nm in wanted):
        if nm not in names: yield None
        else: yield from model.files_after_power_loss(names[nm], rng)


def _is_right(path, found, acknowledged, last):
    if found is None: return acknowledged is None
    path.write_bytes(found)
    try: return (acknowledged or 0) <= read_version(path) <= last
    except CheckpointError: return False


if __name__ == '__main__':
    torch.set_num_threads(1)
    if sys.argv[2:]: durable._Writing.run = in_place
    print(kills(int(sys.argv[1]), seed=random.randrange(10**6)))

"""Ways to stop a save: kill its process, make its system calls fail, cut the power. Each checks what is left.
bench/faults.py runs the long versions.

    python tests/crash.py N [in place]      N kills at random times; a save that writes in place is a negative control
"""
import hashlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from miniai import atomic
from miniai.checkpoint import CheckpointError, SaveError, Saver, durable, load, remove_stale, save, saving
from miniai.checkpoint.header import sealed

NAME = 'c.safetensors'
NAMES = NAME, 'b.safetensors', 'there/c.safetensors'  # of one file
SIZES = (10, 30_000, 500_000)  # elements


@contextmanager
def full_disk(most):
    "No file may grow beyond `most` bytes."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, old[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)


def version(v, n): return dict(version=v, weights=torch.full((n,), v, dtype=torch.int32), more=[torch.tensor(v)]*2)


def read_version(path):
    "The version of a whole checkpoint; AssertionError where it is a mixture."
    state = load(path)
    assert state['weights'].eq(state['version']).all()
    return state['version']


@contextmanager
def folder_in_memory():
    "An empty folder in memory where the system has one: syncing takes no time there."
    there = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=there) as folder: yield os.path.realpath(folder)


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


# The system calls of a save

CALLS = ['open', 'write', 'pwrite', 'fsync', 'replace', 'link', 'unlink', 'close', 'read']


def system(**functions):
    "What `os` is to a save, with some of its functions replaced."
    return SimpleNamespace(**vars(os) | functions)


@contextmanager
def patched(read=open, **functions):
    "Saves use these functions of `os`, and `read` to open the file that they read back."
    durable.open = read
    durable.os = atomic.os = system(**functions)
    try: yield
    finally:
        durable.os = atomic.os = os
        del durable.open


def real(name): return open if name == 'read' else getattr(os, name)


# Kills

def in_place(paths, head, memories, stop=None):
    "A save that writes over the old files: kills must show that it is unsafe."
    data = [bytes(m) for m in memories]
    head = sealed(head, hashlib.sha256(b''.join([head, *data])).hexdigest())
    for path in paths:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for piece in (head, *data): durable.os.write(fd, piece)
        durable.os.fsync(fd)
        os.close(fd)


def _save_forever(folder, v, n, background, pipe):
    "The child: save versions from `v` on, and write each number to the pipe once it is saved."
    saver = Saver()
    while True:
        save_as(folder, v, n=n, by=saver.save, background=background)
        saver.wait()
        os.write(pipe, v.to_bytes(8, 'little'))
        v += 1


def _kill_at_call(k):
    "Let this process kill itself at its `k`-th system call, in the middle of it if it writes."
    left = [k]
    def dying(name):
        def f(*args):
            left[0] -= 1
            if left[0] >= 0: return real(name)(*args)
            if name == 'write': os.write(args[0], args[1][:len(args[1])//2])
            os.kill(os.getpid(), signal.SIGKILL)
        return f
    durable.os = atomic.os = system(**{nm: dying(nm) for nm in CALLS})
    durable.open = dying('read')


def kill_once(folder, v, rng, timed):
    "Kill a child that saves, at a random time or system call; return the last version it acknowledged, or `v` if none."
    ours, theirs = os.pipe()
    n, background, seconds, call = rng.choice(SIZES), rng.random() < 0.3, rng.uniform(0.005, 0.06), rng.randrange(80)
    pid = os.fork()
    if not pid:
        try:
            if not timed: _kill_at_call(call)
            _save_forever(folder, v + 1, n, background, theirs)
        finally: os._exit(1)
    os.close(theirs)
    if timed:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    told = b''
    while piece := os.read(ours, 1 << 16): told += piece
    os.close(ours)
    return int.from_bytes(told[-8:], 'little') if told else v


def kills(n, seed=0, timed=False):
    """Counts over `n` kills: corrupt checkpoints, acknowledged saves lost, temporaries found, left over, kills between
    the names of a file, saves acknowledged. Kills are at random system calls; with `timed`, at random times."""
    counts = 'corrupt', 'lost', 'temporaries', 'left_over', 'between', 'acknowledged'
    rng, v, out = random.Random(seed), 0, dict(kills=n) | dict.fromkeys(counts, 0)
    with tempfile.TemporaryDirectory() if timed else folder_in_memory() as folder:
        save_as(folder, 0, n=10)
        for _ in range(n):
            acknowledged = kill_once(folder, v, rng, timed)
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

@contextmanager
def failing(name, error, first, for_good, **others):
    """Let the `first`-th call of `name`, from 0, and all later ones if `for_good`, raise `error`; close first does its
    work. 'short' writes only half."""
    calls = []
    def call(*args):
        calls.append(args)
        due = len(calls) > first if for_good else len(calls) == first + 1
        if due and error == 'short': return real(name)(args[0], args[1][:len(args[1])//2 or 1], *args[2:])
        if not due or name == 'close': out = real(name)(*args)
        if due: raise error
        return out
    with patched(**others | {name: call}): yield calls


def no_links(*paths): raise PermissionError(1, 'Operation not permitted')


# By way: the names to save under, and the functions that are replaced
WAYS = dict(alone=((NAME,), {}), linked=(NAMES, {}), copied=(NAMES, dict(link=no_links)))


def count_calls(name, folder, way):
    names, lacks = WAYS[way]
    with failing(name, None, 10**9, False, **lacks) as calls: save_as(folder, 2, names)
    return len(calls)


ERRORS = [OSError(28, 'No space left on device'), OSError(5, 'Input/output error'),
          PermissionError(13, 'Permission denied'), InterruptedError(4, 'Interrupted system call'),
          KeyboardInterrupt(), 'short']


def fault_cases(folder, errors=ERRORS, ways=tuple(WAYS)):
    "Every call of a save with every error, once and for good: under one name, as links, and as copies."
    for way, name in ((way, nm) for way in ways for nm in CALLS if nm not in WAYS[way][1]):
        for k in range(count_calls(name, folder, way)):
            for e in errors:
                if e == 'short' and name not in ('write', 'pwrite'): continue
                for for_good in (False, True): yield way, name, k, e, for_good


def try_fault(folder, way, name, k, error, for_good):
    """Save version 2 over 1 while a call fails: the outcome ('saved', 'error', 'interrupt'), and whether everything is
    as it should be. (A disk that refuses all removals may leave temporaries, which go later.)"""
    names, lacks = WAYS[way]
    save_as(folder, 1)
    outcome, said, new = 'saved', '', [len(names)]
    with failing(name, error, k, for_good, **lacks):
        try: save_as(folder, 2, names)
        except KeyboardInterrupt: outcome, new = 'interrupt', range(len(names) + 1)
        except SaveError as e:
            outcome, said, at = 'error', str(e), names.index(os.path.relpath(e.path, folder))
            named = said.startswith(os.path.join(folder, names[at])) and 'the file takes' in said
            new = [at + ('the new file is at this path' in said)] if named else []
    if name == 'unlink': remove_all_stale(folder)
    clean = files_in(folder) == set(NAMES)
    told = (outcome == 'interrupt') == isinstance(error, KeyboardInterrupt)
    return outcome, clean and told and versions(folder, names) in [[2]*n + [1]*(len(names) - n) for n in new]


# Power loss

class Recorder:
    """Records what a save asks of the disk: for files by number, for folders by name. A change of names maps each name
    to its file, or to None if it was removed."""
    def __init__(self, folder, without=()):
        self.ops, self.opened, self.names, self.without = [], {}, {}, without
        def rel(path): return os.path.relpath(path, folder)
        def opens(path, flags, mode=0o777):
            fd = os.open(path, flags, mode)
            self.opened[fd] = rel(path) if flags & os.O_DIRECTORY else len(self.ops)
            if flags & os.O_CREAT: self.change({rel(path): self.opened[fd]})
            return fd
        def write(fd, data):
            n = os.write(fd, data)
            self.note('write', self.opened[fd], None, bytes(data[:n]))
            return n
        def pwrite(fd, data, at):
            self.note('write', self.opened[fd], at, bytes(data))
            return os.pwrite(fd, data, at)
        def replace(old, new):
            os.replace(old, new)
            self.change({rel(new): self.names[rel(old)], rel(old): None})
        def link(old, new):
            os.link(old, new)
            self.change({rel(new): self.names[rel(old)]})
        def unlink(path):
            os.unlink(path)
            self.change({rel(path): None})
        def fsync(fd):
            os.fsync(fd)
            self.note('fsync_dir' if isinstance(self.opened[fd], str) else 'fsync', self.opened[fd])
        self.functions = dict(open=opens, write=write, pwrite=pwrite, replace=replace, link=link, unlink=unlink,
                              fsync=fsync)

    def change(self, names):
        self.names |= names
        self.note('names', names)

    def note(self, *op):
        if op[0] not in self.without: self.ops.append(op)

    def acknowledged(self, v): self.ops.append(('acknowledged', v))


def folder_of(name): return os.path.dirname(name) or '.'


class Disk:
    "A model of a disk: what is surely on it, and what was asked since, any part of which may be there or not."
    def __init__(self): self.sure, self.asked, self.names, self.changes, self.version = {}, {}, {}, [], None

    def do(self, op, *args):
        if op == 'acknowledged': self.version = args[0]
        elif op == 'write': self.asked.setdefault(args[0], []).append(args[1:])
        elif op == 'fsync': self.sure[args[0]] = self.content(args[0], self.asked.pop(args[0], []))
        elif op == 'fsync_dir': self.sync_folder(args[0])
        else: self.changes.append(args[0])

    def sync_folder(self, folder):
        "No change covers two folders."
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
        "What `file` may hold: none of what was asked, all, a beginning, zeros in places, an end without the middle."
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
        "Names as they may be: after the first few of the changes since the last sync, or after any of them."
        for k in range(len(self.changes) + 1): yield self.named(self.changes[:k])
        for _ in range(4): yield self.named([c for c in self.changes if rng.random() < 0.5])


def power_loss(saves=3, without=(), seed=0, background=False, way='linked', stop_at_wrong=False):
    """Counts for a power loss after each operation of a few saves: the states of the disk checked, and the wrong ones,
    with no whole checkpoint under a name, or an older one than acknowledged."""
    rng, out = random.Random(seed), dict(cuts=0, disks=0, wrong=0)
    with folder_in_memory() as folder:
        recorder = _recorded(folder, saves, without, background, way)
        model = Disk()
        for op in recorder.ops:
            model.do(*op)
            out['cuts'] += 1
            for found in _possible(model, WAYS[way][0], rng):
                out['disks'] += 1
                out['wrong'] += not _is_right(Path(folder)/'found', found, model.version, saves)
                if out['wrong'] and stop_at_wrong: return out
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
    "The contents that each of the names may have; None where it may be absent."
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
    if sys.argv[2:]: saving.write_durably = in_place
    print(kills(int(sys.argv[1]), seed=random.randrange(10**6), timed=True))

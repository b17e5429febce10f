"""Files that are not checkpoints, damaged at random or hostile, and what an audit hook sees while they are read.
bench/faults.py runs the long versions.

    python tests/damage.py FOLDER      writes the hostile files to FOLDER, reads each, and prints the outcomes as JSON
"""
import hashlib
import io
import json
import os
import pickle
import random
import resource
import stat
import sys
import tarfile
import zipfile
from contextlib import suppress

import numpy as np
import torch

from miniai.checkpoint import CheckpointError, inspect, load, save, verify
from miniai.checkpoint.header import DIGEST_AT

BAD = ('exec', 'compile', 'import', 'open', 'socket', 'subprocess', 'os.', 'ctypes', 'pickle',
       'marshal', 'shutil', 'urllib', 'code.', 'cpython.run')


# Damage

def originals(folder):
    "Three whole files, as bytes: mostly numbers, mostly text, mostly data."
    states = dict(epoch=1, w=torch.randn(50)), {str(i): i*1.5 for i in range(300)}, [torch.randn(20_000),
                                                                                     torch.zeros(9000), 'x']
    return [_saved(os.path.join(folder, f'{i}.safetensors'), s) for i, s in enumerate(states)]


def _saved(path, state):
    save(path, state)
    with open(path, 'rb') as f: return f.read()


def flip(raw, rng, others):
    for _ in range(rng.choice([1, 1, 1, 5, 100])):
        at = rng.randrange(len(raw))
        raw = raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1:]
    return raw


def _block(raw, rng):
    n = min(rng.choice([1, 16, 512, 4096]), len(raw))
    at = rng.randrange(len(raw) - n + 1)
    return at, at + n


def cut(raw, rng, others): return raw[:rng.choice([rng.randrange(len(raw)), len(raw) - rng.randint(1, 9)])]
def zero(raw, rng, others):
    a, b = _block(raw, rng)
    return raw[:a] + bytes(b - a) + raw[b:]
def swap(raw, rng, others):
    (a, b), n = _block(raw, rng), len(raw)
    c = rng.randrange(n - (b - a) + 1)
    out = bytearray(raw)
    out[a:b], out[c:c + b - a] = raw[c:c + b - a], raw[a:b]
    return bytes(out)
def splice(raw, rng, others):
    at = rng.randrange(len(raw))
    return raw[:at] + rng.choice(others)[at:]
def append(raw, rng, others): return raw + rng.choice([b'\0', b'\n', raw, bytes(512)])
def drop(raw, rng, others):
    a, b = _block(raw, rng)
    return raw[:a] + raw[b:]
def noise(raw, rng, others):
    a, b = _block(raw, rng)
    return raw[:a] + rng.randbytes(b - a) + raw[b:]


KINDS = [flip, cut, zero, swap, splice, append, drop, noise]


def damaged(folder, n, seed=0):
    "Counts over `n` damaged files: refused by both load and verify with a CheckpointError that names the file; other."
    rng, raws = random.Random(seed), originals(folder)
    path, out = os.path.join(folder, 'damaged.safetensors'), dict(files=0, refused=0, other=0)
    while out['files'] < n:
        raw, kind = rng.choice(raws), rng.choice(KINDS)
        bad = kind(raw, rng, raws)
        if bad in raws: continue
        with open(path, 'wb') as f: f.write(bad)
        ok = all(_refused(f, path) for f in (load, verify))
        out['files'], out['refused'], out['other'] = out['files'] + 1, out['refused'] + ok, out['other'] + (not ok)
    return out


def _refused(f, path):
    try: f(path)
    except CheckpointError as e: return e.path == path and path in str(e)
    except Exception: return False
    return False


def peak_of_reading(path):
    "How much this process grows while it reads a file, whole or not, as a multiple of the file's size."
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')  # resets the peak
    before = _kib('VmRSS')
    with suppress(CheckpointError): load(path)
    return (_kib('VmHWM') - before)*1024 / os.path.getsize(path)


def _kib(what):
    with open('/proc/self/status') as f: return int(next(ln for ln in f if ln.startswith(what)).split()[1])


# Hostile files, sealed with the right sha256, so that they must be refused for their contents

def sealed(header, data=b''):
    "A file with this header, bytes or a dict, and the digest that belongs to it."
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(',', ':')).encode()
    raw = len(text).to_bytes(8, 'little') + text + data
    digest = hashlib.sha256(raw[:DIGEST_AT] + b'0'*64 + raw[DIGEST_AT + 64:]).hexdigest().encode()
    return raw[:DIGEST_AT] + digest + raw[DIGEST_AT + 64:]


def meta(state='null', tensors='{}', **more):
    state, tensors = (x if isinstance(x, str) else json.dumps(x, separators=(',', ':')) for x in (state, tensors))
    made = dict(saved='2026-01-01', miniai='0', torch='0')
    return dict(sha256='0'*64, format='miniai checkpoint', version='1', **made, state=state, tensors=tensors) | more


def tensor(dtype='F32', shape=(2,), at=(0, 8)): return dict(dtype=dtype, shape=list(shape), data_offsets=list(at))
def one(entry=None, state=None, table='{}', data=bytes(8)):
    "A file with one tensor, 't', as `entry` and `table` describe it."
    return sealed({'__metadata__': meta(state or {'$tensor': 't'}, table), 't': entry or tensor()}, data)


def _row(entry=None, table='{}', state=None):
    "A file with one number, 't', that the state uses as a list."
    return one(entry or tensor('F64', (1,)), state or {'$floats': 't'}, table)


class Code:
    def __reduce__(self): return os.system, ('touch /tmp/miniai-was-here',)


def _zip():
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z: z.writestr('archive/data.pkl', pickle.dumps(Code()))
    return out.getvalue()
def _tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as t: t.add(__file__, '../../escape.py')
    return out.getvalue()
def _torch(**kwargs):
    out = io.BytesIO()
    torch.save(dict(model=torch.zeros(3), code=Code()), out, **kwargs)
    return out.getvalue()
def _npy():
    out = io.BytesIO()
    np.save(out, np.array([Code()], dtype=object), allow_pickle=True)
    return out.getvalue()


def deep(n, a='[', b=']'): return a*n + b*n


PREFIX = b'{"__metadata__":{"sha256":"' + b'0'*64 + b'"'


def contents():
    "Hostile files by name, as bytes."
    big = (1 << 63).to_bytes(8, 'little')
    files = {
        'pickle': pickle.dumps(Code()), 'pickle 0': pickle.dumps(Code(), 0), 'pickle 2': pickle.dumps(Code(), 2),
        'zip': _zip(), 'tar': _tar(),
        'torch': _torch(), 'torch legacy': _torch(_use_new_zipfile_serialization=False), 'npy': _npy(), 'empty': b'',
        'zeros': bytes(5000),
        'ones': b'\xff'*5000, 'script': b'#!/bin/sh\nid > /tmp/miniai-was-here\n'*9,
        'python': b'import os; os.system("id")\n'*9,
        'header of 2**63': big + b'{}'*99, 'header of -1': b'\xff'*8 + b'{}'*99,
        'header of 99 MB': (99_000_000).to_bytes(8, 'little') + PREFIX,
        'no json': sealed(PREFIX + b'}'*50), 'deep json': sealed(PREFIX + b',"a":' + deep(50_000).encode() + b'}}'),
        'deep objects': sealed(PREFIX + b',"a":' + b'{"a":'*50_000 + b'1' + b'}'*50_000 + b'}}'),
        'deep state': sealed({'__metadata__': meta(deep(100_000))}),
        'deep enough state': sealed({'__metadata__': meta(deep(500))}),
        'wide json': sealed({'__metadata__': meta('[' + '[],'*200_000 + '[]]'), 'x': 1}),
        'absurd int': sealed(PREFIX + b',"a":' + b'9'*100_000 + b'}}'),
        'absurd int in the state': sealed({'__metadata__': meta('9'*5000)}),
        'absurd exponent': sealed({'__metadata__': meta({'$int': '1e999999999'})}),
        'nan': sealed({'__metadata__': meta('NaN')}),
        'key twice': sealed(sealed({'__metadata__': meta()})[8:].replace(b'"torch":"0"', b'"torch":"0","torch":"1"')),
        'later version': sealed({'__metadata__': meta(version='2')}),
        'no version': sealed({'__metadata__': dict(sha256='0'*64, format='miniai checkpoint')}),
        'metadata of numbers': sealed({'__metadata__': dict(sha256='0'*64, a=1)}),
        'not utf-8': sealed(PREFIX + b',"a":"\xff\xfe"}}'),
        'offsets overlap': sealed({'__metadata__': meta([{'$tensor': 'a'}, {'$tensor': 'b'}]), 'a': tensor(),
                                   'b': tensor(at=(4, 12))}, bytes(12)),
        'offsets leave a gap': sealed({'__metadata__': meta([{'$tensor': 'a'}, {'$tensor': 'b'}]), 'a': tensor(),
                                       'b': tensor(at=(12, 20))}, bytes(20)),
        'offsets backwards': one(tensor(at=(8, 0))), 'offsets negative': one(tensor(at=(-8, 0))),
        'offsets beyond': one(tensor(at=(0, 1 << 40), shape=(1 << 38,))),
        'offsets of floats': one(tensor(at=(0, 8.0))), 'bytes after the end': one() + b'\0',
        'shape lies': one(tensor(shape=(3,))),
        'shape negative': one(tensor(shape=(-2, -1))), 'shape overflows': one(tensor(shape=(2**32, 2**32, 0),
                                                                                     at=(0, 0)), data=b''),
        'shape of 2**62 and 0': one(tensor(shape=(2**61, 2**61, 0), at=(0, 0)),
                                    data=b''), 'shape of 999 sizes': one(tensor(shape=(1,)*999)),
        'shape of bools': one(tensor(shape=(True, 2))), 'dtype unknown': one(tensor('os.system')),
        'dtype a list': one(dict(tensor(), dtype=['F32'])),
        'strides beyond': one(table={'t': dict(shape=[2], stride=[1000])}),
        'strides negative': one(table={'t': dict(shape=[2], stride=[-1])}),
        'strides of another length': one(table={'t': dict(shape=[2], stride=[1, 1])}),
        'strides zero': one(table={'t': dict(shape=[2**40, 2], stride=[0, 1])}),
        'another shape': one(table={'t': dict(shape=[1, 2, 1], stride=[2, 1, 1])}),
        'table of strangers': one(table={'u': dict(numpy=True)}),
        'table that names code': one(table={'t': dict(dtype='nn.Module')}),
        'table with a dunder': one(table={'t': dict(dtype='__class__')}),
        'numpy of a type it lacks': one(tensor('BF16', (4,)), table={'t': dict(numpy=True)}),
        'device of code': one(table={'t': dict(device='__import__("os")')}),
        'alias to nowhere': one(state=[{'$tensor': 't'}, {'$tensor': 'u'}]),
        'alias of a list': one(state={'$tensor': ['t']}), 'tensor without a place': one(state=[1]),
        'reduce': one(state=[{'$tensor': 't'}, {'$reduce': ['os.system', ['id']]}]),
        'py/object': one(state=[{'$tensor': 't'}, {'py/object': 'os.system'}]),
        'dunder keys': one(state={'__class__': 'os', '__reduce__': ['os.system', 'id'], '__init__': 1,
                                  't': {'$tensor': 't'}}),
        'config that names code': one(state=dict(t={'$tensor': 't'}, opt='os.system("id > /tmp/miniai-was-here")',
                                                 f='!!python/object/apply:os.system [id]')),
        'template': one(state=dict(t={'$tensor': 't'}, s='{0.__class__.__mro__} ${jndi:ldap://x} `id` $(id)')),
        'tag with more': one(state={'$tuple': [], 'x': 1}),
        'unknown tag': one(state={'$eval': '1'}), 'keys twice': one(state={'$dict': [[1, 1], [1, {'$tensor': 't'}]]}),
        'key of a list': one(state={'$dict': [[[1], 1]]}),
        'pairs of three': one(state={'$dict': [[1, 2, 3]]}), 'no pairs': one(state={'$dict': 5}),
        'tuple of text': one(state={'$tuple': 'abc'}),
        'bytes that are none': one(state={'$bytes': '%%%'}), 'bytes of a number': one(state={'$bytes': 5}),
        'floats of another type': one(state={'$floats': 't'}), 'ints of another type': one(state={'$ints': 't'}),
        'floats of no tensor': one(state=[{'$tensor': 't'}, {'$floats': 'u'}]),
        'floats by number': one(state=[{'$tensor': 't'}, {'$floats': 5}]),
        'floats of no strides': _row(table={'t': dict(shape=[2**40], stride=[0])}),
        'floats in rows': _row(tensor('F64', (1, 1), (0, 8))), 'floats of numpy': _row(table={'t': dict(numpy=True)}),
        'floats twice': _row(state=[{'$floats': 't'}]*2),
        'floats and a tensor': _row(state=[{'$floats': 't'}, {'$tensor': 't'}]),
        'a tensor and floats': _row(state=[{'$tensor': 't'}, {'$floats': 't'}]),
        'array of 2**65 bytes': _row(state={'$tensor': 't'}, table={'t': dict(shape=[2**62 - 1], stride=[0],
                                                                              numpy=True)}),
        'float of 3 bytes': one(state={'$float': 'abcdef'}),
        'scalar of objects': one(state={'$scalar': ['object', '00'*8]}),
        'scalar too short': one(state={'$scalar': ['float32', '00']}),
        'scalar with a field': one(state={'$scalar': ['S1000000000', '00']}),
        'int that is none': one(state={'$int': 'os'})}
    return files


def write_hostile(folder):
    "Write the hostile files, and some that are not regular files; return their paths by name."
    others = {'fifo': os.mkfifo, 'directory': os.mkdir, 'zero device': lambda p: os.symlink('/dev/zero', p),
              'link to itself': lambda p: os.symlink(p, p), 'link to nothing': lambda p: os.symlink('nothing', p)}
    paths = {nm: os.path.join(folder, nm.replace('/', ' ')) for nm in (*contents(), *others)}
    for nm, raw in contents().items():
        with open(paths[nm], 'wb') as f: f.write(raw)
    for nm, make in others.items(): make(paths[nm])
    return paths


def read_all(folder):
    """For each hostile file by name: the outcomes of load, verify and inspect, and what an audit hook saw; and as a
    control, what the hook saw of a pickle and an eval."""
    good = os.path.join(folder, 'good')
    save(good, dict(t=torch.zeros(3), n=np.float32(1)))
    for f in (load, verify, inspect): f(good)
    paths, events, out = write_hostile(folder), None, {}
    def hook(event, args):
        if events is not None and event.startswith(BAD): events.append([event, repr(args)[:200]])
    sys.addaudithook(hook)
    for nm, path in paths.items():
        events = seen = []
        results = [outcome(f, path) for f in (load, verify, inspect)]
        events = None
        out[nm] = dict(results=results, seen=[e for e in seen if not _its_own(e, path)])
    events = control = []
    pickle.loads(pickle.dumps(print))
    eval('1')
    events = None
    return dict(files=out, control=control)


def _its_own(event, path): return event[0] == 'open' and event[1] == f"({path!r}, 'r', {os.O_RDONLY | os.O_CLOEXEC})"


def outcome(f, path):
    try: f(path)
    except CheckpointError as e: return 'refused' if path in str(e) else f'unnamed: {e}'
    except Exception as e: return f'{type(e).__name__}: {e}'
    return 'harmless'


if __name__ == '__main__':
    folder = sys.argv[1]
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    print(json.dumps(read_all(folder)))
    assert stat.S_ISFIFO(os.stat(os.path.join(folder, 'fifo')).st_mode)

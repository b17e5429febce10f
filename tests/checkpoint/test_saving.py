"Checkpoints as their users meet them: what is saved comes back bit for bit, now or beside the caller."
import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from miniai.checkpoint import SaveError, Saver, disk, inspect, load, remove_stale, save, verify
from miniai.checkpoint import background as beside
from states import DTYPES, aliases, bits, everything, same, states, ties, views

LAX = dict(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def path(tmp_path): return tmp_path/'a.safetensors'


def back(path, state):
    save(path, state)
    return load(path)


def comes_back(path, state):
    got = back(path, state)
    assert same(got, state)
    assert aliases(got) == ties(state)


# What comes back

@given(states())
@settings(max_examples=150, **LAX)
def test_any_nest_comes_back_bit_for_bit_with_types_order_strides_and_aliases(path, state): comes_back(path, state)


@given(views())
@settings(max_examples=200, **LAX)
def test_views_of_one_memory_come_back_bit_for_bit_and_only_those_seen_alike_are_tied(path, seen):
    comes_back(path, seen)


X = np.arange(10.)
READ_ONLY = X[::2]
READ_ONLY.setflags(write=False)


@pytest.mark.parametrize(('a', 'b'), [(X[4::-1], X[4:9]), (np.broadcast_to(X[1:2], 5), X[1:6]), (READ_ONLY, X[:5]),
                                      (X[::-1], X[9:]), (X[::2], X[:5]), (X[:2], torch.from_numpy(X[:2]))])
def test_two_views_that_differ_are_not_taken_for_one_another(path, a, b):
    for state in ([a, b], [b, a]): assert same(back(path, state), state)


def test_arrays_keep_their_strides_but_those_that_run_backwards_or_are_read_only_which_come_by_value(path):
    got = back(path, [X[1::3], X.reshape(5, 2).T, X[::-1], READ_ONLY])
    assert [a.strides for a in got] == [(24,), (8, 16), (8,), (8,)]


def test_one_of_everything_comes_back_bit_for_bit(path): assert same(back(path, everything()), everything())


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_every_dtype_comes_back_with_its_bytes(path, dtype):
    t = torch.arange(48, dtype=torch.uint8).view(torch.uint8 if dtype == torch.bool else dtype)
    t = t > 20 if dtype == torch.bool else t
    assert same(back(path, t), t)


@pytest.mark.parametrize('layout', ['channels_last', 'permuted', 'gaps', 'expanded', 'windows', 'empty', 'point'])
def test_a_layout_comes_back_with_its_strides(path, layout):
    t = torch.arange(120.).view(2, 3, 4, 5)
    t = dict(channels_last=t.contiguous(memory_format=torch.channels_last), permuted=t.permute(3, 1, 0, 2), empty=t[:0],
             gaps=t[:, ::2, 1], expanded=t[0, 0, 0].expand(7, 5), windows=t.view(-1).unfold(0, 5, 2),
             point=t.sum())[layout]
    got = back(path, t)
    assert got.stride() == t.stride()
    assert torch.equal(got, t)


def test_a_dense_layout_takes_no_more_room_than_its_elements(path):
    t = torch.zeros(8, 16, 32, 32).contiguous(memory_format=torch.channels_last)
    save(path, t)
    assert t.nbytes < path.stat().st_size < t.nbytes + 1000


ints = st.integers(-2**63, 2**63 - 1)


@given(st.one_of(*(st.lists(x, min_size=60, max_size=70) for x in (
    st.floats(), ints, st.integers(), st.one_of(st.floats(), ints), st.one_of(st.booleans(), ints)))))
@settings(max_examples=100, **LAX)
def test_a_long_list_of_numbers_comes_back_bit_for_bit_with_its_types(path, xs):
    state = dict(a=xs, b=[xs, tuple(xs)], c=xs)
    assert same(back(path, state), state)
    assert verify(path)


def test_long_lists_at_the_edges_come_back_bit_for_bit(path):
    nans = [struct.unpack('>d', bytes.fromhex(h))[0] for h in ('7ff8000000000001', 'fff8000000000000')]
    floats, ints = [*nans, math.inf, -math.inf, -0.0, 5e-324]*20, [2**63 - 1, -2**63, 0]*30
    for state in (floats, ints, [*ints, 2**63], [*ints, True], [*floats, 1], floats[:63], ints[:63]):
        assert same(back(path, state), state)


def test_a_long_list_of_numbers_lies_as_a_tensor_under_its_path_and_a_short_one_as_text(path):
    save(path, dict(recs=dict(lr=[i/7 for i in range(64)], n=list(range(64)), short=[0.5]*63)))
    with safe_open(str(path), 'pt') as f:
        assert torch.equal(f.get_tensor('recs/lr'), torch.arange(64, dtype=torch.float64)/7)
        assert torch.equal(f.get_tensor('recs/n'), torch.arange(64))
        assert json.loads(f.metadata()['state'])['recs'] == dict(lr={'$floats': 'recs/lr'}, n={'$ints': 'recs/n'},
                                                                 short=[0.5]*63)


def test_tied_weights_are_written_once_and_tied_again(path):
    layer = nn.Linear(300, 300)
    got = back(path, dict(encoder=layer.weight, decoder=layer.weight, alias=layer.weight.detach()))
    assert got['encoder'] is got['decoder'] is got['alias']
    assert path.stat().st_size < 1.1*layer.weight.nbytes


def test_equal_tensors_of_their_own_memory_are_not_tied(path):
    got = back(path, [torch.zeros(3), torch.zeros(3)])
    got[0].add_(1)
    assert got[1].sum() == 0


def test_arrays_over_the_same_bytes_are_written_once_and_are_one_again(path):
    raw = bytes(8)
    got = back(path, dict(a=np.frombuffer(raw, 'i2'), b=np.frombuffer(raw, 'i2'), c=np.frombuffer(raw, 'i4')))
    assert got['a'] is got['b']
    assert got['c'].tolist() == [0, 0]


def test_what_comes_back_is_the_callers_own_and_writable(path):
    got = back(path, dict(t=torch.ones(3), a=np.broadcast_to(np.ones(1), 3)))
    got['t'].add_(1), got['a'].__iadd__(1)
    assert got['t'].tolist() == got['a'].tolist() == [2, 2, 2]


def test_negated_and_conjugated_views_come_back_by_value(path):
    z = torch.randn(4, dtype=torch.complex64)
    got = back(path, dict(conj=z.conj(), neg=z.conj().imag, z=z))
    assert torch.equal(got['conj'], z.conj())
    assert torch.equal(got['neg'], -z.imag)
    assert torch.equal(got['z'], z)


def test_the_modules_own_state_dict_loads_again(path):
    a, b = (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
            for _ in range(2))
    b.load_state_dict(back(path, a.state_dict()))
    assert same(dict(a.state_dict()), dict(b.state_dict()))


# The file

def test_safetensors_itself_reads_the_file_and_its_tensors_by_their_paths(path):
    state = everything()
    save(path, state)
    with safe_open(str(path), 'pt') as f:
        meta = f.metadata()
        assert torch.equal(f.get_tensor('model/body.weight'), state['model']['body.weight'])
        assert torch.equal(f.get_tensor('opt/0/avg'), state['opt'][0]['avg'].permute(0, 2, 3, 1))
        assert torch.equal(f.get_tensor('views/point'), torch.tensor(2.5))
    assert json.loads(meta['state'])['epoch'] == 3


def test_all_tensors_lie_aligned_for_readers_that_map_the_file(path):
    save(path, [torch.zeros(3, dtype=d) for d in DTYPES])
    n = int.from_bytes(path.read_bytes()[:8], 'little')
    header = json.loads(path.read_bytes()[8:8 + n])
    begins = [(e['data_offsets'][0], e['dtype']) for nm, e in header.items() if nm != '__metadata__']
    assert n % 8 == 0
    assert all(at % dict(F64=8, F32=4, I64=8, U64=8).get(nm, 1) == 0 for at, nm in begins)


def test_names_that_collide_or_cannot_be_printed_get_names_of_their_own(path):
    state = {'a/b': torch.zeros(1), 'a': {'b': torch.ones(1)}, '__metadata__': torch.ones(2),
             'x\ud800\n': torch.ones(3)}
    assert same(back(path, state), state)
    with safe_open(str(path), 'pt') as f: assert sorted(f.keys()) == ['__metadata__~2', 'a/b', 'a/b~2', 'x\ufffd\ufffd']


def test_the_digest_is_the_sha256_of_the_file_with_zeros_in_its_place(path):
    import hashlib
    save(path, everything())
    raw = path.read_bytes()
    digest = verify(path).encode()
    assert raw.count(digest) == 1
    assert hashlib.sha256(raw.replace(digest, b'0'*64)).hexdigest().encode() == digest


def test_a_large_state_is_written_in_one_pass_without_a_copy(path, monkeypatch):
    state, seen = torch.zeros(5_000_000), []
    real = disk.write
    monkeypatch.setattr(disk, 'write', lambda fd, data: seen.append(len(data)) or real(fd, data))
    save(path, state)
    assert sum(seen) == path.stat().st_size
    assert max(seen) <= 1 << 21
    assert verify(path)


def test_the_mode_of_the_file_follows_the_umask(path):
    old = os.umask(0o027)
    try: save(path, 1)
    finally: os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link_and_its_target_is_replaced(path, tmp_path):
    (tmp_path/'there').mkdir()
    path.symlink_to('there/b.safetensors')
    save(path, 1), save(path, 2)
    assert path.is_symlink()
    assert load(tmp_path/'there'/'b.safetensors') == 2


# What cannot be saved

@pytest.mark.parametrize(('state', 'said'), [
    ({'opt': {'state': {3: {'avg': object()}}}}, r"state\['opt'\]\['state'\]\[3\]\['avg'\] is a builtins.object"),
    ([1, {2}], r"state\[1\] is a builtins.set"), ({1.5: 0}, 'state has the key 1.5; keys must be str or int'),
    ({True: 0}, 'state has the key True'), (namedtuple('P', 'x')(1), 'state is a .*P, which'),
    (torch.float32, 'is a torch.dtype'), (np.array(['a']), r"state is a ndarray of <U1, not a plain array"),
    (np.arange(3, dtype='>i4'), 'not a plain array of native'), ([torch.eye(2).to_sparse()],
                                                                 r'state\[0\] is a tensor that is sparse'),
    (torch.zeros(2, device='meta'), 'meta device'), (np.longdouble(1), 'longdouble'), (len, 'builtin_function'),
    (nn.Linear(1, 1), 'Linear')])
def test_what_a_checkpoint_cannot_hold_is_a_type_error_with_its_path_before_any_writing(path, state, said):
    for background in (False, True):
        with pytest.raises(TypeError, match=said): save(path, state, background=background)
    assert list(path.parent.iterdir()) == []


def test_a_state_that_contains_itself_is_a_type_error(path):
    state = []
    state.append(state)
    with pytest.raises(TypeError, match='contains itself'): save(path, state)


def test_a_header_beyond_what_safetensors_reads_is_refused_with_advice(path, monkeypatch):
    monkeypatch.setattr('miniai.checkpoint.header.LONGEST', 10_000)
    with pytest.raises(ValueError, match='give long lists as tensors'): save(path, ['x']*5000)


def test_a_folder_that_is_not_there_is_a_save_error_with_path_bytes_and_cause(tmp_path):
    with pytest.raises(SaveError, match='No such file or directory') as e: save(tmp_path/'no'/'a', 1)
    assert e.value.path == str(tmp_path/'no'/'a')
    assert (e.value.written, type(e.value.__cause__)) == (0, FileNotFoundError)
    assert e.value.wanted > 100


# Beside the caller

class Gate:
    "Holds the first write until it is opened."
    def __init__(self, monkeypatch):
        self.open, self.real = threading.Event(), disk.write
        monkeypatch.setattr(disk, 'write', self.write)

    def write(self, fd, data):
        assert self.open.wait(10)
        return self.real(fd, data)


def no_space(fd, data): raise OSError(28, 'No space left on device')


def test_a_background_save_holds_the_state_as_of_the_request(path, monkeypatch):
    gate, state = Gate(monkeypatch), everything()
    pending = save(path, state, background=True)
    for t in (state['model']['body.weight'], state['opt'][0]['avg'], state['views']['gaps']): t.fill_(9)
    state['random'][1][:], state['epoch'] = 9, 9
    assert not pending.done()
    assert not path.exists()
    gate.open.set()
    pending.wait()
    assert pending.done()
    assert same(load(path), everything())


def test_a_failure_in_the_background_is_raised_by_wait_and_by_the_next_save_to_the_path(path, monkeypatch):
    save(path, 'old')
    with monkeypatch.context() as m:
        m.setattr(disk, 'write', no_space)
        first, second = save(path, 1, background=True), save(path.with_name('b'), 2, background=True)
        with pytest.raises(SaveError, match='No space left'): first.wait()
        with pytest.raises(SaveError, match='No space left'): save(path.with_name('b'), 3)
    assert second.done()
    assert load(path) == 'old'
    save(path.with_name('b'), 3)  # heard once, it is over
    assert [p.name for p in sorted(path.parent.iterdir())] == ['a.safetensors', 'b']


def test_a_saver_saves_one_after_the_other_and_never_loses_a_failure(path, monkeypatch):
    with Saver() as saver:
        for i in range(4): saver.save(path.with_name(f'{i}'), dict(i=i, t=torch.full((1000,), i)))
        saver.wait()
        assert saver.done()
        assert [load(path.with_name(f'{i}'))['t'].unique().tolist() for i in range(4)] == [[0], [1], [2], [3]]
        monkeypatch.setattr(disk, 'write', no_space)
        for heard in (lambda: saver.save(path, 1), saver.wait):
            saver.save(path, 1)
            with pytest.raises(SaveError): heard()
        saver.save(path, 1)
        until = time.monotonic() + 10
        with pytest.raises(SaveError): [saver.done() for _ in iter(lambda: time.monotonic() < until, False)]
        saver.save(path, 1)
        with pytest.raises(SaveError): saver.__exit__(None, None, None)
        assert saver.done()


def test_memory_reserved_for_a_state_is_the_memory_that_its_copy_goes_to(path):
    with Saver() as saver:
        saver.reserve(everything())
        taken = saver._arena._memory
        saver.save(path, everything())
        assert saver._arena._memory is taken
    assert same(load(path), everything())


def test_memory_once_taken_is_enough_for_a_state_that_grows_a_little(path):
    with Saver() as saver:
        for n in (1_000_000, 1_050_000, 1_000_000):
            saver.save(path, torch.zeros(n))
            saver.wait()
            if n == 1_000_000: first = saver._arena._memory
        assert saver._arena._memory is first


def test_a_saver_can_save_at_once(path):
    Saver().save(path, 5, background=False)
    assert load(path) == 5


EXIT = """
import sys
from miniai.checkpoint import save, disk
import torch
if sys.argv[2] == 'fail': disk.write = lambda fd, data: (_ for _ in ()).throw(OSError(28, 'No space left on device'))
save(sys.argv[1], torch.ones(4_000_000), background=True)
"""


def at_exit(path, how): return subprocess.run([sys.executable, '-c', EXIT, str(path), how], capture_output=True,
                                              text=True)


def test_the_interpreters_end_waits_for_a_background_save(path):
    assert at_exit(path, 'well').stderr == ''
    assert load(path).sum() == 4_000_000


def test_a_failure_that_nobody_heard_is_said_at_the_interpreters_end(path):
    said = at_exit(path, 'fail').stderr
    assert said.startswith(f'miniai: error: {path} was not saved')
    assert 'No space left' in said


FORKED = """
import multiprocessing, sys, time
from miniai.checkpoint import save, disk
def child():
    real = disk.write
    disk.write = lambda fd, data: time.sleep(.3) or real(fd, data)
    save(sys.argv[1], 5, background=True)
p = multiprocessing.get_context('fork').Process(target=child)
p.start(), p.join(), sys.exit(p.exitcode)
"""


def test_the_end_of_a_process_that_multiprocessing_forked_waits_for_a_background_save(path):
    subprocess.run([sys.executable, '-c', FORKED, str(path)], check=True)
    assert load(path) == 5


LEAVE = """
import os, sys, threading, time
import numpy as np
import torch
from miniai.checkpoint import Saver, disk, save
writing, real = threading.Event(), disk.write
def slowly(fd, data): writing.set(); time.sleep(float(sys.argv[2])); return real(fd, data)
disk.write = slowly
with Saver() as saver:
    saver.save(sys.argv[1], [torch.ones(100) for _ in range(300)], also=[sys.argv[1] + '.too'])
    writing.wait()
    if sys.argv[3] == 'abandon': saver.abandon()
    print(time.time(), flush=True)
"""


def leave(path, seconds, how):
    "Leave a process amid a background save: the seconds that it took to end."
    done = subprocess.run([sys.executable, '-c', LEAVE, str(path), str(seconds), how], capture_output=True, text=True,
                          timeout=30)
    assert (done.returncode, done.stderr) == (0, '')
    return time.time() - float(done.stdout)


def test_a_process_ends_at_once_amid_an_abandoned_save_and_its_temporary_goes_at_the_next_start(path):
    save(path, 'old')
    assert leave(path, 20, 'abandon') < 5
    assert load(path) == 'old'
    stale = remove_stale(path.parent)
    assert [p.suffix for p in stale] == ['.part']
    assert list(path.parent.iterdir()) == [path]


def test_a_process_ends_after_a_save_that_was_not_abandoned(path):
    save(path, 'old')
    assert leave(path, .002, 'stay') > .2
    assert len(load(path)) == len(load(f'{path}.too')) == 300
    assert remove_stale(path.parent) == []


@pytest.mark.parametrize('seconds', [0, .002])
def test_a_process_ends_without_a_crash_wherever_an_abandoned_save_stands(path, seconds):
    save(path, 'old')
    leave(path, seconds, 'abandon')
    remove_stale(path.parent)
    assert all(p.name.startswith(path.name) and verify(p) for p in path.parent.iterdir())


def test_what_was_abandoned_is_written_on_while_the_process_lives_in_memory_of_its_own(path, monkeypatch):
    gate, state = Gate(monkeypatch), torch.arange(10_000)
    with Saver() as saver:
        saver.save(path, state)
        abandoned = saver._last
        saver.abandon()
        assert saver.done()
        saver.save(path.with_name('b'), state + 1)
        gate.open.set()
    abandoned.wait()
    assert torch.equal(load(path), state)
    assert torch.equal(load(path.with_name('b')), state + 1)


def test_a_save_let_go_still_waits_for_whoever_asks_and_tells_its_failure(path, monkeypatch):
    gate = Gate(monkeypatch)
    pending = save(path, 1, background=True)
    pending.abandon()
    assert not pending.done()
    gate.open.set()
    pending.wait()
    assert load(path) == 1
    monkeypatch.setattr(disk, 'write', no_space)
    saver = Saver()
    saver.save(path, 2)
    saver.abandon()
    saver.wait()
    with pytest.raises(SaveError, match='No space left'): save(path, 3)


def test_a_save_beside_the_caller_waits_for_one_under_any_of_its_names(path, monkeypatch):
    gate, other = Gate(monkeypatch), path.with_name('b')
    first = save(path, 1, also=[other], background=True)
    threading.Timer(.1, gate.open.set).start()
    save(other, 2)
    assert first.done()
    assert (load(path), load(other)) == (1, 2)
    monkeypatch.setattr(disk, 'link', lambda *_: (_ for _ in ()).throw(OSError(5, 'Input/output error')))
    for of in ((path, ()), (other, ()), (path.with_name('c'), [other])):
        with monkeypatch.context() as m:
            m.setattr(disk, 'write', no_space)
            failed = save(path, 3, also=[other], background=True)
            while not failed.done(): time.sleep(.001)
        with pytest.raises(SaveError, match='No space left'): Saver().save(of[0], 4, also=of[1])


def test_a_background_save_goes_where_its_path_led_when_it_was_asked_for(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    (path.parent/'elsewhere').mkdir()
    gate = Gate(monkeypatch)
    pending = save('a.safetensors', 1, background=True)
    monkeypatch.chdir('elsewhere')
    gate.open.set()
    pending.wait()
    assert load(path) == 1


def test_where_no_thread_can_be_had_a_background_save_is_done_at_once(path, monkeypatch):
    def refuse(self): raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, 'start', refuse)
    pending = save(path, 1, background=True)
    assert pending.done()
    pending.wait()
    assert load(path) == 1


def test_where_only_one_thread_can_be_had_a_background_save_is_done_at_once_and_no_thread_stays(path, monkeypatch):
    refusing(monkeypatch, RuntimeError("can't start new thread"))
    pending = save(path, dict(a=torch.ones(3)), background=True)
    pending.wait()
    assert same(load(path), dict(a=torch.ones(3)))
    assert keeper_ends()


def test_an_interrupt_amid_the_start_of_a_background_save_leaves_no_thread_that_waits(path, monkeypatch):
    refusing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): save(path, dict(a=torch.ones(3)), background=True)
    assert keeper_ends()
    assert not path.exists()


def refusing(monkeypatch, error):
    "Let the thread that writes not start."
    def refuse(*_): raise error
    monkeypatch.setattr(beside, 'start_new_thread', refuse)


def keeper_ends():
    for t in threading.enumerate():
        if t.name == 'miniai-save-kept': t.join(10)
    return all(t.name != 'miniai-save-kept' for t in threading.enumerate())


def test_an_interrupt_amid_the_wait_for_a_save_leaves_its_memory_alone(path, monkeypatch):
    gate, state = Gate(monkeypatch), torch.arange(10_000)
    saver = Saver()
    saver.save(path, state)
    with monkeypatch.context() as m:
        m.setattr(beside.Task, 'wait', interrupted)
        for wait in (saver.wait, lambda: saver.save(path, state + 1), lambda: saver.__exit__(None, None, None)):
            with pytest.raises(KeyboardInterrupt): wait()
    assert not saver.done()
    gate.open.set()
    saver.wait()
    assert torch.equal(load(path), state)


def interrupted(*_): raise KeyboardInterrupt


def test_an_interrupt_once_the_writing_has_begun_leaves_it_its_memory(path, monkeypatch):
    gate, state, start = Gate(monkeypatch), torch.arange(10_000), beside.start_new_thread
    saver = Saver()
    saver.reserve(state)
    def begin(*args):
        start(*args)
        if threading.current_thread() is threading.main_thread(): time.sleep(.1), interrupted()
    with monkeypatch.context() as m:
        m.setattr(beside, 'start_new_thread', begin)
        with pytest.raises(KeyboardInterrupt): saver.save(path, state)
    saver.save(path.with_name('b'), state + 1)
    gate.open.set()
    saver.save(path.with_name('c'), state + 2)
    save(path.with_name('d'), state, also=[path])  # waits for the one before
    saver.wait()
    assert [int(load(path.with_name(n))[0]) for n in 'bc'] == [1, 2]
    assert keeper_ends()


INTERRUPTS = """
import _thread, random, signal, sys, time
import torch
from miniai.checkpoint import load, save, saving, verify
def raised(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, raised)
many, large, out = (f'{sys.argv[1]}.{nm}' for nm in ('many', 'large', 'out'))
state = [torch.full((20_000,), float(i)) for i in range(300)]
save(many, state), save(large, torch.ones(16_000_000))
calls = [lambda: load(many), lambda: verify(large), lambda: save(out, state), lambda: save(out, state, background=True)]
draw, before, met = random.Random(1), _thread._count(), 0
for call in calls:
    start = time.perf_counter()
    call()
    takes = time.perf_counter() - start
    for _ in range(int(sys.argv[2])):
        try:
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, takes))
            call()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt: met += 1
        for p in list(saving._pending.values()): p.wait()
        until = time.monotonic() + 10
        while _thread._count() > before and time.monotonic() < until: time.sleep(.0002)
        assert _thread._count() <= before, 'a thread was left'
assert len(load(out)) == 300
print(met)
"""


@pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason="no timers here")
def test_interrupts_amid_loading_verifying_and_saving_leave_no_hang_and_no_thread(path):
    done = subprocess.run([sys.executable, '-c', INTERRUPTS, str(path), '12'], capture_output=True, text=True,
                          timeout=60)
    assert (done.returncode, done.stderr) == (0, '')
    assert int(done.stdout) > 10


CHILD = """
import os, sys, threading, time, warnings
import torch
from miniai.checkpoint import Saver, disk, load, save
warnings.simplefilter('ignore')
go_on, real = threading.Event(), disk.write
disk.write = lambda fd, data: go_on.wait() and real(fd, data)
path, saver = sys.argv[1], Saver()
saver.save(path, 'parent')
pending = saver._last
child = os.fork()
if not child:
    disk.write = real
    assert not pending.done() and not saver.done()
    for wait in (pending.wait, saver.wait):
        try: wait()
        except RuntimeError as e: assert f'is being saved by process {os.getppid()}' in str(e), e
        else: raise AssertionError('it waited for nothing')
    save(path, 'child'), save(path + '.beside', 1, background=True).wait()
    saver.save(path + '.saver', 2), saver.wait()
    assert saver.done() and load(path) == 'child'
    print('child', flush=True), sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert not pending.done()
go_on.set()
saver.wait()
print(load(path))
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason="no fork here")
def test_a_forked_process_does_not_take_its_parents_save_for_done_and_saves_on_its_own(path):
    done = subprocess.run([sys.executable, '-c', CHILD, str(path)], capture_output=True, text=True, timeout=30)
    assert (done.stdout.split(), done.stderr) == (['child', 'parent'], '')
    assert [load(f'{path}.{nm}') for nm in ('beside', 'saver')] == [1, 2]


AT_EXIT = """
import atexit, sys, time
def last(name):
    save(f'{sys.argv[1]}.{name}', torch.ones(3_000_000), background=True)
atexit.register(last, 'before')
import torch
from miniai.checkpoint import disk, save
atexit.register(last, 'after')
if sys.argv[2] == 'fail': disk.write = lambda fd, data: (_ for _ in ()).throw(OSError(28, 'No space left on device'))
"""


def test_a_background_save_asked_for_at_the_interpreters_end_is_written_and_a_failure_is_told(path):
    done = [subprocess.run([sys.executable, '-c', AT_EXIT, str(path), how], capture_output=True, text=True, timeout=30)
            for how in ('well', 'fail')]
    assert done[0].stderr == ''
    assert [int(load(f'{path}.{nm}').sum()) for nm in ('before', 'after')] == [3_000_000]*2
    assert done[1].stderr.count('No space left') >= 2
    assert list(path.parent.glob('.*.part')) == []


CUT_SHORT = """
import sys, threading, time
import torch
from miniai.checkpoint import disk, save
writing, real = threading.Event(), disk.write
def slowly(fd, data): writing.set(); time.sleep(float(sys.argv[2])); return real(fd, data)
disk.write = slowly
save(sys.argv[1], torch.ones(3), background=True)
writing.wait()
print('over', flush=True)
"""


@pytest.mark.parametrize(('times', 'seconds'), [(1, .4), (2, 20)])
def test_one_ctrl_c_at_the_interpreters_end_does_not_lose_a_save_and_a_second_one_says_so(times, seconds, path):
    save(path, 'old')
    child = subprocess.Popen([sys.executable, '-c', CUT_SHORT, str(path), str(seconds)], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout.readline() == 'over\n'
    for _ in range(times): time.sleep(.3) or child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=15)
    assert said.count('KeyboardInterrupt') == times
    if times == 1:
        assert 'miniai: error' not in said
        assert load(path).sum() == 3
    else:
        assert f'miniai: error: {path} may not have been saved: the wait for it was interrupted' in said
        assert load(path) == 'old'

# Looking into a file

@pytest.mark.parametrize('path', ['a\0b', b'a\0b'])
@pytest.mark.parametrize('background', [False, True])
def test_what_is_no_path_is_a_save_error_at_once(path, background):
    with pytest.raises(SaveError, match='it is no path: embedded null'): save(path, 1, background=background)


@pytest.mark.parametrize('also', ['b', b'b'])
def test_one_further_name_that_is_not_in_a_list_is_told(also, path):
    with pytest.raises(TypeError, match=r"give \(b?'b',\) for this one"): save(path, 1, also=also)


def test_inspect_tells_what_is_in_a_file_by_its_head(path):
    save(path, everything())
    info = inspect(path)
    assert (info.version, info.torch, info.size, info.sha256) == ('1', torch.__version__, path.stat().st_size,
                                                                  verify(path))
    assert info.tensors['opt/0/avg'].shape == (2, 3, 4, 5)
    assert (info.tensors['opt/7/avg'].dtype, info.tensors['opt/7/avg'].nbytes) == ('bfloat16', 40)
    assert info.scalars == dict(scalar=np.float32(1.5), epoch=3)
    assert bits(info.scalars['scalar']) == bits(np.float32(1.5))


def test_inspect_reads_the_head_alone(path, monkeypatch):
    save(path, torch.zeros(1_000_000))
    seen, real = [], disk.read_into
    monkeypatch.setattr(disk, 'read_into', lambda fd, buffer: seen.append(len(buffer)) or real(fd, buffer))
    inspect(path)
    assert sum(seen) < 1000

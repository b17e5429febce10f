"Saves now and in the background: what is saved, who hears of failures, and what the end of the process waits for."
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import crash
import scripts
from miniai.checkpoint import SaveError, Saver, durable, load, save, saving
from states import everything, same


@pytest.fixture
def path(tmp_path): return tmp_path/'a.safetensors'


def test_a_link_stays_a_link_and_its_target_is_replaced(path, tmp_path):
    (tmp_path/'there').mkdir()
    path.symlink_to('there/b.safetensors')
    save(path, 1), save(path, 2)
    assert path.is_symlink()
    assert load(tmp_path/'there'/'b.safetensors') == 2


@pytest.mark.parametrize('background', [False, True])
def test_a_value_that_cannot_be_saved_is_an_error_before_anything_is_written(path, background):
    with pytest.raises(TypeError, match=r"state\['a'\] is a builtins.object"):
        save(path, dict(a=object()), background=background)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize('path', ['a\0b', b'a\0b'])
@pytest.mark.parametrize('background', [False, True])
def test_an_invalid_path_is_a_save_error_at_once(path, background):
    with pytest.raises(SaveError, match=r'embedded null.*give a valid path'): save(path, 1, background=background)


@pytest.mark.parametrize('also', ['b', b'b', Path('b')])
def test_a_single_path_for_also_is_an_error_that_says_what_to_do(also, path):
    with pytest.raises(TypeError, match=re.escape(f'give ({also!r},) for this one')): save(path, 1, also=also)
    assert os.listdir(path.parent) == []


# In the background

class Gate:
    "Holds the first write until it is opened."
    def __init__(self, monkeypatch):
        self.open = threading.Event()
        monkeypatch.setattr(durable, 'os', crash.system(write=self.write))

    def write(self, fd, data):
        assert self.open.wait(60)
        return os.write(fd, data)


def no_space(fd, data): raise OSError(28, 'No space left on device')


def ended(pending):
    "Wait for its end without hearing of its failure."
    while not pending.done(): time.sleep(.001)


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


def test_a_saver_copies_each_state_whole_into_memory_that_it_reuses_where_sizes_are_equal(path):
    states = [dict(a=torch.full((n,), float(n)), b=torch.arange(5)) for n in (1000, 1000, 300, 2000)]
    addresses = []
    with Saver() as saver:
        for i, state in enumerate(states):
            saver.save(path.with_name(str(i)), state)
            addresses.append([m.ctypes.data for m in saver._copies])
    assert [same(load(path.with_name(str(i))), s) for i, s in enumerate(states)] == [True]*4
    assert addresses[0] == addresses[1]


def test_a_failure_in_the_background_is_raised_by_wait_or_by_the_next_save(path):
    save(path, 'old')
    with crash.patched(write=no_space):
        first = save(path, 1, background=True)
        with pytest.raises(SaveError, match='No space left'): first.wait()
        save(path.with_name('b'), 2, background=True)
        with pytest.raises(SaveError, match='b was not saved: No space left'): save(path, 3)
    assert load(path) == 'old'
    save(path, 3)  # raised once, it is over
    assert os.listdir(path.parent) == ['a.safetensors']


def test_a_saver_saves_one_after_the_other_and_never_loses_a_failure(path):
    with Saver() as saver:
        for i in range(4): saver.save(path.with_name(f'{i}'), dict(i=i, t=torch.full((1000,), i)))
        saver.wait()
        assert saver.done()
        assert [load(path.with_name(f'{i}'))['t'].unique().tolist() for i in range(4)] == [[0], [1], [2], [3]]
        def all_done(): ended(saver._last), saver.done()
        with crash.patched(write=no_space):
            for heard in (lambda: saver.save(path, 1), saver.wait, all_done, lambda: saver.__exit__(None, None, None)):
                saver.save(path, 1)
                with pytest.raises(SaveError): heard()
        assert saver.done()


def test_a_saver_can_save_at_once(path):
    Saver().save(path, 5, background=False)
    assert load(path) == 5


def test_a_save_waits_for_the_one_before(path, monkeypatch):
    gate = Gate(monkeypatch)
    first = save(path, 1, background=True)
    threading.Timer(.1, gate.open.set).start()
    save(path, 2)
    assert first.done()
    assert load(path) == 2


def test_a_background_save_goes_where_its_path_led_when_save_was_called(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    (path.parent/'elsewhere').mkdir()
    gate = Gate(monkeypatch)
    pending = save('a.safetensors', 1, background=True)
    monkeypatch.chdir('elsewhere')
    gate.open.set()
    pending.wait()
    assert load(path) == 1


def test_without_threads_a_background_save_is_done_at_once(path, monkeypatch):
    def refuse(self): raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, 'start', refuse)
    pending = save(path, 1, background=True)
    assert pending.done()
    assert load(path) == 1


# Abandoned saves

def test_an_abandoned_save_leaves_the_old_file_and_no_temporary_and_is_no_failure(path, monkeypatch):
    save(path, 'old')
    gate, saver = Gate(monkeypatch), Saver()
    saver.save(path, torch.arange(10_000))
    pending = saver._last
    saver.abandon()
    assert saver.done()
    gate.open.set()
    saver.save(path.with_name('b'), 2)
    saver.wait(), pending.wait()
    assert pending.done()
    assert (load(path), load(path.with_name('b'))) == ('old', 2)
    assert sorted(os.listdir(path.parent)) == [path.name, 'b']


# The end of the process

EXIT = """
import os, sys, time
import crash
from miniai.checkpoint import Saver, durable, save
import torch
def no_space(fd, data): raise OSError(28, 'No space left on device')
def slowly(fd, data): time.sleep(.01); return os.write(fd, data)
path, how = sys.argv[1:]
durable.os = crash.system(write=no_space if how == 'fail' else slowly)
saver = Saver()
saver.save(path, [torch.ones(100) for _ in range(10_000 if how == 'abandon' else 50)])
if how == 'abandon': saver.abandon()
"""


def test_the_interpreter_waits_for_a_background_save_before_it_exits(path):
    assert scripts.run(EXIT, path, 'well') == (0, '', '')
    assert len(load(path)) == 50


def test_a_failure_that_was_not_raised_is_reported_once_when_the_interpreter_exits(path):
    said = f'miniai: error: {path} was not saved: No space left'
    err = scripts.run(EXIT, path, 'fail')[2]
    assert err.startswith(said)
    assert len(err.splitlines()) == 1


def test_the_interpreter_does_not_wait_for_the_rest_of_an_abandoned_save(path):
    save(path, 'old')
    started = time.monotonic()
    assert scripts.run(EXIT, path, 'abandon') == (0, '', '')
    assert time.monotonic() - started < 50  # the whole save takes 100 s
    assert load(path) == 'old'
    assert os.listdir(path.parent) == [path.name]


FORKED = """
import multiprocessing, os, sys, time
import crash
from miniai.checkpoint import durable, save
def child():
    durable.os = crash.system(write=lambda fd, data: time.sleep(.3) or os.write(fd, data))
    save(sys.argv[1], 5, background=True)
p = multiprocessing.get_context('fork').Process(target=child)
p.start(), p.join(), sys.exit(p.exitcode)
"""


def test_a_process_forked_by_multiprocessing_waits_for_its_background_save_before_it_exits(path):
    assert scripts.run(FORKED, path)[0] == 0
    assert load(path) == 5


CHILD = """
import os, sys, threading, warnings
import crash
from miniai.checkpoint import Saver, durable, load, save
warnings.simplefilter('ignore')
go_on = threading.Event()
durable.os = crash.system(write=lambda fd, data: go_on.wait() and os.write(fd, data))
path, saver = sys.argv[1], Saver()
saver.save(path, 'parent')
child = os.fork()
if not child:
    durable.os = os
    assert not saver.done()
    saver.wait(), save(path, 'child'), save(path + '.thread', 1, background=True).wait()
    saver.save(path + '.saver', 2), saver.wait()
    assert saver.done() and load(path) == 'child'
    print('child', flush=True), sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert not saver.done()
go_on.set()
saver.wait()
print(load(path))
"""


def test_a_forked_process_does_not_wait_for_its_parent_s_save_and_can_save_itself(path):
    code, out, err = scripts.run(CHILD, path)
    assert (code, out.split(), err) == (0, ['child', 'parent'], '')
    assert [load(f'{path}.{nm}') for nm in ('thread', 'saver')] == [1, 2]


AT_EXIT = """
import atexit, os, sys
def last(name, background):
    save(f'{sys.argv[1]}.{name}', torch.ones(3_000_000), background=background)
atexit.register(last, 'before', True)
import torch
from miniai.checkpoint import save
atexit.register(last, 'after', True), atexit.register(last, 'now', False)
"""


def test_saves_from_atexit_functions_are_written(path):
    # In a fresh interpreter, as a function is to be registered before miniai registers its own.
    done = subprocess.run([sys.executable, '-c', AT_EXIT, str(path)], capture_output=True, text=True, timeout=300)
    assert done.stderr == ''
    assert [int(load(f'{path}.{nm}').sum()) for nm in ('before', 'after', 'now')] == [3_000_000]*3


# Interrupts

INTERRUPTS = """
import _thread, random, signal, sys, time
import torch
from miniai.checkpoint import load, save, saving, verify
def interrupt(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
many, large, out = (f'{sys.argv[1]}.{nm}' for nm in ('many', 'large', 'out'))
state = [torch.full((20_000,), float(i)) for i in range(100)]
save(many, state), save(large, torch.ones(5_000_000)), save(out, state)
calls = [lambda: load(many), lambda: verify(large), lambda: save(out, state), lambda: save(out, state, background=True)]
draw, before = random.Random(1), _thread._count()
for call in calls:
    met, longest = 0, 1.
    while met < int(sys.argv[2]):  # the time limit follows the speed of this machine until interrupts arrive in time
        start = time.perf_counter()
        try:
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, longest))
            call()
            signal.setitimer(signal.ITIMER_REAL, 0)
            longest = min(longest, time.perf_counter() - start)
        except KeyboardInterrupt: met += 1
        except RuntimeError as e:  # from one of Python's locks
            assert isinstance(e.__context__, KeyboardInterrupt)
            met += 1
        if saving._last: saving._last.wait()
        until = time.monotonic() + 60
        while _thread._count() > before and time.monotonic() < until: time.sleep(.0002)
        assert _thread._count() <= before, 'a thread was left'
        assert verify(out)
assert len(load(out)) == 100
"""


@pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason="no timers here")
def test_interrupts_while_loading_verifying_and_saving_leave_whole_files_no_hang_and_no_thread(path):
    code, _, err = scripts.run(INTERRUPTS, path, 8, timeout=300)
    assert code == 0, err


def test_an_interrupt_while_waiting_for_a_save_leaves_its_memory_alone(path, monkeypatch):
    def interrupted(*_): raise KeyboardInterrupt
    gate, state, saver = Gate(monkeypatch), torch.arange(10_000), Saver()
    saver.save(path, state)
    with monkeypatch.context() as m:
        m.setattr(saving, 'wait', interrupted)
        for wait in (saver.wait, lambda: saver.save(path, state + 1), lambda: saver.__exit__(None, None, None)):
            with pytest.raises(KeyboardInterrupt): wait()
    assert not saver.done()
    gate.open.set()
    saver.wait()
    assert torch.equal(load(path), state)


CUT_SHORT = """
import os, sys, threading, time
import torch
import crash
from miniai.checkpoint import durable, save
writing = threading.Event()
def held(fd, data):
    writing.set()
    while not os.path.exists(sys.argv[1] + '.go'): time.sleep(.01)
    return os.write(fd, data)
durable.os = crash.system(write=held)
save(sys.argv[1], torch.ones(3), background=True)
writing.wait()
print('over', flush=True)
"""


def test_one_ctrl_c_while_the_interpreter_waits_for_a_save_does_not_lose_it(path):
    child = scripts.Script(CUT_SHORT, path)
    child.wait_for('over')
    child.interrupt()
    child.wait_for('KeyboardInterrupt')
    path.with_name(path.name + '.go').touch()
    assert 'miniai: error' not in child.ended()[2]
    assert load(path).sum() == 3


def test_more_ctrl_cs_end_the_wait_and_a_message_says_so(path):
    save(path, 'old')
    child = scripts.Script(CUT_SHORT, path)
    child.wait_for('over')
    said = f'miniai: error: {path} may not be saved: waiting for it was interrupted'
    until = time.monotonic() + 60
    while said not in child.err.read_text() and time.monotonic() < until: time.sleep(.2) or child.interrupt()
    assert said in child.ended()[2]
    assert load(path) == 'old'

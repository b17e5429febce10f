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

import scripts
from miniai.checkpoint import SaveError, Saver, background, disk, load, remove_stale, save, verify
from states import everything, same


@pytest.fixture
def path(tmp_path): return tmp_path/'a.safetensors'


def test_a_large_state_is_written_in_one_pass_without_a_copy(path, monkeypatch):
    state, seen = torch.zeros(5_000_000), []
    real = disk.write
    monkeypatch.setattr(disk, 'write', lambda fd, data: seen.append(len(data)) or real(fd, data))
    save(path, state)
    assert sum(seen) == path.stat().st_size
    assert max(seen) <= 1 << 21
    assert verify(path)


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
        self.open, self.real = threading.Event(), disk.write
        monkeypatch.setattr(disk, 'write', self.write)

    def write(self, fd, data):
        assert self.open.wait(60)
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


def test_a_failure_in_the_background_is_raised_by_wait_or_by_the_next_save_to_the_path(path, monkeypatch):
    save(path, 'old')
    with monkeypatch.context() as m:
        m.setattr(disk, 'write', no_space)
        first, second = save(path, 1, background=True), save(path.with_name('b'), 2, background=True)
        with pytest.raises(SaveError, match='No space left'): first.wait()
        with pytest.raises(SaveError, match='No space left'): save(path.with_name('b'), 3)
    assert second.done()
    assert load(path) == 'old'
    save(path.with_name('b'), 3)  # raised once, it is over
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
        until = time.monotonic() + 60
        with pytest.raises(SaveError): [saver.done() for _ in iter(lambda: time.monotonic() < until, False)]
        saver.save(path, 1)
        with pytest.raises(SaveError): saver.__exit__(None, None, None)
        assert saver.done()


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


def test_the_interpreter_waits_for_a_background_save_before_it_exits(path):
    assert scripts.run(EXIT, path, 'well') == (0, '', '')
    assert load(path).sum() == 4_000_000


def test_a_failure_that_was_not_raised_is_reported_when_the_interpreter_exits(path):
    _, _, err = scripts.run(EXIT, path, 'fail')
    assert err.startswith(f'miniai: error: {path} was not saved: No space left')


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


def test_a_process_forked_by_multiprocessing_waits_for_its_background_save_before_it_exits(path):
    assert scripts.run(FORKED, path)[0] == 0
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
"""


def leave(path, seconds, how):
    "Run a process that ends during a background save that takes `seconds` for each of 300 writes."
    assert scripts.run(LEAVE, path, seconds, how) == (0, '', '')


def test_a_process_does_not_wait_for_an_abandoned_save_and_remove_stale_removes_its_temporary(path):
    save(path, 'old')
    leave(path, 600, 'abandon')  # it would take days
    assert load(path) == 'old'
    stale = remove_stale(path.parent)
    assert [p.suffix for p in stale] == ['.part']
    assert list(path.parent.iterdir()) == [path]


def test_a_process_waits_for_a_save_that_was_not_abandoned(path):
    save(path, 'old')
    leave(path, .002, 'stay')
    assert len(load(path)) == len(load(f'{path}.too')) == 300
    assert remove_stale(path.parent) == []


@pytest.mark.parametrize('seconds', [0, .002])
def test_a_process_ends_without_a_crash_wherever_an_abandoned_save_is(path, seconds):
    save(path, 'old')
    leave(path, seconds, 'abandon')
    remove_stale(path.parent)
    assert all(p.name.startswith(path.name) and verify(p) for p in path.parent.iterdir())


def test_an_abandoned_save_continues_while_the_process_lives_in_memory_of_its_own(path, monkeypatch):
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


def test_an_abandoned_save_can_still_be_waited_for_and_its_failure_is_raised_later(path, monkeypatch):
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


def test_a_save_waits_for_an_earlier_one_under_any_of_its_names(path, monkeypatch):
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
    pending.wait()
    assert load(path) == 1


def test_with_only_one_thread_a_background_save_is_done_at_once_and_the_thread_ends(path, monkeypatch):
    refusing(monkeypatch, RuntimeError("can't start new thread"))
    pending = save(path, dict(a=torch.ones(3)), background=True)
    pending.wait()
    assert same(load(path), dict(a=torch.ones(3)))
    assert waiting_thread_ends()


def test_an_interrupt_while_a_background_save_starts_leaves_no_thread(path, monkeypatch):
    refusing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): save(path, dict(a=torch.ones(3)), background=True)
    assert waiting_thread_ends()
    assert not path.exists()


def refusing(monkeypatch, error):
    "Keep the thread that writes from starting."
    def refuse(*_): raise error
    monkeypatch.setattr(background, 'start_new_thread', refuse)


def waiting_thread_ends():
    for t in threading.enumerate():
        if t.name == 'miniai-save': t.join(60)
    return all(t.name != 'miniai-save' for t in threading.enumerate())


def test_an_interrupt_while_waiting_for_a_save_leaves_its_memory_alone(path, monkeypatch):
    gate, state = Gate(monkeypatch), torch.arange(10_000)
    saver = Saver()
    saver.save(path, state)
    with monkeypatch.context() as m:
        m.setattr(background.Task, 'wait', interrupted)
        for wait in (saver.wait, lambda: saver.save(path, state + 1), lambda: saver.__exit__(None, None, None)):
            with pytest.raises(KeyboardInterrupt): wait()
    assert not saver.done()
    gate.open.set()
    saver.wait()
    assert torch.equal(load(path), state)


def interrupted(*_): raise KeyboardInterrupt


def test_an_interrupt_after_the_writing_has_begun_leaves_its_memory_alone(path, monkeypatch):
    gate, state, start = Gate(monkeypatch), torch.arange(10_000), background.start_new_thread
    saver = Saver()
    saver.reserve(state)
    def begin(*args):
        start(*args)
        if threading.current_thread() is threading.main_thread(): time.sleep(.1), interrupted()
    with monkeypatch.context() as m:
        m.setattr(background, 'start_new_thread', begin)
        with pytest.raises(KeyboardInterrupt): saver.save(path, state)
    saver.save(path.with_name('b'), state + 1)
    gate.open.set()
    saver.save(path.with_name('c'), state + 2)
    save(path.with_name('d'), state, also=[path])  # waits for the one before
    saver.wait()
    assert [int(load(path.with_name(n))[0]) for n in 'bc'] == [1, 2]
    assert waiting_thread_ends()


INTERRUPTS = """
import _thread, random, signal, sys, time
import torch
from miniai.checkpoint import load, save, saving, verify
def interrupt(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
many, large, out = (f'{sys.argv[1]}.{nm}' for nm in ('many', 'large', 'out'))
state = [torch.full((20_000,), float(i)) for i in range(100)]
save(many, state), save(large, torch.ones(5_000_000))
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
        for p in list(saving._pending.values()): p.wait()
        until = time.monotonic() + 60
        while _thread._count() > before and time.monotonic() < until: time.sleep(.0002)
        assert _thread._count() <= before, 'a thread was left'
assert len(load(out)) == 100
"""


@pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason="no timers here")
def test_interrupts_while_loading_verifying_and_saving_leave_no_hang_and_no_thread(path):
    assert scripts.run(INTERRUPTS, path, 8, timeout=300) == (0, '', '')


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
        else: raise AssertionError('it did not refuse to wait')
    save(path, 'child'), save(path + '.thread', 1, background=True).wait()
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
def test_a_forked_process_does_not_wait_for_its_parent_s_save_and_can_save_itself(path):
    code, out, err = scripts.run(CHILD, path)
    assert (code, out.split(), err) == (0, ['child', 'parent'], '')
    assert [load(f'{path}.{nm}') for nm in ('thread', 'saver')] == [1, 2]


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


def test_a_background_save_from_an_atexit_function_is_written_and_a_failure_is_reported(path):
    # In a fresh interpreter, as a function is to be registered before miniai registers its own.
    both = [subprocess.Popen([sys.executable, '-c', AT_EXIT, str(path.parent/how), how], stderr=subprocess.PIPE,
                             text=True) for how in ('well', 'fail')]
    well, fail = (p.communicate(timeout=300)[1] for p in both)
    assert well == ''
    assert [int(load(path.parent/f'well.{nm}').sum()) for nm in ('before', 'after')] == [3_000_000]*2
    assert fail.count('No space left') >= 2
    assert list(path.parent.glob('.*.part')) == []


CUT_SHORT = """
import os, sys, threading, time
import torch
from miniai.checkpoint import disk, save
writing, real = threading.Event(), disk.write
def held(fd, data):
    writing.set()
    while not os.path.exists(sys.argv[1] + '.go'): time.sleep(.01)
    return real(fd, data)
disk.write = held
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

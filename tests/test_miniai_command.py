"The command from its first moment to its last: what Ctrl-C does while it imports, and when its exit code is known."
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENTRY = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']['scripts']['miniai']
COMMAND = 'import sys; from {} import {}; sys.exit({})'.format(*ENTRY.split(':'), ENTRY.split(':')[1] + '()')
IMPORTED = """
import atexit
class cli: main = staticmethod(lambda: sys.exit(3))
sys.modules['miniai'] = sys.modules['miniai.cli'] = cli
"""
WAITING = "import sys, time; print('here', flush=True); time.sleep(60)"
SWALLOWING = WAITING.replace('time.sleep', '\ntry: time.sleep') + "\nexcept BaseException: raise ImportError from None"


def interrupted(code, folder, first=signal.default_int_handler):
    "Run `code` where `folder` comes first among the modules, with Ctrl-C when it says a line: how it ends."
    old = signal.signal(signal.SIGINT, first)
    try: p = subprocess.Popen([sys.executable, '-c', f'import sys; sys.path.insert(0, {str(folder)!r})\n{code}'],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally: signal.signal(signal.SIGINT, old)
    assert p.stdout.readline() == 'here\n'
    p.send_signal(signal.SIGINT)
    return p, *p.communicate(timeout=30)


@pytest.mark.parametrize('torch', [WAITING, SWALLOWING])
def test_ctrl_c_while_torch_is_imported_is_a_line_and_130_whatever_torch_makes_of_exceptions(tmp_path, torch):
    (tmp_path/'torch.py').write_text(torch)
    p, out, err = interrupted(COMMAND, tmp_path)
    assert (p.returncode, out, err) == (130, '', 'stopped\n')


ENDING = IMPORTED + "atexit.register(lambda: (print('here', flush=True), __import__('time').sleep(.5)))\n"


def test_ctrl_c_when_the_exit_code_is_known_changes_nothing(tmp_path):
    p, out, err = interrupted(ENDING + COMMAND, tmp_path)
    assert (p.returncode, out, err) == (3, '', '')


def test_ctrl_c_as_the_job_runs_is_python_s_own_again(tmp_path):
    running = IMPORTED + f"def run(): exec({WAITING!r})\ncli.main = run\n"
    *_, err = interrupted(running + COMMAND, tmp_path)
    assert err.endswith('KeyboardInterrupt\n')


def test_where_it_is_ignored_it_stays_so(tmp_path):
    running = IMPORTED + f"def run(): exec({WAITING.replace('60', '.5')!r}); sys.exit(4)\ncli.main = run\n"
    p, _, err = interrupted(running + COMMAND, tmp_path, signal.SIG_IGN)
    assert (p.returncode, err) == (4, '')

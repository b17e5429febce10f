"""Small scripts in interpreters of their own: each is forked from one that has imported torch and miniai.checkpoint, as
importing them takes seconds, and ends as any Python program does.

    python tests/scripts.py      the server: runs a script for each line of JSON on stdin
"""
import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Timer


def run(script, *args, timeout=120):
    "Run `script` with `args` as its sys.argv[1:]; return its exit code, stdout and stderr."
    return Script(script, *args, timeout=timeout).ended()


class Script:
    "A script that runs, as process `pid`."
    def __init__(self, script, *args, timeout=120):
        self._folder = tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self._folder.name)/nm for nm in ('out', 'err'))
        for path in (self.out, self.err): path.touch()
        job = dict(script=script, args=[str(a) for a in args], out=str(self.out), err=str(self.err))
        self.pid = int(_ask(json.dumps(job)))
        self._timer = Timer(timeout, os.kill, (self.pid, signal.SIGKILL))
        self._timer.daemon = True
        self._timer.start()

    def wait_for(self, text):
        "Return when `text` is in its output; AssertionError if it is still not there after a minute."
        until = time.monotonic() + 60
        while text not in self.out.read_text() + self.err.read_text():
            assert time.monotonic() < until, f'no {text!r} in {self.out.read_text()!r}, {self.err.read_text()!r}'
            time.sleep(.01)

    def interrupt(self):
        "Send a Ctrl-C, which may come too late."
        with suppress(ProcessLookupError): os.kill(self.pid, signal.SIGINT)

    def ended(self):
        "Wait for its end; its exit code (minus the signal if it was killed), stdout and stderr."
        code = int(_ask(''))
        self._timer.cancel()
        out, err = self.out.read_text(), self.err.read_text()
        self._folder.cleanup()
        return code, out, err


@cache
def _server():
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    def close():
        server.stdin.close()
        server.wait()
        server.stdout.close()
    atexit.register(close)
    return server


def _ask(line):
    server = _server()
    server.stdin.write(line + '\n')
    server.stdin.flush()
    return server.stdout.readline()


def _serve():
    "Fork for each job; return it in the new process, and None in the server when there are no more jobs."
    import miniai.checkpoint  # noqa: F401
    for line in sys.stdin:
        pid = os.fork()
        if not pid: return json.loads(line)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


if __name__ == '__main__':
    job = _serve()
    if job:
        for path, fd in ((os.devnull, 0), (job['out'], 1), (job['err'], 2)):
            opened = os.open(path, os.O_RDWR)
            os.dup2(opened, fd)
            os.close(opened)
        sys.argv = ['-c', *job['args']]
        exec(compile(job['script'], '<script>', 'exec'))

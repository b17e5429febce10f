"""Where the command `miniai` starts: Ctrl-C ends it with one line from its first moment on. Knows signals alone, as all
of the library takes seconds to import."""
import os
import signal

__all__ = ['main']


def main() -> None:
    """Run `miniai.cli.main`. Ctrl-C while that is imported leaves at once, with 130; when the exit code is known, it
    changes nothing any more. Where SIGINT is ignored, it stays so."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard: signal.signal(signal.SIGINT, _leave)
    from miniai.cli import main as run
    try:
        if heard: signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    finally:
        if heard: signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave(number: int, frame: object) -> None:
    "No exception: modules that are amid their import turn it into errors of their own."
    try: os.write(2, b'stopped\n')
    finally: os._exit(128 + number)

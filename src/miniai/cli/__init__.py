"""The command line: reads options, runs a job, turns what went wrong into a message and an exit code. No logic of its
own."""
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from miniai.checkpoint.describe import printable
from miniai.checkpoint.errors import CheckpointError
from miniai.jobs.checkpoint import ShowConfig, VerifyConfig, show_file, verify_files
from miniai.jobs.config import ConfigError, JobConfig, LRFindConfig, ProveConfig, TrainConfig

__all__ = ['main']

ABOUT = """Train PyTorch models with accelerated SGD.

Options can also stand in a TOML file: miniai train --config FILE.toml"""

JOBS = {'train': TrainConfig, 'lr-find': LRFindConfig, 'prove-resume': ProveConfig}


def main(args: Sequence[str] | None = None) -> None:
    """Run `miniai` with `args`, by default the process's own, and exit: 0 when done, 1 for a job that failed, 2 for
    options that cannot be meant, 130 after Ctrl-C, 143 after SIGTERM where the job could still save or clean up, 141
    where nobody reads any more what `checkpoint` commands print."""
    with _plain_words(): code = _exit_code(list(sys.argv[1:] if args is None else args))
    sys.exit(code)


@contextmanager
def _plain_words() -> Iterator[None]:
    """Characters that a stream cannot take are escaped, and a warning is a line without its place in the code; both as
    before after it. What is said where standard error is closed goes nowhere, not into the next file that is opened."""
    if sys.stderr is None: sys.stderr = open(os.devnull, 'w')  # noqa: SIM115
    streams = {s: s.errors for s in (sys.stdout, sys.stderr) if isinstance(s, TextIOWrapper)}
    formatted, warnings.formatwarning = warnings.formatwarning, _warning
    for s in streams: s.reconfigure(errors='backslashreplace')
    try: yield
    finally:
        warnings.formatwarning = formatted
        for s, errors in streams.items():
            with suppress(OSError): s.reconfigure(errors=errors)  # it flushes: what cannot be written is told elsewhere


def _warning(message: Warning | str, *place: Any) -> str:
    return f'miniai: warning: {printable(" ".join(str(message).split()))}\n'


def _exit_code(args: list[str]) -> int:
    if sys.stdout is None: return _complain('standard output is closed: there is nowhere to say what comes of it', 1)
    try: return _run(_parsed(args))
    except ConfigError as e: return _complain(e, 2)
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        return 130


def _complain(what: Exception | str, code: int) -> int:
    print('miniai: error: ' + '\n'.join(map(printable, str(what).split('\n'))), file=sys.stderr)
    return code


def _parsed(args: list[str]) -> JobConfig | VerifyConfig | ShowConfig:
    try:
        import tyro
    except ImportError:
        raise ConfigError("the command line needs tyro and rich: pip install 'miniai-torch[cli]'") from None
    file = _config_file(args)
    defaults = {nm: cls.from_toml(file) if file and nm in args[:1] else cls() for nm, cls in JOBS.items()}
    train, lr_find, prove = (Annotated[type(d), tyro.conf.subcommand(nm, default=d)] for nm, d in defaults.items())
    flat = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.PositionalRequiredArgs)
    jobs = train | lr_find | prove | _checkpoint_commands()
    config = tyro.cli(jobs, args=args or ['--help'], prog='miniai', description=ABOUT, config=flat)
    if isinstance(config, TrainConfig): config.given = defaults['train'].given | _options(args)
    return config


def _checkpoint_commands() -> Any:
    import tyro
    files = tyro.conf.arg(metavar='PATH [PATH ...]', help='The files.', help_behavior_hint='(required)')
    def of_files(path: Annotated[tuple[Path, ...], files]) -> VerifyConfig: return VerifyConfig(path)
    words = dict(description=VerifyConfig.__doc__, constructor=of_files)
    verify = Annotated[VerifyConfig, tyro.conf.subcommand('verify', **words)]
    show = Annotated[ShowConfig, tyro.conf.subcommand('show')]
    about = 'Verify checkpoints, or show what is in one.'
    return Annotated[verify | show, tyro.conf.subcommand('checkpoint', description=about)]


def _options(args: list[str]) -> set[str]:
    "The names of the options that tyro has found: no value of one begins with --."
    names = (arg[2:].partition('=')[0].replace('-', '_') for arg in args if arg.startswith('--'))
    return {nm.removeprefix('no_') for nm in names}


def _config_file(args: list[str]) -> Path | None:
    file = None
    for arg, following in pairwise([*args, None]):
        if arg.startswith('--config='): file = Path(arg.removeprefix('--config='))
        if arg == '--config' and following is not None: file = Path(following)
    return file


def _run(config: JobConfig | VerifyConfig | ShowConfig) -> int:
    if isinstance(config, VerifyConfig | ShowConfig): return _look(config)
    import matplotlib
    matplotlib.use('agg')

    from miniai.callbacks.train import NonFiniteLossError
    from miniai.checkpoint.errors import FolderInUseError
    from miniai.data.fmnist import DataError
    from miniai.jobs.lr_find import lr_find_job
    from miniai.jobs.prove import prove_resume
    from miniai.jobs.train import train
    from miniai.resume.prove import ProofError
    from miniai.resume.state import ResumeError
    run = {TrainConfig: train, LRFindConfig: lr_find_job, ProveConfig: prove_resume}[type(config)]
    failures = NonFiniteLossError, DataError, ResumeError, CheckpointError, FolderInUseError, ProofError
    try: done = run(config)
    except (*failures, OSError, ImportError) as e: return _complain(e, 1)
    return 1 if done is False else 0


def _look(config: VerifyConfig | ShowConfig) -> int:
    try:
        code = verify_files(config) if isinstance(config, VerifyConfig) else show_file(config)
        sys.stdout.flush()
    except BrokenPipeError: return _unread()
    except (CheckpointError, OSError) as e: return _complain(printable(str(e)), 1)
    return code


def _unread() -> int:
    "Let nothing that is left for a reader who went away be written at exit; the code is a shell's for SIGPIPE."
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141

"The command line: runs a job and turns errors into messages and exit codes."
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO, TextIOWrapper
from typing import Any

from miniai.callbacks.train import NonFiniteLossError
from miniai.checkpoint import CheckpointError, FolderInUseError
from miniai.checkpoint.describe import printable
from miniai.cli.arguments import completion, parse
from miniai.data.fmnist import DataError
from miniai.data.picture_files import PictureError
from miniai.data.table import TableError
from miniai.distributed.torchrun import is_first_to_fail, launched
from miniai.environment import version_of
from miniai.inference.export import ExportError
from miniai.inference.model_file import ModelFileError
from miniai.jobs.checkpoint import GatherConfig, ShowConfig, VerifyConfig, gather_model, show_file, verify_files
from miniai.jobs.config import ConfigError, FolderConfig, JobConfig, LRFindConfig, ProveConfig, TrainConfig
from miniai.jobs.json_lines import JSONLines
from miniai.jobs.lr_find import lr_find_job
from miniai.jobs.prove import prove_resume
from miniai.jobs.report import ReportConfig, report_runs
from miniai.jobs.script import ScriptConfig, write_script
from miniai.jobs.train import train
from miniai.jobs.use import EvaluateConfig, ExportConfig, PredictConfig, evaluate_run, export_run, predict_run
from miniai.racing.job import RaceConfig, run_race
from miniai.racing.tasks import TaskError
from miniai.resume.prove import ProofError
from miniai.resume.restore import ResumeError

__all__ = ['main']

JOBS = {TrainConfig: train, LRFindConfig: lr_find_job, ProveConfig: prove_resume, VerifyConfig: verify_files,
        ShowConfig: show_file, GatherConfig: gather_model, EvaluateConfig: evaluate_run, PredictConfig: predict_run,
        ExportConfig: export_run, ScriptConfig: write_script, ReportConfig: report_runs,
        RaceConfig: run_race}
# Their ValueErrors are about what the user gave:
USES = (EvaluateConfig, PredictConfig, ExportConfig, ScriptConfig, ReportConfig)
FAILURES = (NonFiniteLossError, DataError, PictureError, TableError, ResumeError, CheckpointError, FolderInUseError,
            ProofError, ExportError, ModelFileError, TaskError, OSError, ImportError)


def main(args: Sequence[str] | None = None) -> None:
    """Run `miniai` with `args`, by default those of the process, and exit.

    Exit codes: 0 success, 1 the job failed, 2 invalid options, 130 stopped by Ctrl-C, 143 stopped by SIGTERM,
    141 the reader of the output went away (`miniai checkpoint show FILE | head`)."""
    for stream in (sys.stdout, sys.stderr):  # escape the characters that a stream cannot encode
        if isinstance(stream, TextIOWrapper): stream.reconfigure(errors='backslashreplace')
    if '' not in sys.path: sys.path.append('')  # module:function may be in the current folder
    before, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        with _only_one_prints(): sys.exit(_run(list(sys.argv[1:] if args is None else args)))
    finally: warnings.formatwarning = before


def _is_one_of_many() -> bool:
    "Is this one of torchrun's processes, and not the first?"
    return (launched() or (0, 1))[0] > 0


@contextmanager
def _only_one_prints() -> Iterator[None]:
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere) if _is_one_of_many() else nullcontext(): yield


def _one_line(message: Warning | str, *place: Any) -> str:
    return f'miniai: warning: {printable(" ".join(str(message).split()))}\n'


def _run(args: list[str]) -> int:
    "Run the job and return the exit code."
    if args == ['--version']:
        versions = f'miniai {version_of("miniai-torch") or "(not installed)"}, torch {version_of("torch")}'
        print(f'{versions}, Python {platform.python_version()}')
        return 0
    try:
        if args[:1] == ['--completion']:
            print(completion(' '.join(args[1:])))
            return 0
        code = _run_job(_parse(args))
        sys.stdout.flush()
    except ConfigError as e: return _fail(e, 2)
    except KeyboardInterrupt as e:
        if is_first_to_fail(): print(' '.join(['stopped', *getattr(e, '__notes__', ())]), file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python exits
        return 141
    return code


def _parse(args: list[str]) -> JobConfig | VerifyConfig | ShowConfig:
    "The configuration. Of several processes that refuse their arguments, one says so."
    said = StringIO()
    try:
        with redirect_stderr(said) if launched() else nullcontext(): return parse(args)
    except (ConfigError, SystemExit) as e:
        refused = ConfigError('invalid options') if isinstance(e, SystemExit) else e
        if '--json' in args and args[0] == 'train' and getattr(e, 'code', 2): JSONLines(sys.stdout).end(refused)
        raise
    finally:
        if said.getvalue() and is_first_to_fail(): sys.stderr.write(said.getvalue())


def _fail(error: Exception, code: int) -> int:
    said = f'{error.filename}: {error.strerror}' if getattr(error, 'filename', None) else str(error)  # without a number
    said = re.sub(r'\b(skip_bad|allow_code|classes)=True', _as_option, said)
    if is_first_to_fail(): print('miniai: error: ' + '\n'.join(map(printable, said.split('\n'))), file=sys.stderr)
    return code


def _as_option(argument: re.Match) -> str:
    "An argument of Python as the command line has it."
    return '--classes yes' if argument[1] == 'classes' else f"--{argument[1].replace('_', '-')}"


def _run_job(config: JobConfig | VerifyConfig | ShowConfig) -> int:
    os.environ['MPLBACKEND'] = 'agg'  # pictures go to files
    if _is_one_of_many() and not isinstance(config, FolderConfig): return 0  # one process is enough
    try: result = JOBS[type(config)](config)
    except BrokenPipeError: raise
    except FAILURES as e: return _fail(e, 1)
    except ValueError as e:
        if isinstance(e, ConfigError) or not isinstance(config, USES): raise
        return _fail(e, 1)
    return 1 if result is False else 0

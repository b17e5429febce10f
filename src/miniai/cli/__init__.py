"The command line. A report starts at once; all other commands first import torch."
import sys
from collections.abc import Sequence
from pathlib import Path

from miniai.jobs.report import ReportConfig, report_runs

__all__ = ['main']


def main(args: Sequence[str] | None = None) -> None:
    """Run `miniai` with `args`, by default those of the process, and exit.

    Exit codes: 0 success, 1 the job failed, 2 invalid options, 130 stopped by Ctrl-C, 143 stopped by SIGTERM,
    141 the reader of the output went away (`miniai checkpoint show FILE | head`)."""
    args = list(sys.argv[1:] if args is None else args)
    try:
        if _has_reported(args): sys.exit(0)
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)
    from miniai.cli.command import run_command
    run_command(args)


def _has_reported(args: list[str]) -> bool:
    "Write the report that `args` ask for, if they only name runs. False after an error: the whole command says why."
    command, *runs = args or ['']
    if command != 'report' or not runs or any(run.startswith('-') for run in runs): return False
    try: report_runs(ReportConfig(tuple(map(Path, runs))))
    except Exception: return False
    return True

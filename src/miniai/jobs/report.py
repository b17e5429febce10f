"The job that writes the report of a run, or of several side by side."
import re
from dataclasses import dataclass
from pathlib import Path

from miniai.jobs.config import ConfigError, TrainConfig
from miniai.jobs.run_folder import RunFolder
from miniai.report.page import REPORT_FILE, write_report

__all__ = ['ReportConfig', 'report_runs', 'to_write']

_OURS = re.compile(rb'<meta name="generator" content="miniai">')


@dataclass
class ReportConfig:
    "Write a run as one page, or several runs side by side. Works for killed and running runs too."
    runs: tuple[Path, ...] = ()
    """The folders of runs. Default: the latest run."""
    out: str = ''
    """The file to write. Default: report.html in the run folder, of several runs in the current folder."""


def report_runs(config: ReportConfig) -> None:
    """Write the report and print its path. FileNotFoundError for a folder without a run; ConfigError for a file that is
    no report and would be overwritten."""
    runs = config.runs or (RunFolder.find(TrainConfig().out).path,)
    path = Path(config.out or (runs[0] if len(runs) == 1 else Path())/REPORT_FILE)
    print(write_report(runs, to_write(path, REPORT_FILE, '--out')))


def to_write(path: Path, name: str, option: str) -> Path:
    "The file for a page: `path`, or `name` in it. ConfigError for a file that is no page of miniai."
    if path.is_dir(): path = path/name
    if path.exists() and not _is_ours(path):
        raise ConfigError(f"{path} exists and is no report of miniai: choose another file with {option}")
    return path


def _is_ours(path: Path) -> bool:
    with path.open('rb') as f: return bool(_OURS.search(f.read(2000)))

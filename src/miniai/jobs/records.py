"What a run records for its report beside its metrics: its state, batches and results, complete after every epoch."
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miniai.distributed.ranks import is_first
from miniai.events import Callback
from miniai.inference.facts import data_facts, model_facts
from miniai.inference.validated import ValidatedCB
from miniai.jobs.run_folder import RunFolder, as_json, recorded
from miniai.learner import ProgressCB
from miniai.report.batches import thinned
from miniai.report.page import REPORT_FILE, write_report
from miniai.sgd import RecorderCB

__all__ = ['RecordsCB', 'ReportCB', 'Status', 'how_it_ended', 'write_page']


class RecordsCB(Callback):
    """Writes `data.json` and `model.json` at the start of a fit, and after each epoch `batches.json`, the losses and
    rates of `progress` and `rates`, and `results.json` of `seen`."""
    order, only_shows = 2, True
    def __init__(self, folder: RunFolder, progress: ProgressCB, rates: RecorderCB, seen: ValidatedCB) -> None:
        self.folder, self.progress, self.rates, self.seen, self.ends = folder, progress, rates, seen, []

    @property
    def run_folder(self) -> Path: return self.folder.path

    def before_fit(self, learn: Any) -> None: self.ends, self._started = [], False

    def before_epoch(self, learn: Any) -> None:
        if self._started or getattr(learn, 'dry_run', False): return  # here, as a resume may be refused before it
        self.write('data', lambda: data_facts(learn.dls))
        self.write('model', lambda: model_facts(learn))
        self._started = True

    def after_epoch(self, learn: Any) -> None:
        if getattr(learn, 'dry_run', False): return
        if learn.model.training: self.ends.append(len(self.progress.losses))
        self.write_batches()
        if not learn.model.training and self.seen.record: self.write('results', lambda: self.seen.record)

    def write_batches(self) -> None:
        "Write the losses and rates so far."
        self.write('batches', lambda: thinned(self.progress.losses, self.rates.recs['lr'], self.ends))

    def write(self, name: str, found: Callable[[], Any]) -> None:
        "Write the plain values that `found` returns to a file of the run folder."
        with recorded(f'{name}.json'): self.folder.write(f'{name}.json', as_json(found()) + '\n')

    def state_dict(self) -> dict[str, Any]:
        "The number of batches at the end of each epoch so far."
        return dict(ends=list(self.ends))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned."
        self.ends = list(state['ends'])


class Status:
    "The file `status.json` of a run: whether it runs, in which process, since when, and how it ended."
    def __init__(self, folder: RunFolder, epochs: int) -> None:
        self.folder, self._start = folder, time.perf_counter()
        self.found = dict(state='running', error=None, epochs=epochs, pid=os.getpid(), host=socket.gethostname(),
                          started=_now(), ended=None, seconds=None)

    def start(self) -> None:
        "The run has been accepted, and runs."
        self._write()

    def end(self, state: str, error: str | None = None) -> None:
        "The run ended: 'finished', or 'stopped' by `error`."
        self.found |= dict(state=state, error=error, ended=_now(), seconds=time.perf_counter() - self._start)
        self._write()

    def _write(self) -> None:
        with recorded('status.json'): self.folder.write('status.json', as_json(self.found, indent=1) + '\n')


def _now() -> str: return time.strftime('%Y-%m-%d %H:%M:%S %z')


def how_it_ended() -> str | None:
    "What ends the run at this moment, in words; None without an exception."
    e = sys.exception()
    if e is None: return None
    if isinstance(e, KeyboardInterrupt): return 'Ctrl-C.'
    if isinstance(e, SystemExit): return 'a signal that asked it to stop.'
    return f'{type(e).__name__}: {e}'[:2000]


class ReportCB(Callback):
    "Writes the report of a run that goes on, after a phase, at most once in `seconds` and in 50 times what it takes."
    order, only_shows = 3, True  # after all records have been written
    def __init__(self, folder: RunFolder, seconds: float = 30.) -> None: self.folder, self.seconds = folder, seconds
    def before_fit(self, learn: Any) -> None: self._next = time.perf_counter() + self.seconds

    def cleanup_epoch(self, learn: Any) -> None:
        if getattr(learn, 'dry_run', False) or time.perf_counter() < self._next: return
        started = time.perf_counter()
        write_page(self.folder)
        now = time.perf_counter()
        self._next = now + max(self.seconds, 50*(now - started))


def write_page(folder: RunFolder) -> None:
    "Write the report of a run. A warning if it cannot be written: the run itself is complete."
    if not is_first(): return
    with recorded(REPORT_FILE): write_report([folder.path], folder.path/REPORT_FILE)

"What a run does as JSON for other programs: one object per line."
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from miniai.callbacks.track import verdicts_of
from miniai.distributed.ranks import is_first
from miniai.distributed.torchrun import launched
from miniai.events import Callback
from miniai.jobs.run_folder import as_json
from miniai.metrics.direction import row_of_pass

__all__ = ['JSONLines', 'json_lines']


class JSONLines(Callback):
    """Writes an object per line to `file`: `start`; `epoch`, a row of `learn.history`, for each epoch and phase;
    `verdict` for each verdict of a HealthCB; `end`. With None it writes nothing."""
    order, only_shows = 1001, True
    def __init__(self, file: TextIO | None) -> None:
        self.file, self.folder, self.result, self.started, self._told = file, None, {}, time.perf_counter(), set()

    def __getstate__(self) -> dict[str, Any]: return vars(self) | dict(file=None)

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        "Write one object, if this is the first process."
        if self.file is None or not is_first(): return
        print(as_json(dict(event=event) | dict(values), default=str), file=self.file, flush=True)

    def start(self, folder: Path, values: Mapping[str, Any]) -> None:
        "The run in `folder` starts: write that with `values`."
        self.folder = folder
        self.write('start', dict(folder=str(folder)) | dict(values))

    def after_batch(self, learn: Any) -> None: self._write_verdicts(learn)

    def cleanup_epoch(self, learn: Any) -> None:
        row = row_of_pass(learn)
        if row and row != self.result:
            self.result = dict(row)
            self.write('epoch', row)
        self._write_verdicts(learn)

    def _write_verdicts(self, learn: Any) -> None:
        for verdict in verdicts_of(learn):
            if (verdict.name, verdict.where) in self._told: continue
            self._told.add((verdict.name, verdict.where))
            self.write('verdict', verdict._asdict())

    def end(self, error: BaseException | None) -> None:
        "The run is over: write how it ended, its last row, and the files in its folder."
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        status = 'finished' if error is None else 'stopped' if stopped else 'failed'
        files = sorted(p.name for p in self.folder.iterdir() if p.name[0] != '.') if self.folder else []
        self.write('end', dict(status=status, error=f'{type(error).__name__}: {error}' if status == 'failed' else None,
                               seconds=round(time.perf_counter() - self.started, 3), result=self.result,
                               folder=str(self.folder) if self.folder else None, files=files))


@contextmanager
def json_lines(on: bool) -> Iterator[JSONLines]:
    """If `on`, JSON lines go to stdout, and what the block prints to stderr. Otherwise, and in other processes than
    the first, all is as it was."""
    on = on and (launched() or (0, 1))[0] == 0
    lines = JSONLines(sys.stdout if on else None)
    if not on:
        yield lines
        return
    try:
        with redirect_stdout(sys.stderr): yield lines
    except BrokenPipeError: raise
    except BaseException as e:
        lines.end(e)
        raise
    lines.end(None)

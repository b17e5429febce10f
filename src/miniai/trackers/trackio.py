"Figures in Trackio, which keeps them on this machine."
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from miniai.trackers.tracker import Tracker, key_of, unseen

__all__ = ['TrackioTracker']


class TrackioTracker(Tracker):
    """A run in Trackio's database in `trackio/` in the folder, or in TRACKIO_DIR. Trackio has one folder for a process,
    that of the first run. Option `project`, by default miniai; other options go to `trackio.init`. What Trackio prints
    is not shown."""
    package = 'trackio'
    def __init__(self, folder: Path, name: str, run: str | None, step: int, project: str = 'miniai',
                 **options: Any) -> None:
        trackio, self.root = _import_with(folder/'trackio')
        self.project = project
        quiet = dict(auto_log_cpu=False, auto_log_gpu=False, embed=False)
        with redirect_stdout(StringIO()):
            self.tracked = trackio.init(project, run or name, resume='must' if run else 'never', **quiet | options)
        self.run, self.image = self.tracked.name, trackio.Image
        self.view = f'TRACKIO_DIR={self.root} trackio show --project {project}'
        self.last = self._last_steps() if run else {}

    def _last_steps(self) -> dict[str, int]:
        "The last step of each figure of a run that continues: Trackio would keep two figures of one step."
        from trackio.sqlite_storage import SQLiteStorage
        logs = SQLiteStorage.get_logs(self.project, self.run, run_id=self.tracked.id)
        return {nm: log['step'] for log in sorted(logs, key=lambda log: log['step']) for nm in log}

    def config(self, values: Mapping[str, Any]) -> None: self.tracked.config.update(values)

    def figures(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, values in unseen(rows, self.last): self.tracked.log(dict(values), step=step)

    def picture(self, name: str, png: Path, step: int) -> None:
        self.tracked.log({f'pictures/{name}': self.image(str(png))}, step=step)

    def alert(self, title: str, text: str, step: int) -> None:
        with redirect_stdout(StringIO()): self.tracked.alert(title, text, step=step)

    def file(self, path: Path) -> None:
        self.tracked.log_artifact(path, name=key_of(f'{self.run}-{path.name}').replace(' ', '_'), type='model')

    def close(self, how: str) -> None:
        import trackio
        from trackio.context_vars import current_run
        with redirect_stdout(StringIO()):  # Trackio finishes its current run again when Python exits
            (trackio if current_run.get() is self.tracked else self.tracked).finish()


def _import_with(root: Path) -> tuple[Any, Path]:
    "Trackio, which reads its folder when it is imported, and that folder."
    mine = 'trackio' not in sys.modules and 'TRACKIO_DIR' not in os.environ
    if mine: os.environ['TRACKIO_DIR'] = str(root.absolute())
    try:
        import trackio
        from trackio.utils import TRACKIO_DIR
    finally:
        if mine: del os.environ['TRACKIO_DIR']
    return trackio, Path(TRACKIO_DIR)

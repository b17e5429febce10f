"Figures as plain files: a CSV file with a line for each figure, which every program can read."
import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miniai.trackers.tracker import Tracker, free_name, key_of

__all__ = ['CSVTracker']

HEADS = {'figures.csv': ('step', 'name', 'value'), 'alerts.csv': ('step', 'title', 'text')}


class CSVTracker(Tracker):
    """Writes `csv/NAME/` in the folder: `figures.csv` with the columns step, name and value, `alerts.csv`,
    `config.json`, and `pictures/`. A run that continues first drops the lines of later steps."""
    def __init__(self, folder: Path, name: str, run: str | None, step: int) -> None:
        self.run = run or free_name(folder/'csv', name)
        self.path = folder/'csv'/self.run
        self.view = f'{self.path}/figures.csv'
        (self.path/'pictures').mkdir(parents=True, exist_ok=True)
        for file, head in HEADS.items(): self._begin(self.path/file, head, step)

    def _begin(self, path: Path, head: Sequence[str], step: int) -> None:
        path.touch()
        with path.open(newline='', encoding='utf-8') as f: there = list(csv.reader(f))
        kept = [row for row in there[1:] if len(row) == len(head) and int(row[0]) <= step]  # the last may be cut short
        with path.open('w', newline='', encoding='utf-8') as f: csv.writer(f).writerows([head, *kept])

    def _append(self, file: str, rows: list) -> None:
        with (self.path/file).open('a', newline='', encoding='utf-8') as f: csv.writer(f).writerows(rows)

    def config(self, values: Mapping[str, Any]) -> None:
        (self.path/'config.json').write_text(json.dumps(values, indent=1, default=str) + '\n', 'utf-8')

    def figures(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        self._append('figures.csv', [(step, nm, x) for step, values in rows for nm, x in values.items()])

    def picture(self, name: str, png: Path, step: int) -> None:
        shutil.copyfile(png, self.path/'pictures'/f"{key_of(name).replace('/', '_')}-{step}.png")

    def alert(self, title: str, text: str, step: int) -> None: self._append('alerts.csv', [(step, title, text)])

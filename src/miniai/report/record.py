"What a run recorded in its folder, read for its report: whatever is there, with a list of what is missing or damaged."
import json
import math
import os
import re
import socket
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ['Run', 'as_json', 'read_run', 'STATES']

STATES = dict(finished='finished', stopped='stopped', running='running', killed='killed', unknown='state unknown')
_RECORDED = dict(status=dict, batches=dict, model=dict, data=dict, results=dict, health=dict, profile=list)
_EXPECTED = 'status', 'batches', 'model', 'data'  # every run has these after its first epoch


def as_json(x: Any, **kwargs: Any) -> str:
    "`x` as JSON, with null for NaN and infinity, which JSON does not have."
    return json.dumps(_finite(x), allow_nan=False, **kwargs)


def _finite(x: Any) -> Any:
    if isinstance(x, dict): return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, list | tuple): return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


@dataclass
class Run:
    """A run as it was recorded. What is missing or damaged is empty, and `problems` says so. `environments` has one
    for each process that trained it, the first one first."""
    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    environments: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    batches: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    health: dict[str, Any] = field(default_factory=dict)
    profile: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str: return str(self.status.get('name') or self.path.resolve().name)

    @property
    def state(self) -> str:
        "A key of STATES. A run whose process has ended without saying so was killed."
        said = self.status.get('state')
        if said != 'running': return said if said in list(STATES) else 'unknown'  # a list, for values of any kind
        alive = _is_alive(self.status.get('pid'), self.status.get('host'))
        return 'unknown' if alive is None else 'running' if alive else 'killed'

    def rows(self, phase: str) -> list[dict[str, Any]]:
        "The rows of the history of a phase, 'train' or 'eval'."
        return [row for row in self.history if row.get('phase') == phase]

    @property
    def metrics(self) -> list[str]:
        "The names of what was measured in each epoch: the loss first, without the time."
        names = dict.fromkeys(nm for row in self.history for nm in row if nm not in ('epoch', 'phase', 'seconds'))
        return sorted(names, key=lambda nm: nm != 'loss')


def read_run(path: str | os.PathLike) -> Run:
    """Read the folder of a run, finished or not. FileNotFoundError if it is not one: it has neither `config.toml` nor
    `metrics.jsonl` nor `status.json`."""
    run = Run(Path(path))
    if not any((run.path/name).exists() for name in ('config.toml', 'metrics.jsonl', 'status.json')):
        raise FileNotFoundError(f"{path} is not the folder of a run: "
                                f"it has no config.toml, metrics.jsonl or status.json")
    epochs = (run.path/'metrics.jsonl').exists()  # both files come with the first epoch that is finished
    for name, kind in _RECORDED.items():
        expected = name in _EXPECTED and not run.status.get('from_python') and (epochs or name != 'batches')
        found = _read(run, f'{name}.json', json.loads, kind, expected)
        if found is not None: setattr(run, name, found)
    run.config = _read(run, 'config.toml', tomllib.loads, dict, expected=not run.status.get('from_python')) or {}
    run.history = _read(run, 'metrics.jsonl', lambda text: _rows(run, text), list, bool(run.batches.get('ends'))) or []
    for name in _environments(run.path): run.environments.append(_read(run, name, json.loads, dict, True) or {})
    return run


def _read(run: Run, name: str, parse: Callable[[str], Any], kind: type, expected: bool) -> Any:
    "The content of a file, or None, which is noted if the file is damaged, or missing though every run has it."
    try: text = (run.path/name).read_text('utf-8')
    except FileNotFoundError:
        if expected: run.problems.append(f'{name} is missing')
        return None
    except (OSError, ValueError) as e:
        run.problems.append(f'{name} cannot be read: {getattr(e, "strerror", None) or e}')
        return None
    try: found = parse(text)
    except (ValueError, RecursionError) as e: run.problems.append(f'{name} is damaged: {e}')
    else:
        if isinstance(found, kind): return found
        run.problems.append(f'{name} is damaged: it holds a {type(found).__name__} instead of a {kind.__name__}')
    return None


def _rows(run: Run, text: str) -> list[dict[str, Any]]:
    "The rows of metrics.jsonl. Lines that are none are noted and left out."
    rows, wrong = [], []
    for i, line in enumerate(text.splitlines(), 1):
        try: row = json.loads(line)
        except ValueError: row = None
        if isinstance(row, dict) and isinstance(row.get('epoch'), int) and 'phase' in row: rows.append(row)
        else: wrong.append(i)
    if wrong: run.problems.append(f'metrics.jsonl is damaged: left out line {", ".join(map(str, wrong[:20]))}')
    return rows


def _environments(path: Path) -> list[str]:
    "The names of the environment files in order; the first one also if it is missing."
    found = {1: 'environment.json'}
    for p in path.glob('environment-*.json'):
        if number := re.fullmatch(r'environment-(\d+)\.json', p.name): found[int(number[1])] = p.name
    return [name for _, name in sorted(found.items())]


def _is_alive(pid: Any, host: Any) -> bool | None:
    "Whether the process runs; None if this machine does not know."
    if host != socket.gethostname() or not isinstance(pid, int) or pid < 1 or sys.platform == 'win32': return None
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    except (PermissionError, OverflowError): return True
    return True

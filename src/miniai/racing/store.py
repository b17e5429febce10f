"The folder of a race: a JSON file for each finished trial, and locks, so that several processes can share the work."
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from miniai.atomic import atomic_write

__all__ = ['Store', 'digest_of']

POLL = 0.05  # seconds between looks at trials that other processes run


def digest_of(facts: Any) -> str:
    "A name for plain data, the same on every machine."
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


class Store:
    """Results by what they are results of, in `folder`. A file is complete or not there. Locks are those of the
    operating system: they end with the process that holds them, so a killed one leaves nothing to clean up."""
    def __init__(self, folder: str | Path, tell: Callable[[str], Any] = lambda text: None) -> None:
        try:
            import filelock
        except ImportError as e: raise ImportError("a race needs filelock: pip install 'miniai-torch[race]'") from e
        self.folder, self._filelock, self._tell = Path(folder), filelock, tell
        self._new = not self.folder.exists()
        (self.folder/'trials').mkdir(parents=True, exist_ok=True)

    def leave(self) -> None:
        "Remove the folder if it is new and still empty."
        with suppress(OSError):
            if self._new:
                (self.folder/'trials').rmdir()
                self.folder.rmdir()

    def read(self, name: str) -> Any:
        "The JSON file `name`, or None if there is none. ValueError if it is damaged."
        try: return json.loads((self.folder/name).read_text('utf-8'))
        except FileNotFoundError: return None
        except ValueError as e: raise ValueError(f"{self.folder/name} is damaged: {e}") from e

    def write(self, name: str, value: Any) -> None:
        "Write a file, JSON or text, complete or not at all, even if the machine stops."
        text = value if isinstance(value, str) else json.dumps(value, indent=1, allow_nan=False) + '\n'
        with atomic_write(self.folder/name, synced=True) as part: part.write_text(text, 'utf-8', 'backslashreplace')

    @contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        "Hold the lock `name`: True within it, or False if another process holds it and this one is not to `wait`."
        lock = self._filelock.FileLock(self.folder/name, timeout=-1 if wait else 0)
        try: lock.acquire()
        except self._filelock.Timeout:
            yield False
            return
        try: yield True
        finally:
            with suppress(OSError): os.unlink(self.folder/name)  # whoever waits for it looks for the result first
            lock.release()

    def results(self, trials: Sequence[dict], run: Callable[[dict], dict],
                tell: Callable[[Mapping], Any] = lambda done: None) -> list[dict]:
        """The result of each of `trials`, plain data that say what it is. Those in the folder are read, others are run,
        each by one process; what others are running is waited for. `tell` hears what is done, by name: first what was
        in the folder, then each time there is more."""
        names = {digest_of(trial): trial for trial in trials}
        found = {name: kept for name in names if (kept := self._kept(name))}
        tell(found)
        while len(found) < len(names):
            before = len(found)
            for name, trial in names.items():
                if name in found: continue
                result = self._result(name, trial, run)
                if result is None: continue
                found[name] = result
                tell(found)
            if len(found) == before: time.sleep(POLL)
        return [found[digest_of(trial)] for trial in trials]

    def _result(self, name: str, trial: dict, run: Callable[[dict], dict]) -> dict | None:
        "The result of a trial; None if another process is running it."
        if kept := self._kept(name): return kept
        with self.lock(f'trials/{name}.lock', wait=False) as mine:
            if not mine: return None
            if not self._kept(name):  # it may have been finished before the lock was taken
                file = f'trials/{name}.json'
                if (self.folder/file).exists(): self._tell(f'{self.folder/file} is damaged: this run is done again')
                self.write(file, dict(trial=trial, result=run(trial)))
        return self._kept(name)

    def _kept(self, name: str) -> dict | None:
        "The result of a finished trial. A file that is damaged, or holds another trial, is none and gets replaced."
        try: kept = self.read(f'trials/{name}.json')
        except ValueError: return None
        if not isinstance(kept, dict) or digest_of(kept.get('trial')) != name: return None
        return kept['result'] if isinstance(kept.get('result'), dict) else None

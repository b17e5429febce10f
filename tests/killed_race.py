"""Races of a moment that end themselves: `python killed_race.py FOLDER [LINE [PART]]` races in FOLDER, and kills itself
at the LINE-th line that runs in PART of miniai. Tests and bench/race_proofs.py resume them."""
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import races
from miniai.racing import race as module

PARTS = dict(store=('/racing/store.py', '/miniai/atomic.py'), racing=('/racing/',), miniai=('/miniai/',))
# writes and locks, races, everything


class Lines:
    "Counts lines that run in `part` of miniai, and kills the process at line `last`; if that is -1, counts all parts."
    def __init__(self, folder, last=0, part='racing'):
        self.folder, self.last, self.part, self.n = folder, last, part, Counter()

    def __call__(self, frame, event, arg):
        file = frame.f_code.co_filename
        parts = [part for part in (PARTS if self.last < 0 else [self.part]) if any(nm in file for nm in PARTS[part])]
        def line(frame, event, arg):
            if event != 'line': return line
            self.n.update(parts)
            if self.n[self.part] == self.last: self.kill(frame.f_code)
            return line
        return line if parts else None

    def kill(self, code):
        (self.folder/'killed').write_text(f'{Path(code.co_filename).stem}.{code.co_name}')
        os.kill(os.getpid(), signal.SIGKILL)


def run(folder, last=0, part='racing'):
    """Race in `folder`, and note each run that begins in a file there. If `last` is -1, note how many lines ran; if it
    is above 0, end at that line."""
    lines, real = Lines(folder, last, part), module.run_trial
    folder.mkdir(parents=True, exist_ok=True)
    def noted(task, entrant, config, seed, steps, tunes):
        with (folder/'executed').open('a') as f:
            f.write(f'{os.getpid()} {json.dumps([entrant.name, config, seed, steps, tunes])}\n')
        return real(task, entrant, config, seed, steps, tunes)
    module.run_trial = noted
    if last: sys.settrace(lines)
    try: races.run(races.descent, out=folder)
    finally:
        sys.settrace(None)
        module.run_trial = real
    if last: (folder/'lines').write_text(json.dumps(lines.n))


def executed(folder):
    "The runs that began, each as the process that made it and what it was."
    return [line.split(' ', 1) for line in (folder/'executed').read_text().splitlines()] \
        if (folder/'executed').exists() else []


def lines_of(folder): return json.loads((folder/'lines').read_text())


if __name__ == '__main__': run(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:4])

"""Do the programs of tests/programs resume exactly, and is each change of tests/changes.py noticed?

    python bench/programs.py [--only NAME ...] [--tables programs changes] [--no-control] [--all-stops] [--save]

A row's control shows that it has a reason to be there. Programs: a resume that restores model, optimizer, random states
and position, and nothing else, ends differently. Changes: an uninterrupted run of the changed script does.
"""
import argparse
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import local

sys.path[:0] = [str(Path(__file__).resolve().parents[1]/'tests')]

import outcomes
from changes import CHANGES
from machine import record
from programs import STOPS, table

SERVERS = 2  # each runs one process at a time
own = local()


def server():
    if not hasattr(own, 'server'): own.server = outcomes.Server()
    return own.server


def outcome(f, row, **kwargs):
    with TemporaryDirectory() as folder: return f(server(), folder, row, **kwargs)


def cell(text): return ' '.join(str(text).split()).replace('|', '\\|')


def line(name, what, expected, o):
    right = '' if o.word in expected.split('|') else ' ✗'
    why = f'differs: {", ".join(o.differs)}. ' if o.differs else ''
    said = '; '.join(o.said)
    cells = name, what, o.word + right, expected.replace('|', ' or '), o.control, why + said[:240]
    return f'| {" | ".join(map(cell, cells))} |'


def rows_of(pool, kind, rows, args):
    "The lines of a table, and how often each outcome came up."
    if kind == 'programs':
        stops = [*STOPS, ('valid', 1, 0)] if args.all_stops else [None]
        jobs = [(r.name + (f' {s}' if s else ''), r.kind, r, dict(stop=s)) for r in rows for s in stops]
        f = outcomes.of_program
    else: jobs, f = [(r.name, r.what, r, {}) for r in rows], outcomes.of_change
    found = [pool.submit(outcome, f, r, control=not args.no_control, **kw)
             for _, _, r, kw in jobs]
    out, counts = [], Counter()
    for (name, what, r, _), o in zip(jobs, (x.result() for x in found), strict=True):
        out.append(line(name, what, r.expect, o))
        print(out[-1], flush=True)
        counts[o.word] += 1
        counts['✗ not as expected'] += o.word not in r.expect.split('|')
        counts['with a control'] += o.control == 'yes'
    return out, counts


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--only', nargs='+', metavar='NAME', help='names of rows')
    ap.add_argument('--tables', nargs='+', choices=['programs', 'changes'], default=['programs', 'changes'])
    ap.add_argument('--no-control', action='store_true')
    ap.add_argument('--all-stops', action='store_true', help='stop each program at each place')
    ap.add_argument('--save', action='store_true', help='write bench/results/programs_DATE.md')
    args = ap.parse_args()
    everything, text, wrong = dict(programs=table(), changes=CHANGES), [], 0
    with ThreadPoolExecutor(SERVERS) as pool:
        for kind in args.tables:
            rows = [r for r in everything[kind].values() if not args.only or r.name in args.only]
            lines, counts = rows_of(pool, kind, rows, args)
            if not lines: continue
            wrong += counts['✗ not as expected']
            summary = ', '.join(f'{n} {word}' for word, n in sorted(counts.items()) if n)
            print(summary, flush=True)
            head = ['| name | what | outcome | expected | control | differs, said |', '|--|--|--|--|--|--|']
            text += [f'## {kind}: {len(lines)}', '', summary, '', *head, *lines, '']
    if args.save: record('programs', '\n'.join(text), runs='each row stopped once')
    sys.exit(1 if wrong else 0)


if __name__ == '__main__': main()

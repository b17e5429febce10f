"""Do checkpoints survive kills, failing calls, power loss, damage and hostile files? And how long does saving take?

    python bench/faults.py [--quick] [--only ROW ...] [--name NAME]

Each row repeats one kind of fault and counts what must not happen. A control is a save made worse on purpose, in which
the same row must find faults.
"""
import argparse
import ast
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]/'tests'
sys.path.insert(0, str(TESTS))

import torch

import crash
import damage
import outcomes
import stopping
from changes import CHANGES
from machine import record
from miniai.checkpoint import SaveError, Saver, load, save
from programs import table

QUICK = False


def many(n): return max(10, n // 20) if QUICK else n


def python(*args):
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, check=True).stdout


# A row is a function that returns (what was done, what was found, whether it passed)

def kills():
    out = ast.literal_eval(python(crash.__file__, many(1000)))
    found = '{corrupt} corrupt, {lost} of {acknowledged} acknowledged saves lost, {left_over} left over'.format(**out)
    return f'{out["kills"]} SIGKILLs at random times, {out["temporaries"]} during a write', found, \
        not out['corrupt'] + out['lost'] + out['left_over']


def kills_control():
    out = ast.literal_eval(python(crash.__file__, many(1000), 'in place'))
    return f'{out["kills"]} SIGKILLs, control: written in place', f'{out["corrupt"]} corrupt', out['corrupt'] > 0


def calls():
    with tempfile.TemporaryDirectory() as folder:
        ends = [crash.try_fault(folder, *case) for case in crash.fault_cases(folder)]
    n, wrong = len(ends), sum(not right for _, right in ends)
    raised = sum(o != 'saved' for o, _ in ends)
    found = f'{raised} saves failed with an error, {wrong} wrong'
    return f'{n} failures of single calls, once or from then on', found, not wrong


def full_disk():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'c.safetensors')
        save(path, 'old')
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, hard))
        try: save(path, torch.zeros(5_000_000))
        except SaveError as e: said = str(e)
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        right = load(path) == 'old' and os.listdir(folder) == ['c.safetensors'] and path in said
        return 'a save of 20 MB where files end at 10 MB', said.replace(path, 'PATH'), right


def power():
    outs = [crash.power_loss(saves=3, seed=s, background=s % 2 == 1) for s in range(many(40))]
    cuts, disks, wrong = (sum(o[k] for o in outs) for k in ('cuts', 'disks', 'wrong'))
    found = f'{wrong} without a whole old or new file'
    return f'power lost at {cuts} points, {disks} states of the disk', found, not wrong


def power_control():
    wrong = [crash.power_loss(1, (nm,))['wrong'] for nm in ('fsync', 'fsync_dir')]
    done = 'power loss, control: the file is not synced; the folder is not synced'
    return done, f'{wrong[0]}; {wrong[1]} wrong', all(wrong)


def damaged():
    with tempfile.TemporaryDirectory() as folder: out = damage.damaged(folder, many(10_000))
    found = f'{out["refused"]} refused with an error that names the file'
    return f'{out["files"]} damaged files', found, not out['other']


PEAK = """
import sys
sys.path.insert(0, sys.argv[2])
from damage import peak_of_reading
from miniai.checkpoint import load, save
save(sys.argv[1] + '.small', 1), load(sys.argv[1] + '.small')
print(peak_of_reading(sys.argv[1]))
"""


def memory():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'c')
        save(path, [torch.randn(10_000_000) for _ in range(5)])
        whole = float(python('-c', PEAK, path, TESTS))
        with open(path, 'r+b') as f: f.seek(-1, os.SEEK_END), f.write(b'x')
        bad = float(python('-c', PEAK, path, TESTS))
    return 'memory to load 200 MB, whole; damaged', f'{whole:.2f}; {bad:.2f} of its size', max(whole, bad) < 2


def hostile():
    with tempfile.TemporaryDirectory() as folder: out = json.loads(python(damage.__file__, folder))['files']
    refused, seen = sum(r['results'][0] != 'harmless' for r in out.values()), sum(len(r['seen']) for r in out.values())
    odd = [nm for nm, r in out.items() if set(r['results']) - {'refused', 'harmless'} and nm != 'link to itself']
    found = f'{refused} refused, the rest plain data; {seen} things executed, imported, opened or sent'
    return f'{len(out)} hostile files', found, not seen and not odd


def timed(f, *args):
    started = time.perf_counter()
    f(*args)
    return time.perf_counter() - started


def torch_save(path, state):
    with open(path, 'wb') as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())


def cost(mb):
    """Median times over interleaved rounds, each to a new file: torch.save + fsync, a verified save, and how long a
    background save stops the caller."""
    state, saver = {f'layer{i}': torch.randn(mb*1000_000 // 4 // 20) for i in range(20)}, Saver()
    rounds, ratios, stops, plain = (3 if QUICK else 15), [], [], []
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, nm) for nm in 'abc']
        for k in range(rounds + 1):
            t, s = timed(torch_save, paths[0], state), timed(save, paths[1], state)
            stop = timed(saver.save, paths[2], state)
            saver.wait()
            for p in paths: os.unlink(p)
            if k: ratios.append(s/t), stops.append(stop/s), plain.append(t)  # the first round warms up
    ratio, stop = statistics.median(ratios), statistics.median(stops)
    found = f'{ratio:.2f} times as long; a background save stops the caller for {stop:.0%} of that'
    done = f'a verified save of {mb} MB, against torch.save + fsync ({statistics.median(plain):.2f} s)'
    return done, found, ratio <= 1.5 and stop <= 0.1


# Rows of training runs

def found_in(counts, *names): return ', '.join(f'{counts[nm]} {nm.replace("_", " ")}' for nm in names)


def ended_wrong(counts): return counts['different'] + counts['failed']


def boundaries():
    once = stopping.every_boundary('boundaries', 5 if QUICK else 1)
    thrice = stopping.three_in_a_row('boundaries, three in a row', many(45))
    done = (f'{once["runs"]} runs stopped after one batch, each of training and validation in two epochs; '
            f'{thrice["runs"]} after three')
    return done, f'{ended_wrong(once)}; {ended_wrong(thrice)} ended differently', not ended_wrong(once + thrice)


def boundaries_control():
    left_out = 'random states', 'loader position', 'accumulated group'
    each = {nm: stopping.every_boundary(nm, 5 if QUICK else 2, nm) for nm in left_out}
    found = ', '.join(f'{nm} {c["different"]} of {c["runs"]}' for nm, c in each.items())
    return 'the same, control: resumes that leave something out', f'{found} ended differently', \
        all(c['different'] and not c['failed'] for c in each.values())


def run_kills():
    out = stopping.kills(many(200), 'kills of runs')
    done = (f'{out["kills"]} SIGKILLs of training runs, {out["while_writing"]} while a file was written, '
            f'{out["none_yet"]} before the first checkpoint, {out["again"]} of a resumed run; {out["fresh"]} of '
            f'{out["runs"]} runs in fresh interpreters, the rest forked')
    wrong = 'corrupt', 'stale', 'different', 'failed'
    return done, found_in(out, *wrong), not sum(out[nm] for nm in wrong)


def run_kills_control():
    resumed = stopping.kills(many(200)//8 + 5, 'kills of runs, control', worse_resume='random states')
    saved = stopping.kills(many(200)//8 + 5, 'kills of runs, control', worse_save='temporary file')
    done = 'the same, control: resumes without random states; saves written in place, slowly'
    found = f'{resumed["different"]} of {resumed["runs"]} different; {saved["corrupt"]} of {saved["kills"]} corrupt'
    return done, found, resumed['different'] and saved['corrupt']


def signals():
    out = stopping.signals(many(500), 'signals')
    phases = ', '.join(f'{out[nm]} {nm}' for nm in stopping.AIMS)
    done = (f'{out["signals"]} SIGTERMs and SIGINTs: {phases}; {out["writing"]} while a file was written, '
            f'{out["second"]} with a second one, {out["ignored"]} ignored by Python itself during a fork; '
            f'{out["fresh"]} in fresh interpreters, the rest forked')
    return done, found_in(out, *stopping.WRONG), not sum(out[nm] for nm in stopping.WRONG)


def signals_control():
    made = dict(wrong_code=dict(worse_save='handler'), lost=dict(worse_save='save at a signal'),
                different=dict(worse_resume='records', aims=('validating',)))
    each = {nm: stopping.signals(many(500)//50 + 5, 'signals, control', **worse) for nm, worse in made.items()}
    done = 'the same, control: no handler; no save; a resume without records'
    return done, '; '.join(found_in(each[nm], nm) for nm in made), all(each[nm][nm] for nm in made)


# Rows of programs and changes; bench/programs.py prints each

def _outcomes(f, rows, **kwargs):
    server = outcomes.Server()
    try:
        for row in list(rows)[::20 if QUICK else 1]:
            with tempfile.TemporaryDirectory() as folder: yield f(server, folder, row, **kwargs)
    finally: server.close()


def programs():
    words = Counter(o.word for o in _outcomes(outcomes.of_program, table().values()))
    done = f'{words.total()} programs as users write them, stopped and resumed in a fresh process'
    return done, found_in(words, *words), not words['SILENT'] + words['CRASH'] + words['unnamed']


def programs_control():
    found = [o.control for o in _outcomes(outcomes.of_program, table().values(), control=True)]
    done = 'the same, control: a resume that restores only model, optimizer, random states and position'
    return done, f'{found.count("yes")} of {len(found)} ended differently', found.count('yes') > len(found)/2


def changes():
    words = Counter(o.word for o in _outcomes(outcomes.of_change, CHANGES.values()))
    done = f'{words.total()} changes of a program before it was resumed'
    return done, found_in(words, *words), not words['SILENT'] + words['CRASH'] + words['unnamed']


ROWS = dict(kills=kills, kills_control=kills_control, calls=calls, full_disk=full_disk, power=power,
            power_control=power_control,
            damaged=damaged, memory=memory, hostile=hostile, cost_100=lambda: cost(100), cost_400=lambda: cost(400),
            boundaries=boundaries, boundaries_control=boundaries_control, run_kills=run_kills,
            run_kills_control=run_kills_control, signals=signals, signals_control=signals_control,
            programs=programs, programs_control=programs_control, changes=changes)


def main():
    global QUICK
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--quick', action='store_true', help='a twentieth of the counts')
    ap.add_argument('--only', nargs='+', choices=ROWS, default=list(ROWS), metavar='ROW', help=', '.join(ROWS))
    ap.add_argument('--name', default='faults', help='of the table under bench/results (%(default)s)')
    args = ap.parse_args()
    QUICK = args.quick
    lines, bad = ['| row | done | found | passed |', '|--|--|--|--|'], []
    for nm in args.only:
        done, found, right = ROWS[nm]()
        print(f'{nm}: {done}: {found}', flush=True)
        lines.append(f'| {nm} | {done} | {found} | {"yes" if right else "NO"} |')
        if not right: bad.append(nm)
    record(args.name, '\n'.join(lines), runs='quick' if QUICK else 'full counts', packages=('safetensors',))
    sys.exit(', '.join(bad) or 0)


if __name__ == '__main__': main()

"""What `import miniai` costs over `import torch`: fresh interpreters, in alternation, medians.

    python bench/import_time.py [--runs N]
"""
import argparse
import statistics
import subprocess
import sys
import time

from machine import record


def seconds(code):
    started = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True)
    return time.perf_counter() - started


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--runs', type=int, default=15)
    args = ap.parse_args()
    codes = {'torch': 'import torch', 'miniai': 'import miniai'}
    times = {nm: [] for nm in codes}
    for r in range(args.runs + 1):
        for nm, code in codes.items():
            t = seconds(code)
            if r: times[nm].append(t)
    medians = {nm: statistics.median(ts) for nm, ts in times.items()}
    table = ['| import | seconds |', '|--|--:|', *(f'| {nm} | {t:.2f} |' for nm, t in medians.items()),
             f'| miniai over torch | {medians["miniai"] - medians["torch"]:+.2f} |']
    record('import_time', '\n'.join(table), runs=f'{args.runs} fresh interpreters each, in alternation, medians')


if __name__ == '__main__': main()

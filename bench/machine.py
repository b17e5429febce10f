"Where and with what a benchmark ran, and its dated table under bench/results/."
import os
import platform
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent/'results'


def cpu():
    try: lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError: return platform.processor() or platform.machine()
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.machine())


def versions(*packages):
    out = [f'Python {platform.python_version()}']
    for p in packages:
        with suppress(PackageNotFoundError): out.append(f'{p} {version(p)}')
    return ', '.join(out)


def record(name, table, runs, packages=()):
    "Print the table with machine, versions and number of runs, and keep it as bench/results/<name>_<date>.md."
    day, used = time.strftime('%Y-%m-%d'), versions('miniai-torch', 'torch', 'numpy', *packages)
    text = (f'# {name}, {day}\n\n{cpu()}, {os.cpu_count()} cores; {platform.system()}. {used}. {runs}.\n'
            f'`python {" ".join(sys.argv)}`\n\n{table}\n')
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/f'{name}_{day}.md').write_text(text)

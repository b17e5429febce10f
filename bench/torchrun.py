"Runs a benchmark's own file on several processes under torchrun and gives what rank 0 reports."
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Freed memory stays with the process, as a GPU's does under torch; else steps wait for the kernel to give it again.
KEEP_MEMORY = dict(MALLOC_MMAP_THRESHOLD_=str(2**25), MALLOC_TRIM_THRESHOLD_=str(2**34))
REPORT = 'MINIAI_BENCH_REPORT'


def on(n, file, *args, timeout=600):
    "What rank 0 of `n` processes running `file` with `args` gave to `report`. One thread for each process."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'report.json'
        env = os.environ | KEEP_MEMORY | {'OMP_NUM_THREADS': '1', REPORT: str(path)}
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={n}', file, *args]
        subprocess.run(command, env=env, check=True, timeout=timeout)
        return json.loads(path.read_text())


def report(result):
    "Called by every process: rank 0's result goes to the program that started them."
    if os.environ['RANK'] == '0': Path(os.environ[REPORT]).write_text(json.dumps(result))

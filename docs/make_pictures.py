"""Make the pictures of the README: train on the embedded sample, and keep what the run drew.

    python docs/make_pictures.py
"""
import shutil
import tempfile
from pathlib import Path

import matplotlib

from miniai.jobs.config import TrainConfig
from miniai.jobs.train import train

HERE = Path(__file__).parent


def main():
    matplotlib.use('agg')
    with tempfile.TemporaryDirectory() as tmp:
        train(TrainConfig(data='sample', batch_size=256, lr=2e-2, out=f'{tmp}/run'))
        shutil.copy(f'{tmp}/run/curves.png', HERE/'training.png')


if __name__ == '__main__': main()

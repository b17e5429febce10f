"""Make the package's sample of Fashion-MNIST: its first 10,000 training images and first 2,000 test images.

    python tools/make_sample.py FOLDER   # with the four gzipped files of the full data set
"""
import gzip
import struct
import sys
from pathlib import Path

from miniai.data.fmnist import FILES, read_idx

SAMPLE = Path(__file__).resolve().parent.parent/'src'/'miniai'/'data'/'sample'
N_IMAGES = dict(train=10_000, valid=2_000)


def write_idx(path, array):
    head = struct.pack('>HBB', 0, 8, array.ndim) + struct.pack(f'>{array.ndim}I', *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), 9, mtime=0))


def main(source):
    for split, names in FILES.items():
        for name in names: write_idx(SAMPLE/name, read_idx(source/name)[:N_IMAGES[split]])


if __name__ == '__main__': main(Path(sys.argv[1]))

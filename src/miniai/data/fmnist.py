"Fashion-MNIST, from a folder, the Hugging Face hub, the Debian package or the sample inside this package."
import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from miniai.data.loaders import DataLoaders
from miniai.show.displays import say

__all__ = ['DataError', 'ImageSet', 'fashion_mnist', 'image_loaders', 'read_idx', 'CLASSES', 'MEAN', 'STD']

CLASSES = ('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot')
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, as floats from 0 to 1
FILES = {split: (f'{stem}-images-idx3-ubyte.gz', f'{stem}-labels-idx1-ubyte.gz')
         for split, stem in (('train', 'train'), ('valid', 't10k'))}
DEBIAN = Path('/usr/share/datasets/fashion-mnist')
SAMPLE = Path(__file__).parent/'sample'
HUB_NAME = 'zalando-datasets/fashion_mnist'


class DataError(ValueError):
    "A data file is damaged, or of the wrong kind or size; the message names it."


@dataclass(frozen=True)
class ImageSet:
    """Images, uint8 of shape (N, 28, 28), and labels, int64 of shape (N,), for training and validation (the test split
    of the data set), the names of the classes, and `source`, where they came from."""
    x_train: Tensor
    y_train: Tensor
    x_valid: Tensor
    y_valid: Tensor
    classes: tuple[str, ...]
    source: str

    def __repr__(self) -> str:
        return (f'Fashion-MNIST, {len(self.x_train):,} training and {len(self.x_valid):,} test images, '
                f'from {self.source}')


def fashion_mnist(folder: str | Path | None = None, source: str | None = None, quiet: bool = False) -> ImageSet:
    """Fashion-MNIST (Xiao, Rasul & Vollgraf 2017), from the first of these: `folder`, the folder in the environment
    variable MINIAI_DATA, the Debian package dataset-fashion-mnist, the sample inside this package (12,000 images).
    `source='hub'` takes it from the Hugging Face hub, which caches it, and `source='sample'` the sample. Prints which
    one it took unless `quiet`. FileNotFoundError for a missing folder or file; DataError, a ValueError that names the
    file, for one that is damaged or of another data set."""
    if source not in (None, 'hub', 'sample'):
        raise ValueError(f"source must be 'hub', 'sample' or None, got {source!r}")
    if source and folder: raise ValueError(f"give folder or source, not both: {folder=}, {source=}")
    data = _from_hub() if source == 'hub' else _from_folder(*_find_folder(folder, source))
    if not quiet: say(str(data))
    return data


def image_loaders(data: ImageSet, bs: int, seed: int = 0) -> DataLoaders:
    "Normalized loaders in memory: training shuffled with `seed`, validation in order with batches twice as large."
    dls = DataLoaders.from_arrays(data.x_train, data.y_train, (data.x_valid, data.y_valid), bs, seed,
                                  normalize=(MEAN, STD), source=data.source)
    dls.classes = data.classes
    return dls


def _find_folder(folder: str | Path | None, source: str | None) -> tuple[Path, str]:
    "The folder to read, and what to call it."
    if source == 'sample': return SAMPLE, 'the sample inside miniai'
    named = folder or os.environ.get('MINIAI_DATA')
    if named:
        path, origin = Path(named).expanduser(), '' if folder else ' (from the environment variable MINIAI_DATA)'
        if path.is_dir(): return path, str(named)
        raise FileNotFoundError(f"no folder {str(named)!r}{origin}: give one that holds "
                                f"{', '.join(FILES['train'] + FILES['valid'])}")
    if all((DEBIAN/nm).is_file() for names in FILES.values() for nm in names): return DEBIAN, str(DEBIAN)
    return SAMPLE, 'the sample inside miniai (the full set: apt install dataset-fashion-mnist)'


def _from_folder(folder: Path, source: str) -> ImageSet:
    arrays = []
    for names in FILES.values():
        images, labels = (_find_file(folder, nm) for nm in names)
        x, y = read_idx(images), read_idx(labels)
        _check(x, y, images, labels)
        arrays += [torch.from_numpy(x), torch.from_numpy(y).long()]
    return ImageSet(*arrays, CLASSES, source)


def _find_file(folder: Path, name: str) -> Path:
    for path in (folder/name, folder/name.removesuffix('.gz')):
        if path.is_file(): return path
    raise FileNotFoundError(f"no file {folder/name}, with or without .gz: the folder needs "
                            f"{', '.join(FILES['train'] + FILES['valid'])}")


def read_idx(path: Path) -> np.ndarray:
    "The uint8 array in an IDX file, gzipped or not. DataError, which names the file, if it is not one or is damaged."
    raw = path.read_bytes()
    if raw[:2] == b'\x1f\x8b':
        try: raw = gzip.decompress(raw)
        except (EOFError, zlib.error, OSError) as e: raise DataError(f"{path}: damaged gzip file: {e}") from e
    if len(raw) < 4 or raw[:3] != b'\0\0\x08':
        raise DataError(f"{path}: wrong magic number {raw[:4].hex() or '(empty file)'}: "
                        f"an IDX file of bytes starts with 000008")
    ndim = raw[3]
    shape = [int.from_bytes(raw[4 + 4*i:8 + 4*i], 'big') for i in range(ndim)]
    expected = 4 + 4*ndim + int(np.prod(shape, dtype=object))
    if len(raw) != expected:
        raise DataError(f"{path}: shape {tuple(shape)} in its header means {expected:,} bytes in all, "
                        f"and it has {len(raw):,}")
    try: return np.frombuffer(raw, np.uint8, offset=4 + 4*ndim).reshape(shape).copy()
    except ValueError as e:
        raise DataError(f"{path}: no array can have shape {tuple(shape)}, given in its header: {e}") from e


def _check(x: np.ndarray, y: np.ndarray, images: Path, labels: Path) -> None:
    if x.ndim != 3 or x.shape[1:] != (28, 28) or not len(x):
        raise DataError(f"{images}: images must be 28 by 28 pixels, got shape {x.shape}")
    if y.shape != (len(x),):
        raise DataError(f"{labels}: needs {len(x):,} labels, one for each image in {images.name}, got shape {y.shape}")
    if y.max() >= len(CLASSES):
        raise DataError(f"{labels}: labels must be from 0 to {len(CLASSES) - 1}, "
                        f"and label {int(y.argmax())} is {y.max()}")


def _from_hub() -> ImageSet:
    try:
        from datasets import load_dataset
    except ImportError as e:
        raise ImportError("source='hub' needs the package datasets: pip install 'miniai-torch[hf]'") from e
    from tqdm import tqdm
    splits, arrays = load_dataset(HUB_NAME), []
    for split in (splits['train'], splits['test']):
        images = np.stack([np.asarray(im) for im in tqdm(split['image'], desc='decoding', leave=False)])
        arrays += [torch.from_numpy(images), torch.tensor(split['label'][:])]
    return ImageSet(*arrays, CLASSES, f'the Hugging Face hub, {HUB_NAME}')

"""Fashion-MNIST: from a folder, the Hugging Face hub, the Debian package or the embedded sample,
and checked as it is read."""
import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from miniai.data.loaders import DataLoaders

__all__ = ['DataError', 'ImageSet', 'fashion_mnist', 'image_loaders', 'read_idx', 'CLASSES', 'MEAN', 'STD']

CLASSES = ('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot')
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, as floats from 0 to 1
FILES = {split: (f'{stem}-images-idx3-ubyte.gz', f'{stem}-labels-idx1-ubyte.gz')
         for split, stem in (('train', 'train'), ('valid', 't10k'))}
DEBIAN = Path('/usr/share/datasets/fashion-mnist')
SAMPLE = Path(__file__).parent/'sample'
HUB_NAME = 'zalando-datasets/fashion_mnist'


class DataError(ValueError):
    "A data file that is damaged, or of another kind or size than it should be; the message names it."


@dataclass(frozen=True)
class ImageSet:
    """Images, uint8 of shape (N, 28, 28), and labels, int64 of shape (N,), for training and validation;
    the names of the classes; and `source`, where they came from. Validation is the set's own test split."""
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
    """Fashion-MNIST (Xiao, Rasul & Vollgraf 2017). From `folder`, else the folder that the environment variable
    MINIAI_DATA names, else the Debian package dataset-fashion-mnist, else the sample inside this package; with
    `source='hub'` from the Hugging Face hub, which caches it, and with `source='sample'` from the sample. Prints which
    one it took unless `quiet`. FileNotFoundError for a folder or file that is not there; ValueError, naming the file,
    for one that is damaged or of another set."""
    if source not in (None, 'hub', 'sample'):
        raise ValueError(f"source must be 'hub', 'sample' or None, got {source!r}")
    if source and folder: raise ValueError(f"give folder or source, not both: {folder=}, {source=}")
    data = _from_hub() if source == 'hub' else _from_folder(*_place(folder, source))
    if not quiet: print(data)
    return data


def image_loaders(data: ImageSet, bs: int, seed: int = 0) -> DataLoaders:
    """Loaders over an ImageSet in memory, normalised: training shuffled by `seed`,
    validation in order with batches twice as large."""
    return DataLoaders.from_arrays(data.x_train, data.y_train, (data.x_valid, data.y_valid), bs, seed,
                                   normalize=(MEAN, STD), source=data.source)


def _place(folder: str | Path | None, source: str | None) -> tuple[Path, str]:
    named, by = folder, 'you name'
    if not folder: named, by = os.environ.get('MINIAI_DATA'), 'environment variable MINIAI_DATA names'
    if source == 'sample': return SAMPLE, 'the sample inside miniai'
    if named:
        if Path(named).expanduser().is_dir(): return Path(named).expanduser(), str(named)
        raise FileNotFoundError(f"no folder {str(named)!r}, which {by}: "
                                f"it should hold {', '.join(FILES['train'] + FILES['valid'])}")
    if all((DEBIAN/nm).is_file() for names in FILES.values() for nm in names):
        return DEBIAN, str(DEBIAN)
    return SAMPLE, 'the sample inside miniai (the full set: apt install dataset-fashion-mnist)'


def _from_folder(folder: Path, source: str) -> ImageSet:
    arrays = []
    for images, labels in FILES.values():
        x, y = read_idx(_found(folder, images)), read_idx(_found(folder, labels))
        _check(x, y, _found(folder, images), _found(folder, labels))
        arrays += [torch.from_numpy(x), torch.from_numpy(y).long()]
    return ImageSet(*arrays, CLASSES, source)


def _found(folder: Path, name: str) -> Path:
    for path in (folder/name, folder/name.removesuffix('.gz')):
        if path.is_file(): return path
    raise FileNotFoundError(f"no file {folder/name}, with or without .gz: "
                            f"the folder should hold {', '.join(FILES['train'] + FILES['valid'])}")


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or not. ValueError, naming the file, where it is none, is damaged,
    or has another length than it says."""
    raw = _bytes_of(path)
    if len(raw) < 4 or raw[:3] != b'\0\0\x08':
        raise DataError(f"{path}: wrong magic number {raw[:4].hex() or '(empty file)'}: "
                         f"an IDX file of bytes starts with 000008")
    ndim = raw[3]
    shape = [int.from_bytes(raw[4 + 4*i:8 + 4*i], 'big') for i in range(ndim)]
    expected = 4 + 4*ndim + int(np.prod(shape, dtype=object))
    if len(raw) != expected:
        raise DataError(f"{path}: its header says shape {tuple(shape)}, {expected:,} bytes in all, "
                         f"and it has {len(raw):,}")
    try: return np.frombuffer(raw, np.uint8, offset=4 + 4*ndim).reshape(shape).copy()
    except ValueError as e:
        raise DataError(f"{path}: its header says shape {tuple(shape)}, which no array has: {e}") from e


def _bytes_of(path: Path) -> bytes:
    raw = path.read_bytes()
    if raw[:2] != b'\x1f\x8b': return raw
    try: return gzip.decompress(raw)
    except (EOFError, zlib.error, OSError) as e: raise DataError(f"{path}: damaged gzip file: {e}") from e


def _check(x: np.ndarray, y: np.ndarray, images: Path, labels: Path) -> None:
    if x.ndim != 3 or x.shape[1:] != (28, 28) or not len(x):
        raise DataError(f"{images}: should hold images of 28 by 28 pixels, and has shape {x.shape}")
    if y.shape != (len(x),):
        raise DataError(f"{labels}: should hold {len(x):,} labels, one for each image in {images.name}, "
                         f"and has shape {y.shape}")
    if y.max() >= len(CLASSES):
        raise DataError(f"{labels}: labels should lie in 0 to {len(CLASSES) - 1}, "
                         f"and label {int(y.argmax())} is {y.max()}")


def _from_hub() -> ImageSet:
    try:
        from datasets import load_dataset
    except ImportError as e:
        raise ImportError("source='hub' needs the package datasets: pip install 'miniai-torch[hf]'") from e
    splits = load_dataset(HUB_NAME)
    arrays = [a for split in ('train', 'test') for a in _decoded(splits[split])]
    return ImageSet(*arrays, CLASSES, f'the Hugging Face hub, {HUB_NAME}')


def _decoded(split: object) -> tuple[Tensor, Tensor]:
    from tqdm import tqdm
    images = np.stack([np.asarray(im) for im in tqdm(split['image'], desc='decoding', leave=False)])
    return torch.from_numpy(images), torch.tensor(split['label'][:])

"Pictures in files, for the tests that read them."
import numpy as np
from PIL import Image


def drawn(*shape, seed=0): return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path, a, **kwargs):
    "An array as a picture in a file, lossless if its name says so; folders are made."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(path, **kwargs)
    return path


def write_folder(folder, names, shape=(6, 6, 3)):
    "A different picture under each name, by name."
    return {nm: np.array(Image.open(write(folder/nm, drawn(*shape, seed=i)))) for i, nm in enumerate(names)}


def in_classes(n=6, classes='ab', split=''): return [f'{split}{c}/{i}.png' for c in classes for i in range(n)]


def as_kept(a):
    "A picture (H, W, 3) or (H, W) as a loader keeps it."
    return a.transpose(2, 0, 1) if a.ndim == 3 else a

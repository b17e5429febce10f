"A folder of pictures, a folder for each class, as loaders."
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniai.data.memory import MemoryLoader
from miniai.data.picture_files import PictureError, labelled_files, opened
from miniai.data.picture_rows import PictureRows
from miniai.data.pictures import PictureRecipe
from miniai.data.split import mean_std, other_rows, split_rows
from miniai.environment import available_memory

__all__ = ['folder_loaders', 'size_for']

_SPLITS = dict(train=('train', 'training'), valid=('valid', 'validation', 'val', 'dev'), test=('test', 'testing'))
_CHECKED = 2_000  # up to so many pictures are all decoded before training, which takes a second or two
_MEASURED = 500  # pictures that mean and standard deviation are computed from


def folder_loaders(path: str | PathLike, valid: Any, size: Any, channels: int | None, fit: str, bs: int,
                   seed: int, normalize: bool | Sequence, device: Any, memory: float | None, workers: int | None,
                   skip_bad: bool) -> tuple[MemoryLoader, MemoryLoader, PictureRecipe]:
    "The two loaders and the recipe of `DataLoaders.from_folder`."
    parts = _parts(Path(path).expanduser(), valid)
    files, names = zip(*[pair for part in parts for pair in part], strict=True)
    classes = _classes(path, parts)
    if size is None or channels is None:
        found = _looked_at(files)
        size, channels = found[0] if size is None else size, found[1] if channels is None else channels
    recipe = PictureRecipe(size, channels, fit, classes=classes)
    need = len(files)*torch.Size(recipe.shapes[0]).numel()
    rows = recipe.rows(files, need <= (available_memory()//2 if memory is None else memory), workers)
    good = _good(rows, skip_bad)
    y = recipe.target(names)
    train, held_out = _split(good, files, len(parts[0]), y, valid, seed)
    _check_split(train, held_out, y, classes)
    if normalize is not False:
        if normalize is not True and np.shape(normalize)[:1] != (2,): raise ValueError(
            f"normalize must be True, False, or a pair of mean and standard deviation, got {normalize!r}")
        mean, std = _measured(rows, train, seed) if normalize is True else normalize
        recipe = PictureRecipe(size, channels, fit, mean, std, classes=classes)
    def loader(part: Tensor, bs: int, shuffle: bool) -> MemoryLoader:
        return recipe.loader([rows, y], bs, device, shuffle=shuffle, seed=seed, rows=part,
                             source=f'{len(good):,} pictures in {Path(path).resolve().name}')
    return loader(train, bs, True), loader(held_out, bs*2, False), recipe


def _parts(path: Path, valid: Any) -> list[list[tuple[Path, str]]]:
    "Pictures with the names of their classes: one list, or one for training and one for validation."
    if not path.is_dir(): raise FileNotFoundError(f"no folder {path}")
    if isinstance(valid, str | PathLike): return [labelled_files(path), labelled_files(_other_folder(path, valid))]
    there = {p.name.lower(): p for p in path.iterdir() if p.is_dir() and not p.name.startswith('.')}
    named = {split: next((there[nm] for nm in names if nm in there), None) for split, names in _SPLITS.items()}
    train, held_out = named['train'], named['valid'] or named['test']
    if there and not {*there} - {nm for names in _SPLITS.values() for nm in names}:
        if not train: raise PictureError(f"{path} has the folder {', '.join(there)}, but none called train")
    elif not train or not any(p.is_dir() for p in train.iterdir()): return [labelled_files(path)]  # a class "train"
    return [labelled_files(p) for p in (train, held_out) if p]


def _other_folder(path: Path, valid: str | PathLike) -> Path:
    other = Path(valid).expanduser()
    if not other.is_dir(): raise FileNotFoundError(f"no folder {valid}, which valid names")
    if other.resolve().is_relative_to(path.resolve()): raise ValueError(
        f"the validation folder {valid} is inside {path}: give the folder that has the pictures for training alone")
    return other


def _classes(path: Any, parts: list) -> list[str]:
    classes, *others = [sorted({nm for _, nm in part}) for part in parts]
    if len(classes) < 2: raise PictureError(
        f"all pictures for training in {path} are of one class, {classes[0]}: there must be a folder for each of two")
    unknown = sorted(set(*others) - set(classes)) if others else []
    if unknown: raise PictureError(f"validation has the class {', '.join(unknown)}, which training lacks")
    return classes


def _looked_at(files: Sequence[Path]) -> tuple[tuple[int, int], int]:
    "A size and a number of channels that suit the pictures, from the heads of some."
    from PIL import ExifTags
    sizes, modes = [], []
    for f in files[::max(1, len(files)//50)]:
        with suppress(PictureError), opened(f) as im:  # `_good` reports those that cannot be read
            on_its_side = im.getexif().get(ExifTags.Base.Orientation, 1) > 4
            sizes.append(im.size if on_its_side else im.size[::-1])
            modes.append(im.mode)
    if not sizes: raise PictureError(f"none of the pictures looked at can be read, such as {files[0]}")
    return size_for(sizes, modes)


def size_for(sizes: Sequence[tuple[int, int]], modes: Sequence[str]) -> tuple[tuple[int, int], int]:
    "Size and channels for pictures of these sizes and modes of Pillow: their own size if alike and small, or a square."
    color = any(not (mode in ('1', 'L', 'LA', 'F') or mode.startswith('I')) for mode in modes)
    side = min(224, sorted(map(min, sizes))[len(sizes)//2])
    return sizes[0] if len(set(sizes)) == 1 and max(sizes[0]) <= 224 else (side, side), 3 if color else 1


def _good(rows: PictureRows, skip_bad: bool) -> Tensor:
    "The indices of the pictures to use. A small folder is decoded now, a large one checked for empty files."
    if skip_bad or len(rows) <= _CHECKED: bad = rows.check()
    else: bad = {i: f'the picture {f} is empty' for i, f in enumerate(rows.files) if not os.stat(f).st_size}
    if not bad: return torch.arange(len(rows))
    listed = '\n'.join(list(bad.values())[:5])
    if len(bad) == len(rows): raise PictureError(f"none of the {len(rows):,} pictures can be read:\n{listed}")
    if not skip_bad:
        raise PictureError(f"{len(bad)} of {len(rows):,} pictures cannot be read. Delete or replace them, or skip them "
                           f"with skip_bad=True:\n{listed}")
    warnings.warn(f"{len(bad)} of {len(rows):,} pictures cannot be read and are skipped:\n{listed}", stacklevel=4)
    return torch.tensor([i for i in range(len(rows)) if i not in bad])


def _split(good: Tensor, files: Sequence[Path], n_first: int, y: Tensor, valid: Any,
           seed: int) -> tuple[Tensor, Tensor]:
    """The rows for training and for validation: the first `n_first` and the others if validation has a folder, else as
    `valid` says. Pictures of a class of which all were drawn for validation go to training."""
    if n_first < len(files): return good[good < n_first], good[good >= n_first]
    if isinstance(valid, Real):
        train, held_out = (good[rows] for rows in split_rows(len(good), valid, seed))
        lost = ~torch.isin(y[held_out], y[train])
        return torch.cat([train, held_out[lost]]).sort().values, held_out[~lost]
    if callable(valid): valid = [bool(valid(f)) for f in files]
    try: return tuple(rows[torch.isin(rows, good)] for rows in other_rows(len(files), valid))
    except TypeError as e: raise TypeError(f"valid must be a fraction, another folder, the indices of pictures, a mask "
                                           f"or a function of a path, got a {type(valid).__name__}") from e


def _check_split(train: Tensor, held_out: Tensor, y: Tensor, classes: Sequence[str]) -> None:
    for name, rows in (('training', train), ('validation', held_out)):
        if not len(rows): raise PictureError(f"none of the pictures for {name} can be read")
    lost = sorted(set(y[held_out].tolist()) - set(y[train].tolist()))
    if lost: raise PictureError(f"no picture of {', '.join(classes[i] for i in lost)} is left for training, and "
                                f"validation has some: change valid")


def _measured(rows: PictureRows, train: Tensor, seed: int) -> list:
    "Mean and standard deviation, from some training pictures."
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return [t.tolist() for t in mean_std(rows, train[order[:_MEASURED]])]

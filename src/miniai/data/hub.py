"Pictures with classes and tables from the Hugging Face hub, or from any DatasetDict, as loaders in memory."
import warnings
from typing import Any

import numpy as np
import torch

from miniai.data.folder import size_for
from miniai.data.loaders import DataLoaders, split_names
from miniai.data.picture_files import PictureError
from miniai.data.pictures import PictureRecipe
from miniai.data.split import mean_std, split_rows
from miniai.data.table import TableError
from miniai.show.tracking import tracked

__all__ = ['from_hub']


def from_hub(name: Any, valid: float | str = 0.2, bs: int = 64, seed: int = 0, size: Any = None,
             device: str | torch.device | None = None, y: str = '', skip_bad: bool = False,
             **columns: Any) -> DataLoaders:
    """Loaders of a data set of the Hugging Face hub, by its `name`, or of a DatasetDict: pictures with the classes in
    the column `y`, by default the first of classes; or a table, for which `y` is the column to predict, and `columns`
    (`cat`, `cont`, `drop`, `classes`) go to `from_table`. Its splits go by name, as in `DataLoaders.from_dd`, or
    `valid` names the one for validation; a data set with a single split gives the share `valid` of it to validation.
    Pictures are decoded now, to `size` or one that suits them, and kept as uint8. PictureError or TableError for a data
    set without what it needs, ImportError without the package datasets."""
    dd = _loaded(name)
    splits = [dd[nm] for nm in _names(dd, valid)]
    if not _first(splits[0], 'Image'): return _table(splits, y, valid, bs, seed, device, skip_bad, columns)
    if columns: raise PictureError(f"{', '.join(columns)} are for tables, and the data set has pictures: leave it out")
    picture, label = _columns(splits[0], y)
    classes = splits[0].features[label].names
    some = [splits[0][i][picture] for i in range(0, len(splits[0]), max(1, len(splits[0])//50))]
    found = size_for([im.size[::-1] for im in some], [im.mode for im in some])
    recipe = PictureRecipe(size or found[0], found[1], classes=classes)
    arrays = [_arrays(ds, recipe, picture, label, skip_bad) for ds in splits]
    x, y = (np.concatenate(parts) for parts in zip(*arrays, strict=True))
    n, known = len(arrays[0][1]), torch.arange(len(x))
    rows = (known[:n], known[n:]) if len(splits) > 1 else split_rows(n, valid, seed)
    mean, std = mean_std(x, rows[0])
    recipe = PictureRecipe(recipe.size, recipe.channels, mean=mean.tolist(), std=std.tolist(), classes=classes)
    source = f'{name} of the Hugging Face hub' if isinstance(name, str) else ''
    train = recipe.loader([x, y], bs, device, rows=rows[0], shuffle=True, seed=seed, source=source)
    return DataLoaders.of_recipe(train, recipe.loader([x, y], bs*2, device, rows=rows[1], source=source), recipe)


def _loaded(name: Any) -> Any:
    if not isinstance(name, str): return name
    try:
        from datasets import load_dataset
    except ImportError as e:
        raise ImportError("the hub needs the package datasets: pip install 'miniai-torch[hf]'") from e
    return load_dataset(name)


def _names(dd: Any, valid: Any) -> list[str]:
    "The splits to use: a single one, or those for training and for validation."
    is_column = isinstance(valid, str) and len(dd) == 1 and valid in dd[next(iter(dd))].features
    if is_column or not isinstance(valid, str): return split_names([*dd]) if len(dd) > 1 else [*dd]
    others = [nm for nm in dd if nm != valid]
    if valid in dd and others: return ['train' if 'train' in others else others[0], valid]
    raise ValueError(f"the data set has no split {valid!r} next to one for training, only {', '.join(dd)}")


def _first(ds: Any, kind: str) -> str | None:
    "The first column of a kind, 'Image' or 'ClassLabel'."
    return next((nm for nm, f in ds.features.items() if type(f).__name__ == kind), None)


def _columns(ds: Any, y: str) -> tuple[str, str]:
    "The columns with the pictures and with the classes."
    label = y or _first(ds, 'ClassLabel')
    if label and type(ds.features.get(label)).__name__ == 'ClassLabel': return _first(ds, 'Image'), label
    raise PictureError(f"{f'{label} is no column of classes' if label else 'no column has classes'}; the data set has "
                       f"{_described(ds)}: use DataLoaders.from_dd, or name a column with ClassLabel")


def _described(ds: Any) -> str: return ', '.join(f'{nm} ({type(f).__name__})' for nm, f in ds.features.items())


def _table(splits: list, y: str, valid: Any, bs: int, seed: int, device: Any, skip_bad: bool,
           columns: dict[str, Any]) -> DataLoaders:
    "Loaders of a data set without pictures. Places of classes become their names."
    if not y: raise TableError(f"the data set is a table: say which column to predict with --target, or y=…; it has "
                               f"{', '.join(splits[0].features)}")
    frames = [ds.to_pandas() for ds in splits]
    for nm, f in splits[0].features.items():
        if type(f).__name__ != 'ClassLabel': continue
        for df in frames: df[nm] = df[nm].map(dict(enumerate(f.names)))  # a missing one is -1
    return DataLoaders.from_table(frames[0], y, valid=frames[1] if len(frames) > 1 else valid, bs=bs, seed=seed,
                                  device=device, skip_bad=skip_bad, **columns)


def _arrays(ds: Any, recipe: PictureRecipe, picture: str, label: str,
            skip_bad: bool) -> tuple[np.ndarray, np.ndarray]:
    "Pictures and classes of a split. PictureError for a class that is missing."
    y = np.array([-1 if v is None else v for v in ds[label]])
    if (y < 0).any():
        said = f"{(y < 0).sum():,} of {len(y):,} rows have no class in the column {label}"
        if not skip_bad or (y < 0).all(): raise PictureError(f"{said}: use skip_bad=True, or another split")
        warnings.warn(f"{said} and are skipped", stacklevel=4)
        ds, y = ds.select(np.flatnonzero(y >= 0)), y[y >= 0]
    return np.stack([recipe.decode(row[picture]) for row in tracked(ds.select_columns([picture]), 'decoding')]), y

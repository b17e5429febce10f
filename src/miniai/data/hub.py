"Pictures with classes from the Hugging Face hub, or from any DatasetDict, as loaders in memory."
from typing import Any

import numpy as np
import torch

from miniai.data.folder import size_for
from miniai.data.loaders import DataLoaders, split_names
from miniai.data.picture_files import PictureError
from miniai.data.pictures import PictureRecipe
from miniai.data.split import mean_std, split_rows
from miniai.show.tracking import tracked

__all__ = ['from_hub']


def from_hub(name: Any, valid: float = 0.2, bs: int = 64, seed: int = 0, size: Any = None,
             device: str | torch.device | None = None) -> DataLoaders:
    """Loaders of a data set with a picture and a class in each row: `name` is one of the Hugging Face hub, or a
    DatasetDict. Its splits go by name, as in `DataLoaders.from_dd`; a data set with a single split gives the share
    `valid` of it to validation. All pictures are decoded now, to `size` or one that suits them, and kept as uint8.
    PictureError for a data set without pictures or classes, ImportError without the package datasets."""
    dd = _loaded(name)
    splits = [dd[nm] for nm in (split_names([*dd]) if len(dd) > 1 else dd)]
    picture, label = _columns(splits[0])
    classes = splits[0].features[label].names
    some = [splits[0][i][picture] for i in range(0, len(splits[0]), max(1, len(splits[0])//50))]
    found = size_for([im.size[::-1] for im in some], [im.mode for im in some])
    recipe = PictureRecipe(size or found[0], found[1], classes=classes)
    arrays = [_arrays(ds, recipe, picture, label) for ds in splits]
    x, y = (np.concatenate(parts) for parts in zip(*arrays, strict=True))
    n, known = len(splits[0]), torch.arange(len(x))
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


def _columns(ds: Any) -> tuple[str, str]:
    "The columns with the pictures and with the classes: the first of each kind."
    from datasets import ClassLabel, Image
    found = [next((nm for nm, f in ds.features.items() if isinstance(f, kind)), None) for kind in (Image, ClassLabel)]
    if None in found: raise PictureError(
        f"the data set needs a column of pictures and one of classes, and has {dict(ds.features)}: use "
        f"DataLoaders.from_dd")
    return tuple(found)


def _arrays(ds: Any, recipe: PictureRecipe, picture: str, label: str) -> tuple[np.ndarray, np.ndarray]:
    "Pictures and classes of a split. ValueError for a class that is missing."
    y = np.array(ds[label])
    if (y < 0).any(): raise PictureError(f"{int((y < 0).sum())} of {len(y):,} rows have no class in the column {label}")
    return np.stack([recipe.decode(row[picture]) for row in tracked(ds.select_columns([picture]), 'decoding')]), y

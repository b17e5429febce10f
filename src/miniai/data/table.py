"Rows of a table as inputs: numbers scaled, categories numbered, missing values filled, as fitted on the training rows."
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miniai.data.memory import MemoryLoader
from miniai.data.recipe import Recipe
from miniai.data.table_files import TableError, one_or_many, read_table, split_table, value_name

__all__ = ['TableRecipe', 'table_loaders']


class TableRecipe(Recipe):
    """Inputs from the rows of a table. `numbers` has mean, std and fill, the median, by column; if `flags` names it,
    another input says where it was missing. `categories` has the values by column; 0 stands for a missing or unknown
    one. `y` is the column to predict. Inputs are (N, numbers and flags), float32, and (N, categories), int64."""
    kind = 'table'
    def __init__(self, y: str, numbers: Mapping[str, Mapping[str, float]], categories: Mapping[str, Sequence],
                 flags: Sequence[str] = (), **targets: Any) -> None:
        self.y, self.numbers, self.categories, self.flags = y, dict(numbers), dict(categories), list(flags)
        shapes, dtypes = [(len(numbers) + len(flags),), (len(categories),)], ['float32', 'int64']
        n = 2 if categories else 1
        super().__init__(shapes[:n], dtypes[:n], [{}]*n, **targets)

    @classmethod
    def fitted(cls, df: Any, y: str, cat: Sequence[str] | None, cont: Sequence[str] | None,
               **targets: Any) -> 'TableRecipe':
        "The recipe for the training rows `df`. If `cont` is None it is all other columns of numbers, `cat` all others."
        others = [c for c in df.columns if c not in {y, *(cat or ()), *(cont or ())}]
        if cont is None: cont = [c for c in others if _is_number(df[c])]
        if cat is None: cat = [c for c in others if not _is_number(df[c]) and _can_be_category(df[c])]
        if not (cat or cont): raise TableError(f"the table has no column but {y} to predict from")
        numbers = {c: _fitted_number(df[c]) for c in cont}
        categories = {c: sorted(_names(df[c])) for c in cat}
        return cls(y, numbers, categories, [c for c in cont if df[c].isna().any()], **targets)

    def read(self, x: Any) -> tuple[list[Tensor], bool]:
        """The inputs for a DataFrame, a list of dicts, or a file; or for one row, a dict or a Series. TableError for a
        missing column, or a value that is no number where one is needed."""
        df, single = one_or_many(x)
        if not len(df): raise TableError("the table has no rows")
        missing = [c for c in (*self.numbers, *self.categories) if c not in df.columns]
        if missing: raise TableError(f"the table lacks what the model was trained on: {', '.join(map(str, missing))}")
        values = {c: _as_numbers(c, df[c]) for c in self.numbers}
        scaled = [(np.where(np.isnan(values[c]), at['fill'], values[c]) - at['mean'])/at['std']
                  for c, at in self.numbers.items()]
        flags = [np.isnan(values[c]).astype(float) for c in self.flags]
        inputs = [torch.from_numpy(np.stack([*scaled, *flags], 1).astype(np.float32)) if scaled else
                  torch.zeros(len(df), 0)]
        if self.categories:
            codes = [_codes(df[c], known) for c, known in self.categories.items()]
            inputs.append(torch.from_numpy(np.stack(codes, 1)))
        return inputs, single

    def test(self, x: Any, y: Any = None, bs: int = 256, device: Any = None) -> MemoryLoader:
        "A loader of other rows in order, prepared as the training rows were; with targets if `x` or `y` has them."
        df, _ = one_or_many(x)
        if y is None and self.y in df.columns: y = df[self.y]
        return super().test(df, y, bs, device)

    def module(self) -> nn.Module:
        """Filling and scaling as a module: (N, numbers), float64 with NaN for missing values, and categories as they
        are kept."""
        return _Filled(self)

    def raw(self, kept: Sequence[Tensor]) -> tuple[Tensor, ...]:
        scaled, *categories = kept
        at, k = list(self.numbers.values()), len(self.numbers)
        mean, std = (torch.tensor([a[nm] for a in at], dtype=torch.float64) for nm in ('mean', 'std'))
        numbers = scaled[:, :k]*std + mean
        for i, c in enumerate(self.flags): numbers[scaled[:, k + i] > 0, list(self.numbers).index(c)] = torch.nan
        return numbers, *categories

    def show(self, kept: Sequence[Tensor], targets: Tensor) -> Any:
        "Rows as they are kept, as a DataFrame with numbers in their own units and the names of categories and classes."
        import pandas as pd
        numbers, *categories = self.raw(kept)
        columns = {c: _rounded(values, at['std']) for (c, at), values in
                   zip(self.numbers.items(), numbers.T.numpy(), strict=True)}
        for i, (c, known) in enumerate(self.categories.items()):
            columns[c] = [None if k == 0 else known[k - 1] for k in categories[0][:, i].tolist()]
        columns[self.y] = ([self.classes[t] for t in targets.tolist()] if self.classes else
                           _rounded(targets.double().numpy()*self.target_std + self.target_mean, self.target_std))
        return pd.DataFrame(columns)

    @property
    def described(self) -> list[dict[str, Any]]:
        known = [dict(dtype='float64', shape=['batch', len(self.numbers)], columns=list(self.numbers)),
                 dict(columns=list(self.categories), values=self.categories)]
        return [d | k for d, k in zip(super().described, known, strict=False)]

    @property
    def facts(self) -> dict[str, Any]:
        return dict(numbers=self.shapes[0][0], categories=[len(v) + 1 for v in self.categories.values()],
                    outputs=len(self.classes) if self.classes else 1)

    def to_dict(self) -> dict[str, Any]:
        return dict(kind=self.kind, y=self.y, numbers=self.numbers, categories=self.categories,
                    flags=self.flags) | self.targets

    def target(self, column: Any) -> Tensor:
        "The targets of a column: indices of classes, or scaled numbers. TableError for one that is missing or unknown."
        import pandas as pd
        if not isinstance(column, pd.Series): column = pd.Series(np.asarray(column))
        missing = column.index[column.isna()]
        if len(missing):
            raise TableError(f"the column {self.y} to predict is empty in {len(missing):,} of {len(column):,} rows, "
                             f"such as row {missing[0]}: drop them, or use skip_bad=True")
        if not self.classes:
            scaled = (_as_numbers(self.y, column) - self.target_mean)/self.target_std
            return torch.from_numpy(scaled.astype(np.float32))
        codes = _codes(column, self.labels)
        if self.labels != self.classes: codes = np.where(codes, codes, _codes(column, self.classes))
        unknown = sorted(_names(column[codes == 0]))
        if unknown: raise TableError(f"{self.y} has the class {', '.join(unknown)}, which the training rows lack")
        return torch.from_numpy(codes - 1)


class _Filled(nn.Module):
    "Numbers with NaN for missing values to scaled numbers and flags."
    def __init__(self, recipe: TableRecipe) -> None:
        super().__init__()
        at, names = list(recipe.numbers.values()), list(recipe.numbers)
        for nm in ('fill', 'mean', 'std'):  # float32 is too coarse for columns such as years
            self.register_buffer(nm, torch.tensor([a[nm] for a in at], dtype=torch.float64))
        self.register_buffer('flagged', torch.tensor([names.index(c) for c in recipe.flags], dtype=torch.long))

    def forward(self, numbers: Tensor, *categories: Tensor) -> tuple[Tensor, ...]:
        missing = numbers.isnan()
        scaled = (torch.where(missing, self.fill, numbers) - self.mean)/self.std
        return torch.cat([scaled, missing[:, self.flagged]], 1).float(), *categories


def table_loaders(table: Any, y: str, cat: Any, cont: Any, valid: Any, bs: int, seed: int, classes: bool | None,
                  device: Any, skip_bad: bool, drop: Sequence[str]) -> tuple[MemoryLoader, MemoryLoader, TableRecipe]:
    "The two loaders and the recipe of `DataLoaders.from_table`."
    cat, cont, drop = ([c] if isinstance(c, str) else c for c in (cat, cont, drop))
    df = read_table(table)
    _check_columns(df, y, cat, cont, drop)
    train, held_out = split_table(df.drop(columns=list(drop)), valid, seed)
    if y not in held_out.columns: raise TableError(f"the validation table lacks the column {y} to predict")
    if skip_bad: train, held_out = (_without_missing(part, y) for part in (train, held_out))
    targets = _fitted_target(train[y], classes)
    if isinstance(valid, Real) and 'classes' in targets:
        train, held_out = _with_all_classes(train, held_out, y, targets['classes'])
        targets = _fitted_target(train[y], True)
    recipe = TableRecipe.fitted(train, y, cat, cont, **targets)
    def loader(part: Any, bs: int, shuffle: bool) -> MemoryLoader:
        return recipe.loader([*recipe.read(part)[0], recipe.target(part[y])], bs, device, shuffle=shuffle, seed=seed)
    return loader(train, bs, True), loader(held_out, bs*2, False), recipe


def _with_all_classes(train: Any, held_out: Any, y: str, classes: list[str]) -> tuple[Any, Any]:
    "The two parts, with rows of classes that were all drawn for validation moved to training."
    import pandas as pd
    lost = held_out[y].notna() & ~held_out[y].map(value_name).isin(classes)
    if lost.all(): raise TableError(f"no class of {y} has rows for both training and validation: change valid or seed")
    return (pd.concat([train, held_out[lost]]), held_out[~lost]) if lost.any() else (train, held_out)


def _without_missing(df: Any, y: str) -> Any:
    there = df[y].notna()
    if not there.all(): warnings.warn(f"{len(df) - there.sum():,} of {len(df):,} rows have no {y} and are skipped",
                                      stacklevel=5)
    return df[there]


def _check_columns(df: Any, y: str, cat: Any, cont: Any, drop: Sequence[str]) -> None:
    for c in (y, *(cat or ()), *(cont or ()), *drop):
        if c not in df.columns:
            near = get_close_matches(str(c), map(str, df.columns), n=1)
            raise TableError(f"the table has no column {c!r}; " + (f"did you mean {near[0]!r}?" if near else
                             f"it has {', '.join(map(str, df.columns[:20]))}"))
    if y in (*(cat or ()), *(cont or ()), *drop): raise TableError(
        f"{y} is the column to predict: it cannot be an input, or dropped")
    twice = [*{*(cat or ())} & {*(cont or ())}, *df.columns[df.columns.duplicated()]]
    if twice: raise TableError(f"the column {twice[0]} is there twice: give each a name, and list it in cat or in cont")


def _fitted_target(column: Any, classes: bool | None) -> dict[str, Any]:
    "What is known about the targets: names of classes, or mean and standard deviation. Few whole numbers are classes."
    there = column.dropna()
    if not len(there): raise TableError(f"the column {column.name} to predict is empty")
    if classes is None: classes = _are_classes(there)
    if not classes:
        mean, std = _mean_std(_as_numbers(column.name, there))
        return dict(target_mean=mean, target_std=std)
    names = sorted(_names(there), key=_order)
    if len(names) < 2: raise TableError(f"{column.name} has a single class, {names[0]}: there must be two")
    return dict(classes=names)


def _are_classes(column: Any) -> bool:
    "Are the values to predict classes? Text, bools and few whole numbers are. TableError for too many of them."
    n = _n_values(column)
    if _is_number(column): return n <= 20 and not (_as_numbers(column.name, column) % 1).any()
    if n <= max(50, len(column)//2): return True
    raise TableError(f"the column {column.name} to predict has {n:,} different values in {len(column):,} rows: correct "
                     f"the table if they should be numbers, or pass classes=True")


def _fitted_number(column: Any) -> dict[str, float]:
    values = _as_numbers(column.name, column)
    if np.isnan(values).all(): raise TableError(f"the column {column.name} has no number in the training rows: drop it")
    fill = float(np.nanmedian(values))
    mean, std = _mean_std(np.where(np.isnan(values), fill, values))
    return dict(fill=fill, mean=mean, std=std)


def _rounded(values: np.ndarray, std: float) -> np.ndarray:
    "Numbers without the digits that were lost when they were kept as float32, scaled by `std`."
    return values.round(max(0, 6 - int(np.ceil(np.log10(std)))))


def _mean_std(values: np.ndarray) -> tuple[float, float]:
    "Mean and standard deviation; 1 for equal values, of which rounding makes a small one."
    return float(values.mean()), float(values.std()) if values.min() < values.max() else 1.


def _as_numbers(name: str, column: Any) -> np.ndarray:
    "The column in double precision, NaN where it is missing. TableError for what is no number, or infinite."
    import pandas as pd
    _check_no_dates(column)
    values = pd.to_numeric(column, errors='coerce').to_numpy(np.float64, na_value=np.nan)
    wrong = np.flatnonzero((np.isnan(values) & column.notna().to_numpy()) | np.isinf(values))
    if not len(wrong): return values
    raise TableError(f"the column {name} should hold numbers, and row {column.index[wrong[0]]} has "
                     f"{column.tolist()[wrong[0]]!r}: correct it, or train with the column in cat")


def _codes(column: Any, known: Sequence[str]) -> np.ndarray:
    "The places of values in `known`, from 1; 0 for a missing or unknown one. Bools may be 0 and 1."
    import pandas as pd
    _n_values(column)
    places = {v: i for i, v in enumerate(known, 1)}
    if {*known} <= {'False', 'True'}: places |= {str(int(v == 'True')): i for v, i in places.items()}
    codes, values = pd.factorize(column)  # -1 for a missing one
    return np.array([*(places.get(value_name(v), 0) for v in values), 0], np.int64)[codes]


def _names(column: Any) -> set[str]: return {value_name(v) for v in column.dropna().unique()}


def _is_number(column: Any) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype
    return is_numeric_dtype(column) and not is_bool_dtype(column)


def _can_be_category(column: Any) -> bool:
    "True; TableError for text that differs in nearly every row."
    n = _n_values(column)
    if n <= max(50, len(column)//2): return True
    raise TableError(f"the column {column.name} has {n:,} different values in {len(column):,} rows, so it says little "
                     f"about others: drop it, or name it in cat, or in cont if it holds numbers")


def _n_values(column: Any) -> int:
    "The number of different values. TableError for dates and for lists and the like."
    _check_no_dates(column)
    try: return column.nunique()
    except TypeError as e: raise TableError(f"the column {column.name} holds neither numbers nor text, but values such "
                                            f"as {column.dropna().iloc[0]!r}: drop it") from e


def _check_no_dates(column: Any) -> None:
    if column.dtype.kind in 'mM': raise TableError(
        f"the column {column.name} holds dates: turn them into numbers, such as year and month, or drop it")


def _order(name: str) -> tuple:
    "Numbers in their order, before other names."
    try: return 0, float(name), name
    except ValueError: return 1, 0., name

"Tables from files and other things, and which of their rows are for training and for validation."
import json
from collections.abc import Iterator, Mapping
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from miniai.data.split import other_rows, split_rows

__all__ = ['TableError', 'read_table', 'one_or_many', 'split_table', 'value_name']

_READERS = {'.csv': lambda pd, path: pd.read_csv(path), '.tsv': lambda pd, path: pd.read_csv(path, sep='\t'),
            '.parquet': lambda pd, path: pd.read_parquet(path), '.json': lambda pd, path: pd.DataFrame(_json(path)),
            '.jsonl': lambda pd, path: pd.DataFrame(_json(path, lines=True))}


class TableError(ValueError): "A table that cannot be used: a missing column, no labels, or values of the wrong kind."


def read_table(x: Any) -> Any:
    """A DataFrame from a file (CSV, TSV, Parquet, JSON, JSON lines), a list of dicts, or what else pandas takes. The
    index that `to_csv` writes is left out. TableError for a file that cannot be read or has no rows."""
    try:
        import pandas as pd
    except ImportError as e: raise ImportError("tables need the package pandas: pip install 'miniai-torch[hf]'") from e
    if isinstance(x, pd.DataFrame): return x
    if hasattr(x, 'to_pandas'): return x.to_pandas()
    if not isinstance(x, str | PathLike):
        try: return pd.DataFrame(list(x) if isinstance(x, Iterator) else x)
        except (ValueError, TypeError) as e:
            raise TableError(f"no table can be made of type {type(x).__name__}: {e}") from e
    suffix = Path(x).suffix.lower()
    if suffix not in _READERS: raise TableError(f"{x} is no table that can be read: give {', '.join(_READERS)}")
    try: df = _READERS[suffix](pd, x)
    except FileNotFoundError as e: raise FileNotFoundError(f"no file {x}") from e
    except (ValueError, TypeError, OSError) as e: raise TableError(f"cannot read {x}: {e}") from e
    if not len(df): raise TableError(f"{x} has no rows")
    return df.drop(columns='Unnamed: 0', errors='ignore')


def _json(path: str | PathLike, lines: bool = False) -> Any:
    "The values in a file. Unlike those of pandas, bools with gaps stay bools, and texts stay texts."
    text = Path(path).expanduser().read_text('utf-8')
    return [json.loads(line) for line in text.splitlines() if line.strip()] if lines else json.loads(text)


def one_or_many(x: Any) -> tuple[Any, bool]:
    "A DataFrame from a table or a row, and whether `x` was a single row: a dict or a Series."
    if isinstance(x, Mapping): return read_table([x]), True
    return (x.to_frame().T, True) if hasattr(x, 'to_frame') else (read_table(x), False)


def split_table(df: Any, valid: Any, seed: int) -> tuple[Any, Any]:
    "Training and validation rows: by a fraction, a column, indices or a mask, or another table."
    if not len(df): raise TableError("the table has no rows")
    if isinstance(valid, Real): train, held_out = (df.iloc[rows.numpy()] for rows in split_rows(len(df), valid, seed))
    elif isinstance(valid, str) and valid in df.columns: train, held_out = _by_column(df, valid)
    elif _is_table(valid): train, held_out = df, read_table(valid)
    elif isinstance(valid, str): raise TableError(
        f"valid is {valid!r}, which is neither a column of the table nor a file of {', '.join(_READERS)}")
    else: train, held_out = _by_rows(df, valid)
    for name, part in (('training', train), ('validation', held_out)):
        if not len(part): raise TableError(f"no rows are left for {name}: change valid, which is {valid!r}")
    return train, held_out


def _is_table(x: Any) -> bool:
    if isinstance(x, str | PathLike): return Path(x).suffix.lower() in _READERS
    return hasattr(x, 'columns') or (isinstance(x, list) and bool(x) and isinstance(x[0], Mapping))


def _by_rows(df: Any, valid: Any) -> list:
    try: return [df.iloc[rows.numpy()] for rows in other_rows(len(df), valid)]
    except TypeError as e: raise TableError(f"valid must be a fraction, a column, the indices of rows, a mask of bools "
                                            f"or another table, got type {type(valid).__name__}") from e


def _by_column(df: Any, column: str) -> tuple[Any, Any]:
    "The rows that the column says are for validation, and the others but for those for testing."
    names, df = df[column].map(value_name).astype(str).str.lower(), df.drop(columns=column)
    held_out, test = names.isin(('true', '1', 'valid', 'validation', 'val')), names == 'test'
    if not held_out.any(): held_out, test = test, held_out
    if held_out.any(): return df[~held_out & ~test], df[held_out]
    raise TableError(f"the column {column} names no row for validation: it should say 'train' or 'valid', or 0 or 1, "
                     f"and has {', '.join(sorted(set(names))[:5])}")


def value_name(v: Any) -> str:
    "A value as text: whole numbers without a decimal point, whatever their type."
    return str(int(v)) if isinstance(v, float | np.floating) and v.is_integer() else str(v)

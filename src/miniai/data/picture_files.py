"Pictures in files: found in folders, named by class, and opened."
import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ['PictureError', 'picture_files', 'labelled_files', 'opened']


class PictureError(ValueError): "A picture that cannot be read or has no class; the message names it."


def picture_files(folder: str | PathLike) -> list[Path]:
    """The pictures in a folder and its subfolders, sorted: files with an extension that Pillow reads, none hidden.
    PictureError if there are none."""
    from PIL import Image
    known = {ext for ext, format in Image.registered_extensions().items() if format in Image.OPEN}
    found, others = [], []
    for at, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [nm for nm in folders if not nm.startswith('.')]
        for nm in names:
            is_picture = os.path.splitext(nm)[1].lower() in known and not nm.startswith('.')
            (found if is_picture else others).append(os.path.join(at, nm))
    if found: return [Path(f) for f in sorted(found, key=lambda f: f.split(os.sep))]
    instead = f", but files such as {os.path.basename(others[0])}" if others else ""
    raise PictureError(f"no pictures that Pillow reads in {folder}{instead}")


def labelled_files(folder: Path) -> list[tuple[Path, str]]:
    "Each picture in the folders of `folder` with the name of its folder, its class. PictureError if there are none."
    files = picture_files(folder)
    loose = [p for p in files if p.parent == folder]
    if loose:
        raise PictureError(f"{folder} itself has pictures, such as {loose[0].name}, but the name of a picture's folder "
                           f"is its class: move {len(loose):,} of them into folders for their classes")
    depth = len(folder.parts)  # `relative_to` takes longer than all the rest
    return [(p, p.parts[depth]) for p in files]


@contextmanager
def opened(file: Any) -> Iterator[Any]:
    "The picture in `file`, a path or an open file. What fails while it is in use becomes a PictureError that names it."
    from PIL import Image, UnidentifiedImageError
    try:
        with Image.open(file) as im: yield im
    except FileNotFoundError as e: raise PictureError(f"no picture at {file}") from e
    except Exception as e:  # decoders raise errors of many types over damaged data
        empty = isinstance(file, str | PathLike) and os.path.isfile(file) and not os.path.getsize(file)
        why = 'it is empty' if empty else 'its content is not a picture' if isinstance(e, UnidentifiedImageError) else e
        raise PictureError(f"cannot read the picture {file}: {why}") from e

"The code of a rule or a task as text: its file and the user's own modules that the file imports, which name its runs."
import ast
import inspect
import sysconfig
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from miniai.racing.values import LIBRARIES, made_with

__all__ = ['INSTALLED', 'code_of', 'imported_files']

INSTALLED = tuple(Path(sysconfig.get_path(nm)).resolve() for nm in ('purelib', 'platlib', 'stdlib'))


def code_of(thing: Any, name: str) -> str:
    """What a function, class or partial does, as text: its name, its file, and the files beside it that the file
    imports, directly or not; of an installed package its file alone, and of miniai and torch the name, as trials have
    their versions. What has no file is its source, or its bytecode. Then what may differ between functions of the same
    place and name: the bytecode, variables that a function has from around it, defaults, and arguments of a partial."""
    return '\n'.join([_text(thing, name), *(f'# {nm} = {value}' for nm, value in made_with(thing))])


def _text(thing: Any, name: str) -> str:
    if isinstance(thing, partial): return _text(thing.func, name)
    thing = inspect.unwrap(thing)
    if not isinstance(thing, type) and not inspect.isroutine(thing): thing = type(thing)
    title, module = getattr(thing, '__qualname__', name), getattr(thing, '__module__', None) or ''
    if module.startswith(LIBRARIES): return f'{module}.{title}'
    try: file = Path(inspect.getsourcefile(thing)).resolve()
    except (TypeError, OSError): return _without_file(thing, title)
    if not file.is_file(): return _without_file(thing, title)
    files = [file, *sorted(imported_files(file))]
    return '\n'.join([title, *(text for f in files for text in ([f'# {f.name}'] if f != file else []) + [_read(f)])])


def _without_file(thing: Any, title: str) -> str:
    try: return inspect.getsource(thing)
    except (TypeError, OSError): return title


def _read(file: Path) -> str: return file.read_text('utf-8', errors='replace')


def imported_files(file: Path) -> set[Path]:
    "The user's files that a file imports, and those that they import, without itself."
    found, todo = {file}, [file]
    while todo:
        for other in _imports(todo.pop()):
            if other in found: continue
            found.add(other)
            todo.append(other)
    return found - {file}


def _imports(file: Path) -> Iterator[Path]:
    "The files that a file's import statements name, as far as they are beside it or in its package."
    if any(file.is_relative_to(folder) for folder in INSTALLED): return
    top = file.parent
    while (top/'__init__.py').is_file(): top = top.parent
    try: tree = ast.parse(_read(file))
    except SyntaxError: return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names, folders = [a.name for a in node.names], {file.parent, top}
        elif isinstance(node, ast.ImportFrom):
            folders = {file.parents[node.level - 1]} if node.level else {file.parent, top}
            names = [node.module or '', *(f"{node.module or ''}.{a.name}" for a in node.names)]
        else: continue
        yield from (path for folder in folders for nm in names for path in _files(folder, nm))


def _files(folder: Path, name: str) -> Iterator[Path]:
    "The files that importing `name` from `folder` runs: those of packages on the way, and the module's."
    for part in filter(None, name.split('.')):
        folder = folder/part
        for file in (folder/'__init__.py', folder.with_suffix('.py')):
            if file.is_file(): yield file.resolve()

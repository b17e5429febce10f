"Generated modules on disk: written atomically, named by a hash of all they depend on, protected by checksums."
import atexit
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from types import ModuleType

__all__ = ['cache_folder', 'load_module', 'seal']

_HERE = Path(__file__).parent


def cache_folder() -> Path:
    """The folder of compiled kernels: MINIAI_CACHE, or miniai/kernels in the user's cache folder, with mode 0700. If it
    cannot be written, or others could write to it, a temporary folder of this process replaces it."""
    named, user = os.environ.get('MINIAI_CACHE'), os.environ.get('XDG_CACHE_HOME')
    try:
        folder = Path(named) if named else (Path(user) if user else Path.home()/'.cache')/'miniai'/'kernels'
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_private(folder) and os.access(folder, os.W_OK | os.X_OK): return folder
    except (OSError, RuntimeError): pass
    return _process_folder()


def _is_private(folder: Path) -> bool:
    if not hasattr(os, 'getuid'): return True
    info = folder.stat()
    return info.st_uid == os.getuid() and not info.st_mode & 0o022


@lru_cache(maxsize=1)
def _process_folder() -> Path:
    folder = tempfile.mkdtemp(prefix='miniai-kernels-')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@lru_cache(maxsize=1)
def _versions() -> str:
    import llvmlite
    import numba
    import numpy
    from llvmlite.binding import get_host_cpu_name
    versions = sys.version, numba.__version__, llvmlite.__version__, numpy.__version__
    return repr((*versions, get_host_cpu_name(), (_HERE/'pointers.py').read_text()))


def load_module(source: str, afresh: bool = False) -> ModuleType:
    "The module of a generated source, in the cache folder; with `afresh`, in a temporary folder of this process."
    name = 'k_' + hashlib.sha256((source + _versions()).encode()).hexdigest()[:24]
    path = (_process_folder() if afresh else cache_folder())/f'{name}.py'
    _forget_damaged(path)
    if not path.exists() or path.read_text() != source: _write(path, source)
    spec = importlib.util.spec_from_file_location(f'miniai_{name}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _write(path: Path, text: str) -> None:
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    part.write_text(text)
    os.replace(part, path)


def _sums(path: Path) -> dict[str, str]:
    "Checksums of the files that Numba has compiled for a module, by name."
    files = [p for p in (path.parent/'__pycache__').glob(f'{path.stem}.*') if p.suffix in ('.nbi', '.nbc')]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def seal(module: ModuleType) -> None:
    "Record the checksums of the files that Numba has compiled for `module`, so that they are trusted next time."
    path = Path(module.__file__)
    _write(path.with_suffix('.sums'), json.dumps(_sums(path)))


def _forget_damaged(path: Path) -> None:
    "Numba trusts the files it finds: remove those that differ from what was sealed."
    try: known = json.loads(path.with_suffix('.sums').read_text())
    except (OSError, ValueError): known = {}
    for name, found in _sums(path).items():
        if known.get(name) != found: (path.parent/'__pycache__'/name).unlink(missing_ok=True)

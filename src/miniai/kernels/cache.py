"""Generated modules on disk: written whole, named by all that shapes them, sealed by checksums. Knows files and Numba's
cache beside them, no kernel."""
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
    """Where kernels are kept: the folder that MINIAI_CACHE names, else miniai/kernels in the user's cache folder; its
    mode is 0700. A folder that cannot be written, or that others could write to, is replaced by one for this process
    alone."""
    try:
        folder = _named_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_private(folder) and os.access(folder, os.W_OK | os.X_OK): return folder
    except (OSError, RuntimeError): pass
    return _process_folder()


def _named_folder() -> Path:
    named, user = os.environ.get('MINIAI_CACHE'), os.environ.get('XDG_CACHE_HOME')
    return Path(named) if named else (Path(user) if user else Path.home()/'.cache')/'miniai'/'kernels'


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
    "The module of a generated source, in the cache folder; `afresh` in a folder of this process's own."
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
    "Checksums of what Numba has compiled of a module, by file name."
    files = [p for p in (path.parent/'__pycache__').glob(f'{path.stem}.*') if p.suffix in ('.nbi', '.nbc')]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def seal(module: ModuleType) -> None:
    "Note the checksums of what Numba has compiled of `module`, so that it is trusted the next time."
    path = Path(module.__file__)
    _write(path.with_suffix('.sums'), json.dumps(_sums(path)))


def _forget_damaged(path: Path) -> None:
    "Numba trusts the files that it finds: remove those that are not, byte for byte, what was sealed."
    try: known = json.loads(path.with_suffix('.sums').read_text())
    except (OSError, ValueError): known = {}
    for name, found in _sums(path).items():
        if known.get(name) != found: (path.parent/'__pycache__'/name).unlink(missing_ok=True)

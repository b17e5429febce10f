"""Generated sources as modules, and compiled kernels on disk: a file per function, named by a hash of all it depends
on, protected by a checksum."""
import hashlib
import linecache
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from miniai.atomic import atomic_write

__all__ = ['DiskCache', 'cache_folder', 'load_module', 'module_of']

_SETTINGS = 'BOUNDSCHECK', 'DEBUGINFO_DEFAULT', 'LOOP_VECTORIZE', 'OPT', 'SLP_VECTORIZE', 'USING_SVML'  # numba.config
_HERE = Path(__file__).parent


def load_module(source: str) -> ModuleType:
    "The module of a source for Numba. What Numba compiles of its `serial` and `parallel` is kept on disk."
    module = module_of(source)
    for run in (module.serial, module.parallel): run._cache = DiskCache(source, run.__name__)
    return module


def module_of(source: str) -> ModuleType:
    "The module of a generated source. Tracebacks show its lines, and Triton reads them again."
    name = f'miniai_k_{_hash(source)}'
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    module = sys.modules[name] = ModuleType(name)  # code from the disk finds its module by this name
    exec(compile(source, name, 'exec'), vars(module))
    return module


class DiskCache:
    """What Numba asks for a function's code, in place of its own cache. That one trusts every file it finds, keeps them
    where NUMBA_CACHE_DIR says, and fails with the disk. If the folder is unusable, this one has nothing."""
    cache_path = None  # Numba wants to know

    def __init__(self, source: str, name: str) -> None: self.source, self.name = source, name

    def load_overload(self, types: Any, context: Any) -> Any:
        "The code for arguments of these types; None if it is missing or damaged."
        from numba.core.compiler import CompileResult
        try: data = self._file(types, context).read_bytes()
        except (OSError, RuntimeError): return None
        seal, code = data[:32], data[32:]
        if seal != _sha256(code): return None
        context.refresh()  # else the functions of Numba that the code calls may be missing
        return CompileResult._rebuild(context, *pickle.loads(code))

    def save_overload(self, types: Any, result: Any) -> None:
        "Keep what was compiled for arguments of these types, and its source for people to read."
        from numba.core.serialize import dumps
        code = dumps(result._reduce())
        try:
            file = self._file(types, result.target_context)
            with atomic_write(file) as part: part.write_bytes(_sha256(code) + code)
            with atomic_write(file.with_suffix('.py')) as part: part.write_text(self.source, 'utf-8')
        except (OSError, RuntimeError): pass  # compiled again next time

    def _file(self, types: Any, context: Any) -> Path:
        known = self.source, self.name, types, context.codegen().magic_tuple(), _versions()
        return cache_folder()/f'k_{_hash(repr(known))}.bin'


def cache_folder() -> Path:
    """The folder of compiled kernels: MINIAI_CACHE, or miniai/kernels in the user's cache folder, with mode 0700.
    OSError or RuntimeError if there is none, or others could write to it."""
    named, user = os.environ.get('MINIAI_CACHE'), os.environ.get('XDG_CACHE_HOME')
    folder = Path(named) if named else (Path(user) if user else Path.home()/'.cache')/'miniai'/'kernels'
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    info = folder.stat()
    if hasattr(os, 'getuid') and (info.st_uid != os.getuid() or info.st_mode & 0o022):
        raise PermissionError(f"others can write to {folder}")
    return folder


def _versions() -> tuple:
    "All that shapes the code of any kernel, except its source and the processor."
    import llvmlite
    import numba
    import numpy
    versions = sys.version, numba.__version__, llvmlite.__version__, numpy.__version__
    return *versions, (_HERE/'pointers.py').read_text(), [getattr(numba.config, nm, None) for nm in _SETTINGS]


def _sha256(data: bytes) -> bytes: return hashlib.sha256(data).digest()


def _hash(text: str) -> str: return _sha256(text.encode()).hex()[:24]

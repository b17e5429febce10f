"""miniai: train PyTorch models with accelerated SGD. The names that a user types first are in `names`. They are
imported when one of them is first used, and torch with them: `miniai report` needs neither, and starts at once."""
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING: from miniai.names import *  # noqa: F403, I001 (for editors)

__version__ = '0.3.0'


def __getattr__(name: str) -> Any:
    if name.startswith('__') and name != '__all__': raise AttributeError(name)  # which Python and tools ask for
    if find_spec(f'miniai.{name}'): return import_module(f'miniai.{name}')
    names = import_module('miniai.names')
    globals().update({nm: getattr(names, nm) for nm in names.__all__}, __all__=names.__all__)
    if name in globals(): return globals()[name]
    raise AttributeError(f"module 'miniai' has no attribute {name!r}")


def __dir__() -> list[str]: return sorted({*globals(), *import_module('miniai.names').__all__})

"Versions of installed packages. Knows their metadata, and imports none of them."
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

__all__ = ['version_of']


@lru_cache
def version_of(package: str) -> str | None:
    "The installed version of `package`, by its distribution's name, as it was at the first call; None without it."
    try: return version(package)
    except PackageNotFoundError: return None

"What can go wrong with a checkpoint, by name: a file that cannot be trusted, a save that failed, a folder in use."
from os import PathLike, fspath

__all__ = ['CheckpointError', 'SaveError', 'FolderInUseError', 'Malformed']


class Malformed(ValueError):
    "Something in a file's content that no checkpoint has; whoever knows the file's name says it as a CheckpointError."


class CheckpointError(ValueError):
    "A file that is no whole checkpoint: damaged, cut, of another kind or a later format. `path`, and why in `reason`."
    def __init__(self, path: str | PathLike, reason: str) -> None:
        self.path, self.reason = fspath(path), reason
        super().__init__(f'{self.path}: {reason}')


class SaveError(OSError):
    """A checkpoint that could not be saved: `path`, the one of its names that it could not have, the bytes `wanted` and
    `written`, the `cause`, which is `__cause__` too. What stood at `path` before still stands there, unless the
    message says otherwise."""
    def __init__(self, path: str | PathLike, wanted: int, written: int, cause: BaseException, stands: str) -> None:
        self.path, self.wanted, self.written, self.cause = fspath(path), wanted, written, cause
        super().__init__(f'{self.path} was not saved, {stands}: {_words(cause)} '
                         f'({written:,} of {wanted:,} bytes were written)')
        self.errno = getattr(cause, 'errno', None)


def _words(e: BaseException) -> str: return getattr(e, 'strerror', None) or str(e) or type(e).__name__


class FolderInUseError(RuntimeError):
    "A folder that another run holds, on `host` as process `pid` where they are known."
    def __init__(self, folder: str | PathLike, pid: str, host: str) -> None:
        self.folder, self.pid, self.host = fspath(folder), pid, host
        super().__init__(f'{self.folder} is in use by process {pid} on {host}: wait for it to end, '
                         f'or name another folder')

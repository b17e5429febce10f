"The errors of checkpoint files: an unusable file, a failed save, a folder in use."
from os import PathLike, fspath

__all__ = ['CheckpointError', 'SaveError', 'FolderInUseError', 'Malformed']


class Malformed(ValueError):
    "The content of a file is not a valid checkpoint. Becomes a CheckpointError where the path is known."


class CheckpointError(ValueError):
    "The file at `path` is not a complete checkpoint: damaged, truncated, or of another kind; `reason` says which."
    def __init__(self, path: str | PathLike, reason: str) -> None:
        self.path, self.reason = fspath(path), reason
        super().__init__(f'{self.path}: {reason}')


class SaveError(OSError):
    """A checkpoint could not be saved under the name `path`. `wanted` and `written` count bytes; `cause`, also
    `__cause__`, is the error behind it. The file that was at `path` is unchanged unless the message says otherwise."""
    def __init__(self, path: str | PathLike, wanted: int, written: int, cause: BaseException, status: str) -> None:
        self.path, self.wanted, self.written, self.cause = fspath(path), wanted, written, cause
        reason = getattr(cause, 'strerror', None) or str(cause) or type(cause).__name__
        super().__init__(f'{self.path} was not saved: {reason} ({written:,} of {wanted:,} bytes were written); '
                         f'{status}')
        self.errno = getattr(cause, 'errno', None)


class FolderInUseError(RuntimeError):
    "Another run holds the folder: process `pid` on `host`, if they are known."
    def __init__(self, folder: str | PathLike, pid: str, host: str) -> None:
        self.folder, self.pid, self.host = fspath(folder), pid, host
        super().__init__(f'{self.folder} is in use by process {pid} on {host}: wait for it to end, '
                         f'or use another folder')

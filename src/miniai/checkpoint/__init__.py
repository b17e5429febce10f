"""Checkpoints: a nest of plain values and tensors as one file that survives, and that can do no harm when it is read.

    save('run.safetensors', dict(model=model.state_dict(), epoch=3))
    state = load('run.safetensors')
"""
from .describe import describe as describe
from .errors import CheckpointError as CheckpointError
from .errors import FolderInUseError as FolderInUseError
from .errors import SaveError as SaveError
from .folder import newest_valid as newest_valid
from .folder import remove_stale as remove_stale
from .lock import FolderLock as FolderLock
from .read import CheckpointInfo as CheckpointInfo
from .read import TensorInfo as TensorInfo
from .read import inspect as inspect
from .read import load as load
from .read import verify as verify
from .saving import Pending as Pending
from .saving import Saver as Saver
from .saving import save as save

__all__ = ['save', 'load', 'verify', 'inspect', 'describe', 'Saver', 'Pending', 'newest_valid', 'remove_stale',
           'FolderLock', 'CheckpointInfo', 'TensorInfo', 'CheckpointError', 'SaveError', 'FolderInUseError']

"""Checkpoint files: nested plain values and tensors in one file, written durably and safe to read.

    save('run.safetensors', dict(model=model.state_dict(), epoch=3))
    state = load('run.safetensors')
"""
from miniai.checkpoint.describe import describe as describe
from miniai.checkpoint.durable import SaveError as SaveError
from miniai.checkpoint.folder import FolderInUseError as FolderInUseError
from miniai.checkpoint.folder import FolderLock as FolderLock
from miniai.checkpoint.folder import newest_valid as newest_valid
from miniai.checkpoint.folder import remove_stale as remove_stale
from miniai.checkpoint.read import CheckpointError as CheckpointError
from miniai.checkpoint.read import CheckpointInfo as CheckpointInfo
from miniai.checkpoint.read import TensorInfo as TensorInfo
from miniai.checkpoint.read import inspect as inspect
from miniai.checkpoint.read import load as load
from miniai.checkpoint.read import verify as verify
from miniai.checkpoint.saving import Pending as Pending
from miniai.checkpoint.saving import Saver as Saver
from miniai.checkpoint.saving import save as save

__all__ = ['save', 'load', 'verify', 'inspect', 'describe', 'Saver', 'Pending', 'newest_valid', 'remove_stale',
           'FolderLock', 'CheckpointInfo', 'TensorInfo', 'CheckpointError', 'SaveError', 'FolderInUseError']

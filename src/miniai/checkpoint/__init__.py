"""Checkpoint files: nested plain values and tensors in one file, written durably and safe to read.

    save('run.safetensors', dict(model=model.state_dict(), epoch=3))
    state = load('run.safetensors')
"""
from miniai.checkpoint.describe import describe
from miniai.checkpoint.durable import SaveError
from miniai.checkpoint.folder import FolderInUseError, FolderLock, newest_valid, remove_stale
from miniai.checkpoint.gather import gather
from miniai.checkpoint.read import CheckpointError, CheckpointInfo, TensorInfo, inspect, load, verify
from miniai.checkpoint.saving import Pending, Saver, save

__all__ = ['save', 'load', 'verify', 'inspect', 'describe', 'Saver', 'Pending', 'newest_valid', 'remove_stale',
           'gather', 'FolderLock', 'CheckpointInfo', 'TensorInfo', 'CheckpointError', 'SaveError', 'FolderInUseError']

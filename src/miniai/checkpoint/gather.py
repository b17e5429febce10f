"A sharded checkpoint's model as one file, made by one process."
from os import PathLike

import torch

from miniai.checkpoint.parts import filled, is_folder, sharded_in
from miniai.checkpoint.read import CheckpointError, load_apart, read_into, verify_parts
from miniai.checkpoint.saving import save
from miniai.show.tracking import tracked

__all__ = ['gather']


def gather(folder: str | PathLike, out: str | PathLike) -> None:
    """Save the whole model of a sharded checkpoint, a folder, as the file `out`, which `miniai.load` reads. One process
    does this, without a group, in memory for one model. With AverageCB, the best checkpoint's are the averages.
    CheckpointError if the folder is damaged or not a sharded checkpoint."""
    if not is_folder(folder): raise CheckpointError(folder, 'not the folder of a sharded model')
    state = load_apart(folder)
    n = len(state['parts'])
    for i in tracked(range(n), 'verifying'): verify_parts(folder, state['parts'], i, n)
    there = sharded_in(state['model'])
    whole = {nm: torch.empty(x.shape, dtype=getattr(torch, x.dtype)) for nm, x in there.items()}
    for nm in tracked(list(there), 'gathering'): read_into(folder, {nm: whole[nm]})
    save(out, dict(state['file'], model=filled(state['model'], whole)))

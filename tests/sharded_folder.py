"A checkpoint as a sharded model's, written by one process without a group."
import warnings

import torch.distributed.checkpoint as dcp

from miniai.checkpoint import save
from miniai.checkpoint.parts import REST, own_digests
from miniai.checkpoint.tree import Sharded


def write_sharded(folder, model, **state):
    "With `model`, a state_dict, in parts, and `state` beside them."
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'torch.distributed is disabled')
        tensors = {f'model/{nm}': x for nm, x in model.items()}
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    stand_ins = {nm: Sharded(f'model/{nm}', tuple(x.shape), str(x.dtype)[6:]) for nm, x in model.items()}
    save(folder/REST, dict(model=stand_ins, parts=own_digests(folder, 0), **state))

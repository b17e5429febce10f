"""What the processes of ranks.py are forked with: torch, miniai and Numba, imported and used once, as that takes longer
than most tests. No thread is started, since forked processes do not get them."""
import gc
from contextlib import suppress

import pytest  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.distributed.optim
import torch.distributed.tensor.parallel

import miniai.resume
import miniai.training  # noqa: F401
from miniai.optim import AdamW

with suppress(ImportError):
    import torchmetrics  # noqa: F401


def step_once():
    "Loads the compiler, or a kernel from its cache."
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    AdamW([p], lr=0.1).step()


torch.set_num_threads(1)
step_once()
gc.collect()
gc.freeze()  # so that forked processes do not copy these pages when they collect

"Training on several processes: their ranks, DDP and FSDP2, and helpers for DTensors."
from miniai.distributed.callback import DistributedCB
from miniai.distributed.ranks import agree, is_first, rank, total, world

__all__ = ['DistributedCB', 'rank', 'world', 'is_first', 'agree', 'total']

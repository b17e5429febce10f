"Models on several processes: wrapped by DDP, or sharded by FSDP2, and the model inside."
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from miniai.distributed.dtensor import fsdp_modules, is_dtensor

__all__ = ['unwrapped', 'class_of', 'is_own', 'is_wrapped', 'what_trains', 'wrap_ddp', 'shard', 'is_sharded',
           'check_gradients', 'sync_batchnorms', 'share_buffers', 'blocks_of', 'replace_parameters',
           'average_in_backward', 'average_kept']


def unwrapped(model: nn.Module) -> nn.Module:
    "The model inside DistributedDataParallel; other models as they are."
    return model.module if isinstance(model, DistributedDataParallel) else model


def class_of(x: Any) -> type:
    "The class of an object; of a module that FSDP2 shards, the one that it had before."
    _, *bases = type(x).__mro__
    return bases[1] if bases and bases[0].__name__ == 'FSDPModule' else type(x)


def is_own(name: str) -> bool:
    "Does this attribute of a module belong to it, and not to `fully_shard`?"
    return not (name.startswith('__composable_api') or name in ('_fsdp_use_orig_params', '_is_fsdp_managed_module'))


def is_sharded(model: nn.Module) -> bool:
    "Whether `fully_shard` or `parallelize_module` divided `model`. Between its passes FSDP2 may hold whole parameters."
    return bool(fsdp_modules(model)) or any(is_dtensor(p) for p in model.parameters())


def is_wrapped(model: nn.Module) -> bool:
    "Whether gradients of `model` are averaged over processes: by DDP, or FSDP of either kind, in any part of it."
    kinds = 'DistributedDataParallel', 'FullyShardedDataParallel'
    return is_sharded(model) or any(type(m).__name__ in kinds for m in model.modules())


def what_trains(model: nn.Module) -> list[bool]:
    "Which parameters require a gradient. DDP averages the gradients of those that did when it wrapped the model."
    return [p.requires_grad for p in model.parameters()]


def wrap_ddp(model: nn.Module, device: torch.device, **options: Any) -> nn.Module:
    "`model` in DistributedDataParallel; `model` itself if no parameter requires a gradient. `options` are DDP's."
    if not any(what_trains(model)): return model
    ids = [device.index] if device.type == 'cuda' else None
    return DistributedDataParallel(model, device_ids=ids, **options)


def shard(model: nn.Module, blocks: Any = None, mesh: Any = None, mixed_precision: str | None = None,
          reshard: bool = True, offload: bool = False) -> None:
    """Shard `model` over the processes by FSDP2's `fully_shard`, block by block, then what is left. `blocks`: modules,
    or a class of modules; by default the class of block that the model repeats and that holds most of it. `mesh`: a
    DeviceMesh, with two dimensions for HSDP. mixed_precision='bf16' computes in bfloat16 and adds gradients up in
    float32; `reshard=False` keeps weights gathered between forward and backward; `offload` keeps them on the CPU."""
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
    if mixed_precision not in (None, 'bf16'):
        raise ValueError(f"mixed_precision must be 'bf16' or None, got {mixed_precision!r}")
    if any(not p.is_contiguous() for p in model.parameters()): raise ValueError(
        "fully_shard takes weights in their usual memory layout only: leave ChannelsLastCB out, or use "
        "DistributedCB('ddp')")
    options = dict(reshard_after_forward=reshard) | (dict(mesh=mesh) if mesh is not None else {})
    if mixed_precision:
        options['mp_policy'] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if offload: options['offload_policy'] = CPUOffloadPolicy()
    for x in (*model.parameters(), *model.buffers()):  # as DDP does: all start from the weights of the first process
        if not is_dtensor(x) and not x.is_meta: torch.distributed.broadcast(x.detach(), 0)
    for block in blocks_of(model, blocks): fully_shard(block, **options)
    fully_shard(model, **options)


def check_gradients(model: nn.Module) -> None:
    "ValueError if no weight of an FSDP2 model has a gradient after backward, as FSDP2 did not see what it returned."
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained and all(p.grad is None for p in trained): raise ValueError(
        "after backward no weight has a gradient: FSDP2 finds what the model returns only if it is a tensor, or a "
        "tuple, list, dict or named tuple of them: return one of these, or use DistributedCB('ddp')")


def sync_batchnorms(model: nn.Module) -> Callable[[], None]:
    """Let the batch norms of `model` be torch's SyncBatchNorm, which takes mean and variance over all processes, and
    return a function that undoes it. They stay the same objects, with their hooks."""
    found = [(m, type(m)) for m in model.modules() if type(m) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)]
    for m, _ in found: m.__class__, m.process_group = nn.SyncBatchNorm, None
    def undo() -> None:
        for m, kind in found:
            m.__class__ = kind
            del m.process_group
    return undo


def share_buffers(model: nn.Module) -> None:
    "Let all processes have the buffers of the first, such as BatchNorm's statistics: FSDP2 does not, as DDP does."
    for x in model.buffers() if fsdp_modules(model) else ():
        if not is_dtensor(x): torch.distributed.broadcast(x.detach(), 0)


def blocks_of(model: nn.Module, blocks: Any = None) -> list[nn.Module]:
    "The blocks of `model` to shard one by one: modules as given, of a class, or of the largest class that repeats."
    if isinstance(blocks, nn.Module): return [blocks]
    if isinstance(blocks, Iterable): return list(blocks)
    if blocks is None:
        sizes = Counter()
        composed = [m for m in model.modules() if m is not model and any(True for _ in m.children())]
        for m in composed:
            if not isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict): sizes[type(m)] += _size(m)
        counts = Counter(type(m) for m in composed)
        blocks = next((kind for kind, _ in sizes.most_common() if counts[kind] > 1), None)
        if blocks is None: return []
    found = [m for m in model.modules() if isinstance(m, blocks) and m is not model]
    return [m for m in found if not any(m is not o and m in set(o.modules()) for o in found)]


def _size(m: nn.Module) -> int: return sum(p.numel() for p in m.parameters())


def replace_parameters(opt: Any, old: dict[str, nn.Parameter], new: dict[str, nn.Parameter]) -> None:
    """Let an optimizer without state step the parameters `new` instead of those of the same names in `old`. ValueError
    if it has state, which is that of whole parameters."""
    if getattr(opt, 'state', None): raise ValueError(
        "the optimizer has state of unsharded parameters: shard the model before its first fit, or let opt_func make "
        "a new optimizer")
    there = {p: new[nm] for nm, p in old.items()}
    for group in opt.param_groups: group['params'] = [there.get(p, p) for p in group['params']]


def average_in_backward(model: nn.Module, on: bool) -> None:
    """Whether backward averages the gradients of `model` over processes. If not, it keeps what this process has, and
    adds to it, until a backward averages all. To be called before the forward pass."""
    if isinstance(model, DistributedDataParallel): model.require_backward_grad_sync = on
    for m in fsdp_modules(model): m.set_requires_gradient_sync(on, recurse=False)


@torch.no_grad()
def average_kept(model: nn.Module) -> None:
    "Average the gradients that backward has kept, as a further backward would."
    if isinstance(model, DistributedDataParallel):
        for p in model.parameters():
            if p.grad is not None: torch.distributed.all_reduce(p.grad.div_(model.process_group.size()),
                                                                group=model.process_group)
    average_in_backward(model, True)
    for m in fsdp_modules(model):  # at the end of a backward FSDP2 averages what is left
        state = m._get_fsdp_state()
        if state._is_root: state._root_post_backward_final_callback()

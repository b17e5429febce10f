"What each process of a run has of its own in a checkpoint, which otherwise holds the state of the first one."
import hashlib
import json
import warnings
from typing import Any

import torch
from torch import nn

from miniai.checkpoint.layout import memory_of
from miniai.checkpoint.tree import Sharded, flatten
from miniai.device import map_tensors
from miniai.distributed.ranks import from_first, gathered, is_first, rank, world
from miniai.distributed.wrap import is_sharded, unwrapped
from miniai.metrics.metrics import Mean, MetricsCB, shares_itself
from miniai.randomness import random_states, set_random_states, set_seed
from miniai.resume.packing import pack_dense, unpack_dense
from miniai.resume.walk import Node

__all__ = ['with_all_ranks', 'state_of_rank', 'is_resized']

_WHOLE, _BY_PATH = ('random', 'begun', 'paused'), ('objects', 'states', 'attributes', 'settings')


def with_all_ranks(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The first process's `state` of the run, and as `ranks` those parts that differ from it in each process: random
    states, sums of metrics, gradients that are not averaged yet, buffers of `model`. All processes call it."""
    if world() == 1: return state
    mine = _parts(state, [nm for nm, _ in unwrapped(model).named_buffers()])
    digests = {nm: _digest(x) for nm, x in mine.items()}
    firsts = from_first(digests)
    own = {nm: mine.get(nm) for nm in {**firsts, **digests} if digests.get(nm) != firsts.get(nm)}
    return state | dict(ranks=gathered(map_tensors(lambda t: t.detach().cpu(), own)))


def _parts(state: dict[str, Any], buffers: list[str]) -> dict[str, Any]:
    weights = 'raw' if 'raw' in state else 'model'
    parts = {nm: state[nm] for nm in _WHOLE} | {f'{weights}/{nm}': state[weights].get(nm) for nm in buffers}
    return parts | {f'{nm}/{path}': x for nm in _BY_PATH for path, x in state[nm].items()}


def _digest(x: Any) -> str:
    text, leaves = flatten(x)
    digest = hashlib.sha256(json.dumps(text).encode())
    for _, t in leaves.values(): digest.update(memory_of(t).cpu().numpy())
    return digest.hexdigest()


def is_resized(state: dict[str, Any]) -> bool:
    "Was the checkpoint `state` saved by another number of processes?"
    return len(state.get('ranks', [{}])) != world()


def state_of_rank(state: dict[str, Any], learn: Any, nodes: dict[str, Node]) -> dict[str, Any]:
    """What this process resumes from. On as many processes as saved it, its own state. On another number: that of the
    first, with other random numbers in each; sums and gradients of all processes are those of all again."""
    if world() == 1 and 'ranks' not in state: return state
    each = [_with(state, own) for own in state.get('ranks', [{}])]
    new = _with(each[0 if is_resized(state) else rank()], {})
    if is_resized(state) or is_sharded(learn.model):  # sharded gradients are averaged
        for path, n in nodes.items():
            if n.kind == 'module' and path in new['objects']: _average_grads(path, new, each)
    if not is_resized(state): return new
    for path, n in nodes.items():
        if isinstance(n.object, Mean) and path in new['states']: new['states'][path] = _share_of(path, each)
    if state['position']['batch']: _leave_out_metrics_in_parts(learn, new, nodes)
    if rank(): new['random'] = _random_states_for(rank(), new['random'])
    return new


def _with(state: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    "`state` with the parts `own`; None stands for one that is not there."
    new = state | {nm: dict(state[nm]) for nm in ('model', 'raw', *_BY_PATH) if nm in state}
    for nm, x in own.items():
        kind, _, path = nm.partition('/')
        if not path: new[kind] = x
        elif x is None: new[kind].pop(path, None)
        else: new[kind][path] = x
    return new


def _share_of(path: str, each: list[dict[str, Any]]) -> dict[str, Any]:
    "The sums of a mean over all processes, for the first one; nothing for the others."
    states = [s['states'][path] for s in each if path in s['states']] if is_first() else []
    return {nm: sum(s[nm] for s in states) for nm in ('total', 'weight')}


def _average_grads(path: str, new: dict[str, Any], each: list[dict[str, Any]]) -> None:
    "The mean of gradients that were accumulated and not averaged yet; DDP will average equal ones."
    averaged = {k: g for k, g in new['objects'][path]['grads'].items() if isinstance(g, Sharded)}
    found = [{k: unpack_dense(g) for k, g in s['objects'][path]['grads'].items() if k not in averaged} for s in each]
    grads = {k: pack_dense(sum(f[k] for f in found)/len(found)) for k in found[0]}
    new['objects'][path] = new['objects'][path] | dict(grads=grads | averaged)


def _leave_out_metrics_in_parts(learn: Any, new: dict[str, Any], nodes: dict[str, Node]) -> None:
    """Torchmetrics' objects have seen a part of each batch, and will be put together at the end of the epoch: what the
    first one has seen counts once. Other objects have seen whole batches."""
    metrics = {id(m): nm for cb in learn.cbs if isinstance(cb, MetricsCB) for nm, m in cb.metrics.items()
               if shares_itself(m)}
    paths = {n.path: metrics[id(n.object)] for n in nodes.values() if id(n.object) in metrics}
    if paths and len(new.get('ranks', ())) > 1: warnings.warn(
        f"the run resumes within an epoch on another number of processes: in that epoch, {', '.join(paths.values())} "
        f"will miss batches", stacklevel=5)
    for path in paths if rank() else ():
        for kind in ('objects', 'states', 'attributes'):
            new[kind] = {p: x for p, x in new[kind].items() if p != path and not p.startswith(f'{path}.')}


def _random_states_for(rank: int, states: dict[str, Any]) -> dict[str, Any]:
    "Random states of one process, drawn from those of the first."
    before = random_states()
    generator = torch.Generator()
    generator.set_state(states['torch'])
    set_seed(torch.randint(2**62, (rank + 1,), generator=generator)[rank].item(),
             torch.are_deterministic_algorithms_enabled())
    try: return random_states()
    finally: set_random_states(before)

"""How long a training step takes on several processes: the model that scale.py tests here and extrapolates with.

A step is compute (forward, backward, optimizer) and collectives. The model says which collectives a step has, how long
each takes, and how much of that time is hidden behind compute.
"""
import math
from dataclasses import dataclass

ROUNDS = {'all_gather': 1, 'reduce_scatter': 1, 'all_reduce': 2}  # times that the data goes round a ring
GLOO = ROUNDS | {'reduce_scatter': 2}                              # gloo reduces all of it and keeps a part


def sent(kind, nbytes, n, rounds=ROUNDS):
    "Bytes that each of `n` processes sends in a collective over `nbytes`, the size of the whole tensor."
    return rounds[kind]*(n - 1)/n*nbytes


@dataclass
class Work:
    """What one process computes in a step, in seconds, and its parameters. `ends` are embedding, last norm and head,
    which FSDP treats as one unit beside the blocks. `value` and `grad` are bytes per parameter when communicated."""
    ends: int
    blocks: list
    ends_seconds: float     # forward and backward
    block_seconds: float
    optimizer: float        # for all parameters; a process that holds a part of them takes that part of the time
    value: int = 4
    grad: int = 4

    @property
    def parameters(self): return self.ends + sum(self.blocks)
    @property
    def compute(self): return self.ends_seconds + self.block_seconds*len(self.blocks)


def buckets(work, cap):
    "Bytes of DDP's buckets in the order in which backward fills them: a first one of 1 MiB, then of `cap` bytes."
    left, sizes = work.parameters*work.grad, []
    while left > 0:
        sizes.append(min(left, cap if sizes else 2**20))
        left -= sizes[-1]
    return sizes


def traffic(way, work, shards, copies):
    "The collectives of a step as (kind, group, bytes): the group is 'shards' or 'copies'."
    if way == 'ddp': return [('all_reduce', 'copies', work.parameters*work.grad)]
    ops = []
    for size, gathers in [(work.ends, 1)] + [(b, 2) for b in work.blocks]:  # the ends stay whole until backward
        ops += [('all_gather', 'shards', size*work.value)]*gathers + [('reduce_scatter', 'shards', size*work.grad)]
        if copies > 1: ops.append(('all_reduce', 'copies', size*work.grad/shards))
    return ops


def bytes_sent(way, work, shards, copies, rounds=ROUNDS):
    "Bytes that each process sends in a step."
    groups = dict(shards=shards, copies=copies)
    return sum(sent(kind, nbytes, groups[group], rounds) for kind, group, nbytes in traffic(way, work, shards, copies))


def overlapped(busy):
    """Time of compute and communication side by side: neither is quicker than alone, and communication takes the share
    `busy` of its own time away from compute (cores that copy and add, or multiprocessors of a GPU)."""
    return lambda compute, comm: max(comm, compute + busy*comm)


def one_after_the_other(compute, comm): return compute + comm


def ddp(work, reduce, together, cap=25*2**20):
    """Seconds of a step under DDP; `reduce(bytes)` is the time of an all-reduce. Buckets are reduced while backward
    goes on; the last one is full only when backward has ended."""
    backward, sizes = work.compute*2/3, buckets(work, cap)
    times = [reduce(s) for s in sizes]
    first = backward*sizes[0]/sum(sizes) if len(sizes) > 1 else backward
    return work.compute - backward + first + together(backward - first, sum(times[:-1])) + times[-1] + work.optimizer


def fsdp(work, gather, reduce, together, shards):
    """Seconds of a step under FSDP or HSDP. `gather(bytes)` and `reduce(bytes)` are the times of an all-gather of
    weights and of a reduce-scatter of gradients, with HSDP's all-reduce. Each unit's weights are gathered while the
    unit before it computes, in forward and again in backward; its gradients are reduced in the next one's backward."""
    weights, grads = [gather(b*work.value) for b in work.blocks], [reduce(b*work.grad) for b in work.blocks]
    total = gather(work.ends*work.value) + weights[0] + together(work.ends_seconds, weights[-1])
    for following in [*weights[1:], 0]: total += together(work.block_seconds/3, following)
    for before, after in zip([0, *weights[:-1]], [*grads[1:], 0], strict=True):
        total += together(work.block_seconds*2/3, before + after)
    return total + grads[0] + reduce(work.ends*work.grad) + work.optimizer/shards


@dataclass
class Cluster:
    """Nodes of `per_node` GPUs. Bandwidths are bytes per second in one direction as reached, not as advertised: of a
    GPU to its neighbor in the node (`link`), and of one of the node's network cards (`card`). Latencies, in seconds,
    are of a message within a node (`near`) and between nodes (`far`), and to start a collective. Compute is `peak`
    FLOP/s times utilisation; `busy` is the share of a GPU that communication takes."""
    peak: float            = 989e12     # H100 SXM, dense bfloat16
    utilisation: float     = 0.40
    memory: float          = 80e9
    memory_bandwidth: float = 3.35e12*0.8
    per_node: int          = 8
    link: float            = 450e9*0.8  # NVLink 4
    cards: int             = 8
    card: float            = 50e9*0.8   # 400 Gbit/s
    near: float            = 2e-6
    far: float             = 5e-6
    start: float           = 10e-6
    busy: float            = 16/132     # multiprocessors that NCCL takes

    def cost(self, kind, nbytes, members, nodes):
        """Seconds of a collective of a group with `members` GPUs in each of `nodes` nodes: a ring, or for an all-reduce
        a tree if that is quicker. A ring enters and leaves a node once, and there is a ring for each network card."""
        n = members*nodes
        if n == 1: return 0.
        rate = self.link if nodes == 1 else min(self.link if members > 1 else math.inf,
                                                self.card*self.cards*members/self.per_node)
        far = min(nodes, n - 1) if nodes > 1 else 0
        ring = ROUNDS[kind]*((n - 1 - far)*self.near + far*self.far)
        tree = 2*(math.log2(members)*self.near + math.log2(nodes)*self.far)
        return self.start + (min(ring, tree) if kind == 'all_reduce' else ring) + sent(kind, nbytes, n)/rate

"""What training on several processes costs, measured here for 1, 2 and 4, and what a model says of 8 to 512 GPUs.

    python bench/scale.py [--rounds N]

Here: gloo, one thread a process, a decoder of 3.9 million parameters, AdamW. Each whole step stands beside what
scale_model.py makes of parts measured without it: compute alone, while all processes compute, and single collectives.
Bytes are those that the kernel counts, beside those that the model expects. For the GPUs the same model takes a
cluster's stated speeds, and models of 30 million and 7 billion parameters of which only the shapes are made.
"""
import argparse

import scale_parts
import torchrun
from decoder import LLAMA7, M30, SMALL, flops, parameters
from machine import record
from scale_model import GLOO, Cluster, Work, bytes_sent, ddp, fsdp, one_after_the_other, overlapped

MEASURED = f'''Compute is forward and backward alone, communication a step's collectives alone and in turn. Hidden is
the share of DDP's communication that a step does not show: a step minus one under `no_sync`, over communication. Here
there is little to hide behind, as the cores that compute also copy and add what gloo sends, and FSDP on CPUs waits for
each collective. gloo's reduce-scatter sends as much as an all-reduce. DDP's buckets are {scale_parts.CAP//2**20} MiB.
HSDP has two copies of two shards. Agreement is an all-reduce of four float64, once all processes are there.'''

ASSUMED = '''Assumed of the GPUs, each an argument of `Cluster`: nodes of eight H100 (989 TFLOP/s in bfloat16, of which
40 %; 3.35 TB/s of memory, 80 GB), NVLink with 450 GB/s in each direction and cards as named, of which 80 %; 2 µs a
message within a node, 5 µs between nodes, 10 µs to start a collective; rings, for an all-reduce a tree if quicker;
communication takes 16 of 132 multiprocessors. DDP sends float32 gradients in buckets of 25 MiB; FSDP gathers bfloat16
weights and reduces float32 gradients; HSDP shards within a node. Each GPU has 16 sequences of 1,024 tokens (30M) or one
of 4,096 (7B) at each step. Held are float32 weights, gradients and AdamW's averages, and the bfloat16 weights in use,
without activations. Efficiency is compute over step; the optimizer is in the step.'''

GROUPS = {'ddp': lambda n: (1, n), 'fsdp': lambda n: (n, 1), 'hsdp': lambda n: (2, 2)}  # shards, copies


def line(points):
    "The straight line through (bytes, seconds), as a function, with the least error relative to the seconds."
    w = [1/y**2 for _, y in points]
    mx, my = (sum(a*b for a, b in zip(w, column, strict=True))/sum(w) for column in zip(*points, strict=True))
    weighted = list(zip(w, points, strict=True))
    slope = sum(a*(x - mx)*(y - my) for a, (x, y) in weighted)/sum(a*(x - mx)**2 for a, (x, _) in weighted)
    return lambda x: max(0., my + slope*(x - mx))


def cost(parts, way, kind, what='seconds'):
    "Seconds of a collective of some bytes, from those measured; the reductions' own small backward is taken off."
    points = []
    for nm, row in parts.items():
        if nm.startswith(f'{way} {kind} '):
            size = nm.split()[-1]
            points.append((int(size), row[what] - parts.get(f'plain {kind} {size}', {what: 0})[what]))
    return line(points)


def work_here(parts):
    ends, blocks = parameters(SMALL)
    head, block = flops(SMALL)
    each = parts['compute']['seconds']/(head + block*len(blocks))
    return Work(ends, blocks, head*each, block*each, parts['optimizer']['seconds'])


def busy_here(parts):
    """The share of its own time that an all-reduce takes from compute: its processor time, slowed as compute is when
    more processes than cores want to compute."""
    alone, compute = parts['ddp communication'], parts['compute']
    return min(1., alone['cpu']*compute['seconds']/compute['cpu']/alone['seconds'])


def expected(parts, way, n):
    "Seconds of a step as the model has it."
    work, reduce = work_here(parts), cost(parts, way, 'reduce')
    if way == 'ddp': return ddp(work, reduce, overlapped(busy_here(parts)), scale_parts.CAP)
    return fsdp(work, cost(parts, way, 'gather'), reduce, one_after_the_other, GROUPS[way](n)[0])


def steps(measured):
    "Measured steps and bytes beside the model's."
    yield ('| processes | way | step, ms | model, ms | error | MB sent | model, MB | compute, ms | communication, ms | '
           'hidden |')
    yield '|--:|--|--:|--:|--:|--:|--:|--:|--:|--:|'
    for n, parts in measured.items():
        for way in [w for w in GROUPS if f'{w} step' in parts]:
            row, model, work = parts[f'{way} step'], expected(parts, way, n), work_here(parts)
            mb, told = row['bytes']/1e6, bytes_sent(way, work, *GROUPS[way](n), GLOO)/1e6
            yield (f'| {n} | {way} | {row["seconds"]*1e3:.1f} | {model*1e3:.1f} | {model/row["seconds"] - 1:+.0%} | '
                   f'{mb:.2f} | {told:.2f} | {work.compute*1e3:.1f} | {communication(parts, way)*1e3:.1f} | '
                   f'{hidden(parts, way, n)} |')


def communication(parts, way):
    "Seconds of a step's collectives, one after the other."
    if way == 'ddp': return parts['ddp communication']['seconds']
    (ends, blocks), gather, reduce = parameters(SMALL), cost(parts, way, 'gather'), cost(parts, way, 'reduce')
    return gather(ends*4) + reduce(ends*4) + sum(2*gather(b*4) + reduce(b*4) for b in blocks)


def hidden(parts, way, n):
    "The share of communication that a step does not show, for DDP: a step without it is DDP's own under no_sync."
    if way != 'ddp' or n == 1: return ''
    shown = parts['ddp step']['seconds'] - parts['no_sync']['seconds']
    return f'{1 - shown/parts["ddp communication"]["seconds"]:.0%}'



def agreement(measured):
    yield '| processes | agreement, ms | of a 20 ms step |'
    yield '|--:|--:|--:|'
    for n, parts in measured.items():
        yield f'| {n} | {parts["agree"]["seconds"]*1e3:.3f} | {parts["agree"]["seconds"]/0.02:.2%} |'


CLUSTERS = {'eight 400 Gbit/s cards a node': Cluster(), 'one 100 Gbit/s card a node': Cluster(cards=1, card=12.5e9*0.8)}
MODELS = {'30M': M30, '7B': LLAMA7}


def work_on(cluster, shape):
    "Compute in bfloat16, gradients and AdamW in float32: it reads 16 bytes a parameter and writes 14."
    (ends, blocks), (head, block) = parameters(shape), flops(shape)
    rate = cluster.peak*cluster.utilisation
    optimizer = 30*(ends + sum(blocks))/cluster.memory_bandwidth
    return Work(ends, blocks, head/rate, block/rate, optimizer, value=2)


def step_on(cluster, work, way, n):
    "Seconds of a step on `n` GPUs, and the bytes that each sends: HSDP shards within a node."
    inside, nodes = min(n, cluster.per_node), max(1, n//cluster.per_node)
    together = overlapped(cluster.busy)
    def collective(kind, *group): return lambda nbytes: cluster.cost(kind, nbytes, *group)
    if way == 'ddp':
        return ddp(work, collective('all_reduce', inside, nodes), together), bytes_sent(way, work, 1, n)
    if way == 'fsdp':
        gather, scatter = collective('all_gather', inside, nodes), collective('reduce_scatter', inside, nodes)
        return fsdp(work, gather, scatter, together, n), bytes_sent(way, work, n, 1)
    scatter, copy = collective('reduce_scatter', inside, 1), collective('all_reduce', 1, nodes)
    def reduce(nbytes): return scatter(nbytes) + copy(nbytes/inside)
    return (fsdp(work, collective('all_gather', inside, 1), reduce, together, inside),
            bytes_sent(way, work, inside, nodes))


def gigabytes(work, way, n, per_node):
    "Of a GPU: weights, gradients, two averages, and what is gathered of bfloat16 weights at a time; no activations."
    if way == 'ddp': return (16 + 2)*work.parameters/1e9
    shards = n if way == 'fsdp' else min(n, per_node)
    return (16*work.parameters/shards + 2*(work.ends + 2*max(work.blocks)))/1e9


def extrapolated():
    yield '| cluster | model | GPUs | way | step, ms | compute, ms | efficiency | GB sent | GB held |'
    yield '|--|--|--:|--|--:|--:|--:|--:|--:|'
    for called, cluster in CLUSTERS.items():
        for nm, shape in MODELS.items():
            work = work_on(cluster, shape)
            for n in (8, 64, 512):
                for way in GROUPS:
                    seconds, sent = step_on(cluster, work, way, n)
                    held = gigabytes(work, way, n, cluster.per_node)
                    fits = '' if held*1e9 < cluster.memory else ', too much'
                    yield (f'| {called} | {nm} | {n} | {way} | {seconds*1e3:.1f} | {work.compute*1e3:.1f} | '
                           f'{work.compute/seconds:.0%} | {sent/1e9:.2f} | {held:.1f}{fits} |')


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=30)
    args = ap.parse_args()
    measured = {n: torchrun.on(n, scale_parts.__file__, '--rounds', str(args.rounds)) for n in (1, 2, 4)}
    text = [*steps(measured), '', MEASURED, '', *agreement(measured), '', ASSUMED, '', *extrapolated()]
    record('scale', '\n'.join(text), runs=f'{args.rounds} rounds, each with everything once, medians of the slowest '
           'process; one thread a process')


if __name__ == '__main__': main()

"""What a step of an optimizer costs, against torch's own: ratios of times, and GB/s beside a copy's.

    python bench/optim_step.py [--quick] [--only NAME ...] [--threads N ...]

Each row runs in its own process, once for each number of threads. All contenders are in memory together and step in
turn, in rotating order. A time is the median over rounds, a ratio the ratio of medians. The models: a convolutional net
of 14 tensors and 30k parameters; a transformer of 96 tensors and 25M; the same with an embedding, 97 tensors and 29M;
and 4 square matrices of 67M. Gradients stay the same. The bytes of a step are those it needs at least: parameter,
gradient and states read, parameter and states written. A copy of 256 MiB, counted as read once and written once, is
timed in the same rounds. If the processor also reads the memory that a copy overwrites, a step in place shows more GB/s
than the copy.

On a machine with a GPU of NVIDIA, AMD or Intel, `--only gpu --threads 1` compares the kernels by Triton with torch's
fused and foreach AdamW, and with themselves while hyperparameters change at every step."""
import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from contextlib import suppress
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import miniai.optim as optim
from machine import record
from miniai.kernels.fused import FusedPass
from miniai.kernels.triton import DEVICES

ADAMW_BYTES, ONE_STATE_BYTES = 7*4, 5*4  # an element: p, g and states read, p and states written


def conv_net():
    widths = 1, 8, 16, 32, 64
    hidden = [s for a, b in pairwise(widths) for s in ((b, a, 3, 3), (b,), (b,))]
    return [*hidden, (10, 64, 3, 3), (10,)]


def transformer(d=512, layers=8):
    return [(3*d, d), (3*d,), (d, d), (d,), (4*d, d), (4*d,), (d, 4*d), (d,), (d,), (d,), (d,), (d,)]*layers


SHAPES = {'14 of 30k': conv_net(), '96 of 25M': transformer(), '97 of 29M': [(8000, 512), *transformer()],
          '4 of 67M': [(4096, 4096)]*4, '465 of 25M': [(400, 400), (400,), (400,)]*155}
FOUR = list(SHAPES)[:4]
LARGE = ['96 of 25M', '4 of 67M']


def params_of(size, device='cpu'):
    torch.manual_seed(0)
    ps = [nn.Parameter(torch.randn(s, device=device)*0.02) for s in SHAPES[size]]
    for p in ps: p.grad = torch.randn_like(p)*0.01
    return ps


def soft_lion(p, g, avg, *, lr, beta1=0.9, beta2=0.99, width=1e-3):
    "A rule that miniai does not have: Lion with a sign that is smooth near zero."
    m = beta1*avg + (1-beta1)*g
    return p - lr*m / (abs(m) + width), beta2*avg + (1-beta2)*g


def torch_adamw(ps): return torch.optim.AdamW(ps, 1e-4, fused=True)
def torch_momentum(ps): return torch.optim.SGD(ps, 1e-4, momentum=0.9, dampening=0.1, fused=True)


def stepper(opt_func, size, **kwargs): return opt_func(params_of(size), **kwargs).step


class Copy:
    "A copy of 256 MiB: the bandwidth of this memory when nothing is computed."
    bytes = 2 * 256*2**20
    def __init__(self): self.source, self.target = torch.ones(64*2**20), torch.zeros(64*2**20)
    def __call__(self): self.target.copy_(self.source)


def interleaved(contenders, rounds, inner=1, before=None):
    "Median seconds of a call of each contender; `before` runs before each, untimed."
    times, names = {nm: [] for nm in contenders}, list(contenders)
    for r in range(rounds + 2):
        for nm in names[r % len(names):] + names[:r % len(names)]:
            if before: before()
            started = time.perf_counter()
            for _ in range(inner): contenders[nm]()
            if r >= 2: times[nm].append((time.perf_counter() - started) / inner)
    return {nm: statistics.median(ts) for nm, ts in times.items()}


def compare(args, size, ours, theirs, bytes_each, limit, label, before=None):
    "A row of the table: two contenders and, where it says anything, a copy."
    small = size == '14 of 30k'
    rounds = {'14 of 30k': 1000 if before else 300, '4 of 67M': 40}.get(size, 60)
    contenders = dict(ours=ours, theirs=theirs) | ({} if small else dict(copy=Copy()))
    inner = 20 if small and not before else 1
    took = interleaved(contenders, max(5, rounds // (10 if args.quick else 1)), inner, before)
    elements = sum(torch.Size(s).numel() for s in SHAPES[size])
    rates = {} if small else dict(rate=elements*bytes_each/took['ours']/1e9, copy=Copy.bytes/took['copy']/1e9)
    return dict(what=label, size=size, value=took['ours']/took['theirs'], limit=limit, time=took['ours'],
                other=took['theirs']) | rates


def against_torch(args, ours, theirs, bytes_each, label, before=None):
    for size in FOUR:
        limit = 0.45 if size == FOUR[0] else 0.95 if args.threads[0] > 1 else 1.
        yield compare(args, size, stepper(ours, size, lr=1e-4), stepper(theirs, size), bytes_each, limit, label, before)


def adamw(args): yield from against_torch(args, optim.AdamW, torch_adamw, ADAMW_BYTES, 'AdamW / torch fused')


def momentum(args):
    yield from against_torch(args, optim.Momentum, torch_momentum, ONE_STATE_BYTES, 'Momentum / torch fused')


def matmul(args):
    "The same with torch's threads at work, and other memory in the caches, before each step."
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    rows = dict(AdamW=(optim.AdamW, torch_adamw, ADAMW_BYTES),
                Momentum=(optim.Momentum, torch_momentum, ONE_STATE_BYTES))
    for nm, (ours, theirs, n) in rows.items():
        yield from against_torch(args, ours, theirs, n, f'{nm} / torch fused, after a matmul', partial(torch.mm, a, b))


def rules(args):
    "Other rules, per byte moved, over AdamW."
    classes = {nm: getattr(optim, nm) for nm in ('Adam', 'NAdamW', 'Lion', 'RMSProp')}
    classes["this file's own rule"] = optim.optimizer(soft_lion)
    for nm, cls in classes.items():
        n = 4*(1 + 2*(1 + len(cls.spec.states)))
        for size in LARGE:
            contenders = [stepper(c, size, lr=1e-4) for c in (cls, optim.AdamW)]
            row = compare(args, size, *contenders, n, 1.10, f'{nm} / AdamW, per byte')
            del contenders  # before the next pair is made
            yield row | dict(value=row['value']*ADAMW_BYTES/n)


def clip_ema(args):
    "Clipping by norm, AdamW and a weight average: one optimizer against three calls of torch."
    for size in FOUR:
        ps = params_of(size)
        model = nn.ParameterList(ps)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        opt = torch_adamw(ps)
        def theirs(ps=ps, model=model, average=average, opt=opt):
            nn.utils.clip_grad_norm_(ps, 1.)
            opt.step()
            average.update_parameters(model)
        ours = stepper(optim.AdamW, size, lr=1e-4, clip_norm=1., ema=0.999)
        yield compare(args, size, ours, theirs, ADAMW_BYTES + 3*4, 0.75, 'clip + AdamW + average / three calls')
        del ps, model, average, opt, theirs, ours


def bf16(args):
    for size in LARGE:
        half, full = (stepper(optim.AdamW, size, lr=1e-4, state=s) for s in ('bf16', None))
        yield compare(args, size, half, full, 3*4 + 4*2, 0.80, 'state in bfloat16 / in float32')


def int8(args):
    for size in LARGE:
        small, full = (stepper(optim.AdamW, size, lr=1e-4, state=s) for s in ('int8', None))
        yield compare(args, size, small, full, 3*4 + 4*260/256, 0.75, 'state in 8 bits / in float32')


def groups(args):
    size = '465 of 25M'
    many = [dict(params=[p], lr=1e-4*(1 + i/465)) for i, p in enumerate(params_of(size))]
    yield compare(args, size, optim.AdamW(many).step, stepper(optim.AdamW, size), ADAMW_BYTES, 1.2,
                  '465 groups / one group')
    del many
    yield compare(args, size, stepper(optim.AdamW, size), stepper(torch_adamw, size), ADAMW_BYTES, None,
                  'one group / torch fused')


def resident(key):
    "VmRSS or VmHWM of this process, in bytes. Linux only."
    line = next(ln for ln in Path('/proc/self/status').read_text().splitlines() if ln.startswith(key))
    return int(line.split()[1])*1024


def memory(args):
    """The highest memory during a step, above the memory before it. Blocks of 64 KiB and more are returned to the
    system when freed, so that what a step allocates and frees is seen each time."""
    with suppress(AttributeError, OSError): ctypes.CDLL(None).mallopt(-3, 1 << 16)  # glibc's M_MMAP_THRESHOLD
    plans = {'AdamW': {}, 'AdamW, clip_norm and ema': dict(clip_norm=1., ema=0.999),
             "AdamW, state='bf16'": dict(state='bf16')}
    for nm, options in plans.items():
        step = stepper(optim.AdamW, '96 of 25M', lr=1e-4, **options)
        for _ in range(3): step()
        tracemalloc.start()
        step()
        tracemalloc.reset_peak()
        before, start = resident('VmRSS'), tracemalloc.get_traced_memory()[0]
        with suppress(OSError): Path('/proc/self/clear_refs').write_text('5')  # the peak, from here on
        for _ in range(5): step()
        extra, traced = resident('VmHWM') - before, tracemalloc.get_traced_memory()[1] - start
        tracemalloc.stop()
        yield dict(what=f'{nm}: MiB during a step (Python\'s part: {traced/2**20:.2f})', size='96 of 25M',
                   value=extra/2**20, limit=1.)
        del step
        gc.collect()


def fresh_step(size, options):
    "In a new process: how many seconds longer the first step takes than the fourth, including making its state."
    opt = optim.AdamW(params_of(size), lr=1e-4, **json.loads(options))
    times = []
    for _ in range(4):
        started = time.perf_counter()
        opt.step()
        times.append(time.perf_counter() - started)
    return times[0] - times[-1]


def first_step(args):
    "The delay of a first step: importing Numba, and compiling, or loading from the cache."
    for size, options in (('14 of 30k', {}), ('96 of 25M', {}), ('96 of 25M', dict(clip_norm=1., ema=0.999))):
        late = dict(empty=[], warm=[])
        for _ in range(2 if args.quick else 5):
            with tempfile.TemporaryDirectory() as folder:
                once = partial(child, args.threads[0], 'fresh_step', size, json.dumps(options), MINIAI_CACHE=folder)
                for nm in late: late[nm].append(float(once()))
        plus = ', clip_norm and ema' if options else ''
        for nm, limit in dict(empty=3., warm=0.6).items():
            yield dict(what=f'first step, {nm} cache: seconds late{plus}', size=size, limit=limit,
                       value=statistics.median(late[nm]))


def moved_step(size):
    "In a new process: kernels compiled during a OneCycleLR that changes every other hyperparameter as well."
    from miniai.kernels.numba import compiled
    opt = optim.AdamW(params_of(size), lr=1e-4)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=50)
    for i in range(50):
        for g in opt.param_groups: g.update(betas=(g['betas'][0], 0.9 + i/1000), eps=1e-8*(1+i), weight_decay=i/1000)
        opt.step()
        sched.step()
    return sum(compiled.values())


def onecycle(args):
    for size in FOUR[:2]:
        with tempfile.TemporaryDirectory() as folder:
            n = float(child(args.threads[0], 'moved_step', size, MINIAI_CACHE=folder))
        yield dict(what='kernels compiled by a 1cycle over all hyperparameters', size=size, value=n, limit=1.)


def batched(args):
    "Without kernels: AdamW in batches by torch, against torch's foreach."
    FusedPass.unsupported = lambda x: 'this benchmark wants it so'
    theirs = partial(torch.optim.AdamW, lr=1e-4, foreach=True)
    for size in FOUR[:2]:
        yield compare(args, size, stepper(optim.AdamW, size, lr=1e-4), stepper(theirs, size), ADAMW_BYTES, None,
                      'AdamW in batches / torch foreach')


def gpu(args):
    "On a GPU: one kernel by Triton against torch's fused and foreach. A time is a 20th of that of 20 steps and a wait."
    device = torch.accelerator.current_accelerator()
    if device is None or device.type not in DEVICES: return
    def waited(opt, changes=()):
        def steps():
            for i in range(20):
                for g in changes: g.update(lr=1e-4*(1 + i), weight_decay=i/1000)
                opt.step()
            torch.accelerator.synchronize()
        return steps
    def rival(size, how, **options):
        return torch.optim.AdamW(params_of(size, device), 1e-4, **{how: True}, **options)
    options = dict(plain={}, clip_ema=dict(clip_norm=1., ema=0.999), bf16=dict(state='bf16'))
    for size, (label, given) in product(FOUR, options.items()):
        ours = optim.AdamW(params_of(size, device), lr=1e-4, **given)
        contenders = dict(ours=waited(ours), moving=waited(ours, ours.param_groups),
                          **{how: waited(rival(size, how)) for how in ('fused', 'foreach')})
        took = {nm: t/20 for nm, t in interleaved(contenders, 5 if args.quick else 50).items()}
        for nm in list(took)[1:]:
            yield dict(what=f'AdamW {label} by Triton / {nm}', size=size, value=took['ours']/took[nm], limit=None,
                       time=took['ours'], other=took[nm])
        del ours, contenders


ROWS = dict(adamw=adamw, momentum=momentum, matmul=matmul, rules=rules, clip_ema=clip_ema, bf16=bf16, int8=int8,
            groups=groups, memory=memory, first_step=first_step, onecycle=onecycle, batched=batched, gpu=gpu)
CHILDREN = dict(fresh_step=fresh_step, moved_step=moved_step)


def child(threads, *words, **env):
    "Standard output of this file, run in a new process with that many threads."
    env = os.environ | dict(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads)) | env
    out = subprocess.run([sys.executable, __file__, '--threads', str(threads), '--child', *words], env=env,
                         stdout=subprocess.PIPE, text=True, check=True)
    return out.stdout


def shown(row, threads):
    def number(key, pattern, scale=1): return pattern.format(row[key]*scale) if row.get(key) is not None else ''
    over = row['limit'] is not None and row['value'] > row['limit']
    cells = [row['what'], row['size'], str(threads), number('value', '**{:.2f}**' if over else '{:.2f}'),
             number('limit', '{:.2f}'), number('time', '{:.3f}', 1e3), number('other', '{:.3f}', 1e3),
             number('rate', '{:.1f}'), number('copy', '{:.1f}')]
    return f"| {' | '.join(cells)} |"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--quick', action='store_true', help='a tenth of the rounds: does it run?')
    ap.add_argument('--only', nargs='+', choices=ROWS, default=list(ROWS), metavar='NAME', help=', '.join(ROWS))
    ap.add_argument('--threads', nargs='+', type=int, default=[1, 2])
    ap.add_argument('--child', nargs='+', help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.child: return run_child(args)
    table = ['| what | tensors | threads | ratio | at most | ms | ms, the other | GB/s | GB/s of a copy |',
             '|--|--|--:|--:|--:|--:|--:|--:|--:|']
    for name, threads in product(args.only, args.threads):
        for row in json.loads(child(threads, name, *(['quick'] if args.quick else []))):
            table.append(shown(row, threads))
            print(table[-1], flush=True)
    runs = 'A tenth of the rounds: no measurement' if args.quick else \
        '40 to 60 rounds, on the smallest 300 of 20 steps, or 1000 after a matmul'
    record('optim_step', '\n'.join(table) + '\n\nBold: above its limit.', f'{runs}; medians', ['numba'])


def run_child(args):
    name, *words = args.child
    torch.set_num_threads(args.threads[0])
    args.quick = words == ['quick']
    print(CHILDREN[name](*words) if name in CHILDREN else json.dumps(list(ROWS[name](args))))


if __name__ == '__main__': main()

"Programs whose callbacks fill collections."
import random
from collections import Counter, OrderedDict, defaultdict, deque
from itertools import pairwise

import torch

from miniai import Callback
from programs import program
from programs.basics import callback, learner


class ReplayCB(Callback):
    "Adds a batch from a replay buffer to each batch."
    def __init__(self, size=20):
        self.buffer, self.rng = deque(maxlen=size), random.Random(7)
    def before_batch(self, learn):
        if not learn.training: return
        x, y = learn.batch
        old = [self.rng.choice(self.buffer) for _ in range(min(4, len(self.buffer)))]
        self.buffer.extend(zip(x, y, strict=True))
        if not old: return
        old_x, old_y = (torch.stack(t) for t in zip(*old, strict=True))
        learn.batch = torch.cat([x, old_x]), torch.cat([y, old_y])


@program('ReplayCB|buffer|rng', lambda learn: dict(buffer=callback(learn, ReplayCB).buffer))
def replay_buffer():
    "a replay buffer: a deque with maxlen, and random.Random"
    return learner(ReplayCB())


class BalanceCB(Callback):
    "Weighs classes by how often they were seen, in a Counter."
    def __init__(self): self.seen = Counter()
    def after_loss(self, learn):
        if not learn.training: return
        self.seen.update(learn.batch[1].tolist())
        w = torch.tensor([1/self.seen[c] for c in learn.batch[1].tolist()])
        losses = torch.nn.functional.cross_entropy(learn.preds, learn.batch[1], reduction='none')
        learn.loss = (losses*w).sum()/w.sum()


@program('BalanceCB|seen', lambda learn: dict(seen=callback(learn, BalanceCB).seen))
def counts():
    "a Counter"
    return learner(BalanceCB())


class PerClassCB(Callback):
    "Recent losses of each class, in a defaultdict of lists."
    def __init__(self): self.losses = defaultdict(list)
    def after_loss(self, learn):
        if not learn.training: return
        c = learn.batch[1].mode().values.item()
        self.losses[c].append(learn.loss.item())
        learn.loss = learn.loss*(1 + len(self.losses[c])/10)


@program('PerClassCB|losses', lambda learn: dict(losses=callback(learn, PerClassCB).losses))
def default_dict():
    "a defaultdict of lists"
    return learner(PerClassCB())


class SeenSetCB(Callback):
    "Down-weights batches whose rounded sum was seen before, in a set."
    def __init__(self): self.known = set()
    def after_loss(self, learn):
        if not learn.training: return
        key = round(learn.batch[0].sum().item()) % 5
        if key in self.known: learn.loss = learn.loss*0.3
        self.known.add(key)


@program('SeenSetCB|known', lambda learn: dict(known=callback(learn, SeenSetCB).known))
def a_set():
    "a set"
    return learner(SeenSetCB())


class LRUCacheCB(Callback):
    "A cache in an OrderedDict: the most recent batch of each majority class is blended in."
    def __init__(self): self.cache = OrderedDict()
    def before_batch(self, learn):
        if not learn.training: return
        x, y = learn.batch
        key = f'class {y.mode().values.item()}'
        mixed = 0.8*x + 0.2*next(iter(self.cache.values())) if self.cache else x
        self.cache[key] = x
        self.cache.move_to_end(key)
        if len(self.cache) > 2: self.cache.popitem(last=False)
        learn.batch = mixed, y


@program('LRUCacheCB|cache', lambda learn: dict(cache=callback(learn, LRUCacheCB).cache))
def ordered_dict():
    "an OrderedDict whose order matters"
    return learner(LRUCacheCB())


class PairsCB(Callback):
    "How often two classes followed one another: a dict with tuples as keys."
    def __init__(self): self.pairs = {}
    def after_loss(self, learn):
        if not learn.training: return
        y = learn.batch[1].tolist()
        for pair in pairwise(y): self.pairs[pair] = self.pairs.get(pair, 0) + 1
        learn.loss = learn.loss*(1 + self.pairs.get((0, 0), 0)/10)


@program('PairsCB|pairs', lambda learn: dict(pairs=callback(learn, PairsCB).pairs))
def tuple_keys():
    "a dict with tuples as keys"
    return learner(PairsCB())


class SnapshotsCB(Callback):
    "Nested lists of tensors: the weights after some steps; the last two pull the weights back."
    def __init__(self): self.kept = []
    @torch.no_grad()
    def after_step(self, learn):
        self.kept.append([[p.clone() for p in m.parameters()] for m in learn.model])
        if len(self.kept) < 3: return
        for m, old in zip(learn.model, self.kept[-3], strict=True):
            for p, q in zip(m.parameters(), old, strict=True): p.lerp_(q, 0.2)


@program('SnapshotsCB|kept', lambda learn: dict(kept=callback(learn, SnapshotsCB).kept))
def nested_tensors():
    "nested lists of tensors"
    return learner(SnapshotsCB())


class MovingLossCB(Callback):
    "Two names for one list: what is appended to `recent` is in `all[0]` as well."
    def __init__(self):
        self.recent = []
        self.all = [self.recent]
    def after_loss(self, learn):
        if not learn.training: return
        self.recent.append(learn.loss.item())
        learn.loss = learn.loss*(1 + len(self.all[0])/10)


@program('MovingLossCB|recent|all',
         lambda learn: dict(recent=callback(learn, MovingLossCB).recent, all=callback(learn, MovingLossCB).all))
def aliased_list():
    "one list under two names"
    return learner(MovingLossCB())


class History:
    "A small record class of the user's, with lists inside."
    def __init__(self): self.values, self.best = [], None
    def add(self, v):
        self.values.append(v)
        if self.best is None or v < self.best: self.best = v


class TrackCB(Callback):
    "Objects of its own class in a dict."
    def __init__(self): self.tracks = {'loss': History(), 'norm': History()}
    def after_loss(self, learn):
        if not learn.training: return
        self.tracks['loss'].add(learn.loss.item())
        if learn.loss.item() > self.tracks['loss'].best: learn.loss = learn.loss*1.3


@program('TrackCB|tracks|History', lambda learn: {k: vars(v) for k, v in callback(learn, TrackCB).tracks.items()})
def own_objects():
    "a dict of objects of the user's own class"
    return learner(TrackCB())


class BytesCB(Callback):
    "A string and bytes that grow."
    def __init__(self): self.text, self.raw, self.flags = '', b'', bytearray(4)
    def after_loss(self, learn):
        if not learn.training: return
        self.text += 'x'
        self.raw += bytes([len(self.text)])
        self.flags[len(self.text) % 4] += 1
        learn.loss = learn.loss*(1 + self.raw[-1]/20 + self.flags[0]/10)


@program('BytesCB|text|raw|flags',
         lambda learn: {k: getattr(callback(learn, BytesCB), k) for k in ('text', 'raw', 'flags')})
def text_and_bytes():
    "a string, bytes and a bytearray"
    return learner(BytesCB())

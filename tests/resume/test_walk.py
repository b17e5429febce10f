"One walk finds everything that a run depends on, once, by readable paths, and enters nothing that is a library's."
import logging
import random
import sys
import threading
import weakref
from collections import deque, namedtuple
from dataclasses import dataclass
from functools import cached_property, partial
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Subset, TensorDataset

from miniai import Callback, DataLoaders, RecorderCB, SeededSamples
from miniai.augment import RandCrop
from miniai.learner import Learner, TrainLearner
from miniai.optim import AdamW
from miniai.resume.walk import _OF_THE_LOOP, Node, callbacks_of, is_generator, walk
from resuming import run
from small import batches, learner, mlp

G, CROP, HERE = random.Random(1), RandCrop(1, generator=random.Random(2)), __name__
NAMED, TABLE = random.Random(3), dict(a=[random.Random(4)])
Pair = namedtuple('Pair', 'a b')


class Held:
    def __init__(self, rng): self.rng = rng
    def moved(self, b): return b
    def __call__(self, b): return b


class Slotted:
    __slots__ = 'rng', 'unset'
    def __init__(self, rng): self.rng = rng


class OneSlot:
    __slots__ = 'rng'
    def __init__(self, rng): self.rng = rng


class Both(Slotted):
    def __init__(self, rng): self.slots, self.also = rng, rng


@dataclass(frozen=True)
class Frozen: rng: random.Random


def closing(rng): return lambda b: rng.random()
def nesting(rng): return lambda b: (lambda c: rng.random())


def with_defaults(rng):
    def f(b, *, rng=rng): return rng.random()
    return f


def with_attribute(rng):
    def f(b): return b
    f.rng = rng
    return f


@torch.no_grad()
def decorated(b): return NAMED.random()


def holding(x):
    learn = learner()
    learn.held = x
    return learn


def places(learn, x): return [path for path, n in walk(learn).items() if n.object is x]


# What is found

@pytest.mark.parametrize(('hold', 'path'), [
    (lambda g: g, ''), (Held, '.rng'), (Slotted, '.rng'), (OneSlot, '.rng'), (Both, '.slots'), (Frozen, '.rng'),
    (lambda g: Held(Held(g)), '.rng.rng'), (lambda g: SimpleNamespace(rng=g), '.rng'), (lambda g: [g], '[0]'),
    (lambda g: dict(a=[(1, g)]), "['a'][0][1]"), (lambda g: deque([g]), '[0]'), (lambda g: {g}, '[0]'),
    (lambda g: {3: g}, '[3]'), (lambda g: {'a b': g}, "['a b']"), (lambda g: Pair(1, [g]), '[1][0]'),
    (lambda g: partial(print, g), '.argument 0'), (lambda g: partial(print, end=g), '.end'),
    (lambda g: partial(Held(g)), '.func.rng'), (lambda g: Held(g).moved, '.self.rng'), (closing, '.rng'),
    (nesting, '.rng'), (with_defaults, '.rng'), (lambda g: lambda b, rng=g: rng, '.default 0'),
    (with_attribute, '.rng'), (lambda g: partial(closing(g)), '.func.rng'), (lambda g: [0]*99 + [g], '[99]'),
    (lambda g: DataLoader([0], sampler=RandomSampler([0], generator=g)), '.sampler.generator'),
    (lambda g: DataLoader(SeededSamples(Subset(Held(g), [0]))), '.dataset.dataset.dataset.rng'),
    (lambda g: DataLoader([0], collate_fn=Held(g)), '.collate_fn.rng'),
    (lambda g: RandCrop(1, generator=g), '.generator'),
    (lambda g: nn.Sequential(nn.ReLU(), nn.Sequential(RandCrop(1, generator=g))), '.1.0.generator')])
def test_an_object_is_found_wherever_it_is_held(hold, path):
    g = random.Random(7)
    assert places(holding(hold(g)), g) == [f'learn.held{path}']


def named_in_one_inside(b): return [lambda: NAMED for _ in b]
def named_as_attribute(b): return CROP(b)
def named_by_another(b): return named_in_one_inside(b)


class Methods:
    def __call__(self, b): return NAMED.random()


class Statics:
    @staticmethod
    def f(b): return NAMED.random()
    @classmethod
    def g(cls, b): return G.random()


class Properties:
    @property
    def p(self): return NAMED.random()
    @cached_property
    def q(self): return G.random()


class Base:
    def draw(self): return NAMED.random()


class Derived(Base): pass


class Decorated:
    @torch.no_grad()
    def draw(self): return NAMED.random()


class Net(nn.Module):
    def forward(self, x): return x + NAMED.random()


class NetInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = Net()


class Uses(TrainLearner):
    def get_loss(self): NAMED.random()


@pytest.mark.parametrize('x', [
    lambda b: NAMED, lambda b: [NAMED for _ in b], named_in_one_inside, named_by_another, Methods(), Methods, Statics(),
    Properties(), Derived(), Decorated(), decorated, Net(), NetInside(), partial(lambda b: NAMED), Held(Derived),
    SimpleNamespace(f=Base.draw)])
def test_a_global_that_functions_or_methods_name_is_found(x):
    assert places(holding(x), NAMED) == [f'module {HERE}.NAMED']


@pytest.mark.parametrize(('x', 'g'), [(Statics(), G), (Properties(), G), (lambda b: CROP(b), CROP.generator),
                                      (lambda b: TABLE['a'], TABLE['a'][0])])
def test_what_globals_hold_and_class_methods_and_cached_properties_name_is_found(x, g): assert places(holding(x), g)


def test_globals_that_the_learners_own_methods_name_are_found():
    assert places(learner(cls=Uses), NAMED) == [f'module {HERE}.NAMED']
    assert not places(learner(), NAMED)


def test_globals_of_user_modules_are_found_through_the_modules_name(tmp_path, monkeypatch):
    (tmp_path/'my_settings.py').write_text('import random\nrng, other = random.Random(1), random.Random(2)\n')
    monkeypatch.syspath_prepend(tmp_path)
    import my_settings
    monkeypatch.setitem(globals(), 'my_settings', my_settings)
    monkeypatch.setitem(sys.modules, 'my_settings', my_settings)
    learn = holding(eval('lambda b: my_settings.rng.random()', globals()))
    assert places(learn, my_settings.rng) == ['module my_settings.rng']
    assert not places(learn, my_settings.other)


class Shared:
    rng, table, rate = random.Random(5), [random.Random(6)], .3
    def f(self): "Not an attribute."


@pytest.mark.parametrize('x', [Shared, Shared(), [Shared()], lambda b: Shared.rate,
                               type('Sub', (Shared,), dict(__module__=HERE))()])
def test_attributes_of_classes_and_of_their_bases_are_found(x):
    nodes = walk(holding(x))
    assert nodes[f'class {HERE}.Shared.rng'].object is Shared.rng
    assert nodes[f'class {HERE}.Shared.table[0]'].object is Shared.table[0]
    assert nodes[f'class {HERE}.Shared'].slots['rate'] == .3


def test_what_the_learner_holds_is_found_by_its_usual_name():
    learn = run()
    learn.fit(1)
    nodes = walk(learn)
    want = dict(learn=learn, **{'learn.model': learn.model, 'learn.model.3': learn.model[3], 'learn.opt': learn.opt,
                                'learn.loss_func': learn.loss_func, 'learn.dls': learn.dls,
                                'learn.dls.train': learn.dls.train, 'learn.dls.valid': learn.dls.valid,
                                'learn.cbs.BatchSchedCB': learn.cbs[2], 'learn.cbs.AccumulateCB': learn.cbs[4],
                                'learn.cbs.BatchSchedCB.schedo': learn.cbs[2].schedo,
                                'learn.cbs.CropCB.crop.generator': learn.cbs[5].crop.generator})
    for path, x in want.items(): assert nodes[path].object is x
    kinds = {path: nodes[path].kind for path in want}
    assert [kinds[f'learn.{nm}'] for nm in ('model', 'model.3', 'opt')] == ['module', 'part', 'optimizer']
    assert [kinds[f'learn.cbs.{nm}'] for nm in ('BatchSchedCB', 'CropCB.crop.generator')] == ['stateful', 'generator']
    assert nodes['learn.dls.train'].data
    assert not nodes['learn.model'].data


def test_callbacks_of_one_class_are_numbered():
    cbs = [Callback(), RecorderCB(x=len), Callback()]
    learn = learner(cbs)
    assert [nm for nm, _ in callbacks_of(learn)] == ['Callback', 'RecorderCB', 'Callback 2']
    assert [places(learn, cb) for cb in cbs] == [[f'learn.cbs.{nm}'] for nm in ('Callback', 'RecorderCB', 'Callback 2')]


def test_an_object_in_many_places_is_found_once_at_the_nearest():
    g, learn = random.Random(1), learner()
    learn.far, learn.near, learn.list = Held(Held(g)), Held(g), [[g], g]
    assert places(learn, g) == ['learn.near.rng']
    ids = [id(n.object) for n in walk(run()).values()]
    assert len(ids) == len(set(ids))


def test_objects_that_refer_to_one_another_and_to_the_learner_are_no_obstacle():
    a, b, c, learn = Held(None), Held(None), [], learner()
    a.rng, b.rng, a.itself, a.learn, a.dls = b, a, c, learn, learn.dls
    c.append(dict(c=c))
    learn.held = a
    assert places(learn, b) == ['learn.held.rng']
    assert places(learn, learn) == ['learn']


def test_weak_references_and_unset_names_are_left_out():
    def later():
        def f(): return never
        return f
        never = 1
    gone = Held(1)
    learn = holding([weakref.proxy(gone), weakref.ref(gone), Slotted(1), later(), lambda: undefined])  # noqa: F821
    del gone
    assert not any(isinstance(n.object, weakref.ProxyTypes) for n in walk(learn).values())


def test_the_attributes_of_the_loop_are_those_of_a_plain_learner_after_a_fit():
    learn = learner()
    learn.fit(1)
    public = {k for k, x in vars(Learner).items() if (x is None or x is False) and not k.startswith('__')}
    assert vars(learn).keys() | public | {'counts'} == _OF_THE_LOOP | {'kept_in_eval'}
    assert not walk(learn)['learn'].slots.keys() - {'model', 'loss_func', 'opt', 'kept_in_eval'}


def test_methods_that_callbacks_replaced_are_entered_unless_they_are_the_librarys():
    learn = learner()
    learn.predict, learn.step = partial(closing(G)), partial(Callback.__repr__)
    assert walk(learn)['learn'].slots.keys() >= {'predict'}
    assert 'step' not in walk(learn)['learn'].slots
    assert places(learn, G) == ['learn.predict.func.rng']


# What is not entered

def stepped():
    opt = AdamW(mlp().parameters())
    for p in opt.param_groups[0]['params']: p.grad = torch.ones_like(p)
    opt.step()
    return opt


@pytest.mark.parametrize('make', [
    plt.figure, threading.Lock, threading.Condition, lambda: logging.getLogger('a'), lambda: iter([1]),
    lambda: (i for i in [G]), lambda: pytest.importorskip('pandas').DataFrame(dict(a=[1])),
    random.SystemRandom, lambda: threading.Thread(target=print)])
def test_what_belongs_to_a_library_is_not_entered(make):
    x = make()
    nodes = walk(holding(Held(x)))
    assert [(path, n.kind, n.slots) for path, n in nodes.items() if path.startswith('learn.held.')] == [
        ('learn.held.rng', 'opaque', {})]


def test_an_open_file_is_not_entered(tmp_path):
    with open(tmp_path/'log', 'w') as f: assert walk(holding(Held(f)))['learn.held.rng'].kind == 'opaque'


def test_the_kernels_of_an_optimizer_that_has_stepped_are_not_entered():
    nodes = walk(holding(Held(stepped())))
    inside = {path: n for path, n in nodes.items() if path.startswith('learn.held.rng.')}
    assert {path.removeprefix('learn.held.rng.') for path in inside} == {'stages', 'rule'}
    assert nodes['learn.held.rng'].kind == 'optimizer'
    assert not any(k.startswith('_') for k in nodes['learn.held.rng'].slots)


def test_functions_of_libraries_have_no_globals_and_those_that_only_show_have_no_slots():
    shows = RecorderCB(x=closing(G))
    nodes = walk(holding(dict(f=F.cross_entropy, g=np.mean, h=len)))
    assert not any(path.startswith('module ') for path in nodes)
    assert not places(learner([shows]), G)


def test_global_generators_and_those_without_a_state_are_left_out():
    none = torch.default_generator, np.random.mtrand._rand, random.getstate.__self__
    nodes = walk(holding([*none, random.SystemRandom()]))
    assert not any(n.kind == 'generator' for n in nodes.values())
    assert not is_generator(random.SystemRandom())
    for g in (torch.Generator(), np.random.default_rng(), np.random.RandomState(1), random.Random()):
        assert is_generator(g)


def test_at_most_10_000_objects_are_visited_and_1000_items_of_a_container_from_the_first_to_the_last():
    def chain(n):
        x = last = Held(None)
        for _ in range(n - 1): x = Held(x)
        return x, last
    near, last = chain(9000)
    assert places(holding(near), last)
    far, last = chain(10_100)
    learn = holding(far)
    assert not places(learn, last)
    assert len(walk(learn)) == 10_000
    many = [Held(None) for _ in range(5000)]
    nodes = walk(holding(many))
    found = [i for i in range(5000) if f'learn.held[{i}]' in nodes]
    assert (len(found), found[0], found[-1]) == (1000, 0, 4999)


def test_walking_draws_nothing_and_changes_nothing():
    learn = run()
    learn.fit(1)
    before = torch.get_rng_state(), learn.dls.train.epoch, learn.cbs[5].crop.generator.get_state()
    walk(learn)
    after = torch.get_rng_state(), learn.dls.train.epoch, learn.cbs[5].crop.generator.get_state()
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(before, after, strict=True))


# Slots

def counter(n):
    def f(): return n
    f.calls = 0
    return f


class Hooked:
    limit, hidden = 1, None
    def __init__(self): self.n = 1
    @property
    def double(self): return 2*self.n
    def __setattr__(self, k, v): super().__setattr__(k, v if k == 'n' else None)


WORDS = 'old'
def told(): return WORDS


@pytest.mark.parametrize(('x', 'path', 'name', 'get'), [
    (Held(1), 'learn.held', 'rng', lambda x: x.rng), (Slotted(1), 'learn.held', 'rng', lambda x: x.rng),
    (OneSlot(1), 'learn.held', 'rng', lambda x: x.rng), (Both(1), 'learn.held', 'also', lambda x: x.also),
    (Frozen(1), 'learn.held', 'rng', lambda x: x.rng), (counter(1), 'learn.held', 'n', lambda x: x()),
    (counter(1), 'learn.held', 'calls', lambda x: x.calls), (SimpleNamespace(a=1), 'learn.held', 'a', lambda x: x.a),
    (Shared(), f'class {HERE}.Shared', 'rate', lambda x: Shared.rate), (Hooked(), 'learn.held', 'n', lambda x: x.n),
    (told, f'module {HERE}', 'WORDS', lambda x: WORDS), (nn.Dropout(.5), 'learn.held', 'p', lambda x: x.p),
    (DataLoader([0]), 'learn.held', 'batch_size', lambda x: x.batch_size)])
def test_a_slot_of_any_kind_can_be_set(x, path, name, get):
    node = walk(holding(x))[path]
    old = get(x)
    assert node.slots[name] == old
    try:
        node.put(name, 'new')
        assert get(x) == 'new'
    finally: node.put(name, old)


def test_a_slot_that_has_gone_can_be_set_again():
    x = Held(1)
    node = Node('x', x, 'plain')
    del x.rng
    node.put('rng', 2)
    assert x.rng == 2
    y = Slotted(1)
    del y.rng
    Node('y', y, 'plain').put('rng', 2)
    assert y.rng == 2


def test_data_is_marked_as_such():
    learn = learner(dls=DataLoaders(DataLoader(TensorDataset(torch.ones(8, 1)), 4), batches()))
    learn.held = closing(Held(3))
    nodes = walk(learn)
    for path in ('learn.dls', 'learn.dls.train', 'learn.dls.train.dataset'): assert nodes[path].data
    for path in ('learn', 'learn.model', 'learn.held', 'learn.held.rng'): assert not nodes[path].data

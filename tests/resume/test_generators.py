"Random generators inside objects are found, and their states saved and restored."
import random
import weakref
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from miniai.augment import RandCrop, RandFlip
from miniai.checkpoint import load, save
from miniai.randomness import same_states
from miniai.resume.generators import generators_of, is_generator, kind_of, set_state_of, state_of


def found(o, **kwargs): return dict(generators_of(o, **kwargs))


def test_generators_are_found_once_in_attributes_modules_lists_and_dicts():
    g, h, k, m = (torch.Generator() for _ in range(4))
    o = type('O', (), {})()
    o.own, o.number, o.layers = g, 3, nn.Sequential(RandCrop(1, generator=h), nn.Sequential(RandFlip(generator=k)))
    o.many, o.by_name = [RandFlip(generator=g), 'text', (RandFlip(generator=m),)], dict(again=h, itself=o)
    assert found(o) == {'own': g, 'by_name.again': h, 'many.2.0.generator': m, 'layers.1.0.generator': k}
    assert list(generators_of(3)) == list(generators_of(None)) == []


KINDS = dict(torch=lambda: torch.Generator().manual_seed(3), python=lambda: random.Random(3),
             legacy=lambda: np.random.RandomState(3), odd=lambda: np.random.RandomState(np.random.PCG64(3)))
KINDS |= {kind.__name__: lambda kind=kind: np.random.Generator(kind(3)) for kind in (
    np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM)}


def drawn(g):
    "A few numbers: floats, normal ones (made in pairs), small integers (several per word)."
    if isinstance(g, torch.Generator): return [torch.rand(3, generator=g).tolist(), torch.randn(1, generator=g).item()]
    if isinstance(g, random.Random): return [g.random(), g.gauss(0, 1), g.randrange(9)]
    if isinstance(g, np.random.RandomState): return [g.rand(), g.randn(), g.randint(9)]
    return [g.random(), g.standard_normal(), g.integers(9, dtype=np.int32)]


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_is_found_saved_and_restored(kind, tmp_path):
    g, o = KINDS[kind](), type('O', (), {})()
    o.g = g
    assert found(o) == dict(g=g)
    drawn(g)
    save(tmp_path/'a', state_of(g))
    first = drawn(g), drawn(g)
    other = KINDS[kind]()
    set_state_of(other, load(tmp_path/'a'))
    assert (drawn(other), drawn(other)) == first
    before = state_of(g)
    assert same_states(before, state_of(g))
    drawn(g)
    assert not same_states(before, state_of(g))


def test_kinds_have_different_names_and_refuse_each_others_states():
    all_kinds = [make() for make in KINDS.values()]
    assert len({kind_of(g) for g in all_kinds}) == len(KINDS)
    for g, h in pairwise(all_kinds):
        with pytest.raises(ValueError, match=f'the state of a {kind_of(g)} does not fit a {kind_of(h)}'):
            set_state_of(h, state_of(g))


def test_generators_without_a_state_and_global_generators_are_left_out():
    o = type('O', (), {})()
    o.a, o.b, o.c = random.SystemRandom(), torch.default_generator, np.random.mtrand._rand
    assert not is_generator(o.a)
    assert list(generators_of(o)) == []


def test_a_weak_reference_to_a_deleted_object_is_left_out():
    o, gone = type('O', (), {})(), nn.Linear(1, 1)
    o.gone, o.g = weakref.proxy(gone), torch.Generator()
    del gone
    assert found(o) == dict(g=o.g)


def test_objects_in_without_are_left_out():
    o, p = type('O', (), {})(), type('P', (), {})()
    o.p, o.mine, p.theirs = p, torch.Generator(), torch.Generator()
    assert found(o, objects=True) == {'mine': o.mine, 'p.theirs': p.theirs}
    assert found(o, objects=True, without=[p]) == {'mine': o.mine}


G, CROP = torch.Generator(), RandCrop(1, generator=torch.Generator())


class Held:
    def __init__(self, rng): self.rng = rng
    def moved(self, b): return b


class Called(Held):
    def __call__(self, b): return b


def test_generators_are_found_in_defaults_closures_partials_and_globals_of_functions():
    g = [random.Random(i) for i in range(6)]
    late = lambda b: later  # noqa: E731, F821
    def make():
        def f(b, *, by_name=g[1]): return g[0], never
        return f
        never = 1
    o = type('O', (), {})()
    o.tfms = [make(), partial(print, g[2], end=g[3]), Held(g[4]).moved, Called(g[5]), late]
    assert {id(x) for x in found(o).values()} == {id(x) for x in g}
    o.tfms = [lambda b: [(CROP(x), G) for x in b]]
    assert {id(x) for x in found(o).values()} == {id(G), id(CROP.generator)}


def test_other_objects_are_searched_only_if_asked():
    inner, o = Held(random.Random(1)), type('O', (), {})()
    o.dataset, o.here = Held([Held(inner)]), Held(inner)
    assert found(o) == {}
    assert found(o, objects=True) == {'here.rng.rng': inner.rng}


def test_the_search_covers_100_items_per_list_and_the_nearest_10_000_objects():
    near = rng = random.Random(1)
    assert found(dict(wide=[*range(99), rng])) == {'wide.99': rng}
    assert found(dict(wide=[*range(100), rng])) == {}
    for _ in range(9000): near = [near]
    assert list(found(near).values()) == [rng]
    for _ in range(2000): near = [near]
    assert found(near) == {}

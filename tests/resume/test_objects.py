"States of modules, optimizers, generators and objects with a state_dict: saved, restored to the bit, or refused whole."
import random
from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from miniai import optim as ours
from miniai.checkpoint import load, save
from miniai.randomness import same_states
from miniai.resume.objects import check_savable, device_of, misfit, restore_state, shape_of, state_of
from miniai.resume.walk import Node, walk
from small import copied, equal, learner, mlp


def node(x, kind=None):
    learn = learner()
    learn.held = x
    found = walk(learn)['learn.held']
    assert kind is None or found.kind == kind
    return found


def through_file(state, folder):
    save(folder/'a', state)
    return load(folder/'a')


# Generators

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
def test_a_generator_of_any_kind_goes_on_from_its_state(kind, tmp_path):
    g, other = KINDS[kind](), KINDS[kind]()
    drawn(g)
    state = through_file(state_of(node(g, 'generator')), tmp_path)
    first = drawn(g), drawn(g)
    before = drawn(deepcopy(other) if kind != 'torch' else other.clone_state())
    assert misfit(node(other), state) == ''
    assert drawn(deepcopy(other) if kind != 'torch' else other.clone_state()) == before
    restore_state(node(other), state)
    assert (drawn(other), drawn(other)) == first
    here = state_of(node(g))
    assert same_states(here, state_of(node(g)))
    drawn(g)
    assert not same_states(here, state_of(node(g)))


def test_kinds_of_generators_differ_in_shape_and_refuse_one_anothers_states():
    nodes = [node(make()) for make in KINDS.values()]
    assert len({shape_of(n, {})[''] for n in nodes}) == len(KINDS)
    for a, b in pairwise(nodes):
        before = deepcopy(state_of(b))
        why = misfit(b, state_of(a))
        assert why == f"it is the state of a {shape_of(a, {})['']}, not a {shape_of(b, {})['']}"
        assert same_states(state_of(b), before)


@pytest.mark.parametrize('kind', KINDS)
def test_a_spoilt_state_of_a_generator_is_refused_and_changes_nothing(kind):
    n = node(KINDS[kind]())
    before = deepcopy(state_of(n))
    for spoilt in (torch.zeros(3, dtype=torch.uint8), [3], None): assert misfit(n, dict(state_of(n), state=spoilt))
    assert same_states(state_of(n), before)


# Modules

class Cached(nn.Module):
    "Makes a buffer when it is first called."
    def forward(self, x):
        if not hasattr(self, 'seen'): self.register_buffer('seen', torch.zeros(()), persistent=False)
        self.seen.add_(1)
        return x


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm, self.lin = nn.Embedding(5, 4, sparse=True), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.register_buffer('running', torch.zeros(2), persistent=False)
        self.register_buffer('empty', None, persistent=False)
        self.cached, self.tied = Cached(), nn.Linear(4, 2)
        self.tied.weight = self.lin.weight

    def forward(self, i):
        self.running += 1
        return self.cached(self.tied(self.norm(self.words(i))) + self.lin(self.words(i)))


def trained():
    torch.manual_seed(1)
    m = Everything()
    m(torch.tensor([1, 3, 3])).sum().backward()
    m.norm.eval()
    m.lin.bias.requires_grad_(False)
    m.lin.bias.grad = None
    return m


def everything(m):
    grads = {nm: None if p.grad is None else p.grad.to_dense().clone() for nm, p in m.named_parameters()}
    return (copied(dict(m.state_dict())), copied(dict(m.named_buffers())), grads,
            [p.requires_grad for p in m.parameters()], [x.training for x in m.modules()])


@pytest.mark.parametrize('lazily', [False, True])
def test_a_modules_whole_state_is_restored(lazily, tmp_path):
    m, other = trained(), Everything()
    if lazily: other(torch.tensor([0, 1]))
    state = through_file(state_of(node(m, 'module')), tmp_path)
    params = list(other.parameters())
    assert misfit(node(other), state) == ''
    restore_state(node(other), state)
    assert equal(everything(other), everything(m))
    assert other.words.weight.grad.is_sparse
    assert all(a is b for a, b in zip(params, other.parameters(), strict=True))
    assert other.tied.weight is other.lin.weight
    assert 'cached.seen' not in other.state_dict()


def test_gradients_that_were_none_are_none_again_and_restored_ones_are_copies():
    m, other, new = trained(), trained(), Everything()
    for p in m.parameters(): p.grad = None
    m.norm.weight.grad = torch.ones(4)
    state = state_of(node(m))
    for x in (other, new):
        restore_state(node(x), state)
        assert equal(everything(x), everything(m))
        for y in (x.norm.weight.grad, x.running, x.cached.seen): y.zero_()
    assert state['buffers']['cached.seen'] == 1
    assert state['grads']['norm.weight'].tolist() == [1]*4
    assert state['buffers']['running'].tolist() == [1, 1]


@pytest.mark.parametrize(('spoil', 'says'), [
    (lambda s: s['state'].pop('lin.bias'), 'lin.bias differs'),
    (lambda s: s['state'].update({'lin.bias': torch.zeros(3)}), 'lin.bias differs'),
    (lambda s: s['state'].update({'lin.bias': torch.zeros(2).double()}), 'lin.bias differs'),
    (lambda s: s['grads'].update({'lin.bias': torch.zeros(3)}), 'the gradient of lin.bias has another shape'),
    (lambda s: s['grads'].update(nowhere=torch.zeros(2)), "KeyError: 'nowhere'"),
    (lambda s: s['buffers'].update({'nowhere.x': torch.zeros(2)}), 'AttributeError: .*nowhere'),
    (lambda s: s['frozen'].append('nowhere'), 'unknown parameters'), (lambda s: s.pop('frozen'), "KeyError: 'frozen'"),
    (lambda s: s.update(training=3), 'unknown parameters')])
def test_what_does_not_fit_a_module_is_named_and_changes_nothing(spoil, says):
    m, other = trained(), Everything()
    state, before = state_of(node(m)), everything(other)
    spoil(state)
    with pytest.raises(pytest.fail.Exception, match=says): pytest.fail(misfit(node(other), state))
    assert equal(everything(other), before)


def test_the_shape_of_a_module_changes_with_names_shapes_and_dtypes():
    def shape(*parts): return str(shape_of(node(nn.Sequential(*parts)), {}))
    assert shape(nn.Linear(4, 2)) == shape(nn.Linear(4, 2))
    others = [nn.Linear(4, 3), nn.Linear(4, 2).double(), nn.Linear(4, 2, bias=False), nn.Sequential(nn.Linear(4, 2))]
    assert len({shape(nn.Linear(4, 2)), *map(shape, others)}) == 5
    assert shape_of(node(nn.BatchNorm1d(3)), {})['running_mean'] == '(3,) float32'


# Optimizers

def stepped(make, steps=2):
    torch.manual_seed(2)
    model = mlp()
    opt = make([dict(params=model[0].parameters(), lr=.1), dict(params=model[2].parameters())])
    for _ in range(steps):
        for p in model.parameters(): p.grad = torch.randn(p.shape)
        opt.step()
    return model, opt


OPTIMIZERS = [lambda ps: optim.SGD(ps, .1, .9), lambda ps: optim.Adam(ps, .1), lambda ps: ours.AdamW(ps, .1, ema=.9),
              lambda ps: ours.Lion(ps, .1)]


@pytest.mark.parametrize('make', OPTIMIZERS)
def test_an_optimizer_is_restored_into_its_own_groups_and_steps_on_alike(make, tmp_path):
    (model, opt), (m2, o2) = stepped(make), stepped(make, 0)
    opt.param_groups[1]['lr'] = .3
    m2.load_state_dict(model.state_dict())
    groups, each = o2.param_groups, [*o2.param_groups]
    state = through_file(state_of(node(opt, 'optimizer')), tmp_path)
    assert misfit(node(o2), state) == ''
    restore_state(node(o2), state)
    assert o2.param_groups is groups
    assert all(a is b for a, b in zip(groups, each, strict=True))
    assert [g['lr'] for g in each] == [.1, .3]
    for p, q in zip(model.parameters(), m2.parameters(), strict=True): p.grad = q.grad = torch.ones_like(p)
    for o in (opt, o2): o.step()
    assert equal(dict(model.state_dict()), dict(m2.state_dict()))
    assert equal(opt.state_dict(), o2.state_dict())


@pytest.mark.parametrize(('spoil', 'says'), [
    (lambda s: s['param_groups'][0]['params'].pop(), r'its groups have \[1, 2\] parameters, not \[2, 2\]'),
    (lambda s: s['param_groups'].pop(), r'its groups have \[2\] parameters, not \[2, 2\]'),
    (lambda s: s.pop('state'), "KeyError: 'state'"),
    (lambda s: s['state'].update({0: 3}), 'its state has wrong values')])
def test_what_does_not_fit_an_optimizer_is_named_and_changes_nothing(spoil, says):
    _, opt = stepped(OPTIMIZERS[1])
    before = copied(opt.state_dict())
    state = copied(before)
    spoil(state)
    with pytest.raises(pytest.fail.Exception, match=says): pytest.fail(misfit(node(opt), state))
    assert equal(opt.state_dict(), before)


def test_the_shape_of_an_optimizer_names_the_parameter_at_each_place():
    model, opt = stepped(OPTIMIZERS[0], 0)
    names = {id(p): f'model.{nm}' for nm, p in model.named_parameters()}
    assert shape_of(node(opt), names) == {
        'group 0, parameter 0': 'model.0.weight', 'group 0, parameter 1': 'model.0.bias',
        'group 1, parameter 0': 'model.2.weight', 'group 1, parameter 1': 'model.2.bias'}
    assert shape_of(node(opt), {})['group 1, parameter 1'] == 'a tensor (3,) float32'


# Anything with a state_dict

@pytest.mark.parametrize('make', [
    lambda o: lr_scheduler.OneCycleLR(o, .1, 20), lambda o: lr_scheduler.CyclicLR(o, .1, .2, 3, cycle_momentum=False),
    lambda o: lr_scheduler.ReduceLROnPlateau(o)])
def test_an_object_with_a_state_dict_is_restored_by_it_and_the_state_stays(make):
    _, opt = stepped(OPTIMIZERS[0], 1)
    a, b = make(opt), make(opt)
    opt.step()
    for _ in range(3): a.step(*([1.] if isinstance(a, lr_scheduler.ReduceLROnPlateau) else []))
    state = state_of(node(a, 'stateful'))
    before = deepcopy(state)
    for _ in range(2): restore_state(node(b), state)
    assert equal(state_of(node(b)), before)
    assert equal(state, before)
    assert misfit(node(b), state) == ''


# What can be saved

class NoGroups:
    def state_dict(self): return {}
    def load_state_dict(self, state): pass
    def step(self): pass


def test_an_optimizer_without_a_state_and_a_model_without_shapes_cannot_be_saved():
    learn = learner()
    learn.opt = NoGroups()
    with pytest.raises(TypeError, match=r'NoGroups has no param_groups: use a torch.optim.Optimizer, or add'):
        check_savable(learn)
    learn.opt = object()
    with pytest.raises(TypeError, match='object has no param_groups or state_dict or load_state_dict'):
        check_savable(learn)
    learn = learner(model=nn.Sequential(nn.LazyLinear(3)))
    learn.opt = optim.SGD([torch.zeros(1)])
    with pytest.raises(ValueError, match=r"'0.weight' has no shape yet: run a batch through the model before a fit"):
        check_savable(learn)
    learn = learner()
    learn.opt = optim.SGD(learn.model.parameters())
    check_savable(learn)


def test_the_device_of_a_model_is_that_of_its_parameters():
    assert device_of(mlp()) == 'cpu'
    assert device_of(nn.ReLU()) == 'cpu'
    assert device_of(nn.Linear(2, 2, device='meta')) == 'meta'


def test_a_part_of_a_module_has_no_state_of_its_own():
    learn = learner()
    assert [n.kind for path, n in walk(learn).items() if path.startswith('learn.model.')] == ['part']*3
    assert shape_of(Node('x', nn.ReLU(), 'plain'), {}) == {}

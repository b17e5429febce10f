"Rules for whole matrices, each against its paper's algorithm as a plain loop of numpy in double precision."
import copy

import numpy as np
import pytest
import torch
from torch import nn

from miniai.optim import SOAP, Adafactor, AdamW, Kron, NorMuon, Shampoo, matrix_groups, rules
from miniai.optim import matrix_rules as M
from miniai.optim.classes import AdafactorVector
from opts import same

PRECISIONS = pytest.mark.parametrize(('dtype', 'limit'), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
SHAPES = [(7, 5), (5, 9), (4, 4), (1, 6), (4, 2, 3, 3), (5,), ()]  # the last two are the companion's


def adamw(p, g, s, t, lr, b1=.9, b2=.999, eps=1e-8):
    s['m'], s['v'] = b1*s.get('m', 0) + (1 - b1)*g, b2*s.get('v', 0) + (1 - b2)*g*g
    return p - lr*s['m']/(1 - b1**t) / (np.sqrt(s['v']/(1 - b2**t)) + eps)


def distance(cls, loop, dtype, others=adamw, shapes=SHAPES, **hypers):
    """The largest difference from plain loops after 100 steps: in two groups, with decay, at a moving rate, some
    gradients missing."""
    rng = np.random.default_rng(0)
    ps = [nn.Parameter(torch.tensor(rng.normal(size=s), dtype=dtype)) for s in shapes]
    opt = cls([dict(params=ps[:3]), dict(params=ps[3:], weight_decay=.2)], wd=.1, **hypers)
    want, states, ts = [p.detach().double().numpy().copy() for p in ps], [{} for _ in ps], [0]*len(ps)
    for step in range(100):
        for k, group in enumerate(opt.param_groups): group['lr'] = .001*(1 + (step + k) % 7)
        for k, p in enumerate(ps):
            p.grad = torch.tensor(rng.normal(size=p.shape), dtype=dtype) if (step + k) % 9 else None
        opt.step()
        for k, p in enumerate(ps):
            if p.grad is None: continue
            states[k]['rule'] = opt.state[p]
            lr, wd = next((g['lr'], g['weight_decay']) for g in opt.param_groups if any(p is q for q in g['params']))
            ts[k] += 1
            x, g = want[k]*(1 - lr*wd), p.grad.double().numpy()
            if p.ndim < 2: want[k] = others(x, g, states[k], ts[k], lr)
            else: want[k] = loop(x.reshape(len(x), -1), g.reshape(len(g), -1), states[k], ts[k], lr).reshape(p.shape)
    return max(np.abs(p.detach().numpy() - w).max() for p, w in zip(ps, want, strict=True))


def on_floats(rule, starts, **hypers):
    "The largest difference after some steps between a rule on a float and on a matrix of one element."
    rng, x, p = np.random.default_rng(0), 2., torch.tensor([[2.]], dtype=torch.float64)
    s, z = starts, [torch.full((1, 1), s, dtype=torch.float64) for s in starts]
    for t in range(25):
        g, h = rng.normal(), hypers | {nm: t + 1 for nm in ('t', 'key') if nm in hypers}
        x, *s = rule(x, g, *s, **h)
        p, *z = rule(p, torch.tensor([[g]], dtype=torch.float64), *z, **h)
    assert isinstance(x, float)
    return max(abs(a - float(b)) for a, b in zip([x, *s], [p, *z], strict=True))


def continues_exactly(cls, dtype=torch.float32, **hypers):
    "Whether steps after a state_dict has been saved and loaded are those without it, to the bit."
    def made():
        torch.manual_seed(0)
        ps = [nn.Parameter(torch.randn(s).to(dtype)) for s in SHAPES]
        return ps, cls(ps, lr=.01, **hypers)
    def steps(ps, opt, n, seed):
        g = torch.Generator().manual_seed(seed)
        for _ in range(n):
            for p in ps: p.grad = torch.randn(p.shape, generator=g).to(dtype)
            opt.step()
    one, other = made(), made()
    steps(*one, 13, 1)
    saved = copy.deepcopy(one[1].state_dict())
    for p, q in zip(one[0], other[0], strict=True): q.data.copy_(p.data)
    other[1].load_state_dict(saved)
    for pair in (one, other): steps(*pair, 13, 2)
    assert all(p.isfinite().all() for p in one[0])
    return same(one[0], other[0]) and same(one[1].state_dict()['state'], other[1].state_dict()['state'])


OWN = dict(Shampoo=dict(every=5))  # hyperparameters with which all of a rule runs in a few steps


@pytest.mark.parametrize('cls', [NorMuon, SOAP, Shampoo, Adafactor, Kron])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_training_continues_to_the_bit_from_a_state_dict(cls, dtype):
    assert continues_exactly(cls, dtype, **OWN.get(cls.__name__, {}))


@pytest.mark.parametrize('cls', [NorMuon, SOAP, Shampoo, Adafactor, Kron])
def test_a_gradient_of_zeros_moves_nothing(cls):
    p = nn.Parameter(torch.ones(3, 4))
    p.grad = torch.zeros(3, 4)
    opt = cls([p], lr=.1, wd=0., **OWN.get(cls.__name__, {}))
    for _ in range(6): opt.step()
    assert torch.equal(p, torch.ones(3, 4))


@pytest.mark.parametrize('cls', [SOAP, Shampoo, Kron])
def test_work_that_is_done_every_so_many_steps_is_not_done_every_0_steps(cls):
    with pytest.raises(ValueError, match=f'{cls.__name__}: every must be 1 or more steps, got 0.0'):
        cls([nn.Parameter(torch.ones(2, 2))], every=0)


def test_a_tied_weight_is_stepped_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    for cls in (NorMuon, SOAP, Shampoo, Adafactor, Kron):
        opt = cls(model)
        assert sorted(p.numel() for g in opt.param_groups for p in g['params']) == [2, 6, 9]
        model(torch.ones(1, 3)).sum().backward()
        opt.step()
        assert opt.state[model[0].weight]['step'] == 1


def quintic(x, steps=5):
    u, s, v = np.linalg.svd(x, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(steps): s = 3.4445*s - 4.7750*s**3 + 2.0315*s**5
    return u*s @ v


def normuon_loop(length):
    def loop(p, g, s, t, lr, mu=.95, b2=.95):
        s['m'] = mu*s.get('m', 0) + (1 - mu)*g
        o = quintic((1 - mu)*g + mu*s['m'])
        s['v'] = b2*s.get('v', 0) + (1 - b2)*(o**2).mean(1, keepdims=True)
        u = o/np.sqrt(s['v'])
        return p - lr*length(o)*u/np.linalg.norm(u)
    return loop


def root_mean_square_of_a_fifth(o): return .2*np.sqrt(o.size)
def as_long_as_muons(o): return np.linalg.norm(o)*max(1, o.shape[0]/o.shape[1])**.5


@PRECISIONS
@pytest.mark.parametrize(('adjust', 'length'), [('match_rms_adamw', root_mean_square_of_a_fifth),
                                                ('spectral', as_long_as_muons)])
def test_normuon_is_its_algorithm(monkeypatch, dtype, limit, adjust, length):
    monkeypatch.setattr(torch.Tensor, 'bfloat16', lambda x: x)
    assert distance(NorMuon, normuon_loop(length), dtype, adjust=adjust) < limit


def test_normuon_on_a_float_is_normuon_on_a_matrix_of_one_element():
    assert on_floats(M.normuon, [0.]*2, lr=.1) < 1e-12
    assert M.normuon(1., 0., 0., 0., lr=.1)[0] == 1.
    assert M.normuon_length(3., 'spectral') == rules.muon_scale(3., 'spectral')*3.


def is_eigenbasis(q, x):
    "Whether a basis is orthonormal, and makes a symmetric matrix diagonal, with the largest values first."
    d = q.T @ x @ q
    found, wanted = (q.T @ q, d), (np.eye(len(q)), np.diag(np.sort(np.diag(d))[::-1]))
    return all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def first_bases(s):
    "Those of the rule: gradients with few rows leave directions free. Checked."
    q, r = (s['rule'][k].double().numpy().copy() for k in ('left_basis', 'right_basis'))
    assert is_eigenbasis(q, s['l'])
    assert is_eigenbasis(r, s['r'])
    return q, r


def soap_loop(p, g, s, t, lr, b1=.95, b2=.95, eps=1e-8, every=10):
    old = s.setdefault('l', 0), s.setdefault('r', 0)
    s['l'], s['r'] = (b2*x + (1 - b2)*y for x, y in zip(old, (g @ g.T, g.T @ g), strict=True))
    if t == 1:
        s['q'] = first_bases(s)
        return p
    q, r = s['q']
    s['m'], s['v'] = b1*s.get('m', 0) + (1 - b1)*g, b2*s.get('v', 0) + (1 - b2)*(q.T @ g @ r)**2
    adam = (q.T @ s['m'] @ r)/(1 - b1**(t - 1)) / ((np.sqrt(s['v']) + eps)/np.sqrt(1 - b2**(t - 1)))
    if (t - 1) % every == 0:
        i, j = (np.argsort(-np.diag(b.T @ x @ b), kind='stable') for b, x in ((q, s['l']), (r, s['r'])))
        s['v'], s['q'] = s['v'][i][:, j], (np.linalg.qr(s['l'] @ q[:, i])[0], np.linalg.qr(s['r'] @ r[:, j])[0])
    return p - lr*q @ adam @ r.T


@PRECISIONS
def test_soap_is_its_algorithm(dtype, limit):
    "Unlike in the authors' code, decay comes before the step, as in AdamW, and a convolution is one matrix."
    assert distance(SOAP, soap_loop, dtype) < limit


def test_soap_on_a_float_is_soap_on_a_matrix_of_one_element():
    assert on_floats(M.soap, [0.]*6, t=1, lr=.1, every=4) < 1e-12


def test_soap_leaves_matrices_with_a_very_long_side_to_its_companion():
    ps = [nn.Parameter(torch.empty(s, device='meta')) for s in ((10_000, 2), (10_001, 2), (2, 5001, 2))]
    assert [(g['rule'], g['params']) for g in matrix_groups(ps, SOAP)] == [(SOAP, ps[:1]), (AdamW, ps[1:])]


def test_bases_and_the_averages_they_come_from_keep_their_precision():
    p = nn.Parameter(torch.randn(4, 4))
    p.grad = torch.randn(4, 4)
    opt = SOAP([p], state='bf16')
    for _ in range(12): opt.step()
    rough = {k for k, x in opt.state[p].items() if isinstance(x, torch.Tensor) and x.dtype is torch.bfloat16}
    assert rough == {'exp_avg', 'exp_avg_sq'}


def root(x, power, least):
    values, vectors = np.linalg.eigh(x)
    return vectors*np.maximum(values, least)**power @ vectors.T


def shampoo_loop(p, g, s, t, lr, b1=.9, b2=.999, eps=1e-8, every=12):
    old = (s.get(k, 0) for k in 'lrv')
    s['l'], s['r'], s['v'] = (b2*x + (1 - b2)*y for x, y in zip(old, (g @ g.T, g.T @ g, g*g), strict=True))
    s['m'] = b1*s.get('m', 0) + (1 - b1)*g
    m = s['m']/(1 - b1**t)
    adam = m/(np.sqrt(s['v']/(1 - b2**t)) + eps)
    if t % every == 0: s['roots'] = [root(s[k]/(1 - b2**t), -1/4, 1e-12) for k in 'lr']
    if t < every: return p - lr*adam
    u = s['roots'][0] @ m @ s['roots'][1]
    return p - lr*np.linalg.norm(adam)/np.linalg.norm(u)*u


@PRECISIONS
def test_shampoo_is_its_algorithm(dtype, limit):
    "With averages, as in the authors' later code, where the first paper has sums. A convolution is one matrix."
    assert distance(Shampoo, shampoo_loop, dtype, every=12) < limit


def test_shampoo_on_a_float_is_shampoo_on_a_matrix_of_one_element():
    assert on_floats(M.shampoo, [0.]*6, t=1, lr=.1, every=4) < 1e-12


@PRECISIONS
@pytest.mark.parametrize('foreach', [False, True])
def test_adafactor_is_torchs_over_100_steps_at_a_moving_rate_with_states_exchanged(dtype, limit, foreach):
    torch.manual_seed(0)
    ps = [nn.Parameter(torch.randn(s, dtype=dtype)) for s in ((7, 5), (1, 6), (4, 2, 3, 3), (5,), ())]
    qs = copy.deepcopy(ps)
    ours = Adafactor(ps, decay_power=.7, d=1.5, eps2=.01)
    torchs = torch.optim.Adafactor([dict(params=qs[:3]), dict(params=qs[3:])], foreach=foreach, beta2_decay=-.7, d=1.5,
                                   eps=(None, .01))
    assert [g.get('rule') for g in ours.param_groups] == [None, AdafactorVector]
    for t in range(100):
        for k, (p, q) in enumerate(zip(ps, qs, strict=True)):
            p.grad = q.grad = torch.randn_like(p)*10**(t % 3) if (t + k) % 9 else None
        for g in (*ours.param_groups, *torchs.param_groups): g['lr'] = .003*(1 + t % 7)
        ours.step(), torchs.step()
        if t == 50:
            ours.load_state_dict(copy.deepcopy(torchs.state_dict()))
            torchs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for p, q in zip(ps, qs, strict=True): assert torch.allclose(p, q, rtol=0, atol=limit)


def test_adafactors_decay_comes_before_the_length_of_the_parameter_is_taken():
    "As for all optimizers here; torch's takes the length first."
    p, lr, wd = nn.Parameter(torch.full((2, 2), 3., dtype=torch.float64)), .1, .5
    p.grad = torch.ones_like(p)
    Adafactor([p], lr=lr, wd=wd).step()
    decayed = 3*(1 - lr*wd)
    assert torch.allclose(p, torch.full_like(p, decayed - lr*decayed), rtol=1e-12)


def test_adafactor_factors_embeddings_and_the_last_layer_too():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    assert [[tuple(p.shape) for p in g['params']] for g in Adafactor(model).param_groups] == [[(5, 4), (3, 4)], [(3,)]]


def test_adafactor_takes_torchs_numbers_but_not_maximize():
    p = nn.Parameter(torch.ones(2, 2))
    opt = Adafactor([p], eps1=1e-30)
    opt.load_state_dict(torch.optim.Adafactor([p], eps=(1e-20, .1), beta2_decay=-.6).state_dict())
    group, = opt.param_groups
    assert (group['eps1'], group['eps2'], group['decay_power']) == (1e-20, .1, .6)
    with pytest.raises(ValueError, match='maximize=True'):
        opt.load_state_dict(torch.optim.Adafactor([p], maximize=True).state_dict())


def test_adafactor_on_a_float_is_adafactor_on_a_matrix_of_one_element():
    assert on_floats(M.adafactor, [0.]*2, t=1, lr=.1) < 1e-12
    assert on_floats(M.adafactor_vector, [0.], t=1, lr=.1, eps1=1e-20) < 1e-12


def kron_loop(draws):
    "With the random numbers that the rule drew."
    def bound(x):
        x, size = x/np.abs(x).max(), np.abs(x).max()
        y = x[:, (x**2).sum(0).argmax()] @ x
        return size*np.linalg.norm(x @ y)/np.linalg.norm(y)
    def loop(p, g, s, t, lr, mu=.9, step=.1):
        s['m'], (q, r) = mu*s.get('m', 0) + (1 - mu)*g, s.get('q', map(np.eye, g.shape))
        m, v = s['m']/(1 - mu**t), draws.pop(0)
        noisy = m + np.sqrt(2.**-23)*np.abs(m).mean()*v
        a, b = q @ noisy @ r.T, np.linalg.inv(q).T @ v @ np.linalg.inv(r)
        sides = (q, a @ a.T, b @ b.T), (r, a.T @ a, b.T @ b)
        q, r = s['q'] = [f - step*np.triu(x - y) @ f/bound(x + y) for f, x, y in sides]
        u = q.T @ q @ m @ r.T @ r
        return p - lr*u*min(1, 1.1/np.sqrt((u**2).mean()))
    return loop


@PRECISIONS
def test_kron_is_its_algorithm(monkeypatch, dtype, limit):
    """Unlike in the authors' code, the noise that helps to fit the factors stays out of the step, and both factors are
    given the same size at each fit, not now and then; that changes no step. A convolution is one matrix."""
    draws, normal = [], M.normal
    def recorded(x, *, key):
        draws.append(normal(x, key=key).double().numpy())
        return normal(x, key=key)
    monkeypatch.setattr(M, 'normal', recorded)
    assert distance(Kron, kron_loop(draws), dtype) < limit


def test_krons_factors_are_fitted_at_500_steps_and_then_less_often(monkeypatch):
    fits = []
    monkeypatch.setattr(M, 'fitted', lambda m, left, right, lr, noise: fits.append(t) or (left, right))
    p, *s = 1., 0., 1., 1., 0.
    for t in range(1, 4601): p, *s = M.kron(p, 0., *s, t=t, key=t, every=34)
    assert fits[:502] == [*range(1, 502), 503]
    gaps = np.diff(fits[500:])
    assert all(gap == min(34, np.ceil(np.exp((t - 501)/1000))) for gap, t in zip(gaps, fits[501:], strict=True))
    assert gaps[-1] == 34


def test_krons_random_numbers_come_from_seed_step_and_parameter(monkeypatch):
    def keys(seed):
        found = []
        with monkeypatch.context() as patch:
            patch.setattr(M, 'normal', lambda x, *, key: found.append(key) or x)
            ps = [nn.Parameter(torch.randn(3, 3)) for _ in range(2)]
            opt = Kron(ps, seed=seed)
            for p in ps: p.grad = torch.randn(3, 3)
            for _ in range(2): opt.step()
        return found
    assert keys(0) == keys(0)
    assert len({*keys(0), *keys(1)}) == 8


def test_kron_on_a_float_is_kron_on_a_matrix_of_one_element():
    numbers = [2., 0., 1., 1.]
    matrices = [torch.full((1, 1), x, dtype=torch.float64) for x in numbers]
    for t in range(1, 20):
        for x in (numbers, matrices): x[:] = M.kron(x[0], .3*t + 0*x[0], *x[1:], 0., t=t, key=t, lr=.1)[:-1]
        assert numbers == pytest.approx([float(x) for x in matrices], rel=1e-12)


def test_krons_factors_get_the_same_size_which_changes_no_step():
    def stepped(ratio):
        torch.manual_seed(0)
        p, g = torch.randn(2, 4, 3, dtype=torch.float64)
        factors = torch.eye(4).double()*ratio, torch.eye(3).double()/ratio
        new_p, _, left, right, _ = M.kron(p, g, 0*g, *factors, 0., t=1, key=1)
        return new_p, float(left.abs().max()/right.abs().max())
    (p, _), (q, ratio) = stepped(1.), stepped(1e4)
    assert torch.allclose(p, q, rtol=1e-10)
    assert .5 < ratio < 2

"The oracle of optimizer tests: a rule on Python floats in double precision, with its stages written out."
import math

import numpy as np
import torch
from torch import nn

from miniai import optim
from miniai.optim.stages import program

ALL = [optim.SGD, optim.Momentum, optim.HeavyBall, optim.Nesterov, optim.RMSProp, optim.Adagrad, optim.Adam,
       optim.AdamW, optim.NAdamW, optim.Lion, optim.RAdam, optim.ADOPT, optim.AdEMAMix]
MOVING = dict(mom=(.5, .99), sqr_mom=(.8, .999), eps=(1e-6, 1e-3), beta1=(.5, .95), beta2=(.9, .999),
              beta3=(.99, .9999), alpha=(1., 8.), lr_decay=(0., .1), momentum_decay=(1e-3, 1e-1))
SHAPES = [(), (0,), (1,), (7,), (3, 2), (2, 3, 2, 1)]
EVERYTHING = dict(decoupled=False, clip_norm=2., clip_value=.7, skip_nonfinite=True, cautious=True, ema=.9)
OPTIONS = dict(plain={}, l2=dict(decoupled=False), norm=dict(clip_norm=2.), value=dict(clip_value=.5), ema=dict(ema=.9),
               cautious=dict(cautious=True), tail=dict(tail=20),
               decay=dict(cautious_decay=True, cautious=True, tail=7), finite=dict(skip_nonfinite=True),
               everything=EVERYTHING)


def drawn(rng, cls):
    "Hyperparameters of one step, all new."
    own = {h: rng.uniform(*MOVING[h]) for h in cls.spec.hypers if h != 'lr'}
    return dict(lr=10**rng.uniform(-4, -2), wd=rng.uniform(.05, .5)) | own


def move(group, hypers):
    "Write hyperparameters where a group keeps them."
    names = dict(wd='weight_decay', mom='momentum')
    group.update({names.get(h, h): x for h, x in hypers.items() if h[:4] != 'beta'})
    if 'beta1' in hypers: group['betas'] = tuple(hypers[b] for b in ('beta1', 'beta2', 'beta3') if b in hypers)


class Oracle:
    "One number at a time: `p`, its states and its average."
    def __init__(self, cls, options, p):
        self.cls, self.o, self.p, self.s, self.ema, self.t = cls, options, p, None, p, 0

    def step(self, g, h, scale=1.):
        h, o, rule = dict(h), self.o, self.cls.spec
        wd, self.t, g = h.pop('wd'), self.t + 1, g*scale
        if o.get('clip_value'): g = min(max(g, -o['clip_value']), o['clip_value'])
        p = self.p*(1 - h['lr']*wd) if o.get('decoupled', True) else self.p
        if not o.get('decoupled', True): g += wd*self.p
        if o.get('cautious_decay'): p = self.p
        if self.s is None:
            self.s = [g*g if self.cls is optim.RMSProp else 0. for _ in rule.states] + [*rule.scalars.values()]
        out = rule.rule(p, g, *self.s, **h, **(dict(t=self.t) if 't' in rule.supplied else {}))
        before, (new, *self.s) = self.s, out if isinstance(out, tuple) else (out,)
        if o.get('nesterov'):
            i, = (i for i, s in enumerate(rule.states) if s in ('avg', 'buf'))
            before[i] = self.s[i]
            new = rule.rule(p, g, *before, **h, **(dict(t=self.t) if 't' in rule.supplied else {}))[0]
        if o.get('cautious_decay') and (p - new)*p >= 0: p, new = p*(1 - h['lr']*wd), new - p*h['lr']*wd
        if o.get('cautious') and (p - new)*g <= 0: new = p
        decay = min(o.get('ema', 0.), (1 + self.t)/(10 + self.t))
        if 'tail' in o: decay = 0. if self.t <= o['tail'] else 1 - 1/(self.t - o['tail'] + 1)
        self.p, self.ema = new, decay*self.ema + (1 - decay)*new


def starting(rng, dtype, shapes=SHAPES, strided=False):
    "Parameters of many shapes, one of them channels_last; `strided`, each is every second column of its storage."
    xs = [torch.tensor(rng.normal(size=s), dtype=dtype) for s in [*shapes, (2, 3, 2, 2)]]
    xs[-1] = xs[-1].to(memory_format=torch.channels_last)
    if strided: xs = [torch.stack([x, x], -1)[..., 0] for x in xs]
    return [nn.Parameter(x) for x in xs]


def flat(xs): return np.concatenate([x.detach().double().numpy().ravel() for x in xs])


def error(a, b):
    "max|a-b| / max|b|"
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300))


def give_gradients(rng, ps):
    for p in ps: p.grad = torch.empty_like(p).copy_(torch.tensor(rng.normal(size=p.shape), dtype=p.dtype))


def norm_scale(ps, limit):
    if not limit: return 1.
    norm = math.sqrt((flat(p.grad for p in ps)**2).sum())
    return min(1., limit/(norm + 1e-6))


def states_of(opt, ps):
    "Every state by the rule's name, each flat."
    return {s: flat(opt.state[p][opt.state_name(s)] for p in ps) for s in program(opt.spec, opt.stages).states}


def errors(cls, options, dtype, steps=50, seed=0, strided=False, groups=1, shapes=SHAPES):
    """The largest relative errors of parameters and of every state, with every hyperparameter of every group moving at
    every step."""
    rng = np.random.default_rng(seed)
    ps = starting(rng, dtype, shapes, strided)
    opt = cls([dict(params=ps[i::groups]) for i in range(groups)], lr=1., **options)
    ps = [p for g in opt.param_groups for p in g['params']]
    hs = [Oracle(cls, options, x) for x in flat(ps).tolist()]
    at = [i for i, g in enumerate(opt.param_groups) for p in g['params'] for _ in range(p.numel())]
    worst = 0.
    for _ in range(steps):
        hypers = [drawn(rng, cls) for _ in opt.param_groups]
        for g, new in zip(opt.param_groups, hypers, strict=True): move(g, new)
        give_gradients(rng, ps)
        kept = [p.grad.clone() for p in ps]
        scale = norm_scale(ps, options.get('clip_norm'))
        for o, g, i in zip(hs, flat(kept).tolist(), at, strict=True): o.step(g, hypers[i], scale)
        opt.step()
        assert all(torch.equal(p.grad, k) for p, k in zip(ps, kept, strict=True))
        worst = max(worst, error(flat(ps), [o.p for o in hs]))
    found = states_of(opt, ps)
    for i, s in enumerate(cls.spec.states): worst = max(worst, error(found[s], [o.s[i] for o in hs]))
    for i, s in enumerate(cls.spec.scalars, len(cls.spec.states)):
        numbers = [opt.state[p][s] for p in ps for _ in range(p.numel())]
        worst = max(worst, error(numbers, [o.s[i] for o in hs]))
    for nm in {'ema', 'tail'} & set(options): worst = max(worst, error(found[nm], [o.ema for o in hs]))
    assert {opt.state[p]['step'] for p in ps} == {steps}
    return worst, opt

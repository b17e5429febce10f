"""Update rules as their equations, from simple to hard: pure functions of numbers.

A rule takes a parameter `p`, its gradient `g`, then state by name, and keyword-only hyperparameters, with `t` the
parameter's own step count from 1, and `key`, for random draws, another number for each parameter and step; it returns
the new parameter and the new state. It runs on Python floats and on tensors alike. Weight decay is not part of a rule:
the optimizer multiplies the parameter by 1 - lr*wd before the rule, unless the rule takes `wd`, because it decays in
another way.
"""
from collections.abc import Callable
from math import inf
from typing import Any

from miniai.kernels.math import maximum, minimum, sign, sqrt, where
from miniai.kernels.matrix import norm, orthogonalize

__all__ = ['sgd', 'momentum', 'heavy_ball', 'nesterov', 'rmsprop', 'adagrad', 'adam', 'adamw', 'nadamw', 'radam',
           'adopt', 'ademamix', 'mars', 'lion', 'lamb', 'muon', 'schedule_free_sgd', 'schedule_free_adamw',
           'prodigy', 'starts', 'scalars', 'matrix', 'evaluated', 'totals']


def starts(**states: Callable[[Any, Any], Any]) -> Callable:
    """Decorator: the value of a rule's states before the first step, as functions of `(p, g)`. Other states start at
    zero."""
    def decorate(rule: Callable) -> Callable:
        rule.starts = states
        return rule
    return decorate


def scalars(**states: float) -> Callable:
    """Decorator: states of a rule that are one number for a whole parameter, with their first values. They come last in
    the signature, and their new values may depend on hyperparameters and each other, not on elements."""
    bad = {nm: x for nm, x in states.items() if not isinstance(x, int | float)}
    if bad: raise TypeError(f"scalars() takes numbers, the first values of states, got {bad}")
    def decorate(rule: Callable) -> Callable:
        rule.scalars = states
        return rule
    return decorate


def matrix(others: Callable, longest: float = inf, hidden: bool = True, flat: bool = True) -> Callable:
    """Decorator: a rule for matrices only. It gets each parameter, its gradient and its states whole, with two
    dimensions: convolutions as one row for each output channel, or with `flat=False` as they are. `others` is the rule
    for all other parameters, also for those with more than `longest` rows or columns, and for embeddings and the last
    layer unless `hidden=False`."""
    def decorate(rule: Callable) -> Callable:
        rule.others, rule.longest, rule.hidden, rule.flat = others, longest, hidden, flat
        return rule
    return decorate


def evaluated(at: Callable) -> Callable:
    """Decorator: models are evaluated `at` a point other than the parameter, a function of `p`, states and
    hyperparameters, by their names."""
    def decorate(rule: Callable) -> Callable:
        rule.evaluated = at
        return rule
    return decorate


def totals(update: Callable, **sums: Callable) -> Callable:
    """Decorator: a step changes hyperparameters to what `update` returns, a dict. It takes hyperparameters, and `sums`
    over all elements of all parameters, as they are before the step: functions of `p`, `g`, states and hyperparameters.
    All are taken by their names."""
    def decorate(rule: Callable) -> Callable:
        rule.totals = update, sums
        return rule
    return decorate


def sgd(p, g, *, lr):
    "Stochastic gradient descent (Robbins & Monro 1951)."
    return p - lr*g


def momentum(p, g, avg, *, lr, mom=0.9):
    "SGD along an exponential average of the gradient: momentum dampened by 1-mom (Polyak 1964, as in the course)."
    avg = mom*avg + (1-mom)*g
    return p - lr*avg, avg


def heavy_ball(p, g, buf, *, lr, mom=0.9):
    "SGD with undampened momentum, torch.optim.SGD's (Polyak 1964)."
    buf = mom*buf + g
    return p - lr*buf, buf


def nesterov(p, g, buf, *, lr, mom=0.9):
    "SGD with Nesterov's momentum as torch.optim.SGD has it (Sutskever et al. 2013, section 2, rewritten)."
    buf = mom*buf + g
    return p - lr*(g + mom*buf), buf


@starts(sqr_avg=lambda p, g: g*g)
def rmsprop(p, g, sqr_avg, *, lr, sqr_mom=0.99, eps=1e-5):
    "RMSProp, its average starting at the first squared gradient (Tieleman & Hinton 2012, as in the course)."
    sqr_avg = sqr_mom*sqr_avg + (1-sqr_mom)*g*g
    return p - lr*g / (sqrt(sqr_avg) + eps), sqr_avg


def adam(p, g, avg, sqr_avg, *, t, lr, beta1=0.9, beta2=0.99, eps=1e-5):
    "Adam with `eps` inside the root, as in the course (Kingma & Ba 2014, algorithm 1)."
    avg     = beta1*avg     + (1-beta1)*g      # m_t
    sqr_avg = beta2*sqr_avg + (1-beta2)*g*g    # v_t
    m = avg     / (1 - beta1**t)
    v = sqr_avg / (1 - beta2**t)
    return p - lr*m / sqrt(v + eps), avg, sqr_avg


def adagrad(p, g, sqr_sum, *, t, lr, lr_decay=0., eps=1e-10):
    "Adagrad (Duchi, Hazan & Singer 2011)."
    sqr_sum = sqr_sum + g*g
    return p - lr / (1 + (t-1)*lr_decay) * g / (sqrt(sqr_sum) + eps), sqr_sum


def adamw(p, g, avg, sqr_avg, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    "Adam with `eps` outside the root (Kingma & Ba 2014; with decoupled decay it is AdamW, Loshchilov & Hutter 2017)."
    avg     = beta1*avg     + (1-beta1)*g
    sqr_avg = beta2*sqr_avg + (1-beta2)*g*g
    return p - lr/(1 - beta1**t) * avg / (sqrt(sqr_avg)/(1 - beta2**t)**0.5 + eps), avg, sqr_avg


@scalars(mu_product=1.)
def nadamw(p, g, avg, sqr_avg, mu_product, *, t, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, momentum_decay=4e-3):
    "Adam with Nesterov's momentum, which warms up (Dozat 2016, section 3); with decoupled decay it is NAdamW."
    mu      = beta1 * (1 - 0.5 * 0.96**(t*momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96**((t+1)*momentum_decay))
    mu_product = mu_product*mu
    avg     = beta1*avg     + (1-beta1)*g
    sqr_avg = beta2*sqr_avg + (1-beta2)*g*g
    m = (1-mu)/(1 - mu_product)*g + mu_next/(1 - mu_product*mu_next)*avg
    return p - lr*m / (sqrt(sqr_avg)/(1 - beta2**t)**0.5 + eps), avg, sqr_avg, mu_product


def radam(p, g, avg, sqr_avg, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    "RAdam: momentum in the first steps, then Adam with a rectified rate (Liu et al. 2019, algorithm 2)."
    avg     = beta1*avg     + (1-beta1)*g
    sqr_avg = beta2*sqr_avg + (1-beta2)*g*g
    rho_inf = 2/(1-beta2) - 1
    rho     = rho_inf - 2*t*beta2**t / (1 - beta2**t)
    r       = sqrt((rho-4)*(rho-2)*rho_inf / ((rho_inf-4)*(rho_inf-2)*rho))
    adapted, plain = where(rho > 5, r, 0.), where(rho > 5, 0., 1.)
    v = (sqrt(sqr_avg) + eps) / (1 - beta2**t)**0.5
    return p - lr/(1 - beta1**t) * avg * (adapted/v + plain), avg, sqr_avg


def adopt(p, g, avg, sqr_avg, *, t, lr=1e-3, beta1=0.9, beta2=0.9999, eps=1e-6):
    """ADOPT: Adam that divides by the average square of earlier gradients only, clipped; its first step only begins
    that average (Taniguchi et al. 2024, algorithm 2)."""
    begun, limit = where(t > 1, 1., 0.), (t-1)**0.25
    n = maximum(minimum(g / maximum(sqrt(sqr_avg), eps), limit), -limit)
    avg     = beta1*avg + (1-beta1)*n
    sqr_avg = begun*beta2*sqr_avg + (1 - begun*beta2)*g*g
    return p - lr*avg, avg, sqr_avg


def ademamix(p, g, avg, slow_avg, sqr_avg, *, t, lr=1e-3, beta1=0.9, beta2=0.999, beta3=0.9999, alpha=5., eps=1e-8):
    "AdEMAMix: Adam with a second, much slower average of the gradient (Pagliardini et al. 2024, algorithm 1)."
    avg      = beta1*avg      + (1-beta1)*g
    sqr_avg  = beta2*sqr_avg  + (1-beta2)*g*g
    slow_avg = beta3*slow_avg + (1-beta3)*g
    m = avg/(1 - beta1**t) + alpha*slow_avg
    return p - lr*m / (sqrt(sqr_avg)/(1 - beta2**t)**0.5 + eps), avg, slow_avg, sqr_avg


def mars(p, g, avg, sqr_avg, last_g, *, t, lr=3e-3, beta1=0.95, beta2=0.99, gamma=0.025, eps=1e-8):
    """MARS-AdamW: Adam on gradients corrected by their change since the last step, with a norm of at most 1 (Yuan et
    al. 2024, algorithm 2, with the last step's gradient as it was)."""
    c = g + gamma*beta1/(1-beta1)*(g - last_g)
    n = norm(c)
    c = c / where(n > 1, n, 1.)
    avg     = beta1*avg     + (1-beta1)*c
    sqr_avg = beta2*sqr_avg + (1-beta2)*c*c
    m, v = avg/(1 - beta1**t), sqr_avg/(1 - beta2**t)
    return p - lr*m / (sqrt(v) + eps), avg, sqr_avg, g


def lion(p, g, avg, *, lr, beta1=0.9, beta2=0.99):
    "Lion: the sign of an average, and a slower average (Chen et al. 2023, algorithm 2)."
    return p - lr*sign(beta1*avg + (1-beta1)*g), beta2*avg + (1-beta2)*g


def lamb(p, g, avg, sqr_avg, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6):
    "LAMB: Adam's step, as long as the parameter times the rate (You et al. 2019, algorithm 2)."
    avg     = beta1*avg     + (1-beta1)*g
    sqr_avg = beta2*sqr_avg + (1-beta2)*g*g
    u = avg/(1 - beta1**t) / (sqrt(sqr_avg/(1 - beta2**t)) + eps)
    a, b = norm(p), norm(u)
    return p - lr*where(a*b > 0, a/b, 1.)*u, avg, sqr_avg


@matrix(others=adamw)
def muon(p, g, buf, *, lr=1e-3, mom=0.95, ns_steps=5, coefficients='quintic', adjust='match_rms_adamw'):
    """Muon: Nesterov's momentum, orthogonalized (Jordan et al. 2024), at a rate that fits AdamW's (Liu et al. 2025,
    section 2.2) or, with `adjust='spectral'`, is that of the first authors."""
    buf = mom*buf + (1-mom)*g
    u = orthogonalize((1-mom)*g + mom*buf, steps=ns_steps, coefficients=coefficients)
    return p - lr*muon_scale(p, adjust)*u, buf


def muon_scale(p: Any, adjust: str) -> float:
    "How much longer than an orthogonal matrix the step of a matrix is."
    m, n = getattr(p, 'shape', (1, 1))
    if adjust == 'match_rms_adamw': return 0.2 * max(m, n)**0.5
    if adjust in ('spectral', 'original'): return max(1, m/n)**0.5  # torch.optim.Muon says original
    raise ValueError(f"adjust must be 'match_rms_adamw' or 'spectral', got {adjust!r}")


@evaluated(lambda p, z, mom: (p - (1-mom)*z)/mom)
@starts(z=lambda p, g: p)
@scalars(weight_sum=0., lr_max=0.)
def schedule_free_sgd(p, g, z, weight_sum, lr_max, *, t, lr=1., wd=0., mom=0.9, warmup_steps=0, r=0.,
                      weight_lr_power=2.):
    """Schedule-Free SGD (Defazio et al. 2024, equations 3 to 5): gradients are taken at `p`, between the steps `z` and
    their average `x`."""
    lr, c, weight_sum, lr_max = averaging(t, lr, warmup_steps, r, weight_lr_power, weight_sum, lr_max)
    x = (p - (1-mom)*z)/mom
    z = z - lr*(g + wd*p)
    x = (1-c)*x + c*z
    return (1-mom)*z + mom*x, z, weight_sum, lr_max


@evaluated(lambda p, z, beta1: (p - (1-beta1)*z)/beta1)
@starts(z=lambda p, g: p)
@scalars(weight_sum=0., lr_max=0.)
def schedule_free_adamw(p, g, z, sqr_avg, weight_sum, lr_max, *, t, lr=2.5e-3, wd=0., beta1=0.9, beta2=0.999, eps=1e-8,
                        warmup_steps=0, r=0., weight_lr_power=2.):
    "Schedule-Free AdamW (Defazio et al. 2024, algorithm 1)."
    lr, c, weight_sum, lr_max = averaging(t, lr, warmup_steps, r, weight_lr_power, weight_sum, lr_max)
    sqr_avg = beta2*sqr_avg + (1-beta2)*g*g
    u = g / (sqrt(sqr_avg)/(1 - beta2**t)**0.5 + eps)
    x = (p - (1-beta1)*z)/beta1
    z = z - lr*(u + wd*p)
    x = (1-c)*x + c*z
    return (1-beta1)*z + beta1*x, z, sqr_avg, weight_sum, lr_max


def averaging(t: Any, lr: Any, warmup_steps: Any, r: Any, power: Any, weight_sum: Any, lr_max: Any) -> tuple:
    """The rate as it warms up, the weight of this step in a Schedule-Free average, and what that is computed from: the
    sum of all weights and the highest rate so far."""
    lr = lr * minimum(t/maximum(warmup_steps, 1.), 1.)
    lr_max = maximum(lr, lr_max)
    weight = t**r * lr_max**power
    weight_sum = weight_sum + weight
    return lr, weight/maximum(weight_sum, 1e-300), weight_sum, lr_max


def estimated(d, d_numerator, beta2, d_coef, toward, length):
    "Prodigy's estimate of the distance from the start to the solution (algorithm 4): it only grows."
    d_numerator = beta2**0.5*d_numerator + (1 - beta2**0.5)*d*d*toward
    return dict(d=max(d, d_coef*d_numerator/length) if length else d, d_numerator=d_numerator)


def slow_sum(g, s, lr, beta2, d): return beta2**0.5*s + (1 - beta2**0.5)*d*d*lr*g


@totals(estimated, toward=lambda p, g, p0, lr: lr*g*(p0 - p),
        length=lambda g, s, lr, beta2, d: abs(slow_sum(g, s, lr, beta2, d)))
@starts(p0=lambda p, g: p)
def prodigy(p, g, p0, avg, sqr_avg, s, *, lr=1., wd=0., beta1=0.9, beta2=0.999, eps=1e-8, d=1e-6, d_numerator=0.,
            d_coef=1.):
    "Prodigy: Adam at lr times the estimated distance to the solution (Mishchenko & Defazio 2023, algorithm 4)."
    avg     = beta1*avg     + (1-beta1)*d*g
    sqr_avg = beta2*sqr_avg + (1-beta2)*d*d*g*g
    return p - lr*d*(avg/(sqrt(sqr_avg) + d*eps) + wd*p), p0, avg, sqr_avg, slow_sum(g, s, lr, beta2, d)

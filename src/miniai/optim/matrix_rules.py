"Update rules for whole matrices, after Muon: rules that scale rows, or that change the basis of gradients."
import math
from typing import Any

import torch

from miniai.kernels.math import maximum, minimum, sign, sqrt
from miniai.kernels.matrix import (
    column_means,
    eigenbasis,
    eigenorder,
    inverse_root,
    largest,
    matmul,
    norm,
    normal,
    orthogonalize,
    orthonormal,
    reordered,
    rms,
    row_means,
    solved,
    spectral_bound,
    transpose,
    upper,
)
from miniai.optim.rules import adamw, matrix, muon_scale, scalars, starts

__all__ = ['scion', 'scion_outer', 'normuon', 'soap', 'shampoo', 'adafactor', 'adafactor_vector', 'kron']


def left_zeros(p, g): return 0*matmul(g, transpose(g))
def right_zeros(p, g): return 0*matmul(transpose(g), g)


def scion_outer(p, g, avg, *, lr=2**-12, mom=0.9, scale=3000., bias_scale=50.):
    "Scion for embeddings and the last layer, by sign, and for vectors, by root mean square (Pethick et al. 2025)."
    avg, shape = mom*avg + (1-mom)*g, getattr(p, 'shape', ())
    if len(shape) < 2: u = bias_scale*avg / (norm(avg)/max(1, math.prod(shape))**0.5 + 1e-8)
    else: u = scale/max(1, math.prod(shape[1:]))*sign(avg)
    return p - lr*u, avg


@matrix(others=scion_outer, flat=False)
def scion(p, g, avg, *, lr=2**-12, mom=0.9, scale=50., ns_steps=5, coefficients='quintic'):
    """Scion: an orthogonalized momentum as long as the shape of a layer asks for (Pethick et al. 2025, algorithm 2 and
    table 2)."""
    avg = mom*avg + (1-mom)*g
    rows, columns, *kernel = getattr(p, 'shape', (1, 1))
    length = (rows/columns)**0.5 / math.prod(kernel)
    return p - lr*scale*length*orthogonalize(avg, steps=ns_steps, coefficients=coefficients), avg


@matrix(others=adamw)
@starts(sqr_avg=lambda p, g: 0*row_means(g))
def normuon(p, g, buf, sqr_avg, *, lr=1e-3, mom=0.95, beta2=0.95, eps=1e-10, ns_steps=5, coefficients='quintic',
            adjust='match_rms_adamw'):
    """NorMuon: Muon with each row divided by the root of its average square, as long as before (Li et al. 2025,
    algorithm 1; with `adjust='spectral'` as in the authors' code)."""
    buf = mom*buf + (1-mom)*g
    o = orthogonalize((1-mom)*g + mom*buf, steps=ns_steps, coefficients=coefficients)
    sqr_avg = beta2*sqr_avg + (1-beta2)*row_means(o*o)
    u = o / (sqrt(sqr_avg) + eps)
    return p - lr*normuon_length(o, adjust) / (norm(u) + eps) * u, buf, sqr_avg


def normuon_length(o: Any, adjust: str) -> Any:
    "How long NorMuon's step is at a rate of 1: a mean square of 0.2, or that of Muon's step `o`."
    m, n = getattr(o, 'shape', (1, 1))
    return 0.2 * (m*n)**0.5 if adjust == 'match_rms_adamw' else muon_scale(o, adjust) * norm(o)


@matrix(others=adamw, longest=10_000)
@starts(left=left_zeros, right=right_zeros, left_basis=left_zeros, right_basis=right_zeros)
def soap(p, g, avg, sqr_avg, left, right, left_basis, right_basis, *, t, lr=3e-3, beta1=0.95, beta2=0.95, eps=1e-8,
         every=10):
    """SOAP: Adam in the eigenbasis of Shampoo's averages, renewed at each `every`-th step (Vyas et al. 2024, algorithm
    3). The first step only begins that basis."""
    left  = beta2*left  + (1-beta2)*matmul(g, transpose(g))  # L_t
    right = beta2*right + (1-beta2)*matmul(transpose(g), g)  # R_t
    if t == 1: return p, avg, sqr_avg, left, right, eigenbasis(left), eigenbasis(right)
    q, r = left_basis, right_basis
    avg     = beta1*avg     + (1-beta1)*g
    sqr_avg = beta2*sqr_avg + (1-beta2)*rotated(g, q, r)**2
    m = rotated(avg, q, r) / (1 - beta1**(t-1))
    u = m / (sqrt(sqr_avg) + eps) * (1 - beta2**(t-1))**0.5
    p = p - lr*rotated(u, transpose(q), transpose(r))
    if (t-1) % every: return p, avg, sqr_avg, left, right, q, r
    rows, columns = eigenorder(left, q), eigenorder(right, r)
    sqr_avg = reordered(sqr_avg, rows=rows, columns=columns)
    return p, avg, sqr_avg, left, right, power_step(left, q, rows), power_step(right, r, columns)


def rotated(x: Any, left_basis: Any, right_basis: Any) -> Any:
    "A matrix in other bases, those of its rows and of its columns."
    return matmul(matmul(transpose(left_basis), x), right_basis)


def power_step(x: Any, basis: Any, order: Any) -> Any:
    "A basis, its columns in the given order, one step of power iteration nearer to the eigenbasis of `x`."
    return orthonormal(matmul(x, reordered(basis, columns=order)))


@matrix(others=adamw, longest=8192)
@starts(left=left_zeros, right=right_zeros, left_root=left_zeros, right_root=right_zeros)
def shampoo(p, g, avg, sqr_avg, left, right, left_root, right_root, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8,
            damping=1e-12, every=100):
    """Shampoo: gradients divided by roots of their second moments on both sides (Gupta et al. 2018, algorithm 1), with
    averages instead of sums and steps as long as Adam's (Shi et al. 2023, section 4). Adam, until there are roots."""
    left    = beta2*left    + (1-beta2)*matmul(g, transpose(g))  # L_t
    right   = beta2*right   + (1-beta2)*matmul(transpose(g), g)  # R_t
    avg     = beta1*avg     + (1-beta1)*g
    sqr_avg = beta2*sqr_avg + (1-beta2)*g*g
    m = avg / (1 - beta1**t)
    u = m / (sqrt(sqr_avg/(1 - beta2**t)) + eps)
    if t % every == 0:
        left_root  = inverse_root(left/(1 - beta2**t),  root=4, eps=damping)
        right_root = inverse_root(right/(1 - beta2**t), root=4, eps=damping)
    if t >= every:
        shaped = matmul(matmul(left_root, m), right_root)
        u = norm(u) / (norm(shaped) + 1e-16) * shaped
    return p - lr*u, avg, sqr_avg, left, right, left_root, right_root


def adafactor_vector(p, g, variance, *, t, lr=1e-2, decay_power=0.8, eps1='precision', eps2=1e-3, d=1.):
    "Adafactor for what has no rows and columns (Shazeer & Stern 2018, algorithm 5)."
    share = t**-decay_power
    variance = (1-share)*variance + share*g*g
    return adafactor_step(p, g, sqrt(variance), t, lr, eps1, eps2, d), variance


@matrix(others=adafactor_vector, hidden=False, flat=False)
@starts(row_var=lambda p, g: 0*row_means(g), col_var=lambda p, g: 0*column_means(g))
def adafactor(p, g, row_var, col_var, *, t, lr=1e-2, decay_power=0.8, eps1='precision', eps2=1e-3, d=1.):
    "Adafactor: squared gradients averaged over rows and columns (Shazeer & Stern 2018, algorithm 4)."
    share, squares = t**-decay_power, g*g
    row_var = (1-share)*row_var + share*row_means(squares)     # R_t
    col_var = (1-share)*col_var + share*column_means(squares)  # C_t
    root = sqrt(row_var / maximum(column_means(row_var), smallest(eps1, p))) * sqrt(col_var)
    return adafactor_step(p, g, root, t, lr, eps1, eps2, d), row_var, col_var


def adafactor_step(p: Any, g: Any, root: Any, t: int, lr: float, eps1: Any, eps2: float, d: float) -> Any:
    "A clipped step whose length is relative to that of the parameter, by the root of the average squared gradient."
    u = g / maximum(root, smallest(eps1, p))
    length = maximum(eps2, rms(p)) * minimum(lr, t**-0.5)
    return p - length/maximum(1., rms(u)/d) * u


def smallest(eps: Any, x: Any) -> float:
    "`eps`, or if it is 'precision' the distance from 1 to the next number of the dtype of `x`. ValueError for others."
    if isinstance(eps, str) and eps != 'precision':
        raise ValueError(f"eps1 must be a number or 'precision', got {eps!r}")
    return torch.finfo(getattr(x, 'dtype', torch.float64)).eps if eps == 'precision' else eps


def left_identity(p, g): return torch.eye(p.shape[0], dtype=p.dtype, device=p.device)
def right_identity(p, g): return torch.eye(p.shape[1], dtype=p.dtype, device=p.device)


@matrix(others=adamw, longest=8192)
@starts(left=left_identity, right=right_identity)
@scalars(waited=0.)
def kron(p, g, avg, left, right, waited, *, t, key, lr=3e-4, mom=0.9, factor_lr=0.1, every=34):
    """PSGD Kron: momentum, whitened by two triangular factors (Li 2018; Li 2024, table 1). They are fitted at each of
    the first 500 steps, then less often, in the end at each `every`-th."""
    avg = mom*avg + (1-mom)*g
    m, waited = avg / (1 - mom**t), waited + 1
    if waited >= min(every, max(1., math.exp((t-501)/1000))):
        left, right = fitted(m, left, right, factor_lr, normal(m, key=key))
        waited = 0.
    u = matmul(matmul(transpose(left), matmul(left, m)), matmul(transpose(right), right))  # Q'Q m
    return p - lr*u / maximum(1., rms(u)/1.1), avg, left, right, waited


def fitted(m: Any, left: Any, right: Any, lr: float, noise: Any) -> tuple[Any, Any]:
    "Both factors, of about the same size and after a step to where they turn `m` into white noise."
    ratio = (largest(right)/largest(left))**0.5
    left, right = left*ratio, right/ratio
    m = m + 2**-11.5 * column_means(row_means(abs(m))) * noise
    a = matmul(matmul(left, m), transpose(right))                     # Q m
    b = solved(left, transpose(solved(right, transpose(noise))))      # the inverse of Q', times noise
    def step(q: Any, aa: Any, bb: Any) -> Any:
        return q - lr/maximum(spectral_bound(aa + bb), 1e-37) * matmul(upper(aa - bb), q)
    return (step(left, matmul(a, transpose(a)), matmul(b, transpose(b))),
            step(right, matmul(transpose(a), a), matmul(transpose(b), b)))

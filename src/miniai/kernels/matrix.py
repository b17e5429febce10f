"The functions of whole parameters that a rule may use: on matrices, and on Python floats as matrices of one element."
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from miniai.kernels.math import double
from miniai.kernels.trace import Symbol, symbolic_count, symbolic_total

__all__ = ['norm', 'mean', 'largest', 'upper', 'solved', 'spectral_bound', 'normal', 'rms', 'trace', 'transpose',
           'matmul', 'row_means', 'column_means', 'orthogonalize', 'orthonormal', 'eigenbasis', 'eigenorder',
           'reordered', 'inverse_root', 'COEFFICIENTS']

COEFFICIENTS = dict(  # of a*x + b*x**3 + c*x**5, applied to the singular values of a matrix at each step
    quintic=(3.4445, -4.7750, 2.0315),  # Jordan 2024: steep at zero; the values end up between 0.7 and 1.2
    newton=(1.875, -1.25, 0.375))       # Newton-Schulz: slower, and the values converge to 1


def _whole(f: Callable) -> Callable:
    "`f` on tensors, on floats as matrices of one element; a rule that uses it cannot be traced."
    @wraps(f)
    def on_anything(*xs: Any, **options: Any) -> Any:
        if any(isinstance(x, Symbol) for x in xs):
            raise TypeError(f"it uses {f.__name__}, which needs whole parameters")
        if any(isinstance(x, Tensor) for x in xs): return f(*xs, **options)
        return f(*(torch.tensor([[float(x)]], dtype=torch.float64) for x in xs), **options).item()
    return on_anything


def norm(x: Any) -> Any:
    "The Euclidean norm of all elements of a parameter, or of a matrix the Frobenius norm."
    if isinstance(x, Symbol): return symbolic_total(double(x)*double(x))**0.5
    return torch.linalg.vector_norm(x) if isinstance(x, Tensor) else abs(x)


def mean(x: Any) -> Any:
    "The mean of all elements of a parameter; of a comparison the share for which it holds."
    if isinstance(x, Symbol): return symbolic_total(x)/symbolic_count(x)
    return double(x).sum()/x.numel() if isinstance(x, Tensor) else float(x)


@_whole
def trace(x: Tensor) -> Tensor:
    "The sum of the diagonal."
    return torch.trace(x)


@_whole
def transpose(x: Tensor) -> Tensor:
    "Rows as columns."
    return x.mT


@_whole
def matmul(a: Tensor, b: Tensor) -> Tensor:
    "The matrix product."
    return a @ b


@_whole
def row_means(x: Tensor) -> Tensor:
    "The mean of each row, as a column."
    return x.mean(-1, keepdim=True)


@_whole
def column_means(x: Tensor) -> Tensor:
    "The mean of each column, as a row."
    return x.mean(-2, keepdim=True)


def rms(x: Any) -> Any:
    "The root of the mean square of all elements of a parameter."
    if isinstance(x, Symbol): return mean(double(x)*double(x))**0.5
    return torch.linalg.vector_norm(x) / x.numel()**0.5 if isinstance(x, Tensor) else abs(x)


@_whole
def orthogonalize(x: Tensor, *, steps: int = 5, coefficients: str = 'quintic', eps: float = 1e-7) -> Tensor:
    """The orthogonal matrix nearest to `x`, roughly: U V' of its singular value decomposition U S V', by that many
    Newton-Schulz steps; of a convolution with one row for each output channel. `coefficients` names their polynomial:
    see COEFFICIENTS. Computed in bfloat16, as by the authors (Jordan et al. 2024), or in float64 if `x` is float64."""
    if coefficients not in COEFFICIENTS:
        raise ValueError(f"orthogonalize: coefficients must be one of {', '.join(COEFFICIENTS)}, got {coefficients!r}")
    a, b, c = COEFFICIENTS[coefficients]
    y = x.flatten(1) if x.ndim > 2 else x
    tall = y.shape[0] > y.shape[1]
    y = y if x.dtype is torch.float64 else y.bfloat16()
    y = y.mT if tall else y
    y = y / y.norm().clamp(min=eps)
    for _ in range(int(steps)):
        s = y @ y.mT
        y = torch.addmm(y, torch.addmm(s, s, s, beta=b, alpha=c), y, beta=a)  # a*y + (b*s + c*s@s) @ y
    return (y.mT if tall else y).to(x.dtype).reshape(x.shape)


def _eigen(x: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues of a symmetric matrix, the smallest first, and its eigenvectors as columns. Computed in float64:
    in float32 LAPACK fails for some matrices of low rank, or returns NaN. ValueError for numbers that are not
    finite."""
    if not x.isfinite().all(): raise ValueError(
        "a matrix whose eigenvectors a rule needs is not finite: a gradient was NaN, infinite or too large to be "
        "squared. Create the optimizer with skip_nonfinite=True or clip_norm=1, or lower the learning rate")
    values, vectors = torch.linalg.eigh((x.cpu() if x.is_mps else x).double())  # MPS has no float64
    return values.to(x), vectors.to(x)


@_whole
def eigenbasis(x: Tensor) -> Tensor:
    "The eigenvectors of a symmetric matrix as columns, those of the largest eigenvalues first."
    return _eigen(x)[1].flip(-1)


@_whole
def eigenorder(x: Tensor, q: Tensor) -> Tensor:
    "The columns of a basis, by number, in falling order of the eigenvalues that the symmetric matrix `x` has for them."
    return (q*(x @ q)).sum(0).argsort(descending=True, stable=True)


@_whole
def reordered(x: Tensor, *, rows: Any = None, columns: Any = None) -> Tensor:
    "The rows and columns of a matrix in the order of these numbers."
    for dim, order in ((-2, rows), (-1, columns)):
        if order is not None: x = x.index_select(dim, torch.as_tensor(order, device=x.device).view(-1))
    return x


@_whole
def orthonormal(x: Tensor) -> Tensor:
    "The columns of a square matrix made orthogonal and of length 1, from first to last: Q of its QR decomposition."
    return torch.linalg.qr(x).Q


@_whole
def largest(x: Tensor) -> Tensor:
    "The largest absolute value of all elements."
    return x.abs().max()


@_whole
def upper(x: Tensor) -> Tensor:
    "A matrix with zeros below its diagonal."
    return x.triu()


@_whole
def solved(q: Tensor, x: Tensor) -> Tensor:
    "The solution y of `transpose(q) @ y = x` for a matrix `q` that is zero below its diagonal."
    return torch.linalg.solve_triangular(q.mT, x, upper=False)


@_whole
def spectral_bound(x: Tensor) -> Tensor:
    "A number up to the largest eigenvalue of a symmetric matrix, mostly near it: a power step from its longest column."
    size = x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
    x = x/size
    y = x[:, x.square().sum(0).argmax()] @ x
    return size * torch.linalg.vector_norm(x @ (y / torch.linalg.vector_norm(y).clamp(min=1e-30)))


@_whole
def normal(x: Tensor, *, key: int) -> Tensor:
    "Random numbers of the normal distribution, as many as elements of `x`: the same for the same key."
    generator = torch.Generator(x.device).manual_seed(key)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


@_whole
def inverse_root(x: Tensor, *, root: float = 2., eps: float = 1e-12) -> Tensor:
    "`x**(-1/root)` of a symmetric matrix without negative eigenvalues; those below `eps` count as `eps`."
    values, vectors = _eigen(x)
    return (vectors * values.clamp(min=eps).pow(-1/root)) @ vectors.mT

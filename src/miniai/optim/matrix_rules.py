"Update rules for whole matrices, after Muon: rules that scale rows, or that change the basis of gradients."
from typing import Any

from miniai.kernels.math import sqrt
from miniai.kernels.matrix import norm, orthogonalize, row_means
from miniai.optim.rules import adamw, matrix, muon_scale, starts

__all__ = ['normuon']


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

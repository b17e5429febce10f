"The functions of whole parameters: against numpy in double precision, and on Python floats."
import numpy as np
import pytest
import torch

from miniai.kernels.matrix import (
    COEFFICIENTS,
    column_means,
    eigenbasis,
    eigenorder,
    inverse_root,
    largest,
    matmul,
    mean,
    norm,
    normal,
    orthogonalize,
    orthonormal,
    reordered,
    rms,
    row_means,
    solved,
    spectral_bound,
    trace,
    transpose,
    upper,
)
from miniai.optim.rules import matrix, sgd
from miniai.optim.spec import read_rule

RNG = np.random.default_rng(0)
SHAPES = [(1, 1), (1, 4), (4, 1), (5, 3), (3, 5), (6, 6)]


def definite(n):
    a = RNG.normal(size=(n, n + 2))
    return a @ a.T


@pytest.mark.parametrize('shape', SHAPES)
def test_norm_trace_transpose_and_product_are_numpys(shape):
    a, b = RNG.normal(size=shape), RNG.normal(size=shape[::-1])
    x, y = torch.tensor(a), torch.tensor(b)
    assert float(norm(x)) == pytest.approx(np.sqrt((a**2).sum()), rel=1e-12)
    assert np.allclose(transpose(x), a.T, rtol=0, atol=0)
    assert np.allclose(matmul(x, y), a @ b, rtol=1e-12)
    assert np.allclose(row_means(x), a.mean(1)[:, None], rtol=1e-12)
    assert np.allclose(column_means(x), a.mean(0)[None], rtol=1e-12)
    assert float(rms(x)) == pytest.approx(np.sqrt((a**2).mean()), rel=1e-12)
    assert float(trace(matmul(x, y))) == pytest.approx(np.trace(a @ b), rel=1e-12)


@pytest.mark.parametrize('shape', SHAPES)
def test_newtons_polynomial_converges_to_the_nearest_orthogonal_matrix(shape):
    a = RNG.normal(size=shape)
    u, _, v = np.linalg.svd(a, full_matrices=False)
    assert np.allclose(orthogonalize(torch.tensor(a), steps=40, coefficients='newton'), u @ v, atol=1e-9)


@pytest.mark.parametrize('name', COEFFICIENTS)
def test_a_step_is_the_polynomial_of_the_singular_values(name):
    a, (c1, c3, c5) = RNG.normal(size=(4, 7)), COEFFICIENTS[name]
    u, s, v = np.linalg.svd(a, full_matrices=False)
    s /= np.sqrt((s**2).sum())
    for _ in range(3): s = c1*s + c3*s**3 + c5*s**5
    assert np.allclose(orthogonalize(torch.tensor(a), steps=3, coefficients=name), u*s @ v, atol=1e-12)


def test_five_quintic_steps_bring_all_but_tiny_singular_values_near_one_in_bfloat16():
    x = torch.randn(40, 60)
    values = torch.linalg.svdvals(orthogonalize(x))
    assert orthogonalize(x).dtype is torch.float32
    assert values.min() > .5
    assert values.max() < 1.3


def test_a_matrix_of_zeros_stays_zero():
    assert torch.equal(orthogonalize(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_an_unknown_polynomial_is_an_error():
    with pytest.raises(ValueError, match="coefficients must be one of quintic, newton, got 'cubic'"):
        orthogonalize(torch.ones(2, 2), coefficients='cubic')


@pytest.mark.parametrize('root', [1, 2, 4])
def test_an_inverse_root_to_its_power_is_the_inverse(root):
    a = definite(5)
    x = inverse_root(torch.tensor(a), root=root).numpy()
    assert np.allclose(np.linalg.matrix_power(x, root) @ a, np.eye(5), atol=1e-8)


def test_the_eigenbasis_diagonalizes_with_the_largest_values_first():
    a = definite(5)
    q = eigenbasis(torch.tensor(a)).numpy()
    rotated = q.T @ a @ q
    assert np.allclose(q.T @ q, np.eye(5), atol=1e-12)
    assert np.allclose(rotated, np.diag(np.sort(np.linalg.eigvalsh(a))[::-1]), atol=1e-9)


@pytest.mark.parametrize('rank', [1, 3, 16])
def test_gradients_with_rows_of_zeros_have_eigenvectors(rank):
    for seed in range(4):
        torch.manual_seed(seed)
        g = torch.randn(300, rank) * (torch.rand(300, 1) > .5)  # of a layer half of whose units are dead
        x = g @ g.T
        q = eigenbasis(x)
        torch.testing.assert_close(q.T @ q, torch.eye(300))
        torch.testing.assert_close((q.T @ x @ q).diagonal()[:rank].sum(), x.trace())


@pytest.mark.parametrize('f', [eigenbasis, inverse_root])
@pytest.mark.parametrize('bad', [torch.nan, torch.inf])
def test_eigenvectors_of_a_matrix_that_is_not_finite_are_an_error_that_says_what_to_do(f, bad):
    with pytest.raises(ValueError, match=r'a gradient was NaN, infinite or too large.* skip_nonfinite=True'):
        f(torch.tensor([[1., bad], [bad, 1.]]))


def test_the_order_of_a_basis_is_that_of_its_eigenvalues():
    a = torch.tensor(definite(5))
    q, shuffled = eigenbasis(a), torch.tensor([3, 0, 4, 1, 2])
    mixed = reordered(q, columns=shuffled)
    assert torch.equal(mixed, q[:, shuffled])
    assert torch.equal(reordered(mixed, columns=eigenorder(a, mixed)), q)
    assert torch.equal(reordered(q, rows=shuffled, columns=shuffled), q[shuffled][:, shuffled])


def test_orthonormal_columns_span_what_the_first_columns_did():
    a = RNG.normal(size=(5, 5))
    q = orthonormal(torch.tensor(a)).numpy()
    assert np.allclose(q.T @ q, np.eye(5), atol=1e-12)
    assert np.allclose(np.tril(q.T @ a, -1), 0, atol=1e-12)


def test_a_triangle_and_its_solution():
    a, b = RNG.normal(size=(4, 4)), RNG.normal(size=(4, 3))
    q = upper(torch.tensor(a))
    assert np.array_equal(q, np.triu(a))
    assert np.allclose(np.triu(a).T @ solved(q, torch.tensor(b)).numpy(), b, atol=1e-9)
    assert largest(torch.tensor(a)) == np.abs(a).max()


def test_the_bound_of_the_largest_eigenvalue_is_below_and_near():
    for n in (1, 3, 20):
        a = definite(n)
        bound, top = float(spectral_bound(torch.tensor(a))), np.linalg.eigvalsh(a)[-1]
        assert .5*top < bound <= top*(1 + 1e-12)
        assert float(spectral_bound(torch.tensor(a*1e-30))) == pytest.approx(bound*1e-30, rel=1e-9)
    assert spectral_bound(torch.zeros(3, 3)) == 0


def test_normal_numbers_have_mean_0_and_variance_1_and_depend_on_the_key_alone():
    x = torch.zeros(200, 300)
    a = normal(x, key=5)
    assert abs(a.mean()) < .02
    assert abs(a.std() - 1) < .02
    assert torch.equal(a, normal(x + 1, key=5))
    assert not torch.equal(a, normal(x, key=6))


@pytest.mark.parametrize('x', [-3., .5, 0.])
def test_on_floats_they_are_the_functions_of_matrices_of_one_element(x):
    assert norm(x) == rms(x) == largest(x) == abs(x)
    assert spectral_bound(x) == pytest.approx(abs(x), abs=1e-37)
    assert solved(2., x) == x/2
    assert normal(x, key=3) == normal(torch.zeros(1, 1).double(), key=3)
    assert trace(x) == transpose(x) == row_means(x) == column_means(x) == upper(x) == x
    assert matmul(x, 2.) == 2*x
    assert orthogonalize(x, steps=40, coefficients='newton') == pytest.approx(np.sign(x), abs=1e-9)
    assert inverse_root(x*x + 1, root=4.) == pytest.approx((x*x + 1)**-.25, rel=1e-12)
    assert abs(eigenbasis(x)) == abs(orthonormal(x)) == 1
    assert eigenorder(x, 1.) == 0
    assert reordered(x, rows=0, columns=0) == x


@pytest.mark.parametrize('f', [norm, rms, mean, lambda x: mean(x > 0)])
def test_norms_and_means_of_elements_are_traced_but_not_those_of_numbers(f):
    def rule(p, g, *, lr): return p - lr*g/f(g)
    def numbers(p, g, *, lr): return p - f(lr)*g
    assert read_rule(rule).untraced == ''
    assert 'it sums a number that is the same for all elements' in read_rule(numbers).untraced


@pytest.mark.parametrize('x', [RNG.normal(size=(3, 4)), np.float64(-2.)])
def test_a_mean_is_over_all_elements_and_of_a_comparison_a_share(x):
    given = torch.tensor(x) if x.shape else float(x)
    assert float(mean(given)) == pytest.approx(x.mean(), rel=1e-14)
    assert float(mean(given > 0)) == (x > 0).mean()


def test_a_rule_with_the_others_cannot_be_traced_and_says_why():
    def rule(p, g, *, lr): return p - lr*g/largest(g)
    assert read_rule(rule).untraced == 'rule cannot be traced: it uses largest, which needs whole parameters'
    assert read_rule(matrix(others=sgd)(rule)).others is sgd

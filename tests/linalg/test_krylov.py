"""Conjugate gradient, Lanczos, exponentials and Kronecker sums against dense algebra."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch

from spanwise.errors import ConvergenceError
from spanwise.linalg.krylov import conjugate_gradient, expm_multiply, kronecker_sum, lanczos

F64, C128 = torch.float64, torch.complex128


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive(n, *, seed=0, dtype=F64, rank=None, batch=()):
    x = draw(*batch, n, rank or 2 * n, seed=seed, dtype=dtype)
    return x @ x.mH / x.shape[-1]


def on(a):
    return lambda x: (a.to(x.dtype) @ x.unsqueeze(-1)).squeeze(-1)


def close(a, b, atol=1e-10):
    return torch.allclose(a, b, atol=atol, rtol=0)


def naive(a, b, x0, steps):
    """Conjugate gradient as the textbook writes it, in numpy."""
    a, b, x = (np.asarray(v) for v in (a, b, x0))
    r = b - a @ x
    p = r.copy()
    for _ in range(steps):
        alpha = np.vdot(r, r) / np.vdot(p, a @ p)
        x, new = x + alpha * p, r - alpha * (a @ p)
        p = new + np.vdot(new, new) / np.vdot(r, r) * p
        r = new
    return torch.as_tensor(x)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_iterates_are_the_textbook_s(steps, dtype):
    a, b, x0 = positive(12, dtype=dtype), draw(12, seed=1, dtype=dtype), draw(12, seed=2).to(dtype)
    found = conjugate_gradient(on(a), b, x0, iterations=steps, rtol=0)
    assert close(found.x, naive(a, b, x0, steps))
    assert int(found.iterations) == steps


def test_iterates_are_scipy_s_from_zero_and_from_anywhere():
    a, b = positive(20), draw(20, seed=1)
    for x0 in (None, draw(20, seed=2)):
        for steps in (1, 5):
            ours = conjugate_gradient(on(a), b, x0, iterations=steps).x
            start = None if x0 is None else x0.numpy()
            theirs, _ = scipy.sparse.linalg.cg(a.numpy(), b.numpy(), x0=start, maxiter=steps)
            assert close(ours, torch.as_tensor(theirs))


@pytest.mark.parametrize("dtype", [F64, C128])
def test_the_limit_solves_the_system(dtype):
    a, b = positive(15, dtype=dtype), draw(15, seed=1, dtype=dtype)
    found = conjugate_gradient(on(a), b, rtol=1e-13)
    assert close(found.x, torch.linalg.solve(a, b))
    assert len(found.residuals) == int(found.iterations) + 1
    assert close(found.residuals[0], b.norm())
    assert found.residuals[-1] <= 1e-13 * b.norm()


def test_the_error_in_a_s_norm_never_grows():
    a, b = positive(30), draw(30, seed=1)
    limit = torch.linalg.solve(a, b)
    errors = []
    for steps in range(1, 20):
        e = conjugate_gradient(on(a), b, iterations=steps, rtol=0).x - limit
        errors.append(float(e @ a @ e))
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(errors))


def test_a_batch_is_each_problem_by_itself():
    a, b, x0 = positive(10, batch=(3, 2)), draw(3, 2, 10, seed=1), draw(3, 2, 10, seed=2)
    b[1, 1] *= 1e-6
    together = conjugate_gradient(on(a), b, x0, rtol=1e-9)
    for i in range(3):
        for j in range(2):
            alone = conjugate_gradient(on(a[i, j]), b[i, j], x0[i, j], rtol=1e-9)
            assert close(together.x[i, j], alone.x)
            assert together.iterations[i, j] == alone.iterations


def test_a_matrix_is_one_problem_with_one_step_length():
    a, b = positive(6), draw(6, 4, seed=1)
    one = conjugate_gradient(lambda x: a @ x, b, axes=2, iterations=2, rtol=0).x
    flat = naive(torch.kron(a, torch.eye(4, dtype=F64)), b.flatten(), torch.zeros(24), 2)
    columns = conjugate_gradient(lambda x: x @ a, b.mT.contiguous(), iterations=2, rtol=0).x.mT
    assert close(one.flatten(), flat)
    assert not close(one, columns, 1e-4)


def test_what_the_start_has_in_the_null_space_stays():
    a = positive(12, rank=7)
    b, x0 = a @ draw(12, seed=1), draw(12, seed=2)
    found = conjugate_gradient(on(a), b, x0, rtol=1e-13).x
    expected = x0 + torch.linalg.pinv(a, hermitian=True) @ (b - a @ x0)
    assert close(found, expected)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_right_side_of_zero_gives_the_start_back(batch):
    x0 = draw(*batch, 5)
    found = conjugate_gradient(on(positive(5)), torch.zeros(*batch, 5, dtype=F64), x0)
    assert torch.equal(found.x, x0)
    assert int(found.iterations.sum()) == 0
    assert found.x.data_ptr() != x0.data_ptr()


def test_atol_alone_stops_it():
    a, b = positive(12), draw(12, seed=1)
    found = conjugate_gradient(on(a), b, rtol=0, atol=0.1)
    assert found.residuals[-1] <= 0.1 < found.residuals[-2]


def test_a_preconditioner_keeps_the_limit_and_changes_the_way():
    scale = torch.logspace(0, 3, 20, dtype=F64)
    a, b = positive(20) * scale.outer(scale), draw(20, seed=1)
    diagonal = a.diagonal()
    plain = conjugate_gradient(on(a), b, rtol=1e-10, iterations=500)
    short = conjugate_gradient(on(a), b, rtol=1e-10, iterations=500, precond=lambda r: r / diagonal)
    assert close(short.x, torch.linalg.solve(a, b), 1e-8)
    assert int(short.iterations) < int(plain.iterations)


def test_inputs_stay_and_half_precision_runs_in_float32():
    a, b, x0 = positive(8).float(), draw(8, seed=1).bfloat16(), draw(8, seed=2).bfloat16()
    before = b.clone(), x0.clone()
    found = conjugate_gradient(on(a), b, x0, rtol=1e-6)
    assert found.x.dtype == torch.float32
    assert torch.equal(b, before[0])
    assert torch.equal(x0, before[1])


def test_float32_loses_no_digits_to_long_sums_or_to_tiny_squares():
    scale = 1e-22  # squares of these are below float32's range
    d = torch.linspace(1, 3, 2**20)
    b = draw(2**20, seed=1).abs().float()
    for size in (1.0, scale):
        found = conjugate_gradient(lambda x, s=size: s * d * x, size * b, iterations=3, rtol=0)
        exact = naive_diagonal(d.double(), b.double(), 3)
        assert (found.x - exact).norm() <= 1e-6 * exact.norm()
        assert found.residuals[-1] > 0


def naive_diagonal(d, b, steps):
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    for _ in range(steps):
        alpha = r @ r / (p @ (d * p))
        x, new = x + alpha * p, r - alpha * d * p
        p, r = new + new @ new / (r @ r) * p, new
    return x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"axes": 2}, "axes must be between 1 and the 1 axes"),
        ({"rtol": -1.0}, "must not be negative"),
        ({"x0": torch.zeros(4, dtype=F64)}, r"x0 must have the shape of b, got \(4,\) and \(5,\)"),
        ({"x0": torch.full((5,), torch.nan, dtype=F64)}, "x0 holds NaN"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        conjugate_gradient(on(positive(5)), draw(5), **options)


def test_an_operator_that_is_not_semi_definite_is_refused():
    with pytest.raises(ValueError, match="not positive semi-definite"):
        conjugate_gradient(on(-positive(5)), draw(5))
    with pytest.raises(ValueError, match="operator gave NaN"):
        conjugate_gradient(lambda x: x * torch.nan, draw(5))


@pytest.mark.bad_input
def test_integers_have_no_solution():
    with pytest.raises(TypeError, match="b must be a real or complex tensor"):
        conjugate_gradient(lambda x: x, torch.arange(3))


def hermitian(n, *, dtype=F64, seed=0):
    x = draw(n, n, seed=seed, dtype=dtype)
    return (x + x.mH) / 2


@pytest.mark.parametrize("dtype", [F64, C128])
def test_lanczos_writes_the_operator_in_its_own_basis(dtype):
    a, v = hermitian(20, dtype=dtype), draw(20, seed=1, dtype=dtype)
    found = lanczos(on(a), v, 8)
    q, t = found.basis, found.tridiagonal().to(dtype)
    assert close(q.mH @ q, torch.eye(8, dtype=dtype))
    assert close(q.mH @ a @ q, t)
    last = torch.zeros(20, 8, dtype=dtype)
    left = a @ q - q @ t
    last[:, -1] = left[:, -1]
    assert close(left, last)
    assert left[:, -1].norm() == pytest.approx(float(found.off[-1]))


def test_lanczos_over_the_whole_space_has_the_operator_s_eigenvalues():
    a = hermitian(12)
    t = lanczos(on(a), draw(12, seed=1), 12).tridiagonal()
    assert close(torch.linalg.eigvalsh(t), torch.linalg.eigvalsh(a))


def test_lanczos_ends_where_the_space_does():
    values = torch.arange(1.0, 11.0, dtype=F64)
    start = torch.zeros(10, dtype=F64)
    start[:3] = 1
    found = lanczos(lambda x: values * x, start, 6)
    assert close(found.basis[:, 3:], torch.zeros(10, 3, dtype=F64))
    assert close(torch.linalg.eigvalsh(found.tridiagonal()[:3, :3]), values[:3])
    assert found.off[2] == 0


def test_lanczos_in_batches_is_each_by_itself():
    a, v = torch.stack([hermitian(9, seed=s) for s in (0, 1)]), draw(2, 9, seed=2)
    both = lanczos(on(a), v, 4)
    for k in range(2):
        assert close(both.tridiagonal()[k], lanczos(on(a[k]), v[k], 4).tridiagonal())


@pytest.mark.parametrize(("steps", "v"), [(0, 1.0), (6, 1.0), (3, 0.0), (3, float("nan"))])
def test_lanczos_names_what_it_cannot_do(steps, v):
    message = "steps must be between 1 and n = 5" if v == 1 else "start must be finite and not zero"
    with pytest.raises(ValueError, match=message):
        lanczos(on(hermitian(5)), torch.full((5,), v, dtype=F64), steps)


@pytest.mark.parametrize("t", [1.0, -0.3, 1j, -5j, 0.5 + 2j, 0.0])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_exponentials_are_the_dense_ones(t, dtype):
    a, v = hermitian(40, dtype=dtype), draw(40, seed=1, dtype=dtype)
    found = expm_multiply(on(a), v, t, steps=16, tol=1e-12)
    exact = torch.as_tensor(scipy.linalg.expm(t * a.numpy()) @ v.numpy())
    assert (found - exact).norm() <= 1e-10 * exact.norm()
    assert found.is_complex() == (dtype == C128 or bool(complex(t).imag))


def test_unitary_evolution_keeps_norms_and_zero_stays_zero():
    v = torch.stack([draw(30, seed=1), torch.zeros(30, dtype=F64)])
    found = expm_multiply(on(hermitian(30)), v, -7j)
    assert close(found.norm(dim=-1), v.norm(dim=-1))
    assert not found[1].any()


def test_time_that_needs_too_many_pieces_is_refused():
    with pytest.raises(ConvergenceError, match="needs more than"):
        expm_multiply(on(hermitian(40)), draw(40, seed=1), 1e9j, steps=2)
    with pytest.raises(ValueError, match="steps must be at least 2"):
        expm_multiply(on(hermitian(4)), draw(4), steps=1)


def test_a_kronecker_sum_is_the_dense_one_and_symmetric():
    c = torch.stack([positive(5, seed=s) for s in range(3)])
    b = torch.stack([positive(4, seed=9 + s) for s in range(3)])
    a = kronecker_sum(c, b)
    dense = sum(torch.kron(x, y) for x, y in zip(c, b, strict=True))
    x, y = draw(5, 4, seed=1), draw(5, 4, seed=2)
    assert close(a(x).flatten(), dense @ x.flatten())
    assert float((y * a(x)).sum() - (a(y) * x).sum()) == pytest.approx(0, abs=1e-10)
    assert float((x * a(x)).sum()) >= 0
    general = kronecker_sum(draw(2, 5, 5), draw(2, 4, 4, seed=1))
    dense = sum(torch.kron(draw(2, 5, 5)[k], draw(2, 4, 4, seed=1)[k]) for k in range(2))
    assert close(general(x).flatten(), dense @ x.flatten())


@pytest.mark.bad_input
def test_a_kronecker_sum_needs_pairs():
    with pytest.raises(ValueError, match="one pair a term"):
        kronecker_sum(torch.zeros(2, 3, 3), torch.zeros(1, 4, 4))

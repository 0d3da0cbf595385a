"""Least squares afterwards: its minimum, its matrix, and what noise leaves."""

import pytest
import torch

from spanwise.estimators import SubspacePowerMethod, symmetric_cp
from spanwise.estimators._spm.refine import refine
from spanwise.estimators._spm.spectrum import spaces
from spanwise.linalg.symmetric import flatten_symmetric, symmetrize

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def unit(d, r, seed=0):
    A = normal(d, r, seed=seed)
    return A / A.norm(dim=0)


def build(A, w, m):
    letters = "abcdef"[:m]
    terms = ",".join(f"{x}r" for x in letters)
    return torch.einsum(f"r,{terms}->{letters}", w, *[A] * m)


def noisy(A, w, m, noise, seed=2):
    T = build(A, w, m)
    E = symmetrize(normal(*[len(A)] * m, seed=seed))
    return T + noise * T.norm() / E.norm() * E


def relative(T, w, A):
    return float((T - build(A, w, T.ndim)).norm() / T.norm())


def recover(A, found):
    """Largest distance of a true column from the nearest found one, up to sign."""
    return float((2 - 2 * (A.mT @ found).abs().amax(1)).clamp(min=0).max().sqrt())


@pytest.mark.parametrize("m", [3, 4, 5])
def test_the_gradient_vanishes_where_it_ends(m):
    A, w = unit(5, 4), torch.tensor([1.0, -2.0, 1.5, 1.0], dtype=F64)
    T = noisy(A, w, m, 0.05)
    rows, columns = spaces(5, m, T.device)
    M = flatten_symmetric(T, rows, columns)
    found_w, found, steps = refine(M.matmul, rows, columns, A, 100)
    scaled = (found * found_w.abs() ** (1 / m)).requires_grad_()
    error = (T - build(scaled, found_w.sign(), m)).square().sum()
    (gradient,) = torch.autograd.grad(error, scaled)
    assert gradient.norm() < 1e-6 * T.norm() ** 2  # the root of what float64 knows of the error
    assert 0 < steps < 100
    torch.testing.assert_close(found.norm(dim=0), torch.ones(4, dtype=F64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("d", "r", "m"), [(10, 30, 4), (8, 6, 3)])
def test_noise_leaves_less_error_after_least_squares(d, r, m):
    A, w = unit(d, r), torch.ones(r, dtype=F64)
    T = noisy(A, w, m, 1e-3)
    plain_w, plain, _ = symmetric_cp(T, r)
    refined_w, refined, _ = symmetric_cp(T, r, refine=50)
    assert relative(T, refined_w, refined) < 0.85 * relative(T, plain_w, plain)
    assert recover(A, refined) < recover(A, plain)


def test_without_noise_nothing_is_lost():
    A, w = unit(6, 12), torch.where(torch.arange(12) % 3 == 0, -1.0, 1.0).to(F64)
    T = build(A, w, 4)
    found_w, found, info = symmetric_cp(T, refine=20)
    assert relative(T, found_w, found) < 1e-10
    assert info.residual < 1e-10
    assert recover(A, found) < 1e-7  # a cosine knows half the digits of an angle


def test_moments_are_refined_the_same_whatever_is_held():
    X = normal(30, 10).numpy()
    options = {"rank": 4, "refine": 30, "component_tol": 0.99, "n_tries": 1}
    kept = {}
    for method in ("explicit", "few_samples", "few_components"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("spanwise.estimators._spm.solve.warn_unreached", lambda *_: None)
            kept[method] = SubspacePowerMethod(4, **options).fit_moments(X, method=method)
    first = kept["explicit"]
    for model in kept.values():
        torch.testing.assert_close(
            torch.tensor(model.weights_), torch.tensor(first.weights_), atol=1e-6, rtol=1e-6
        )


def test_steps_below_zero_are_refused():
    with pytest.raises(ValueError, match="refine must be at least 0, got -1"):
        symmetric_cp(torch.ones(3, 3, 3), refine=-1)

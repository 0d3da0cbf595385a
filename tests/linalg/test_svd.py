"""Leading singular triples and subspaces against numpy's decomposition and theorems."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.bases import BasisSuite, defect, gap, rank_matrix
from spanwise.linalg import captured_energy, principal_angles, random_basis
from spanwise.linalg.svd import top_subspace, truncated_svd

F64 = torch.float64
METHODS = ["exact", "gram", "randomized"]


def with_spectrum(m, n, values, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=F64)
    k = len(values)
    u = random_basis(m, k, generator=generator, dtype=F64)
    v = random_basis(n, k, generator=generator, dtype=F64)
    return ((u * values) @ v.mT).to(dtype), u, v


class FromMatrix(BasisSuite):
    method = "exact"

    def make(self, m, rank, generator=None):
        return top_subspace(m, rank, "left", self.method, generator=generator)


class TestExact(FromMatrix):
    pass


class TestExactOfTall(FromMatrix):
    columns = 40


class TestGram(FromMatrix):
    method = "gram"


class TestGramOfWide(FromMatrix):
    method, columns = "gram", 40


class TestRandomized(FromMatrix):
    method = "randomized"


class TestRandomizedOfWide(FromMatrix):
    method, columns = "randomized", 40


class TestWarm(FromMatrix):
    def make(self, m, rank, generator=None):
        d = m.shape[-2]
        old = random_basis(d, rank, generator=generator or torch.Generator().manual_seed(3))
        old = old.to(torch.promote_types(m.dtype, torch.float32)).expand(*m.shape[:-2], d, rank)
        # One step on a matrix of exactly this rank lands in its range, wherever it starts.
        return top_subspace(m, rank, "left", "warm", basis=old)


class TestTriples(BasisSuite):
    """The left side of the triple, with the right one and the values checked on the way."""

    def make(self, m, rank, generator=None):
        u, s, v = truncated_svd(m, rank, "randomized", generator=generator)
        assert defect(v) < (1e-5 if v.dtype == torch.float32 else 1e-12)
        assert (s[..., :-1] >= s[..., 1:]).all()
        assert (s >= 0).all()
        return u


@given(
    st.integers(1, 14),
    st.integers(1, 14),
    st.sampled_from(["exact", "gram", "randomized"]),
    st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_truncation_agrees_with_numpy(m, n, method, seed):
    k = min(m, n)
    M, _, _ = with_spectrum(m, n, 0.5 ** np.arange(k), seed)
    rank = 1 + seed % k
    u, s, v = truncated_svd(M, rank, method)
    U, S, Vh = np.linalg.svd(M.numpy(), full_matrices=False)
    # The sketch has at least min(m, n, rank + 8) columns, so at these sizes it is exact to
    # rounding: the gap left outside has a ratio of 2^-8 a pass, or is empty.
    tolerance = 1e-10 if rank + 8 >= k or method != "randomized" else 1e-3
    np.testing.assert_allclose(s.numpy(), S[:rank], atol=tolerance)
    best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    if method != "gram":  # its vectors are good to the square root of rounding
        np.testing.assert_allclose(((u * s) @ v.mT).numpy(), best, atol=10 * tolerance)
    assert defect(u) < 1e-12
    assert defect(v) < 1e-12


@pytest.mark.parametrize("shape", [(20, 20), (30, 12), (12, 30)])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", METHODS)
def test_top_subspace_agrees_with_the_triples(shape, side, method):
    M, u, v = with_spectrum(*shape, [9.0, 7.0, 5.0, 3.0, 1e-3, 1e-4])
    found = top_subspace(M, 4, side, method)
    expected = (u if side == "left" else v)[:, :4]
    assert principal_angles(found, expected).max() < 1e-10
    full = truncated_svd(M, 4, method)
    same = full.U if side == "left" else full.V
    torch.testing.assert_close(found.abs(), same.abs(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_signs_are_those_of_the_largest_entries(method):
    M = torch.randn(15, 11, dtype=F64)
    for u in (truncated_svd(M, 5, method).U, top_subspace(M, 5, "left", method)):
        peak = u.gather(0, u.abs().argmax(0, keepdim=True))
        assert (peak > 0).all()
    flipped = truncated_svd(-M, 5, method)
    torch.testing.assert_close(flipped.U, truncated_svd(M, 5, method).U, atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_transposing_swaps_the_sides(method):
    M = torch.randn(18, 11, dtype=F64)
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    left = top_subspace(M, 3, "left", method, generator=generators[0])
    right = top_subspace(M.mT, 3, "right", method, generator=generators[1])
    torch.testing.assert_close(left, right, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(96, 96), (64, 160), (160, 64)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_sketch_captures_nearly_the_optimal_energy_on_a_flat_spectrum(shape, side):
    M, _, _ = with_spectrum(*shape, torch.arange(1, 65) ** -0.6, dtype=torch.float32)
    best = captured_energy(M, top_subspace(M, 16, side, "exact"), side)
    captured = [
        float(captured_energy(M, top_subspace(M, 16, side, "randomized", power=p), side) / best)
        for p in (0, 1, 2, 6)
    ]
    assert captured == sorted(captured)
    assert captured[2] > 0.99
    assert captured[3] > 0.9995


def test_oversampling_helps():
    M, _, _ = with_spectrum(80, 80, torch.arange(1, 81) ** -0.6)
    energies = [
        float(captured_energy(M, top_subspace(M, 10, method="randomized", oversample=o, power=1)))
        for o in (0, 8, 40)
    ]
    assert energies == sorted(energies)


def test_warm_start_is_one_power_step_that_keeps_order_and_signs():
    M, u, _ = with_spectrum(30, 20, 0.8 ** np.arange(20))
    old = u[:, [2, 0, 1]] * torch.tensor([1.0, -1.0, 1.0], dtype=F64)
    torch.testing.assert_close(
        top_subspace(M, 3, "left", "warm", basis=old), old, atol=1e-10, rtol=0
    )
    near = torch.linalg.qr(old + 0.05 * torch.randn(30, 3, dtype=F64)).Q
    near = near * (near * old).sum(0).sign()
    step, triangle = torch.linalg.qr(M @ M.mT @ near)
    found = top_subspace(M, 3, "left", "warm", basis=near)
    torch.testing.assert_close(found, step * triangle.diagonal().sign(), atol=1e-10, rtol=0)
    assert ((found * near).sum(0) > 0.9).all()
    before, after = (float(captured_energy(M, b)) for b in (near, found))
    assert after > before


@pytest.mark.parametrize("side", ["left", "right"])
def test_warm_start_keeps_what_the_matrix_says_nothing_about(side):
    old = random_basis(20, 4, dtype=F64)
    zero = torch.zeros(20, 20, dtype=F64)
    torch.testing.assert_close(
        top_subspace(zero, 4, side, "warm", basis=old), old, atol=1e-12, rtol=0
    )
    one = torch.outer(old[:, 0], old[:, 0])  # only the first direction has a gradient
    torch.testing.assert_close(
        top_subspace(one, 4, side, "warm", basis=old), old, atol=1e-7, rtol=0
    )


def test_warm_start_follows_a_drifting_gradient():
    M, _, _ = with_spectrum(96, 128, torch.arange(1, 97) ** -0.6, seed=0)
    noise, _, _ = with_spectrum(96, 128, torch.arange(1, 97) ** -0.6, seed=1)
    old = top_subspace(M + 0.3 * noise, 24, method="exact")
    best = captured_energy(M, top_subspace(M, 24, method="exact"))
    assert captured_energy(M, top_subspace(M, 24, method="warm", basis=old)) / best > 0.97


def test_warm_triples_are_exact_from_the_right_basis():
    M, u, v = with_spectrum(24, 16, [5.0, 4.0, 3.0, 0.1])
    found = truncated_svd(M, 3, "warm", basis=u[:, :3].flip(1))
    torch.testing.assert_close(found.s, torch.tensor([5.0, 4.0, 3.0], dtype=F64))
    assert gap(found.U, u[:, :3]) < 1e-10
    assert gap(found.V, v[:, :3]) < 1e-10


def test_auto_sketches_only_large_matrices_of_low_rank():
    small, large = torch.randn(200, 300), torch.randn(300, 400)
    for M, rank, method in ((small, 8, "exact"), (large, 8, "randomized"), (large, 200, "exact")):
        assert torch.equal(top_subspace(M, rank), top_subspace(M, rank, method=method))
        assert torch.equal(truncated_svd(M, rank).U, truncated_svd(M, rank, method).U)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gram_keeps_what_lies_above_the_root_of_rounding(dtype):
    least = 3e-3 if dtype == torch.float32 else 1e-6
    M, u, _ = with_spectrum(40, 30, [1.0, 0.5, 0.1, least], dtype=dtype)
    found = top_subspace(M, 4, method="gram")
    assert gap(found, u) < 0.02


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_captured_energy_is_a_share_and_complementary(m, n, seed):
    generator = torch.Generator().manual_seed(seed)
    M = torch.randn(m, n, generator=generator, dtype=F64)
    whole = random_basis(m, m, generator=generator, dtype=F64)
    r = 1 + seed % m
    inside, rest = captured_energy(M, whole[:, :r]), captured_energy(M, whole[:, r:])
    assert 0 <= inside <= 1
    torch.testing.assert_close(inside + rest, torch.ones((), dtype=F64), atol=1e-12, rtol=0)
    mirrored = captured_energy(M.mT, whole[:, :r], "right")
    torch.testing.assert_close(inside, mirrored, atol=1e-12, rtol=0)


def test_best_energy_is_the_sum_of_squared_values():
    M, _, _ = with_spectrum(12, 9, [3.0, 2.0, 1.0])
    energy = captured_energy(M, top_subspace(M, 2, "right", "exact"), "right")
    torch.testing.assert_close(energy, torch.tensor(13 / 14, dtype=F64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_captured_energy_does_not_overflow(scale):
    M = rank_matrix(10, 8, 3, dtype=torch.float32)
    basis = top_subspace(M, 3, method="exact")
    assert captured_energy(M * scale, basis) > 0.9999


def test_captured_energy_of_zero_is_zero():
    assert captured_energy(torch.zeros(2, 5, 4), torch.eye(5)[:, :2]).tolist() == [0, 0]


@pytest.mark.parametrize(
    "function",
    [
        lambda M: truncated_svd(M, 2, "exact").s,
        lambda M: truncated_svd(M, 2, "gram").s,
        lambda M: (lambda f: (f.U * f.s.unsqueeze(-2)) @ f.V.mT)(truncated_svd(M, 2, "exact")),
        lambda M: (lambda u: u @ u.mT)(top_subspace(M, 2, method="exact")),
        lambda M: top_subspace(M, 2, method="warm", basis=torch.eye(5, dtype=F64)[:, :2]),
        lambda M: captured_energy(M, torch.eye(5, dtype=F64)[:, :2]),
    ],
)
def test_gradients_are_those_of_finite_differences(function):
    M, _, _ = with_spectrum(5, 4, [4.0, 3.0, 2.0, 1.0])
    assert torch.autograd.gradcheck(function, (M.requires_grad_(),))


bad = pytest.mark.bad_input


@bad
@pytest.mark.parametrize("function", [truncated_svd, top_subspace])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0,), {}, ValueError, r"rank must be between 1 and min\(m, n\) = 4.*\(6, 4\), got 0"),
        ((5,), {}, ValueError, "got 5"),
        ((2.0,), {}, TypeError, "rank must be an integer, got 2.0"),
        ((True,), {}, TypeError, "rank must be an integer, got True"),
        ((2,), {"method": "magic"}, ValueError, "method must be one of auto, exact.*'magic'"),
        ((2,), {"method": "warm"}, ValueError, "starts from a basis"),
        ((2,), {"basis": torch.eye(6)[:, :2]}, ValueError, 'basis is for method="warm"'),
        (
            (2,),
            {"method": "warm", "basis": torch.eye(5)[:, :2]},
            ValueError,
            r"\(m, k\) = \(6, 2 to 4\), got \(5, 2\)",
        ),
        ((2,), {"power": -1}, ValueError, "power must not be negative, got -1"),
    ],
)
def test_bad_options_are_named(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(torch.randn(6, 4), *arguments, **options)


@bad
def test_bad_sides_and_kinds_are_named():
    with pytest.raises(ValueError, match="side must be"):
        top_subspace(torch.randn(4, 4), 2, "top")
    with pytest.raises(ValueError, match="side must be"):
        captured_energy(torch.randn(4, 4), torch.eye(4), "top")
    with pytest.raises(ValueError, match="basis has d = 4, M has d = 5"):
        captured_energy(torch.randn(5, 4), torch.eye(4))
    with pytest.raises(ValueError, match="must have rank = 2 columns for the warm method, got 3"):
        top_subspace(torch.randn(6, 4), 2, method="warm", basis=torch.eye(6)[:, :3])
    with pytest.raises(TypeError, match="real, floating-point"):
        top_subspace(torch.randn(4, 4).to(torch.complex64), 2)
    with pytest.raises(TypeError, match="dense"):
        truncated_svd(torch.eye(4).to_sparse(), 2)

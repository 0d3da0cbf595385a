"""The polar factor by every method, at full rank and below, and inverse square roots."""

import pytest
import torch

from spanwise.linalg import inverse_sqrt, leading_triples, polar, thin_svd
from spanwise.linalg import thin as thin_module
from spanwise.linalg.svd import SVD
from spanwise.linalg.thin import rank_tolerance

F64 = torch.float64
METHODS = ("auto", "svd", "gram", "newton_schulz", "qdwh")
SHAPES = [(12, 12), (30, 8), (8, 30), (9, 8), (1, 5), (5, 1), (1, 1)]


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def spectrum(m, n, values, dtype=F64, seed=0):
    """An m x n matrix with these singular values, and its polar factor."""
    k = len(values)
    u, v = torch.linalg.qr(draw(m, k, seed=seed))[0], torch.linalg.qr(draw(n, k, seed=seed + 1))[0]
    s = torch.as_tensor(values, dtype=F64)
    return ((u * s) @ v.mT).to(dtype), u[:, s > 0] @ v[:, s > 0].mT


def naive(m):
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    return u @ vh


def far(a, b):
    return float((a.double() - b.double()).abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_factor_is_u_v_transposed_and_the_trace_is_the_nuclear_norm(method, shape):
    m = draw(*shape)
    q, nuclear, rank = polar(m, method)
    # The 12 x 12 matrix has condition 40: newton_schulz and Gram lose its square at most.
    assert far(q, naive(m)) < 1e-10
    assert torch.allclose(nuclear, torch.linalg.svdvals(m).sum(), rtol=1e-10)
    assert torch.allclose((q * m).sum(), nuclear, rtol=1e-10)
    assert rank == min(shape)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60), (24, 24)])
def test_methods_agree_at_condition_1e4(shape):
    m, q = spectrum(*shape, torch.logspace(0, -4, min(shape), dtype=F64))
    assert far(polar(m, "svd").Q, q) < 1e-10
    assert far(polar(m, "gram").Q, q) < 1e-7
    assert far(polar(m, "qdwh").Q, q) < 1e-10
    assert far(polar(m, "newton_schulz").Q, q) < 1e-10
    assert far(polar(m).Q, q) < 1e-10  # auto leaves the Gram matrix at condition 1e3


@pytest.mark.parametrize("method", METHODS)
def test_float32_keeps_its_digits_at_condition_3e3(method):
    m, q = spectrum(80, 20, torch.logspace(0, -3.5, 20, dtype=F64), torch.float32)
    # Rounding m to float32 alone turns its last directions by eps times the condition.
    exact = naive(m.double())
    assert far(exact, q) < 1e-3
    found = polar(m, method)
    assert found.Q.dtype == torch.float32
    bound = {"auto": 1e-6, "gram": 1e-6}.get(method, 2e-4)
    assert far(found.Q, exact) < bound


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (8, 8)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_below_full_rank_only_true_directions_are_kept(method, shape, dtype):
    m, q = spectrum(*shape, [3, 2, 1, 0, 0, 0], dtype)
    found = polar(m, method)
    assert found.rank == 3
    bound = 1e-10 if dtype == F64 else 1e-5
    assert far(found.Q, q) < bound
    assert abs(float(found.nuclear) - 6) < 10 * bound


def test_completed_the_factor_is_that_of_the_library_s_svd_bit_for_bit():
    for shape in [(30, 8), (8, 30), (8, 8)]:
        m, _ = spectrum(*shape, [3, 2, 1, 0, 0, 0])
        found = polar(m, complete=True)
        assert torch.equal(found.Q, naive(m))
        assert found.rank == 3
        assert torch.allclose(found.nuclear, torch.tensor(6.0, dtype=F64))


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix_has_a_zero_factor(method):
    found = polar(torch.zeros(9, 4), method)
    assert not found.Q.any()
    assert found.rank == 0
    assert found.nuclear == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(method, scale):
    m = draw(30, 8, dtype=torch.float32)
    assert far(polar(m * scale, method).Q, polar(m, method).Q) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_batch_is_a_loop(method):
    m = draw(2, 3, 14, 5)
    m[1, 2] = spectrum(14, 5, [2, 1])[0]
    m[0, 0] = 0
    found = polar(m, method)
    assert found.rank.tolist() == [[0, 5, 5], [5, 5, 2]]
    for i in range(2):
        for j in range(3):
            alone = polar(m[i, j], method)
            assert far(found.Q[i, j], alone.Q) < 1e-10
            assert far(found.nuclear[i, j], alone.nuclear) < 1e-10


def test_a_tall_matrix_in_chunks_gives_the_same(monkeypatch):
    m = draw(50, 6, dtype=torch.float32)
    whole = polar(m)
    monkeypatch.setattr(thin_module, "_CHUNK", 40)
    assert far(polar(m).Q, whole.Q) < 1e-6
    assert far(polar(m.mT).Q.mT, whole.Q) < 1e-6


def test_the_input_stays_unless_it_may_be_overwritten():
    m = draw(30, 6)
    before = m.clone()
    q = polar(m).Q
    assert torch.equal(m, before)
    taken = polar(m, overwrite=True).Q
    assert taken.data_ptr() == m.data_ptr()
    assert torch.equal(taken, q)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decomposed_in_float32(dtype):
    m = draw(30, 6).to(dtype)
    found = polar(m, overwrite=True)
    assert found.Q.dtype == torch.float32
    assert torch.equal(found.Q, polar(m.float()).Q)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad):
    m = draw(4, 4)
    m[1, 1] = bad
    for call in (polar, inverse_sqrt, thin_svd, lambda x: leading_triples(x, 2)):
        with pytest.raises(ValueError, match="1 non-finite entries of 16"):
            call(m)


def test_an_empty_matrix_has_an_empty_factor():
    found = polar(torch.zeros(2, 0, 4))
    assert found.Q.shape == (2, 0, 4)
    assert found.rank.tolist() == [0, 0]


@pytest.mark.bad_input
def test_unknown_methods_and_matrices_that_are_not_square_are_named():
    with pytest.raises(ValueError, match="method must be one of auto, svd"):
        polar(draw(3, 3), "magic")
    with pytest.raises(ValueError, match="A must be square"):
        inverse_sqrt(draw(3, 4))


# -- the SVD that does not give up -------------------------------------------------------------


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (2, 6, 6)])
def test_an_svd_that_does_not_converge_is_done_otherwise(monkeypatch, failures, shape):
    m = draw(*shape, dtype=torch.float32)
    real, calls = torch.linalg.svd, []

    def failing(a, *args, **more):
        calls.append(a.dtype)
        if len(calls) <= failures:
            raise torch.linalg.LinAlgError("did not converge")
        return real(a, *args, **more)

    monkeypatch.setattr(torch.linalg, "svd", failing)
    u, s, v = thin_svd(m)
    assert u.dtype == s.dtype == v.dtype == torch.float32
    assert calls == [torch.float32, torch.float64][: len(calls)]
    assert far((u * s.unsqueeze(-2)) @ v.mT, m) < 1e-5
    assert far(u.mT @ u, torch.eye(u.shape[-1])) < 1e-5
    monkeypatch.undo()
    assert far(s, torch.linalg.svdvals(m)) < 1e-5


# -- leading triples ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 9), (9, 40), (9, 9)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_leading_triples_are_those_of_the_svd(shape, dtype):
    m, _ = spectrum(*shape, torch.logspace(0, -2, 9, dtype=F64), dtype)
    found = leading_triples(m, 4)
    u, s, vh = torch.linalg.svd(m.double(), full_matrices=False)
    bound = 1e-10 if dtype == F64 else 1e-5
    assert isinstance(found, SVD)
    assert far(found.s, s[:4]) < bound
    rebuilt = (found.U * found.s) @ found.V.mT
    assert far(rebuilt, (u[:, :4] * s[:4]) @ vh[:4]) < bound


@pytest.mark.parametrize("shape", [(40, 9), (9, 40), (9, 9)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_leading_triples_stop_at_the_numerical_rank(shape, dtype):
    m, _ = spectrum(*shape, [3, 2, 1e-3], dtype)
    assert leading_triples(m, 7).s.shape == (3,)
    assert leading_triples(m, 7, atol=1e-2).s.shape == (2,)
    assert leading_triples(0 * m, 7).U.shape == (shape[0], 0)
    assert leading_triples(m, 0).V.shape == (shape[1], 0)


def test_small_values_that_a_gram_matrix_loses_are_found():
    m, _ = spectrum(40, 6, [1, 1e-2, 1e-9])
    assert torch.allclose(leading_triples(m, 6).s, torch.tensor([1, 1e-2, 1e-9], dtype=F64))


def test_rank_tolerance_is_the_shorter_side_in_roundings():
    assert rank_tolerance((49152, 576), torch.float32) == 576 * torch.finfo(torch.float32).eps
    assert rank_tolerance((4, 3), F64) == 16 * torch.finfo(F64).eps


# -- inverse square roots ----------------------------------------------------------------------


def test_the_inverse_root_of_a_definite_matrix():
    x = draw(3, 20, 6)
    a = x.mT @ x
    root, rank = inverse_sqrt(a)
    eye = torch.eye(6, dtype=F64).expand(3, 6, 6)
    assert far(root @ a @ root, eye) < 1e-10
    assert rank.tolist() == [6, 6, 6]


def test_the_inverse_root_is_zero_on_the_null_space():
    u = torch.linalg.qr(draw(6, 2))[0]
    a = 4 * u @ u.mT
    root, rank = inverse_sqrt(a)
    assert rank == 2
    assert far(root, u @ u.mT / 2) < 1e-10
    assert not inverse_sqrt(torch.zeros(3, 3))[0].any()


@pytest.mark.parametrize("n", [5, 128, 129, 300])
def test_a_gram_matrix_of_several_panels_is_whole_and_symmetric(n):
    m = draw(400, n)
    found = thin_module.gram(m, m.abs().amax().view(1, 1))
    scaled = m / m.abs().amax()
    assert far(found, scaled.mT @ scaled) < 1e-10
    assert torch.equal(found, found.mT)


@pytest.mark.parametrize("condition", [2, 15, 17, 1000])
def test_a_float32_factor_is_good_to_1e_6_up_to_condition_16(condition):
    m, q = spectrum(600, 40, torch.linspace(1, 1 / condition, 40, dtype=F64), torch.float32)
    # The input's own rounding counts by its condition.
    assert far(polar(m).Q, q) < 1e-6 * max(1, condition / 16)

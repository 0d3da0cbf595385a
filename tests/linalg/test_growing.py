"""A basis that grows by an energy rule."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.bases import defect, rank_matrix
from spanwise.linalg import GrowingBasis, captured_energy, random_basis

F64 = torch.float64


@given(st.integers(2, 12), st.integers(1, 20), st.floats(0.05, 1.0), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_it_holds_the_share_with_the_fewest_directions(d, n, energy, seed):
    generator = torch.Generator().manual_seed(seed)
    growing = GrowingBasis(d, energy=energy)
    for _ in range(2):
        samples = torch.randn(d, n, generator=generator, dtype=F64)
        added = growing.append(samples)
        assert growing.basis.shape[1] <= d
        assert captured_energy(samples, growing.basis) >= energy - 1e-9
        if added:
            fewer = captured_energy(samples, growing.basis[:, :-1])
            assert fewer < energy
    assert defect(growing.basis) < 1e-12


def test_first_columns_never_change():
    growing = GrowingBasis(30, energy=0.9)
    growing.append(torch.randn(30, 8, dtype=F64))
    before = growing.basis
    assert growing.append(torch.randn(30, 8, dtype=F64)) > 0
    assert torch.equal(growing.basis[:, : before.shape[1]], before)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_what_is_known_adds_nothing(dtype):
    growing = GrowingBasis(40, energy=1.0)
    samples = rank_matrix(40, 25, 6, dtype=dtype)
    assert growing.append(samples) >= 6
    assert growing.append(samples @ random_basis(25, 25, dtype=dtype)) == 0
    assert growing.append(torch.zeros(40, 3, dtype=dtype)) == 0


def test_max_rank_is_kept():
    growing = GrowingBasis(20, energy=1.0, max_rank=5)
    assert growing.append(torch.randn(20, 3)) == 3
    assert growing.append(torch.randn(20, 9)) == 2
    assert growing.append(torch.randn(20, 9)) == 0


def test_half_precision_grows_in_float32():
    growing = GrowingBasis(16)
    growing.append(torch.randn(16, 4).bfloat16())
    assert growing.basis.dtype == torch.float32
    assert defect(growing.basis) < 1e-5


@pytest.mark.bad_input
def test_bad_input_is_named():
    for energy in (0.0, 1.5):
        with pytest.raises(ValueError, match="energy must be a share"):
            GrowingBasis(4, energy=energy)
    with pytest.raises(ValueError, match="max_rank must be between 1 and d = 4, got 5"):
        GrowingBasis(4, max_rank=5)
    with pytest.raises(ValueError, match=r"columns of shape \(4, n\), got \(3, 4\)"):
        GrowingBasis(4).append(torch.randn(3, 4))
    with pytest.raises(ValueError, match="non-finite"):
        GrowingBasis(4).append(torch.full((4, 2), float("nan")))

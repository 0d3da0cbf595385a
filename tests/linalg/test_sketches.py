"""The Walsh-Hadamard transform against scipy's matrix, and what a sampled basis promises."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from conformance.bases import defect
from spanwise.linalg import hadamard_transform, srht_basis

F64 = torch.float64


@pytest.mark.parametrize("n", [1, 2, 8, 16, 32, 128, 512, 1024])
def test_transform_is_the_scaled_sylvester_matrix(n):
    expected = torch.from_numpy(hadamard(n).astype(np.float64)) / math.sqrt(n)
    assert torch.allclose(hadamard_transform(torch.eye(n, dtype=F64)), expected, atol=1e-13)


@pytest.mark.parametrize("shape", [(64,), (3, 256), (2, 3, 2048), (0, 16)])
def test_transform_is_its_own_inverse_and_keeps_norms(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    y = hadamard_transform(x)
    assert y.shape == x.shape
    assert torch.allclose(hadamard_transform(y), x, atol=1e-12)
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-12)


def test_transform_of_a_strided_view_is_that_of_its_copy():
    x = torch.randn(32, 7, generator=torch.Generator().manual_seed(0), dtype=F64).mT
    assert torch.equal(hadamard_transform(x), hadamard_transform(x.contiguous()))


def test_half_precision_is_transformed_in_float32():
    x = torch.randn(4, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = hadamard_transform(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, hadamard_transform(x.float()).bfloat16())


def test_result_of_length_one_is_not_the_input_itself():
    x = torch.ones(3, 1)
    hadamard_transform(x).zero_()
    assert torch.equal(x, torch.ones(3, 1))


def test_the_longest_transform_keeps_float32_accuracy():
    x = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    assert (hadamard_transform(hadamard_transform(x)) - x).abs().max() < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-12)])
@pytest.mark.parametrize(
    ("d", "r"), [(1, 1), (3, 3), (24, 5), (64, 64), (96, 96), (512, 128), (1376, 128), (2047, 40)]
)
def test_basis_is_orthonormal_for_every_dimension(d, r, dtype, tolerance):
    basis = srht_basis(d, r, generator=torch.Generator().manual_seed(d), dtype=dtype)
    assert basis.shape == (d, r)
    assert basis.dtype == dtype
    assert basis.is_contiguous()
    assert defect(basis) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize(("d", "r"), [(16, 4), (13, 4), (11, 7)])
def test_mean_projector_is_a_multiple_of_the_identity(d, r):
    generator = torch.Generator().manual_seed(0)
    count = 1500
    bases = srht_basis(d, r, generator=generator, batch=(count,), dtype=F64)
    mean = (bases @ bases.mT).mean(0)
    # Entries lie in [-1, 1]: five standard errors of at most 1 / sqrt(count) each.
    assert (mean - r / d * torch.eye(d, dtype=F64)).abs().max() < 5 / math.sqrt(count)


@pytest.mark.parametrize("d", [64, 65, 96])
def test_mixing_spreads_every_coordinate_over_the_columns(d):
    # 65 = 64 + 1: one block diagonal transform alone would leave the last coordinate to itself.
    generator = torch.Generator().manual_seed(0)
    bases = srht_basis(d, d, generator=generator, batch=(50,), dtype=F64)
    largest = bases[:, -1].abs().amax(-1).mean()
    assert largest < 4 / math.sqrt(d)


def test_batches_hold_different_bases_and_one_seed_gives_one_result():
    first, again = (
        srht_basis(24, 5, generator=torch.Generator().manual_seed(3), batch=(2, 3))
        for _ in range(2)
    )
    assert first.shape == (2, 3, 24, 5)
    assert torch.equal(first, again)
    assert not torch.allclose(first[0, 0], first[1, 2])
    assert torch.equal(srht_basis(24, 5), srht_basis(24, 5))


def test_global_generator_is_left_alone():
    state = torch.get_rng_state()
    srht_basis(24, 5)
    srht_basis(24, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_columns_is_an_empty_basis():
    assert srht_basis(8, 0, batch=(2,)).shape == (2, 8, 0)


class TestBadInput:
    @pytest.mark.parametrize("n", [0, 3, 24])
    def test_length_that_is_no_power_of_two(self, n):
        with pytest.raises(ValueError, match=r"power of two of entries.*srht_basis"):
            hadamard_transform(torch.zeros(2, n))

    def test_length_above_the_largest(self):
        with pytest.raises(ValueError, match=r"n = 2097152 .*at most 2\^20"):
            hadamard_transform(torch.empty(2**21, device="meta"))
        with pytest.raises(ValueError, match=r"d = 1048577 is above 2\^20"):
            srht_basis(2**20 + 1, 1)

    @pytest.mark.bad_input
    def test_what_is_no_real_tensor(self):
        with pytest.raises(TypeError, match=r"real floating-point tensor, got torch\.int64"):
            hadamard_transform(torch.arange(4))
        with pytest.raises(TypeError, match="got list"):
            hadamard_transform([1.0, 2.0])

    @pytest.mark.parametrize("r", [-1, 9])
    def test_more_columns_than_dimensions(self, r):
        with pytest.raises(ValueError, match=f"between 0 and d = 8, got {r}"):
            srht_basis(8, r)

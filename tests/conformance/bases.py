"""What every function that finds a basis of a matrix's column space must do."""

import pytest
import torch


def rank_matrix(d, n, rank, *, batch=(), dtype=torch.float64, seed=0):
    """A d x n matrix of exactly this rank, up to rounding, with well separated values."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(*batch, d, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(*batch, rank, n, generator=generator, dtype=torch.float64)
    return (left * torch.linspace(2, 1, rank, dtype=torch.float64) @ right).to(dtype)


def gap(basis, other):
    """||(I - Q Q^T) U||_2, where Q spans `other`: 0 where `basis` lies inside it."""
    q = torch.linalg.qr(other.double())[0]
    u = basis.double()
    return float(torch.linalg.matrix_norm(u - q @ (q.mT @ u), ord=2).max())


def defect(basis):
    """Largest entry of |U^T U - I|."""
    u = basis.double()
    return float((u.mT @ u - torch.eye(u.shape[-1], dtype=u.dtype)).abs().max())


class BasisSuite:
    """Inherit and define `make(self, m, rank, generator)`: a basis of the columns of `m`.

    `self.columns` is the number of columns of the matrices to try, None where it must be the rank.
    """

    columns: int | None = 17
    d = 24

    def make(self, m, rank, generator=None):
        raise NotImplementedError

    def matrix(self, rank=5, **options):
        return rank_matrix(self.d, self.columns or rank, rank, **options)

    def test_spans_the_columns_and_is_orthonormal(self):
        m = self.matrix()
        basis = self.make(m, 5)
        assert basis.shape == (self.d, 5)
        assert basis.dtype == torch.float64
        assert defect(basis) < 1e-12
        assert gap(basis, m[:, :5]) < 1e-10

    @pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
    def test_scale_of_the_matrix_does_not_matter(self, scale):
        m = self.matrix(dtype=torch.float32)
        basis = self.make(m * scale, 5)
        assert basis.dtype == torch.float32
        assert defect(basis) < 1e-5
        assert gap(basis, m[:, :5]) < 2e-4

    @pytest.mark.parametrize("rank", [0, 1, 3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_stays_orthonormal_when_columns_depend(self, rank, dtype):
        m = rank_matrix(self.d, self.columns or 5, rank, dtype=dtype)
        basis = self.make(m, 5)
        assert basis.shape == (self.d, 5)
        assert defect(basis) < (1e-5 if dtype == torch.float32 else 1e-12)
        if rank:
            # m lies inside the basis: its columns have nothing outside.
            rest = m - basis @ (basis.mT @ m)
            assert rest.norm() < (1e-4 if dtype == torch.float32 else 1e-10) * m.norm()

    def test_batch_is_a_loop(self):
        m = self.matrix(batch=(2, 3))
        basis = self.make(m, 5)
        assert basis.shape == (2, 3, self.d, 5)
        for i in range(2):
            for j in range(3):
                torch.testing.assert_close(basis[i, j], self.make(m[i, j], 5), atol=1e-10, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_decomposed_in_float32(self, dtype):
        m = self.matrix(dtype=dtype)
        basis = self.make(m, 5)
        assert basis.dtype == torch.float32
        torch.testing.assert_close(basis, self.make(m.float(), 5), atol=0, rtol=0)

    def test_is_deterministic_and_leaves_the_global_generator_alone(self):
        m, state = self.matrix(), torch.get_rng_state()
        first = self.make(m, 5)
        torch.manual_seed(1)
        assert torch.equal(first, self.make(m, 5))
        seeded = [self.make(m, 5, torch.Generator().manual_seed(7)) for _ in range(2)]
        assert torch.equal(*seeded)
        torch.manual_seed(0)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_refuses_what_is_not_finite(self, bad):
        m = self.matrix()
        m[2, 1] = bad
        with pytest.raises(ValueError, match="1 non-finite entries of"):
            self.make(m, 5)

    def test_input_is_not_changed(self):
        m = self.matrix()
        before = m.clone()
        self.make(m, 5)
        assert torch.equal(m, before)

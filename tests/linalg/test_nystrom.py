"""Pivoted Cholesky: exact where the rank allows, and the right rows first."""

import pytest
import torch

from spanwise.linalg import pivoted_cholesky

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def factor(k, rank, **options):
    return pivoted_cholesky(k.diagonal(), lambda i: k[:, i], rank, **options)


def test_a_matrix_of_low_rank_is_factored_exactly():
    b = draw(30, 4)
    k = b @ b.mT
    found = factor(k, 10)
    assert found.factor.shape == (30, 4)
    torch.testing.assert_close(found.factor @ found.factor.mT, k, atol=1e-10, rtol=0)
    assert found.residual < 1e-12


def test_the_pivots_rows_are_exact_and_the_rest_is_left_over():
    b = draw(20, 20)
    k = b @ b.mT
    found = factor(k, 5)
    left = k - found.factor @ found.factor.mT
    assert left[found.pivots].abs().max() < 1e-10
    assert found.residual == pytest.approx(float(left.trace() / k.trace()), abs=1e-12)
    assert torch.linalg.eigvalsh(left)[0] > -1e-10


def test_every_pivot_is_the_largest_entry_left():
    b = draw(20, 20)
    k = b @ b.mT
    left = k.clone()
    for pivot in factor(k, 6).pivots.tolist():
        assert pivot == int(left.diagonal().argmax())
        left = left - torch.outer(left[:, pivot], left[pivot]) / left[pivot, pivot]


def test_duplicates_are_taken_once():
    x = draw(5, 3)
    rows = torch.cat([x, x, x])
    k = torch.exp(-torch.cdist(rows, rows).square())
    assert len(factor(k, 15).pivots) == 5


def test_a_matrix_of_zeros_has_no_pivots():
    found = factor(torch.zeros(3, 3, dtype=F64), 2)
    assert found.factor.shape == (3, 0)
    assert found.residual == 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        factor(torch.eye(2, dtype=F64), 0)
    with pytest.raises(ValueError, match="this is no Gram matrix"):
        factor(torch.diag(torch.tensor([1.0, -1.0], dtype=F64)), 1)

"""Gramians over a finite horizon against their sums, and balancing against its definition."""

import pytest
import torch

from spanwise.linalg import balance, finite_gramian, gramian_root

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(a, b, atol):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("horizon", [1, 2, 3, 7, 8, 12, 31])
@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_the_gramian_is_its_sum_also_where_the_system_is_unstable(horizon, decay):
    a, b = draw(5, 5) / 2, draw(5, 2, seed=1)
    a *= 1.1 / torch.linalg.eigvals(a).abs().max()
    expected, power = torch.zeros(5, 5, dtype=F64), torch.eye(5, dtype=F64)
    for step in range(horizon):
        expected += decay**step * power @ b @ b.mT @ power.mT
        power = power @ a
    found = finite_gramian(a, b, horizon, decay)
    close(found, expected, atol=1e-10 * float(expected.abs().max()))
    assert torch.equal(found, found.mT)


def test_a_root_of_a_gramian_gives_it_back_with_its_rank():
    b = draw(6, 3)
    root = gramian_root(b @ b.mT)
    assert root.shape == (6, 3)
    close(root @ root.mT, b @ b.mT, atol=1e-12)


def system(n=6, seed=0):
    a, b, c = draw(n, n, seed=seed) / 4, draw(n, n, seed=seed + 1), draw(n, n, seed=seed + 2)
    return a, b @ b.mT / n, c @ c.mT / n


def test_both_gramians_become_the_hankel_values_and_the_maps_are_biorthogonal():
    _, wc, wo = system()
    found = balance(gramian_root(wc), gramian_root(wo))
    eye = torch.eye(6, dtype=F64)
    close(found.lift.mT @ found.encode, eye, atol=1e-8)
    # Rows are states: z = psi R has the covariance R^T Wc R, and is seen by L^T Wo L.
    close(found.encode.mT @ wc @ found.encode, torch.diag(found.values), atol=1e-8)
    close(found.lift.mT @ wo @ found.lift, torch.diag(found.values), atol=1e-8)


def test_the_hankel_values_are_the_roots_of_the_product_s_eigenvalues():
    _, wc, wo = system()
    found = balance(gramian_root(wc), gramian_root(wo)).values
    expected = torch.linalg.eigvals(wc @ wo).real.sqrt().sort(descending=True).values
    close(found, expected, atol=1e-10)


def test_the_hankel_values_do_not_change_with_the_basis():
    _, wc, wo = system()
    t = draw(6, 6, seed=9)
    inverse = torch.linalg.inv(t)
    found = balance(gramian_root(wc), gramian_root(wo)).values
    turned = balance(gramian_root(t.mT @ wc @ t), gramian_root(inverse @ wo @ inverse.mT)).values
    close(turned, found, atol=1e-9)


def test_a_cut_keeps_the_first_columns():
    _, wc, wo = system()
    whole = balance(gramian_root(wc), gramian_root(wo))
    cut = balance(gramian_root(wc), gramian_root(wo), rank=2)
    close(cut.lift.mT @ cut.encode, torch.eye(2, dtype=F64), atol=1e-10)
    close(cut.encode.abs(), whole.encode[:, :2].abs(), atol=1e-10)
    assert len(cut.values) == 6


class TestBadInput:
    @pytest.mark.bad_input
    def test_shapes_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"a must be \(n, n\) and b \(n, p\)"):
            finite_gramian(draw(3, 3), draw(4, 1), 2)
        with pytest.raises(ValueError, match=r"excited and seen must be"):
            balance(draw(3, 2), draw(4, 2))

    def test_options_out_of_range(self):
        with pytest.raises(ValueError, match="horizon must be at least 1 and decay above 0"):
            finite_gramian(draw(3, 3), draw(3, 1), 0)
        with pytest.raises(ValueError, match="horizon must be at least 1 and decay above 0"):
            finite_gramian(draw(3, 3), draw(3, 1), 3, decay=0.0)
        with pytest.raises(ValueError, match="rank must be at least 1, or None, got 0"):
            balance(draw(3, 2), draw(3, 2), rank=0)

    def test_an_unstable_system_over_too_long_a_horizon(self):
        with pytest.raises(ValueError, match=r"overflows over horizon = 4096.*Shorten the horizon"):
            finite_gramian(2 * torch.eye(2, dtype=F64), draw(2, 1), 4096)

    def test_what_nothing_sees(self):
        first = torch.tensor([[1.0], [0.0]], dtype=F64)
        with pytest.raises(ValueError, match="nothing that is excited is seen"):
            balance(first, first.flip(0))

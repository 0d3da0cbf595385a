"""Semi-definite systems, well conditioned, nearly singular and singular."""

import pytest
import torch

from spanwise.linalg.psd import psd_eigh, psd_solve

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def spectrum(values, seed=0):
    q, _ = torch.linalg.qr(draw(len(values), len(values), seed=seed))
    a = (q * torch.as_tensor(values, dtype=F64)) @ q.mT
    return (a + a.mT) / 2, q


def test_a_definite_system_is_solved_wherever_it_is_anchored():
    a, _ = spectrum([1, 2, 3, 4, 5])
    b = draw(5, 3)
    for x0 in (None, draw(5, 3, seed=1)):
        found = psd_solve(a, b, x0)
        assert torch.allclose(found.x, torch.linalg.solve(a, b), atol=1e-12, rtol=0)
        assert found.rank == 5


def test_a_singular_system_keeps_the_anchor_s_part_in_the_null_space():
    a, q = spectrum([0, 0, 1, 2, 3])
    b, x0 = a @ draw(5, 3), draw(5, 3, seed=1)
    found = psd_solve(a, b, x0)
    assert found.rank == 3
    assert torch.allclose(a @ found.x, b, atol=1e-12, rtol=0)
    assert torch.allclose(q[:, :2].mT @ found.x, q[:, :2].mT @ x0, atol=1e-12, rtol=0)


@pytest.mark.parametrize("smallest", [1e-17, 1e-16, 5e-16])
def test_a_nearly_singular_system_is_not_filled_with_noise(smallest):
    a, _ = spectrum([smallest, 1, 2, 3])
    noise = 1e-12 * draw(4, 2, seed=3)
    x = psd_solve(a, a @ draw(4, 2) + noise, torch.zeros(4, 2, dtype=F64)).x
    assert float(x.norm()) < 10
    if not int(torch.linalg.cholesky_ex(a)[1]):
        assert float((torch.linalg.inv(a) @ noise).norm()) > 10  # what an inverse would do


def test_the_share_that_counts_as_zero_can_be_chosen():
    a, _ = spectrum([1e-3, 1, 2])
    assert psd_solve(a, draw(3, 1)).rank == 3
    assert psd_solve(a, draw(3, 1), rtol=1e-2).rank == 2


def test_a_matrix_of_zeros_leaves_the_anchor():
    x0 = draw(4, 2)
    found = psd_solve(torch.zeros(4, 4, dtype=F64), torch.zeros(4, 2, dtype=F64), x0)
    assert torch.equal(found.x, x0)
    assert found.rank == 0


def test_eigenvalues_at_rounding_are_clamped_and_negative_ones_refused():
    a, _ = spectrum([-1e-9, 1, 2])
    assert float(psd_eigh(a)[0][0]) == 0
    with pytest.raises(ValueError, match="not positive semi-definite"):
        psd_eigh(spectrum([-1e-3, 1, 2])[0])
    with pytest.raises(ValueError, match="NaN"):
        psd_eigh(torch.full((2, 2), torch.nan))


@pytest.mark.bad_input
def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"a must be \(n, n\) and b \(n, k\)"):
        psd_solve(torch.eye(3), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="x0 must have the shape of b"):
        psd_solve(torch.eye(3), torch.zeros(3, 1), torch.zeros(3, 2))

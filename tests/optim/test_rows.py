"""Row selections: which rows are chosen, with what scale, and what may be done with them."""

import pytest
import torch

from spanwise.linalg.bases import random_basis
from spanwise.optim._bases.rows import (
    SELECTIONS,
    RowProjector,
    choose_rows,
    coordinates_inside,
    line_norms,
)
from spanwise.optim._guard.constraint import SideConstraint


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def skewed(m=30, n=8):
    return noise(m, n) * torch.logspace(0, -2, m, dtype=torch.float64)[:, None]


def test_topr_takes_the_largest_norms_and_the_lower_index_of_equal_ones():
    norms = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0])
    rows, scale = choose_rows(norms, 3)
    assert rows.tolist() == [1, 2, 3]
    assert scale is None
    assert choose_rows(torch.ones(7), 4)[0].tolist() == [0, 1, 2, 3]


def test_topr_keeps_more_energy_than_any_other_rows():
    g = skewed()
    norms = line_norms(g, "left")
    best = g[choose_rows(norms, 5)[0]].square().sum()
    for seed in range(200):
        other = torch.randperm(30, generator=seeded(seed))[:5]
        assert g[other].square().sum() <= best


@pytest.mark.parametrize("how", ["multinomial_norm", "uniform"])
@pytest.mark.parametrize("rank", [3, 12])
def test_sampling_with_replacement_is_unbiased(how, rank):
    """Mean of diag(P P^T) over 2e4 draws, within 4 standard errors of 1."""
    norms = line_norms(skewed(), "left")
    rows, rho = choose_rows(norms.expand(20_000, 30), rank, how, seeded(1))
    diagonal = torch.zeros(20_000, 30, dtype=torch.float64).scatter_(1, rows, rho.square())
    error = (diagonal.mean(0) - 1) / (diagonal.std(0) / 20_000**0.5)
    assert error.abs().max() < 4


@pytest.mark.parametrize("how", ["multinomial_norm", "uniform"])
def test_variance_is_the_formula_of_independent_draws_where_duplicates_are_rare(how):
    """(1/r)(sum c_i^2 / q_i - ||G||^2): 5 % allowed for the sample and for rare duplicates."""
    g, rank, draws = noise(150, 4), 2, 20_000
    norms = line_norms(g, "left")
    q = norms / norms.sum() if how == "multinomial_norm" else torch.full_like(norms, 1 / 150)
    rows, rho = choose_rows(norms.expand(draws, 150), rank, how, seeded(2))
    kept = torch.zeros(draws, 150, dtype=torch.float64).scatter_(1, rows, rho.square())
    variance = ((kept - 1).square() @ norms.square()).mean()
    formula = ((norms.square() / q).sum() - norms.square().sum()) / rank
    assert variance == pytest.approx(float(formula), rel=0.05)


def test_drawing_on_in_place_of_duplicates_lowers_the_variance_and_norms_lower_it_further():
    g, rank, draws = skewed(), 8, 20_000
    norms = line_norms(g, "left")
    found = {}
    for how in ("multinomial_norm", "uniform"):
        rows, rho = choose_rows(norms.expand(draws, 30), rank, how, seeded(3))
        kept = torch.zeros(draws, 30, dtype=torch.float64).scatter_(1, rows, rho.square())
        found[how] = float(((kept - 1).square() @ norms.square()).mean())
    independent = float((norms.sum().square() - norms.square().sum()) / rank)
    assert found["multinomial_norm"] < 0.8 * independent
    assert found["multinomial_norm"] < 0.5 * found["uniform"]


def test_scales_are_those_of_drawing_one_row_after_the_other():
    """The same law as literally drawing until row r + 1 would appear, by mean of each rho^2."""
    q = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    rank, draws, literal = 2, 4000, torch.zeros(4, dtype=torch.float64)
    stream = torch.multinomial(q.expand(draws, 4), 400, True, generator=seeded(4))
    for line in stream.tolist():
        counts = {}
        for row in line:
            if row not in counts and len(counts) == rank:
                break
            counts[row] = counts.get(row, 0) + 1
        total = sum(counts.values())
        for row, k in counts.items():
            literal[row] += (k / (total * q[row])).sqrt() / draws
    rows, rho = choose_rows(q.expand(40_000, 4), rank, "multinomial_norm", seeded(5))
    ours = torch.zeros(40_000, 4, dtype=torch.float64).scatter_(1, rows, rho).mean(0)
    assert torch.allclose(ours, literal, atol=0.06)


def test_without_a_duplicate_the_scale_is_the_papers():
    q = torch.tensor([1e-9, 1.0, 1e-9, 1.0, 1.0], dtype=torch.float64)
    for seed in range(20):
        rows, rho = choose_rows(q, 1, "multinomial_norm", seeded(seed))
        if rows.item() in (1, 3, 4):
            # k = N whenever one row is kept: rho = 1 / sqrt(r q) for any number of draws.
            assert rho.item() == pytest.approx(3**0.5, rel=1e-6)


@pytest.mark.parametrize("how", SELECTIONS)
def test_every_selection_is_different_rows_in_order_and_repeats_under_its_seed(how):
    norms = line_norms(torch.stack([skewed(), skewed().flip(0)]), "left")
    first, second = (choose_rows(norms, 9, how, seeded(6)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert (first[0].diff(dim=-1) > 0).all()
    assert first[0].shape == (2, 9)
    assert first[0].dtype == torch.int64
    if how in ("multinomial_norm", "uniform"):
        assert torch.equal(first[1], second[1])
        assert (first[1] > 0).all()
        assert torch.isfinite(first[1]).all()
    else:
        assert first[1] is None


def test_rows_are_drawn_in_proportion_to_their_norms_without_replacement():
    norms = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    rows, _ = choose_rows(norms.expand(40_000, 4), 1, "multinomial_norm_nr", seeded(7))
    share = torch.bincount(rows.flatten(), minlength=4) / 40_000
    assert torch.allclose(share.double(), norms / 10, atol=0.01)


def test_a_row_without_gradient_comes_last():
    norms = torch.zeros(10, dtype=torch.float64)
    norms[[2, 7]] = torch.tensor([1.0, 1e-12], dtype=torch.float64)
    for how in ("topr", "multinomial_norm", "multinomial_norm_nr"):
        rows, rho = choose_rows(norms, 4, how, seeded(8))
        assert {2, 7} <= set(rows.tolist())
        if rho is not None:
            assert torch.equal(rho, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("how", ["multinomial_norm", "multinomial_norm_nr"])
def test_a_zero_gradient_falls_back_to_uniform_seeded_rows(how):
    zeros = torch.zeros(20_000, 6, dtype=torch.float64)
    rows, _ = choose_rows(zeros, 2, how, seeded(9))
    share = torch.bincount(rows.flatten(), minlength=6) / 20_000
    assert torch.allclose(share, torch.full_like(share, 1 / 3), atol=0.02)
    assert torch.equal(rows, choose_rows(zeros, 2, how, seeded(9))[0])


def test_extreme_norms_neither_overflow_nor_stall():
    norms = torch.tensor([1e300, 1.0, 1e-300, 0.0], dtype=torch.float64)
    for rank in (1, 2, 3):
        _, rho = choose_rows(norms, rank, "multinomial_norm", seeded(1), rho_max=10.0)
        assert ((rho > 0) & (rho <= 10)).all()
    big = torch.full((3, 4), 1e30)
    assert torch.isfinite(line_norms(big, "left")).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_small_norms_of_one_matrix_in_a_stack_are_told_apart_too(side):
    g = torch.randn(3, 6, 5, generator=seeded())
    g[1] *= 1e-25  # squares are zero in float32
    expected = g.double().norm(dim=-1 if side == "left" else -2)
    assert torch.allclose(line_norms(g, side).double(), expected, rtol=1e-6, atol=0)


def test_every_row_means_scale_one():
    norms = line_norms(skewed(), "left")
    rows, rho = choose_rows(norms, 30, "multinomial_norm", seeded())
    assert rows.tolist() == list(range(30))
    assert torch.equal(rho, torch.ones(30, dtype=torch.float64))


def test_rho_max_bounds_the_scale():
    norms = torch.logspace(0, -6, 40, dtype=torch.float64).expand(500, 40)
    free = choose_rows(norms, 20, "multinomial_norm", seeded(1))[1]
    held = choose_rows(norms, 20, "multinomial_norm", seeded(1), rho_max=2.0)[1]
    assert free.max() > 2
    assert torch.equal(held, free.clamp(max=2.0))


@pytest.mark.parametrize(
    ("norms", "rank", "how", "message"),
    [
        ([1.0, 2.0], 1, "best", "select must be one of topr"),
        ([1.0, 2.0], 3, "topr", "rank must be from 1 to the 2 rows there are, got 3"),
        ([1.0, 2.0], 0, "topr", "rank must be from 1"),
        ([1.0, float("nan")], 1, "topr", "not finite"),
        ([1.0, float("inf")], 1, "uniform", "not finite"),
    ],
)
def test_bad_choices_are_refused(norms, rank, how, message):
    with pytest.raises(ValueError, match=message):
        choose_rows(torch.tensor(norms), rank, how, seeded())


def dense(projector):
    p = torch.eye(projector.size, dtype=torch.float64)[projector.rows].mT
    return p if projector.scale is None else p * projector.scale[..., None, :]


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scaled", [False, True])
def test_projector_equals_its_dense_matrix(batch, side, scaled):
    d = 9 if side == "left" else 7
    g = noise(*batch, 9, 7)
    rows = choose_rows(noise(*batch, d, seed=1).abs(), 4, "uniform_nr", seeded())[0]
    scale = noise(*batch, 4, seed=2).abs() if scaled else None
    projector = RowProjector(rows, side, d, scale)
    p = dense(projector)
    r = p.mT @ g if side == "left" else g @ p
    assert torch.allclose(projector.project(g), r, atol=1e-14, rtol=0)
    x = noise(*r.shape, seed=3)
    lifted = p @ x if side == "left" else x @ p.mT
    assert torch.allclose(projector.lift(x), lifted, atol=1e-14, rtol=0)
    w = noise(*batch, 9, 7, seed=4)
    expected = w - 0.3 * lifted
    projector.lift_add_(w, x, -0.3)
    assert torch.allclose(w, expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_half_precision_is_projected_in_float32_and_rounded_once_when_written(side):
    g = noise(8, 8).bfloat16()
    projector = RowProjector(torch.tensor([1, 4, 6]), side, 8)
    r = projector.project(g)
    assert r.dtype == torch.float32
    w = noise(8, 8, seed=1).bfloat16()
    expected = (w.float() + 0.1 * projector.lift(r)).bfloat16()
    projector.lift_add_(w, r, 0.1)
    assert torch.equal(w, expected)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("word", ["avoid", "within"])
def test_coordinates_obey_a_constraint_on_the_selected_side(batch, scaled, word):
    d, rank = 12, 8
    basis = random_basis(d, 6, generator=seeded(), batch=batch, dtype=torch.float64)
    side = SideConstraint.build(*((basis, None) if word == "avoid" else (None, basis)))
    rows = choose_rows(noise(*batch, d, seed=1).abs(), rank, "uniform_nr", seeded())[0]
    scale = noise(*batch, rank, seed=2).abs() + 0.1 if scaled else None
    projector = RowProjector(rows, "left", d, scale)
    x = noise(*batch, rank, 5, seed=3)
    allowed = coordinates_inside(projector, side)
    assert allowed.free == 2
    update = projector.lift(allowed.rows(x))
    assert update.norm() > 0.1
    assert torch.allclose(update, side.rows(update), atol=1e-12, rtol=0)
    again = allowed.rows(allowed.rows(x))
    assert torch.allclose(again, allowed.rows(x), atol=1e-12, rtol=0)


def test_avoided_directions_that_the_selection_does_not_touch_cost_nothing():
    basis = torch.eye(10, dtype=torch.float64)[:, 6:]
    projector = RowProjector(torch.arange(3), "left", 10)
    allowed = coordinates_inside(projector, SideConstraint(blocked=basis))
    x = noise(3, 4)
    assert torch.equal(allowed.rows(x), x)


@pytest.mark.parametrize(("word", "message"), [
    ("avoid", "avoid: the 5 avoided directions fill all 4 selected rows of layer.weight"),
    ("within", "within: no allowed direction lies in 4 selected rows of layer.weight"),
])  # fmt: skip
def test_a_selection_with_no_free_coordinate_is_refused_with_a_way_out(word, message):
    basis = random_basis(12, 5, generator=seeded(), dtype=torch.float64)
    side = SideConstraint.build(*((basis, None) if word == "avoid" else (None, basis)))
    projector = RowProjector(torch.arange(4), "left", 12)
    with pytest.raises(ValueError, match=message) as error:
        coordinates_inside(projector, side, "layer.weight")
    assert "higher rank" in str(error.value)

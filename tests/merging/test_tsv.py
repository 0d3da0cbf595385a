"""TSV-M beside its steps written out."""

import pytest
import torch

from conformance.merging import MergeSuite, models
from spanwise.merging import merge

F64 = torch.float64
W = "w.weight"
SHAPES = [(12, 12), (30, 8), (8, 30), (11, 9)]


class TestTSV(MergeSuite):
    method = "tsv"


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def merged(deltas, **options):
    base = torch.zeros_like(deltas[0])
    return merge({W: base}, [{W: d} for d in deltas], "tsv", work_dtype=F64, **options).delta[W]


def naive(deltas):
    """The paper's steps, with the columns of zeros that pad both sides in the authors' code."""
    m, n = deltas[0].shape
    r, q = min(m, n), min(m, n) // len(deltas)
    x, s, y = torch.zeros(m, r).double(), torch.zeros(r).double(), torch.zeros(r, n).double()
    for i, delta in enumerate(deltas):
        u, values, vh = torch.linalg.svd(delta, full_matrices=False)
        own = slice(i * q, (i + 1) * q)
        x[:, own], s[own], y[own] = u[:, :q], values[:q], vh[:q]
    a, _, b = torch.linalg.svd(x, full_matrices=False)
    c, _, d = torch.linalg.svd(y, full_matrices=False)
    return (a @ b * s) @ (c @ d)


def far(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
@pytest.mark.parametrize("null", ["true", "official"])
def test_it_is_the_paper_s_steps(shape, tasks, null):
    deltas = [draw(*shape, seed=t) for t in range(tasks)]
    assert far(merged(deltas, null=null), naive(deltas)) < 1e-10


def test_one_update_comes_back_whole():
    for shape in SHAPES:
        delta = draw(*shape)
        assert far(merged([delta]), delta) < 1e-12


def test_updates_in_orthogonal_subspaces_are_added():
    u, v = torch.linalg.qr(draw(12, 6))[0], torch.linalg.qr(draw(10, 6, seed=1))[0]
    s = torch.tensor([6.0, 5, 4, 3, 2, 1], dtype=F64)
    deltas = [(u[:, i : i + 2] * s[i : i + 2]) @ v[:, i : i + 2].mT for i in (0, 2, 4)]
    assert far(merged(deltas), sum(deltas)) < 1e-12


def test_values_of_the_result_are_those_of_the_updates_leading_ones():
    deltas = [draw(30, 12, seed=t) for t in range(3)]
    expected = torch.cat([torch.linalg.svdvals(d)[:4] for d in deltas]).sort(descending=True).values
    assert far(torch.linalg.svdvals(merged(deltas)), expected) < 1e-10


def test_updates_below_the_rank_that_each_may_have_take_no_arbitrary_directions():
    deltas = [draw(14, 2, seed=t) @ draw(2, 12, seed=9 + t) for t in range(2)]
    triples = [torch.linalg.svd(d, full_matrices=False) for d in deltas]
    x = torch.cat([t.U[:, :2] for t in triples], dim=1)
    y = torch.cat([t.Vh[:2] for t in triples])
    s = torch.cat([t.S[:2] for t in triples])
    a, c = (torch.linalg.svd(z, full_matrices=False) for z in (x, y))
    assert far(merged(deltas), (a.U @ a.Vh * s) @ (c.U @ c.Vh)) < 1e-10
    # The authors' steps turn these by whatever LAPACK put beside them.
    assert far(merged(deltas, null="official"), naive(deltas)) < 1e-10
    assert far(merged(deltas, null="official"), merged(deltas)) > 1e-3


def test_rotating_both_sides_rotates_the_result():
    deltas = [draw(12, 9, seed=t) for t in range(3)]
    left = torch.linalg.qr(draw(12, 12, seed=5))[0]
    right = torch.linalg.qr(draw(9, 9, seed=6))[0]
    assert far(merged([left @ d @ right for d in deltas]), left @ merged(deltas) @ right) < 1e-9


def test_a_matrix_with_fewer_directions_than_models_stays():
    deltas = [draw(2, 9, seed=t) for t in range(3)]
    assert not merged(deltas).any()
    assert not naive(deltas).any()


def test_the_sum_is_not_divided_by_the_number_of_models():
    base, tuned = models(1)
    one = merge(base, tuned, "tsv", work_dtype=F64)
    assert all(torch.allclose(one[n], tuned[0][n], atol=1e-12) for n in base if n != "steps")

"""compare: angles and overlaps as defined, beside what chance gives."""

import math

import pytest
import torch

from spanwise.atlas import Atlas, Entry
from spanwise.atlas._compare import layer_grid
from spanwise.subspace import Subspace


def atlas(basis, name="w.weight", shape=None):
    *batch, d, _ = basis.shape
    return Atlas(
        [
            Entry(
                name=name,
                side="input",
                subspace=Subspace(basis),
                layout="experts" if batch else "linear",
                shape=shape or (*batch, 4, d),
            )
        ]
    )


def test_known_angles_give_their_overlap():
    e = torch.eye(5, dtype=torch.float64)
    tilted = torch.stack([e[:, 0], math.cos(0.4) * e[:, 1] + math.sin(0.4) * e[:, 2]], dim=1)
    row = atlas(e[:, :2]).compare(atlas(tilted)).rows[0]
    assert row.angles.tolist() == pytest.approx([0, 0.4], abs=1e-10)
    assert row.overlap == pytest.approx(1 + math.cos(0.4) ** 2, abs=1e-10)
    dense = torch.linalg.matrix_norm(e[:, :2].mT @ tilted) ** 2
    assert row.overlap == pytest.approx(float(dense), abs=1e-10)
    assert (row.expected_overlap, row.expected_shared) == (4 / 5, 2 / 5)


def test_an_atlas_shares_all_of_itself():
    a = atlas(Subspace.random(7, 3, dtype=torch.float64).basis)
    comparison = a.compare(a)
    assert comparison.shared == pytest.approx(1, abs=1e-10)
    assert comparison.expected_shared == pytest.approx(3 / 7)
    assert "100.0% of the smaller subspaces shared, 42.9% expected" in str(comparison)


def test_random_subspaces_overlap_as_expected():
    d, r, s = 60, 6, 4
    a = atlas(Subspace.random(d, r, dtype=torch.float64).basis)
    b = atlas(Subspace.random(d, s, generator=torch.Generator().manual_seed(5)).basis)
    row = a.compare(b, draws=300).rows[0]
    # One draw of r s / d = 0.4 has a standard deviation near sqrt(2 r s) / d = 0.12.
    assert row.random_overlap == pytest.approx(r * s / d, abs=4 * 0.12 / math.sqrt(300))
    assert row.random_angles.shape == (300, 4)


def test_experts_are_averaged():
    e = torch.eye(4, dtype=torch.float64)
    a = atlas(torch.stack([e[:, :2], e[:, :2]]))
    b = atlas(torch.stack([e[:, :2], e[:, 2:]]))
    row = a.compare(b).rows[0]
    assert row.angles.shape == (2, 2)
    assert row.overlap == pytest.approx(1, abs=1e-10)


def test_what_only_one_has_is_listed():
    basis = torch.eye(4)[:, :2]
    a, b = atlas(basis), atlas(basis, "v.weight")
    both = a.union(b)
    comparison = both.compare(a)
    assert comparison.only_a == ("v.weight::input",)
    assert comparison.only_b == ()
    with pytest.raises(ValueError, match="no entry in common"):
        a.compare(b)


def test_plain_numbers_come_out_for_json():
    basis = torch.eye(4)[:, :2]
    plain = atlas(basis).compare(atlas(basis)).as_dict()
    assert plain["rows"][0]["angles"] == [0.0, 0.0]
    assert plain["rows"][0]["rank_a"] == 2


def test_names_become_a_grid_of_layers_and_kinds():
    rows, columns, cells = layer_grid(
        {
            "model.layers.0.mlp.up_proj.weight": 1.0,
            "model.layers.1.mlp.up_proj.weight": 2.0,
            "model.layers.1.self_attn.q_proj.weight": 3.0,
            "score.weight": 4.0,
        }
    )
    assert rows == ["model.layers.0", "model.layers.1", ""]
    assert columns == ["mlp.up_proj", "self_attn.q_proj", "score"]
    assert cells[1] == [2.0, 3.0, pytest.approx(math.nan, nan_ok=True)]
    assert cells[2][2] == 4.0


@pytest.mark.bad_input
def test_draws_must_be_positive():
    a = atlas(torch.eye(4)[:, :2])
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        a.compare(a, draws=0)

"""The gradient-subspace analysis: its measures, its criterion, and one small run."""

import math
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("transformers")

from spanwise import reproductions
from spanwise.linalg import captured_energy, grassmann
from spanwise.reproductions import gradient_subspaces as gs
from spanwise.reproductions._byte_lm import load_text


def gradient(rows=12, cols=20, seed=0):
    g = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, rows, generator=g, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(cols, rows, generator=g, dtype=torch.float64)).Q
    values = torch.arange(1, rows + 1, dtype=torch.float64) ** -0.7
    return (u * values) @ v.mT, u, values


def test_curvatures_are_second_derivatives_of_the_captured_energy():
    x, u, values = gradient()
    rank, h = 3, 1e-3
    total = values.square().sum()
    steepest = 2 * (values[0] ** 2 - values[-1] ** 2)
    found = []
    for i in range(rank):
        for j in range(rank, 12):
            way = torch.zeros(12, rank, dtype=torch.float64)
            way[:, i] = u[:, j]
            energy = [
                float(total * captured_energy(x, grassmann.exp(u[:, :rank], t * way)))
                for t in (-h, 0.0, h)
            ]
            found.append((energy[0] - 2 * energy[1] + energy[2]) / h**2)
    sizes = -torch.tensor(found, dtype=torch.float64) / steepest
    deciles = sizes.quantile(torch.linspace(0, 1, 11, dtype=torch.float64)).tolist()
    # A difference of energies of about 1 at h = 1e-3 keeps nine digits less.
    assert gs.curvatures(values, rank) == pytest.approx(deciles, abs=1e-5)


@pytest.mark.parametrize(("values", "count"), [([1, 0, 0], 1), ([1, 1, 1], 3), ([9, 1, 0.1], 2)])
def test_needed_counts_the_directions_of_99_per_cent(values, count):
    assert gs.needed(torch.tensor(values, dtype=torch.float32)) == count


def rows(core=(80.0,) * 3, late=70.0, last=75.0, walked=60.0, median=0.01):
    found = []
    for seed, share in zip((100, 101, 102), core, strict=True):
        base = {"seed": seed, "early": 85.0, "late": late, "first_layer": 82.0, "last_layer": last}
        curvature = [0.0] * 5 + [median] + [1.0] * 5
        found.append({**base, "arm": "core", "share": share, "curvature": curvature})
        found.append({**base, "arm": "stale", "share": 63.0})
        found.append({**base, "arm": "walked", "share": walked})
        found.append({**base, "arm": "random", "share": 25.0})
    return tuple(found)


def test_the_six_parts_of_the_criterion():
    assert [c.holds for c in gs.judge(rows())] == [True] * 6
    assert [c.holds for c in gs.judge(rows(late=90.0, last=90.0))] == [False, False] + [True] * 4
    assert [c.holds for c in gs.judge(rows(core=(95.0, 96.0, 95.0)))][2:4] == [True, False]
    assert [c.holds for c in gs.judge(rows(core=(40.0, 41.0, 40.0)))][2:4] == [False, True]
    assert [c.holds for c in gs.judge(rows(median=0.2, walked=50.0))][4:] == [False, False]
    noisy = gs.judge(rows(core=(70.0, 80.0, 95.0)))[3]
    assert not noisy.holds
    assert noisy.direction


@pytest.mark.parametrize("preset", list(gs.PRESETS))
def test_judging_seeds_are_fresh(preset):
    seeds = gs.PRESETS[preset].seeds
    assert min(seeds) >= 100
    assert len(seeds) >= 3 or preset == "quick"


def test_a_small_run_measures_every_matrix_and_draws():
    assert "gradient-subspaces" in reproductions.slugs()
    settings = replace(
        gs.PRESETS["quick"], width=32, hidden=48, rank=8, steps=6, every=2, length=32, batch=4,
        validation_windows=8,
    )  # fmt: skip
    own = {key: value for key, value in asdict(settings).items() if key != "seeds"}
    record = gs.cell({"seed": 100, "settings": own, "data": load_text().digest})
    assert len(record["shares"]) == 2 * 2 * 7  # looks after the first, layers, kinds
    row = {arm: gs.summary(arm, 100, record) for arm in gs.ARMS}
    assert row["core"]["share"] >= row["stale"]["share"] > row["random"]["share"]
    assert row["random"]["share"] == pytest.approx(25, abs=5)
    assert row["core"]["steps"] == [2, 4]
    ways = row["core"]["landscape"]
    # Both begin at the last core, and the way to the present one ends higher.
    assert ways["core"][0] == pytest.approx(ways["random"][0], abs=1e-3)
    assert ways["core"][-1] > ways["random"][-1]
    assert all(math.isfinite(x) for x in row["core"]["curvature"])
    assert gs.needed_note([row["core"]]).startswith("On average")


@pytest.mark.slow
@pytest.mark.reproduction
def test_the_quick_run_goes_from_text_to_verdict_and_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    result = gs.run(preset="quick", cache=tmp_path / "cells")
    assert result.verdict.outcome == "no verdict"
    assert [row["arm"] for row in result.rows] == list(gs.ARMS)
    figure = Figure()
    gs.figure(result, figure.subplots(1, 3))

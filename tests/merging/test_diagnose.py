"""What updates have in common, against the formulas written out with whole decompositions."""

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch

from conformance.merging import models
from spanwise.io import save_tensors
from spanwise.lora import Adapter
from spanwise.merging import _pairs
from spanwise.merging._diagnose import diagnose

F64 = torch.float64
SHAPES = {"layers.0.up.weight": (20, 8), "layers.1.down.weight": (7, 15), "head.weight": (9, 9)}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def basis(d, k, seed=0):
    return torch.linalg.qr(draw(d, k, seed=seed))[0]


def case(count=3, *, shapes=SHAPES, seed=0, low=None):
    """A base, and updates whose singular values decay, partly in common."""
    base = {name: draw(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}
    base["norm.weight"] = draw(11, seed=99)
    updates = []
    for t in range(count):
        own = {}
        for k, (name, (m, n)) in enumerate(shapes.items()):
            r = low or min(m, n)
            left, right = basis(m, r, 100 * seed + t), basis(n, r, 100 * seed + 7)
            values = 0.7 ** torch.arange(r, dtype=F64) * (1 + t + k)
            own[name] = (left * values) @ right.mT + (0 if low else 0.05 * draw(m, n, seed=31 * t))
        own["norm.weight"] = draw(11, seed=50 + t)
        updates.append(own)
    return base, updates


def tuned(base, updates):
    return [{n: base[n] + own.get(n, 0) for n in base} for own in updates]


def run(base, updates, **options):
    return diagnose(base, tuned(base, updates), **options)


# -- the formulas ------------------------------------------------------------------------------


def naive_sizes(s, rank, energy):
    if energy is None:
        return min(rank, len(s))
    held = (s**2).cumsum(0) / (s**2).sum()
    return int((held < energy - 1e-12).sum()) + 1


def naive_ratio(d, m):
    """SAR(D, M; k_M) of the paper's equations 5 and 6."""
    u, s, _ = torch.linalg.svd(m)
    for k in range(1, len(s) + 1):
        p = u[:, :k] @ u[:, :k].mT
        if (m - p @ m).norm() <= 0.05 * m.norm():
            return float((p @ d).norm() / d.norm()), k
    raise AssertionError


def naive_layer(d, rank=16, energy=None):
    """Shares of one matrix, T x T: shared energy, its expectation, alignment ratio."""
    m, n = d[0].shape
    shared, chance, ratio = torch.zeros(3, len(d), len(d), dtype=F64)
    for j, other in enumerate(d):
        u, s, vh = torch.linalg.svd(other, full_matrices=False)
        k = naive_sizes(s, rank, energy)
        for i, own in enumerate(d):
            left = (u[:, :k].mT @ own).norm() ** 2 / own.norm() ** 2
            right = (own @ vh[:k].mT).norm() ** 2 / own.norm() ** 2
            shared[i, j] = (left + right) / 2
            chance[i, j] = (k / m + k / n) / 2
            ratio[i, j] = naive_ratio(own, other)[0]
    return shared, chance, ratio


@pytest.mark.parametrize("options", [{"rank": 3}, {"rank": 100}, {"energy": 0.8}, {}])
def test_rows_are_the_formulas(options):
    base, updates = case()
    found = run(base, updates, **options)
    size = {"rank": options.get("rank", 16), "energy": options.get("energy")}
    layers = {name: naive_layer([own[name] for own in updates], **size) for name in SHAPES}
    weights = torch.tensor([[own[name].norm() ** 2 for name in SHAPES] for own in updates])
    weights = (weights / weights.sum(1, keepdim=True)).to(F64)

    def whole(which, i, j):
        return sum(float(w) * which[name][i, j] for w, name in zip(weights[i], SHAPES, strict=True))

    for i, j in itertools.combinations(range(3), 2):
        row = found.pair(f"model {i + 1}", f"model {j + 1}")
        one, other = (torch.cat([t.flatten() for t in updates[k].values()]) for k in (i, j))
        shared, chance = (
            (whole(which, i, j) + whole(which, j, i)) / 2
            for which in ({n: x[part] for n, x in layers.items()} for part in (0, 1))
        )
        ratio = {n: x[2] ** 2 for n, x in layers.items()}
        conflict = sum(
            (float(weights[i, place] + weights[j, place]) / 2)
            * max(0.0, -float(torch.cosine_similarity(*(
                updates[k][name].flatten() for k in (i, j)), dim=0)))
            for place, name in enumerate(SHAPES)
        )  # fmt: skip
        assert abs(row.cosine - float(torch.cosine_similarity(one, other, dim=0))) < 1e-10
        assert abs(row.shared_energy - float(shared)) < 1e-10
        assert abs(row.random - float(chance)) < 1e-10
        assert abs(row.conflict - conflict) < 1e-10
        expected = (math.sqrt(whole(ratio, i, j)) + math.sqrt(whole(ratio, j, i))) / 2
        assert abs(row.alignment - expected) < 1e-10
        room = 1 - float(chance)
        excess = (float(shared) - float(chance)) / room if room > 1e-9 else 0.0
        assert abs(row.score - (excess - 2 * conflict)) < 1e-8
    for layer in found.layers:
        shared, chance, ratio = layers[layer.name]
        for pair in layer.pairs:
            i, j = (int(label[-1]) - 1 for label in (pair.first, pair.second))
            for value, which in (
                (pair.shared_energy, shared), (pair.random, chance), (pair.alignment, ratio),
            ):  # fmt: skip
                assert abs(value - float(which[i, j] + which[j, i]) / 2) < 1e-10


def test_every_layer_s_spectrum_and_alignment_with_the_sum():
    base, updates = case()
    found = run(base, updates)
    assert [layer.name for layer in found.layers] == list(SHAPES)
    for layer in found.layers:
        d = [own[layer.name] for own in updates]
        total = sum(d)
        for matrix, row in zip([*d, total], [*layer.updates, layer.total], strict=True):
            s = torch.linalg.svdvals(matrix)
            share = s / s.sum()
            held = (s**2).cumsum(0) / (s**2).sum()
            assert abs(row.norm - float(matrix.norm())) < 1e-10
            assert abs(row.effective_rank - float((-(share * share.log()).sum()).exp())) < 1e-9
            assert abs(row.stable_rank - float((s**2).sum() / s[0] ** 2)) < 1e-10
            assert abs(row.skew - float(s[0] / s.mean())) < 1e-9
            assert row.rank == len(s)
            for percent in (90, 95, 99):
                assert getattr(row, f"rank_{percent}") == int((held < percent / 100).sum()) + 1
        for matrix, row in zip(d, layer.updates, strict=True):
            ratio, k = naive_ratio(matrix, total)
            assert abs(row.alignment - ratio) < 1e-10
            assert abs(row.random_alignment - math.sqrt(k / layer.shape[0])) < 1e-12
    for own, row in zip(updates, found.models, strict=True):
        assert abs(row.norm - math.sqrt(sum(float(x.norm()) ** 2 for x in own.values()))) < 1e-10
        assert row.matrices == 3


@pytest.mark.parametrize("held", [True, False])
def test_reading_in_blocks_changes_nothing(held, monkeypatch):
    base, updates = case()
    whole = run(base, updates, rank=4)
    monkeypatch.setattr(_pairs, "HELD", 10**9 if held else 1)
    monkeypatch.setattr(_pairs, "BLOCK", 24)
    assert close(run(base, updates, rank=4), whole)


def close(a, b, tolerance=1e-10):
    """Whether two diagnoses hold the same numbers."""
    for one, other in zip(flat(a.to_json()), flat(b.to_json()), strict=True):
        if isinstance(one, float):
            assert abs(one - other) < tolerance * max(1, abs(other))
        else:
            assert one == other
    return True


def flat(value):
    if isinstance(value, dict):
        return [x for key in value for x in [key, *flat(value[key])]]
    return [x for item in value for x in flat(item)] if isinstance(value, list) else [value]


# -- limits ------------------------------------------------------------------------------------


def test_random_subspaces_share_what_is_expected():
    m, n, k, pairs = 90, 60, 6, 12
    base = {f"layers.{i}.weight": torch.zeros(m, n, dtype=F64) for i in range(pairs)}
    updates = [
        {
            name: basis(m, k, 2 * i + t) @ basis(n, k, 500 + 2 * i + t).mT
            for i, name in enumerate(base)
        }
        for t in range(2)
    ]
    found = run(base, updates, rank=k)
    row = found.pairs[0]
    shares = torch.tensor([layer.pairs[0].shared_energy for layer in found.layers])
    assert abs(row.random - (k / m + k / n) / 2) < 1e-12
    # Four standard errors of the mean over layers.
    assert abs(row.shared_energy - row.random) < 4 * float(shares.std()) / math.sqrt(pairs)
    assert abs(row.score) < 0.05


def test_the_same_update_scores_one_whatever_its_scale():
    base, updates = case(1)
    again = {name: 3 * x for name, x in updates[0].items()}
    row = run(base, [updates[0], again], rank=2, names=list(SHAPES)).pairs[0]
    assert row.shared_energy < 1  # two directions do not hold all of it
    assert abs(row.cosine - 1) < 1e-10
    base, updates = case(1, low=2)
    again = {name: 3 * x for name, x in updates[0].items()}
    row = run(base, [updates[0], again], rank=4, names=list(SHAPES)).pairs[0]
    assert max(abs(x - 1) for x in (row.shared_energy, row.alignment, row.score)) < 1e-10
    assert row.conflict == 0


def test_opposite_updates_score_minus_one():
    base, updates = case(1, low=2)
    against = {name: -x for name, x in updates[0].items()}
    row = run(base, [updates[0], against]).pairs[0]
    assert abs(row.conflict - 1) < 1e-10
    assert abs(row.score + 1) < 1e-10
    assert abs(row.shared_energy - 1) < 1e-10


def test_orthogonal_updates_share_nothing():
    q, p = basis(20, 6), basis(12, 6, 1)
    base = {"w.weight": torch.zeros(20, 12, dtype=F64)}
    updates = [{"w.weight": q[:, part] @ p[:, part].mT} for part in (slice(3), slice(3, 6))]
    row = run(base, updates, rank=3).pairs[0]
    assert max(abs(x) for x in (row.shared_energy, row.alignment, row.cosine)) < 1e-10
    assert row.score < 0


def test_the_ranking_puts_the_alike_first_and_the_opposed_last():
    base, updates = case(2, low=2)
    first, other = updates
    twin = {name: x + 0.1 * other[name] for name, x in first.items()}
    enemy = {name: -x for name, x in first.items()}
    named = dict(zip(["a", "twin", "enemy"], tuned(base, [first, twin, enemy]), strict=True))
    found = diagnose(base, named)
    order = [(p.first, p.second) for p in found.pairs]
    assert order == [("a", "twin"), ("twin", "enemy"), ("a", "enemy")]
    assert [p.score for p in found.pairs] == sorted((p.score for p in found.pairs), reverse=True)


def test_scaling_one_model_changes_no_pair():
    base, updates = case()
    scaled = [
        {n: (5 if t == 1 else 1) * x for n, x in own.items()} for t, own in enumerate(updates)
    ]
    for a, b in zip(run(base, updates).pairs, run(base, scaled).pairs, strict=True):
        for one, other in zip(
            dataclasses.astuple(a)[2:], dataclasses.astuple(b)[2:], strict=True
        ):  # fmt: skip
            assert abs(one - other) < 1e-9


def test_an_orthogonal_change_of_basis_changes_nothing():
    base, updates = case()
    turns = {n: (basis(m, m, 3), basis(k, k, 4)) for n, (m, k) in SHAPES.items()}

    def turned(own):
        return {n: turns[n][0] @ x @ turns[n][1] if n in turns else x for n, x in own.items()}

    a, b = run(base, updates, rank=3), run(base, [turned(own) for own in updates], rank=3)
    assert close(a, b, 1e-9)


def test_transposing_exchanges_left_and_right_and_keeps_what_is_shared():
    base, updates = case()
    flip = [{n: x.mT.contiguous() if x.ndim == 2 else x for n, x in o.items()} for o in updates]
    turned = {n: x.mT.contiguous() if x.ndim == 2 else x for n, x in base.items()}
    for a, b in zip(run(base, updates, rank=3).pairs, run(turned, flip, rank=3).pairs, strict=True):
        assert abs(a.shared_energy - b.shared_energy) < 1e-10
        assert abs(a.score - b.score) < 1e-10


# -- adapters ----------------------------------------------------------------------------------


def adapters(count=3, rank=2, *, transposed=False):
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "fan_in_fan_out": transposed}
    held = []
    for t in range(count):
        factors = {}
        for k, (name, (m, n)) in enumerate(SHAPES.items()):
            if t == 1 and k == 1:
                continue  # an adapter need not touch every weight
            m, n = (n, m) if transposed else (m, n)
            stem = name.removesuffix(".weight")
            factors[f"{stem}.lora_A.weight"] = draw(rank, n, seed=7 * t + k)
            factors[f"{stem}.lora_B.weight"] = draw(m, rank, seed=70 * t + k)
        held.append(Adapter(factors, config))
    return held


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [2, 4])
def test_adapters_are_compared_as_their_whole_updates_are(transposed, rank, monkeypatch):
    base, _ = case()
    low = adapters(transposed=transposed, rank=rank)
    whole = [
        {n: base[n] + (a.update(n, F64) if n in a else 0) for n in base} for a in low
    ]  # fmt: skip
    expected = diagnose(base, whole, rank=3)
    if rank == 2:  # their ranks add up to less than any side: no dense update is formed
        monkeypatch.setattr(_pairs, "Dense", None)
    assert close(diagnose(base, low, rank=3), expected)


def test_an_adapter_beside_a_whole_model():
    base, updates = case(1)
    low = adapters(1)[0]
    whole = {n: base[n] + (low.update(n, F64) if n in low else 0) for n in base}
    other = tuned(base, updates)[0]
    assert close(diagnose(base, [low, other]), diagnose(base, [whole, other]))


# -- what people bring -------------------------------------------------------------------------


def test_a_copy_of_the_base_is_said_and_makes_no_nan():
    base, updates = case(2)
    found = diagnose(base, {"a": tuned(base, updates)[0], "copy": dict(base)})
    assert any("copy equals the base" in note for note in found.notes)
    row = found.pairs[0]
    assert (row.cosine, row.shared_energy, row.random, row.alignment, row.score) == (0,) * 5
    json.dumps(found.to_json(), allow_nan=False)
    nothing = diagnose(base, [dict(base), dict(base)])
    assert nothing.layers == ()
    assert len(nothing.notes) == 2
    assert "model 1 + model 2" in str(nothing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_tensor_and_dtype(dtype):
    base, held = models(2, dtype=dtype)
    found = diagnose(base, held)
    assert [x.name for x in found.layers] == [n for n in base if base[n].ndim == 2]
    flat = [
        torch.cat([(own[n].double() - base[n].double()).flatten() for n in base if n != "steps"])
        for own in held
    ]
    # Differences are taken in float32.
    assert abs(found.pairs[0].cosine - float(torch.cosine_similarity(*flat, dim=0))) < 1e-6


def test_experts_are_matrices_of_their_own():
    shape = {"mlp.experts.up": (3, 8, 5)}
    base = {n: draw(*s) for n, s in shape.items()}
    held = [{n: base[n] + draw(*s, seed=t) for n, s in shape.items()} for t in (1, 2)]
    held[1]["mlp.experts.up"][1] = base["mlp.experts.up"][1]
    found = diagnose(base, held, rank=2)
    assert [x.name for x in found.layers] == [f"mlp.experts.up[{e}]" for e in range(3)]
    alone = diagnose(
        {"w": base["mlp.experts.up"][2]}, [{"w": own["mlp.experts.up"][2]} for own in held], rank=2
    )
    assert abs(found.layers[2].pairs[0].shared_energy - alone.pairs[0].shared_energy) < 1e-12
    assert found.layers[1].pairs[0].shared_energy == 0


def test_names_and_exclude_choose_tensors():
    base, updates = case()
    assert [x.name for x in run(base, updates, names=["layers.*.up", "head"]).layers] == [
        "layers.0.up.weight", "head.weight",
    ]  # fmt: skip
    assert [x.name for x in run(base, updates, exclude=["head"]).layers] == list(SHAPES)[:2]


def test_files_and_workers_give_the_same(tmp_path):
    base, updates = case()
    held = [base, *tuned(base, updates)]
    paths = [save_tensors(tmp_path / f"{i}.safetensors", x) for i, x in enumerate(held)]
    told = []
    found = diagnose(
        paths[0], paths[1:], workers=2, progress=lambda done, total: told.append((done, total))
    )
    in_order = dict(sorted(base.items()))  # as the file has them
    assert close(found, run(in_order, updates), 1e-12)
    assert told[-1] == (4, 4)


def test_a_saved_diagnosis_is_json_and_its_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    base, updates = case()
    found = run(base, updates)
    held = json.loads(found.save(tmp_path / "d.json").read_text())
    assert held["format"] == 1
    assert [p["score"] for p in held["pairs"]] == [p.score for p in found.pairs]
    assert held["layers"][0]["updates"][0]["model"] == "model 1"
    (file,) = found.figure(tmp_path / "d.svg")
    text = file.read_text()
    assert text.startswith("<?xml")
    assert "<script" not in text
    table = str(found)
    assert table.index("score") < table.index("cosine")
    assert all(f"model {i}" in table for i in (1, 2, 3))


def test_the_page_s_code_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "merging-diagnose.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    base, updates = case()
    held = [base, *tuned(base, updates)]
    for name, tensors in zip(("", "-code", "-math", "-chat"), held, strict=True):
        save_tensors(tmp_path / f"llama{name}" / "model.safetensors", tensors)
    exec(compile(block, "docs/merging-diagnose.md", "exec"), {})
    told = capsys.readouterr().out
    assert all(pair in told for pair in ("code + math", "code + chat", "math + chat"))


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"energy": 0.0}, r"energy must be a share in \(0, 1\], got 0.0"),
        ({"energy": 1.5}, r"energy must be a share in \(0, 1\], got 1.5"),
        ({"rank": 2, "energy": 0.5}, "give rank = 2 or energy = 0.5, not both"),
        ({"names": ["nothing"]}, "no tensor is left to compare with names"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    base, updates = case(2)
    with pytest.raises(ValueError, match=message):
        run(base, updates, **options)


@pytest.mark.bad_input
def test_options_of_another_kind_are_named():
    base, updates = case(2)
    with pytest.raises(TypeError, match=r"rank must be an integer, got 2\.5"):
        run(base, updates, rank=2.5)
    with pytest.raises(TypeError, match="names must be a sequence of texts"):
        run(base, updates, names="head")
    with pytest.raises(TypeError, match="models must be a sequence or a mapping"):
        diagnose(base, "folder")


def test_one_model_is_too_few():
    base, updates = case(1)
    with pytest.raises(ValueError, match=r"two or more, for pairs are compared, got 1\."):
        run(base, updates)


def test_another_shape_is_named():
    base, updates = case(2)
    held = tuned(base, updates)
    held[1]["head.weight"] = draw(9, 8)
    with pytest.raises(ValueError, match=r"'head.weight' has shape \(9, 9\) in base and \(9, 8\)"):
        diagnose(base, held)


@pytest.mark.parametrize("name", ["head.weight", "norm.weight"])
def test_weights_that_are_not_finite_are_named(name):
    base, updates = case(2)
    updates[1][name].view(-1)[3] = float("nan")
    with pytest.raises(ValueError, match=f"'{name}' of model 2 holds NaN or infinity"):
        run(base, updates)

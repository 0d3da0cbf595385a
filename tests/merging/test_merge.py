"""What `merge` takes, and what it says of inputs that do not fit."""

import json
import math

import pytest
import torch
from torch import nn

from conformance.merging import models, same_bits
from spanwise.atlas import Atlas
from spanwise.io import open_tensors, save_tensors
from spanwise.lora import Adapter, open_adapter
from spanwise.merging import merge
from spanwise.merging._merge import prepare

FLOAT64 = {"work_dtype": torch.float64}


class Tied(nn.Module):
    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(8, 4)
            self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight


def adapter(seed=0, *, alpha=8, rank=2, **config):
    g = torch.Generator().manual_seed(seed)
    prefix = "base_model.model.layers.0.up"
    factors = {
        f"{prefix}.lora_A.weight": torch.randn(rank, 6, generator=g),
        f"{prefix}.lora_B.weight": torch.randn(10, rank, generator=g),
    }
    return factors, {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, **config}


# -- kinds of models -------------------------------------------------------------------------


def test_modules_stay_tied():
    base, tuned = Tied(0), [Tied(1), Tied(2)]
    merged = merge(base, tuned, "task_arithmetic", alpha=0.5)
    assert set(merged) == {"embed.weight", "head.weight"}
    assert list(merged.delta) == ["embed.weight"]
    assert torch.equal(merged["embed.weight"], merged["head.weight"])
    base.load_state_dict(dict(merged))
    assert base.head.weight is base.embed.weight


def test_a_mapping_names_the_models():
    base, (first, second) = models(2)
    second["conv.weight"][0] = float("nan")
    with pytest.raises(ValueError, match=r"'conv\.weight' of french holds NaN"):
        merge(base, {"code": first, "french": second}, "task_arithmetic")


def test_a_base_that_is_not_finite_is_named():
    base, tuned = models(2)
    base["conv.weight"][0] = float("inf")
    with pytest.raises(ValueError, match="of base holds NaN or infinity"):
        merge(base, tuned, "task_arithmetic")


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / math.sqrt(2)),
        ({"alpha_pattern": {"layers.0.up": 3}}, 1.5),
        ({"alpha_pattern": {"up": 3}}, 1.5),
        ({"alpha_pattern": {"down": 3}}, 4.0),
    ],
)
def test_an_adapter_folder_adds_its_scaled_product(tmp_path, config, scale):
    factors, held = adapter(**config)
    save_tensors(tmp_path / "adapter_model.safetensors", factors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(held))
    base, _ = models(1)
    merged = merge(base, [tmp_path], "task_arithmetic", **FLOAT64)
    a, b = (x.double() for x in factors.values())
    name = "layers.0.up.weight"
    assert torch.allclose(merged[name], base[name] + scale * b @ a, atol=1e-12, rtol=0)
    assert all(same_bits(merged[n], base[n]) for n in base if n != name)
    left, right = open_adapter(tmp_path).factors(name)
    assert torch.allclose(left @ right, open_adapter(tmp_path).update(name), atol=1e-5)


def test_adapters_and_whole_models_mix():
    base, tuned = models(1)
    factors, config = adapter()
    low = Adapter(factors, config)
    merged = merge(base, [tuned[0], low], "task_arithmetic", **FLOAT64)
    name = "layers.0.up.weight"
    expected = tuned[0][name] + low.update(name, torch.float64)
    assert torch.allclose(merged[name], expected, atol=1e-12, rtol=0)
    average = merge(base, [tuned[0], low], "linear", **FLOAT64)
    assert torch.allclose(average[name], (expected + base[name]) / 2, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "iso_c", "tsv", "ties", "knots"])
@pytest.mark.parametrize("saved", ["embed.weight", "layers.1.modules_to_save.default.down.weight"])
def test_what_an_adapter_keeps_whole_is_a_full_update_of_that_tensor(method, saved):
    """PEFT's `modules_to_save`: as if the whole model had been given."""
    base, tuned = models(2)
    factors = [adapter(seed)[0] for seed in range(2)]
    name = saved.replace("modules_to_save.default.", "")
    lows, wholes = [], []
    for own, model in zip(factors, tuned, strict=True):
        low = Adapter({**own, f"base_model.model.{saved}": model[name]}, adapter()[1])
        up = base["layers.0.up.weight"] + low.update("layers.0.up.weight", torch.float64)
        lows.append(low)
        wholes.append({**base, "layers.0.up.weight": up, name: model[name]})
    found, expected = merge(base, lows, method, **FLOAT64), merge(base, wholes, method, **FLOAT64)
    for key, tensor in expected.items():
        assert torch.allclose(found[key].double(), tensor.double(), atol=1e-10, rtol=0), key
    assert Adapter({**factors[0], f"base_model.model.{saved}": base[name]}).digest() != (
        Adapter(factors[0]).digest()
    )


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "OLoRA", "corda", "loftq", "lora_ga"])
def test_an_adapter_that_changed_its_own_base_is_refused(tmp_path, start):
    factors, config = adapter(init_lora_weights=start)
    save_tensors(tmp_path / "adapter_model.safetensors", factors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"takes its first factors out of the base.*unload"):
        merge(models(1)[0], [tmp_path], "linear")
    with pytest.raises(ValueError, match="the adapter was started by"):
        Adapter(factors, config)


def test_what_an_adapter_keeps_whole_is_read_by_rows(tmp_path, monkeypatch):
    """A head of a gigabyte is looked at in blocks: none of them may read all of it."""
    base = {"layers.0.up.weight": torch.zeros(10, 6), "head.weight": torch.zeros(600, 300)}
    own = {**adapter()[0], "base_model.model.head.weight": torch.ones(600, 300)}
    save_tensors(tmp_path / "adapter_model.safetensors", own)
    opened, lengths = open_adapter(tmp_path), []
    plain = type(opened.tensors).rows

    def rows(self, name, start, stop, into=None):
        lengths.append(stop - start)
        return plain(self, name, start, stop, into)

    monkeypatch.setattr(type(opened.tensors), "rows", rows)
    monkeypatch.setattr("spanwise.merging._job.BLOCK", 3000)
    monkeypatch.setattr("spanwise.merging._work.BLOCK", 3000)
    merged = merge(base, [opened], "task_arithmetic", alpha=0.5)
    assert torch.equal(merged["head.weight"], torch.full((600, 300), 0.5))
    assert lengths == [10] * 60


def test_an_ia3_folder_is_refused_with_the_ways_out_which_work(tmp_path):
    for seed, name in enumerate("ab"):
        vectors = {"base_model.model.layers.0.up.ia3_l": torch.full((10, 1), 1.0 + seed)}
        save_tensors(tmp_path / name / "adapter_model.safetensors", vectors)
        (tmp_path / name / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    folders = [tmp_path / "a", tmp_path / "b"]
    base, _ = models(1)
    with pytest.raises(ValueError, match=r"a is a IA3 adapter.*merge_and_unload.*load_file"):
        merge(base, folders, "linear")
    held = [dict(open_tensors(folder)) for folder in folders]
    merged = merge(None, held, "linear")
    assert torch.equal(merged["base_model.model.layers.0.up.ia3_l"], torch.full((10, 1), 1.5))


def test_an_adapter_of_transposed_weights_is_turned_round():
    factors, config = adapter(fan_in_fan_out=True)
    low = Adapter(factors, config)
    base = {"layers.0.up.weight": torch.zeros(6, 10)}
    merged = merge(base, [low], "task_arithmetic")
    a, b = factors.values()
    assert torch.allclose(merged["layers.0.up.weight"], 4 * (b @ a).mT)


# -- parameters --------------------------------------------------------------------------------


def test_parameters_go_by_name_and_by_depth():
    base = {f"layers.{i}.{k}.weight": torch.zeros(2, 2) for i in range(3) for k in ("up", "down")}
    tuned = [{n: torch.ones_like(t) for n, t in base.items()}]
    merged = merge(
        base, tuned, "task_arithmetic",
        weight=[[{"filter": "up", "value": [0.0, 1.0]}, {"value": 3.0}]],
    )  # fmt: skip
    assert [float(merged[f"layers.{i}.up.weight"].mean()) for i in range(3)] == [0.0, 0.5, 1.0]
    assert all(bool((merged[f"layers.{i}.down.weight"] == 3).all()) for i in range(3))


def test_vectors_may_have_an_alpha_of_their_own():
    base, tuned = models(1)
    merged = merge(base, tuned, "task_arithmetic", alpha=1.0, alpha_vectors=0.0, **FLOAT64)
    assert same_bits(merged["layers.0.up.bias"], base["layers.0.up.bias"])
    assert torch.allclose(merged["embed.weight"], tuned[0]["embed.weight"])


def test_include_leaves_the_rest_alone():
    base, tuned = models(2)
    merged = merge(base, tuned, "task_arithmetic", include=["layers.0"])
    assert list(merged.delta) == ["layers.0.up.weight", "layers.0.up.bias"]
    assert same_bits(merged["embed.weight"], base["embed.weight"])


def test_a_sweep_asks_at_every_alpha_and_merges_once(monkeypatch):
    base, tuned = models(2)
    merged = merge(base, tuned, "task_arithmetic", **FLOAT64)
    monkeypatch.setattr("spanwise.merging._job.Job.update", None)
    for alpha, found in merged.sweep([0.0, 0.3, 1.0], lambda m: dict(m)):
        again = {n: base[n] + alpha * merged.delta[n] for n in merged.delta}
        assert all(torch.allclose(found[n], again[n], atol=1e-14, rtol=0) for n in again)


def test_a_sweep_leaves_an_alpha_of_vectors_as_it_was_given():
    base, tuned = models(1)
    merged = merge(base, tuned, "task_arithmetic", alpha_vectors=0.5, **FLOAT64).at(2.0)
    for name, scale in (("embed.weight", 2.0), ("layers.0.up.bias", 0.5), ("conv.weight", 0.5)):
        expected = base[name] + scale * (tuned[0][name] - base[name])
        assert torch.allclose(merged[name], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.5}, r"alpha = 0\.5 scales what is added to a base"),
        ({"alpha_vectors": 2.0}, r"alpha_vectors = 2\.0 scales what is added to a base"),
        ({"include": ["embed"]}, "include leaves all other tensors as the base's"),
    ],
)
def test_what_only_a_base_gives_a_meaning_to_is_not_ignored(options, message):
    _, tuned = models(2)
    with pytest.raises(ValueError, match=message):
        merge(None, tuned, "linear", **options)
    assert merge(None, tuned, "linear", alpha=1.0, alpha_vectors=1)


def test_factors_of_adapters_are_not_averaged_one_by_one(tmp_path):
    held = [adapter(seed)[0] for seed in range(2)]
    with pytest.raises(ValueError, match=r"model 1 holds LoRA factors.*open_adapter"):
        merge(None, held, "linear")
    file = save_tensors(tmp_path / "lora.safetensors", held[0])
    with pytest.raises(ValueError, match="holds LoRA factors"):
        merge(models(1)[0], [file], "linear")


# -- avoid and within --------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["output", "input"])
def test_what_is_avoided_does_not_change(side):
    base, tuned = models(2)
    name = "layers.0.up.weight"
    atlas = Atlas.from_delta(base, models(1, seed=9)[1][0], rank=2, sides=[side])
    delta = merge(base, tuned, "task_arithmetic", avoid=atlas, **FLOAT64).delta[name]
    basis = atlas.get(name)[side].subspace.basis.double()
    leak = basis.mT @ delta if side == "output" else delta @ basis
    assert float(leak.norm()) < 1e-6 * float(delta.norm())
    inside = merge(base, tuned, "task_arithmetic", within=atlas, **FLOAT64).delta[name]
    plain = merge(base, tuned, "task_arithmetic", **FLOAT64).delta[name]
    assert torch.allclose(inside + delta, plain, atol=1e-6)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "iso_c"])
def test_a_bias_obeys_its_map_s_entries(method):
    base, tuned = models(2)
    bias = "layers.0.up.bias"
    other = models(1, seed=9)[1][0]
    outputs = Atlas.from_delta(base, other, rank=2, sides=["output"])
    u = outputs.get("layers.0.up.weight")["output"].subspace.basis.double()
    plain = merge(base, tuned, method, **FLOAT64).delta[bias]
    delta = merge(base, tuned, method, avoid=outputs, **FLOAT64).delta[bias]
    assert float((u.mT @ plain).norm()) > 1e-2 * float(plain.norm())
    assert float((u.mT @ delta).norm()) < 1e-6 * float(delta.norm())
    delta = merge(base, tuned, method, within=outputs, **FLOAT64).delta[bias]
    assert float((delta - u @ (u.mT @ delta)).norm()) < 1e-6 * float(delta.norm())
    inputs = Atlas.from_delta(base, other, rank=2, sides=["input"])
    merged = merge(base, tuned, method, avoid=inputs, **FLOAT64)
    assert same_bits(merged[bias], base[bias])


def test_the_share_that_avoid_takes_is_of_the_models_updates():
    base, tuned = models(2)
    name = "layers.0.up.weight"
    atlas = Atlas.from_delta(base, models(1, seed=9)[1][0], rank=2, sides=["output"])
    u = atlas.get(name)["output"].subspace.basis.double()
    updates = [t[name] - base[name] for t in tuned]
    taken = sum(float((u.mT @ d).square().sum()) for d in updates)
    whole = sum(float(d.square().sum()) for d in updates)
    merged = merge(base, tuned, "task_arithmetic", avoid=atlas, **FLOAT64)
    assert merged._job.keeper.removed[name] == pytest.approx([taken, whole], rel=1e-5)


@pytest.mark.bad_input
def test_what_avoid_takes_is_told_by_a_merge_in_memory():
    base, tuned = models(2)
    name = "layers.0.up.weight"
    atlas = Atlas.from_delta(base, tuned[0], rank=2, sides=["output"])
    merged = merge(base, tuned, "iso_c", avoid=atlas, **FLOAT64)
    u = atlas.get(name)["output"].subspace.basis.double()
    updates = [(t[name] - base[name]).double() for t in tuned]
    taken = sum(float((u.mT @ d).square().sum()) for d in updates)
    whole = sum(float(d.square().sum()) for d in updates)
    assert merged.removed[name][0] / merged.removed[name][1] == pytest.approx(taken / whole)
    assert merge(base, tuned, "iso_c").removed == {}


def test_arbitrary_directions_cannot_be_avoided():
    base, tuned = models(2)
    atlas = Atlas.from_delta(base, tuned[0], rank=1)
    with pytest.raises(ValueError, match="null='official' fills updates with arbitrary"):
        prepare(base, tuned, "iso_c", avoid=atlas, null="official")


def test_an_atlas_of_another_model_is_refused():
    base, tuned = models(1)
    other = Atlas.from_delta({"x.weight": torch.zeros(4, 4)}, {"x.weight": torch.eye(4)})
    with pytest.raises(ValueError, match="avoid matches no tensor"):
        merge(base, tuned, "task_arithmetic", avoid=other)
    with pytest.raises(ValueError, match="give one"):
        merge(None, tuned, "linear", avoid=other)


# -- what does not fit -------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "isoc"}, "unknown method 'isoc'"),
        ({"wieght": 1.0}, "has no parameter 'wieght': did you mean 'weight'"),
        ({"weight": [1.0, 2.0]}, "one for each of the 3, got 2"),
        ({"weight": float("nan")}, "weight must be finite"),
        ({"weight": "much"}, "weight must be a number, got 'much'"),
        ({"alpha": float("inf")}, "alpha must be finite"),
        ({"alpha": [{"fitler": "up", "value": 1}]}, "a filter is"),
        ({"work_dtype": torch.bfloat16}, "work_dtype must be"),
    ],
)
def test_wrong_options_are_named_before_anything_is_read(options, message):
    base, tuned = models(3)
    with pytest.raises(ValueError, match=message):
        merge(base, tuned, **{"method": "linear", **options})


@pytest.mark.bad_input
def test_models_that_do_not_fit_are_told_apart():
    base, tuned = models(2)
    with pytest.raises(ValueError, match="models is empty"):
        merge(base, [], "linear")
    with pytest.raises(ValueError, match="give the model that all of them were trained from"):
        merge(None, tuned, "task_arithmetic")
    with pytest.raises(ValueError, match=r"model 2 lacks 'conv\.weight'"):
        merge(base, [tuned[0], {n: t for n, t in tuned[1].items() if n != "conv.weight"}], "linear")
    with pytest.raises(ValueError, match=r"has shape \(12, 6\) in base and \(6, 12\) in model 1"):
        merge(base, [{**tuned[0], "embed.weight": torch.zeros(6, 12)}], "linear")
    big = {"embed.weight": torch.zeros(2000, 4)}
    with pytest.raises(ValueError, match="vocabularies differ"):
        merge(big, [{"embed.weight": torch.zeros(2001, 4)}], "linear")
    with pytest.raises(ValueError, match="quantised"):
        merge(base, [{**tuned[0], "layers.0.up.qweight": torch.zeros(1)}], "linear")
    with pytest.raises(TypeError, match="models must be a sequence"):
        merge(base, "folder", "linear")
    with pytest.raises(TypeError, match=r"exclude must be a sequence of texts"):
        merge(base, tuned, "linear", exclude="embed")


@pytest.mark.bad_input
def test_an_adapter_needs_its_own_base():
    factors, config = adapter()
    with pytest.raises(ValueError, match="give the model that it was trained on"):
        merge(None, [Adapter(factors, config)], "linear")
    with pytest.raises(ValueError, match=r"adapts 'layers\.0\.up\.weight', which the base lacks"):
        merge({"x": torch.zeros(1)}, [Adapter(factors, config)], "linear")
    odd = {**factors, "base_model.model.head.modules_to_save.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"holds 'base_model\.model\.head\..*no factor"):
        merge(models(1)[0], [Adapter(odd, config)], "linear")
    odd = {**factors, "base_model.model.embed.weight": torch.zeros(13, 6)}
    with pytest.raises(ValueError, match=r"replaces 'embed\.weight' by shape \(13, 6\)"):
        merge(models(1)[0], [Adapter(odd, config)], "linear")
    with pytest.raises(ValueError, match=r"by a \(10, 6\) matrix"):
        merge({"layers.0.up.weight": torch.zeros(9, 6)}, [Adapter(factors, config)], "linear")


@pytest.mark.bad_input  # a checker of types reads the mapping, and meets the error first
def test_a_half_precision_result_out_of_range_is_an_error():
    base = {"x": torch.full((2,), 6e4, dtype=torch.float16)}
    with pytest.raises(ValueError, match=r"leaves the range of torch\.float16"):
        merge(base, [{"x": base["x"] * 0 + 6.2e4}], "task_arithmetic", alpha=10.0)["x"]

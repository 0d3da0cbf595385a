"""Atlases from deltas, gradients, adapters and optimizer state."""

import copy
import json

import pytest
import torch
from torch import nn

from spanwise.atlas import Atlas
from spanwise.io import ShardedWriter, save_tensors

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def projector(entry):
    basis = entry.subspace.basis
    return basis @ basis.mT


def span(columns):
    q, _ = torch.linalg.qr(columns)
    return q @ q.mT


def moved(model, rank, seed=0):
    """The model after an update of that rank in each matrix, and the updates."""
    generator = torch.Generator().manual_seed(seed)
    tuned, deltas = copy.deepcopy(model), {}
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if p.ndim != 2:
                continue
            left = torch.randn(p.shape[0], rank, generator=generator, dtype=p.dtype)
            right = torch.randn(rank, p.shape[1], generator=generator, dtype=p.dtype)
            deltas[name] = left @ right
            p += deltas[name]
    return tuned, deltas


# -- delta ------------------------------------------------------------------------------------


def test_delta_gives_both_singular_subspaces(llama):
    tuned, deltas = moved(llama, 3)
    atlas = Atlas.from_delta(llama, tuned, energy=1.0)
    name = "model.layers.0.mlp.up_proj.weight"
    entries = atlas.get(name)
    torch.testing.assert_close(projector(entries["output"]), span(deltas[name][:, :3]), **TIGHT)
    torch.testing.assert_close(projector(entries["input"]), span(deltas[name][:3].mT), **TIGHT)
    values = torch.linalg.svdvals(deltas[name])[:3]
    torch.testing.assert_close(entries["output"].subspace.values, values, **TIGHT)
    assert "lm_head.weight" not in atlas
    assert "model.embed_tokens.weight" not in atlas
    assert len(atlas.names) == 14
    share = atlas.update_share(llama, tuned)
    assert share.inside == pytest.approx(1, abs=1e-12)


def test_delta_energy_and_rank(llama):
    tuned, deltas = moved(llama, 5)
    name = "model.layers.0.mlp.up_proj.weight"
    kept = Atlas.from_delta(llama, tuned, energy=0.6, sides=("output",))
    values = torch.linalg.svdvals(deltas[name]).square()
    share = values.cumsum(0) / values.sum()
    assert kept.get(name)["output"].subspace.rank == int((share < 0.6).sum()) + 1
    ranked = Atlas.from_delta(llama, tuned, rank=2)
    assert {e.subspace.rank for e in ranked} == {2}
    # No more directions than the update has.
    assert {e.subspace.rank for e in Atlas.from_delta(llama, tuned, rank=7)} == {5}


def test_delta_streams_over_sharded_folders(llama, tmp_path):
    tuned, _ = moved(llama, 2)
    for name, model in (("old", llama), ("new", tuned)):
        with ShardedWriter(tmp_path / name, max_shard_bytes=2e4) as writer:
            for key, p in model.named_parameters():
                writer.add(key, p.detach())
    assert len(list((tmp_path / "old").glob("*.safetensors"))) > 1
    folders = Atlas.from_delta(tmp_path / "old", tmp_path / "new", energy=1.0)
    modules = Atlas.from_delta(llama, tuned, energy=1.0, exclude=())
    assert set(folders.names) == set(modules.names)
    for e in modules:
        other = folders.get(e.name)[e.side]
        torch.testing.assert_close(projector(other), projector(e), **TIGHT)
    assert folders.metadata["base"] == modules.metadata["base"]
    assert len(Atlas.from_delta(tmp_path / "old", tuned, energy=1.0)) == len(folders)


def test_a_transformers_folder_tells_its_own_layouts(tiny, tmp_path):
    model = tiny("GPT2")
    tuned, deltas = moved(model, 2)
    model.save_pretrained(tmp_path / "old")
    tuned.save_pretrained(tmp_path / "new")
    atlas = Atlas.from_delta(tmp_path / "old", tmp_path / "new", energy=1.0)
    entries = atlas.get("transformer.h.0.mlp.c_fc.weight")
    assert entries["output"].layout == "transposed"
    assert entries["output"].bias == "transformer.h.0.mlp.c_fc.bias"
    delta = deltas["transformer.h.0.mlp.c_fc.weight"]
    torch.testing.assert_close(projector(entries["input"]), span(delta[:, :2]), **TIGHT)
    assert not any("wte" in name or "wpe" in name for name in atlas.names)


def test_bare_mappings_are_guessed_and_a_model_tells_better():
    base = {"c.weight": torch.zeros(4, 2, 3, 3), "l.weight": torch.zeros(3, 5), "b": torch.zeros(3)}
    tuned = {name: torch.randn_like(t) for name, t in base.items()}
    atlas = Atlas.from_delta(base, tuned, rank=2)
    assert {e.name: e.layout for e in atlas} == {"c.weight": "conv", "l.weight": "linear"}
    assert atlas.get("c.weight")["input"].subspace.dim == 18
    with torch.device("meta"):
        model = nn.ModuleDict({"c": nn.Conv2d(2, 4, 3)})
    assert Atlas.from_delta(base, tuned, rank=2, model=model).names == ("c.weight",)


def test_delta_of_experts_is_batched():
    base = {"mlp.experts.up": torch.zeros(3, 4, 5).double()}
    tuned = {"mlp.experts.up": torch.randn(3, 4, 5).double()}
    subspace = Atlas.from_delta(base, tuned, rank=2).get("mlp.experts.up")["input"].subspace
    assert subspace.basis.shape == (3, 5, 2)
    _, _, vh = torch.linalg.svd(tuned["mlp.experts.up"], full_matrices=False)
    reference = vh[:, :2].mT @ vh[:, :2]
    torch.testing.assert_close(subspace.basis @ subspace.basis.mT, reference, **TIGHT)


def test_unchanged_maps_are_listed(llama):
    tuned = copy.deepcopy(llama)
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight += 1
    atlas = Atlas.from_delta(llama, tuned)
    assert atlas.names == ("model.layers.0.mlp.up_proj.weight",)
    assert atlas.skipped["model.layers.1.mlp.up_proj.weight"] == "it did not change"


@pytest.mark.bad_input
def test_delta_of_models_that_do_not_fit_is_refused(llama):
    with pytest.raises(ValueError, match="do not differ in any linear map"):
        Atlas.from_delta(llama, llama)
    state = dict(llama.state_dict())
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(ValueError, match="different architectures"):
        Atlas.from_delta(llama, {**state, name: torch.zeros(3, 3)})
    del state[name]
    with pytest.raises(ValueError, match=f"lack {name}"):
        Atlas.from_delta(llama, state)


# -- gradients --------------------------------------------------------------------------------


def test_gradients_span_what_training_moves():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = [torch.randn(1, 6).double() for _ in range(2)]
    atlas = Atlas.from_gradients(model, data, lambda m, x: m(x).square().sum(), energy=1.0)
    gradients = []
    for x in data:
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append(model[0].weight.grad.clone())
    model.zero_grad()
    entries = atlas.get("0.weight")
    torch.testing.assert_close(projector(entries["input"]), span(torch.cat(data).mT), **TIGHT)
    columns = torch.stack([g[:, 0] for g in gradients], dim=1)
    torch.testing.assert_close(projector(entries["output"]), span(columns), **TIGHT)


def test_gradients_leave_the_model_as_it_was(llama, ids):
    llama.train()
    llama.model.layers[0].requires_grad_(False)
    batch = {"input_ids": ids, "labels": ids}
    atlas = Atlas.from_gradients(llama, [batch], sides=("output",))
    assert len(atlas) == 14
    assert all(p.grad is None for p in llama.parameters())
    assert not llama.model.layers[0].mlp.up_proj.weight.requires_grad
    assert llama.model.layers[1].mlp.up_proj.weight.requires_grad
    assert llama.training


def test_gradients_of_experts_are_batched(tiny, ids):
    model = tiny("Mixtral", num_hidden_layers=1, num_local_experts=3)
    model.set_experts_implementation("eager")
    atlas = Atlas.from_gradients(model, [{"input_ids": ids, "labels": ids}], rank=2)
    entry = atlas.get("model.layers.0.mlp.experts.down_proj")["output"]
    assert entry.subspace.basis.shape == (3, 16, 2)


@pytest.mark.bad_input
def test_gradients_need_a_finite_loss_and_data(llama, ids):
    with pytest.raises(ValueError, match="the model returned no loss: put labels"):
        Atlas.from_gradients(llama, [{"input_ids": ids}])
    with pytest.raises(ValueError, match="data yielded no batch"):
        Atlas.from_gradients(llama, [])
    with pytest.raises(ValueError, match="batch 1 must be a finite scalar"):
        Atlas.from_gradients(llama, [{"input_ids": ids}], lambda m, b: m(**b).logits)


# -- adapter ----------------------------------------------------------------------------------


def lora(m=6, n=8, r=2, seed=0, prefix="base_model.model.layers.0.q_proj"):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}.lora_A.weight": torch.randn(r, n, generator=generator, dtype=torch.float64),
        f"{prefix}.lora_B.weight": torch.randn(m, r, generator=generator, dtype=torch.float64),
    }


def test_rows_of_a_span_the_inputs_and_columns_of_b_the_outputs():
    state = lora()
    a, b = state.values()
    entries = Atlas.from_adapter(state).get("layers.0.q_proj.weight")
    torch.testing.assert_close(projector(entries["input"]), span(a.mT), **TIGHT)
    torch.testing.assert_close(projector(entries["output"]), span(b), **TIGHT)
    assert (entries["input"].shape, entries["input"].subspace.values) == ((6, 8), None)
    delta = {"layers.0.q_proj.weight": b @ a}
    share = Atlas.from_adapter(state).update_share({k: 0 * v for k, v in delta.items()}, delta)
    assert share.inside == pytest.approx(1, abs=1e-12)


def test_a_fresh_adapter_has_inputs_only():
    state = lora()
    state["base_model.model.layers.0.q_proj.lora_B.weight"].zero_()
    atlas = Atlas.from_adapter(state)
    assert atlas.sides == ("input",)
    assert atlas.skipped == {"layers.0.q_proj.weight::output": "its factor is zero"}


def test_dependent_rows_of_a_factor_count_once():
    state = lora()
    a = state["base_model.model.layers.0.q_proj.lora_A.weight"]
    a[1] = 2 * a[0]
    assert Atlas.from_adapter(state).get("layers.0.q_proj.weight")["input"].subspace.rank == 1


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_a_folder_that_peft_saved_is_read(tiny, tmp_path, kind):
    peft = pytest.importorskip("peft")
    target = {"Llama": ["q_proj"], "GPT2": ["c_attn"]}[kind]
    model = tiny(kind)
    config = peft.LoraConfig(r=2, target_modules=target, fan_in_fan_out=kind == "GPT2")
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_()
    adapted.save_pretrained(tmp_path)
    atlas = Atlas.from_adapter(tmp_path)
    live = Atlas.from_adapter(
        {n: p for n, p in adapted.state_dict().items() if "lora_" in n}, model=adapted
    )
    before = {n.replace(".base_layer", ""): p.clone() for n, p in adapted.named_parameters()}
    merged = adapted.merge_and_unload()
    for found in (atlas, live):
        share = found.update_share(
            {n.removeprefix("base_model.model."): p for n, p in before.items() if "lora" not in n},
            merged,
        )
        assert share.inside == pytest.approx(1, abs=1e-6)
        assert share.uncovered == {}
    assert {e.layout for e in atlas} == {"transposed" if kind == "GPT2" else "linear"}
    assert {e.key for e in live} == {e.key for e in atlas}


def test_convolution_adapters_keep_the_kernel():
    state = {
        "c.lora_A.weight": torch.randn(2, 3, 3, 3),
        "c.lora_B.weight": torch.randn(5, 2, 1, 1),
    }
    entries = Atlas.from_adapter(state).get("c.weight")
    assert (entries["input"].shape, entries["input"].layout) == ((5, 3, 3, 3), "conv")
    assert entries["input"].subspace.dim == 27


@pytest.mark.bad_input
def test_adapters_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(ValueError, match="no lora_A and lora_B weights"):
        Atlas.from_adapter({"w": torch.zeros(2, 2)})
    half = dict(list(lora().items())[:1])
    with pytest.raises(ValueError, match=r"has lora_A without its other half"):
        Atlas.from_adapter(half)
    mixed = {**half, "layers.0.q_proj.lora_B.weight": torch.zeros(6, 3)}
    with pytest.raises(ValueError, match="lora_A has rank 2 and lora_B 3"):
        Atlas.from_adapter(mixed)
    two = {**lora(), "layers.0.q_proj.lora_A.other.weight": torch.zeros(2, 8)}
    with pytest.raises(ValueError, match="more than one adapter"):
        Atlas.from_adapter(two)
    with pytest.raises(ValueError, match="a DoRA adapter rescales"):
        Atlas.from_adapter({**lora(), "layers.0.q_proj.lora_magnitude_vector": torch.ones(6)})
    with pytest.raises(ValueError, match="every factor of the adapter is zero"):
        Atlas.from_adapter({name: 0 * t for name, t in lora().items()})
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors"):
        Atlas.from_adapter(tmp_path)
    save_tensors(tmp_path / "adapter_model.safetensors", lora())
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(ValueError, match="is a IA3 adapter"):
        Atlas.from_adapter(tmp_path)


# -- optimizer --------------------------------------------------------------------------------


def stepped(model, x, **options):
    optim = pytest.importorskip("spanwise.optim")
    optimizer = optim.GaLore(optim.param_groups(model, rank=2, min_dim=2, **options), lr=1e-3)
    model(x).square().sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("side", ["left", "right", "full"])
def test_an_optimizer_s_bases_hold_its_updates(side):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)).double()
    before = copy.deepcopy(model)
    optimizer = stepped(model, torch.randn(9, 6).double(), side=side)
    atlas = Atlas.from_optimizer(optimizer)
    expected = {"left": ("output",), "right": ("input",), "full": ("output", "input")}[side]
    assert atlas.sides == expected
    rows = {row.name: row for row in atlas.update_share(before, model).rows}
    assert rows["0.weight"].inside == pytest.approx(1, abs=1e-6)
    saved = Atlas.from_optimizer(optimizer.state_dict())
    assert {e.key: e.shape for e in saved} == {e.key: e.shape for e in atlas}
    for e in atlas:
        assert torch.equal(saved.entries[e.key].subspace.basis, e.subspace.basis)


def test_convolutions_in_a_state_dict_need_the_model():
    model = nn.Sequential(nn.Conv2d(2, 4, 3)).double()
    optimizer = stepped(model, torch.randn(3, 2, 6, 6).double())
    assert Atlas.from_optimizer(optimizer).get("0.weight")["output"].layout == "conv"
    with pytest.raises(ValueError, match=r"0\.weight: a state dict does not tell.*pass model="):
        Atlas.from_optimizer(optimizer.state_dict())
    atlas = Atlas.from_optimizer(optimizer.state_dict(), model)
    assert next(iter(atlas)).shape == (4, 2, 3, 3)


@pytest.mark.bad_input
def test_an_optimizer_without_bases_is_refused():
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="no parameter of this optimizer has a basis"):
        Atlas.from_optimizer(torch.optim.AdamW(model.parameters()))

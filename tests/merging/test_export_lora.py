"""The difference of two models as factors: errors, layouts, what is left, what is refused."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from conformance.merging import models
from spanwise.io import ShardedWriter, open_tensors, save_tensors
from spanwise.lora import CONFIG, FILE, Adapter, open_adapter
from spanwise.merging import export_lora, plan_lora
from spanwise.merging._export.difference import energies, factors
from spanwise.merging._export.write import RECORD


def draw(*shape, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(9, 9), (20, 7), (6, 30)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_factors_are_the_truncated_decomposition(shape, rank):
    matrix = draw(*shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found, total = energies(matrix, "exact", rank, torch.Generator())
    assert torch.allclose(found, s.square(), rtol=0, atol=1e-12 * float(s[0]) ** 2)
    assert total == pytest.approx(float(s.square().sum()), rel=1e-12)
    a, b = factors(matrix, rank, "exact", torch.Generator())
    assert (a.shape, b.shape) == ((rank, shape[1]), (shape[0], rank))
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert torch.allclose(b @ a, best, rtol=0, atol=1e-10)
    error = torch.linalg.norm(matrix - b @ a)
    assert float(error) == pytest.approx(float(s[rank:].norm()), rel=1e-10)
    # Both hold the roots of the singular values: neither leaves the range of half precision.
    assert torch.allclose(a.norm(dim=1), s[:rank].sqrt(), rtol=1e-10)
    assert torch.allclose(b.norm(dim=0), s[:rank].sqrt(), rtol=1e-10)


def test_sketched_factors_are_close_to_exact_ones():
    matrix = draw(40, 60) @ torch.diag(0.7 ** torch.arange(60, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    a, b = factors(matrix, 8, "randomized", generator)
    c, d = factors(matrix, 8, "exact", generator)
    assert torch.linalg.norm(b @ a - d @ c) < 1e-3 * torch.linalg.norm(d @ c)
    found, total = energies(matrix, "randomized", 8, generator)
    assert len(found) == 8
    assert total == pytest.approx(float(matrix.square().sum()), rel=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_low_rank_update_comes_back(tmp_path, rank):
    base, _ = models(1)
    tuned = {name: t.clone() for name, t in base.items()}
    updates = {}
    for index, name in enumerate(("layers.0.up.weight", "layers.1.down.weight")):
        m, n = base[name].shape
        updates[name] = draw(m, rank, seed=index) @ draw(rank, n, seed=9 + index)
        tuned[name] = base[name] + updates[name]
    written = export_lora(base, tuned, tmp_path / "out", rank=rank)
    assert written.energy == pytest.approx(1, abs=1e-12)
    assert {name: r for name, r in written.ranks.items() if r} == dict.fromkeys(updates, rank)
    found = open_adapter(tmp_path / "out")
    assert set(found) == set(updates)
    for name, update in updates.items():
        assert torch.allclose(found.update(name, torch.float64), update, rtol=0, atol=1e-10)
    wide = export_lora(base, tuned, tmp_path / "wide", rank=5)
    assert set(wide.ranks.values()) == {rank}  # what is zero is not stored
    assert any("fewer directions than 5" in note for note in wide.notes)


def test_in_single_precision_it_comes_back_to_a_millionth(tmp_path):
    base = {"layers.0.up.weight": draw(64, 48, dtype=torch.float32) / 10}
    update = draw(64, 4, seed=1, dtype=torch.float32) @ draw(4, 48, seed=2, dtype=torch.float32)
    tuned = {"layers.0.up.weight": base["layers.0.up.weight"] + update}
    export_lora(base, tuned, tmp_path / "out", rank=4)
    found = open_adapter(tmp_path / "out").update("layers.0.up.weight")
    assert torch.linalg.norm(found - update) < 1e-6 * torch.linalg.norm(update)


def test_the_plan_s_energy_is_that_of_what_is_written(tmp_path):
    base, (tuned,) = models(1)
    for options in ({"rank": 2}, {"budget_rank": 2}, {"energy": 0.8}, {"parameters": 60}):
        plan = plan_lora(base, tuned, **options)
        written = plan.write(tmp_path / "out", overwrite=True)
        assert written.energy == pytest.approx(plan.energy, abs=1e-12)
        found = open_adapter(tmp_path / "out")
        total = left = 0.0
        for name, tensor in base.items():
            if not tensor.is_floating_point():
                continue
            rest = difference = tuned[name] - tensor
            if name in found:
                rest = difference - found.update(name, torch.float64)
            total, left = total + float(difference.norm()) ** 2, left + float(rest.norm()) ** 2
        assert written.energy == pytest.approx(1 - left / total, abs=1e-12)
        size = os.path.getsize(tmp_path / "out" / FILE)
        header = int.from_bytes((tmp_path / "out" / FILE).read_bytes()[:8], "little")
        assert written.nbytes == plan.nbytes == size - 8 - header


def test_what_no_factor_holds_is_told_with_its_share():
    base, (tuned,) = models(1)
    plan = plan_lora(base, tuned, rank=6)
    assert {"layers.0.up.bias", "scale", "conv.weight"} == set(plan.left)
    total = sum(float((tuned[n] - t).norm()) ** 2 for n, t in base.items() if t.is_floating_point())
    share = float((tuned["layers.0.up.bias"] - base["layers.0.up.bias"]).norm()) ** 2 / total
    assert plan.left["layers.0.up.bias"].energy / plan.total == pytest.approx(share, rel=1e-12)
    assert plan.left["layers.0.up.bias"].reason == "a vector has no factors"
    excluded = plan_lora(base, tuned, rank=6, exclude=["layers.0"])
    assert excluded.left["layers.0.up.weight"].reason == "excluded"
    assert "layers.0.up.weight" not in excluded.ranks


def test_the_uniform_rank_beside_it_takes_no_more():
    base, (tuned,) = models(1)
    plan = plan_lora(base, tuned, budget_rank=2)
    rank, energy = plan.uniform
    alike = plan_lora(base, tuned, rank=rank)
    assert rank == 2
    assert alike.parameters <= plan.parameters
    assert alike.energy == pytest.approx(energy, abs=1e-12)
    assert alike.energy <= plan.energy


def test_ranks_that_differ_are_written_for_this_module_alone(tmp_path):
    base, (tuned,) = models(1)
    export_lora(base, tuned, tmp_path / "out", parameters=60, exclude=["embed"])
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"]
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert all(key.startswith("^layers\\.") for key in config["rank_pattern"])
    found = open_adapter(tmp_path / "out")
    assert all(found.scale(name) == 1 for name in found)
    told = json.loads((tmp_path / "out" / RECORD).read_text())
    assert set(found) == {name for name, rank in told["ranks"].items() if rank}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_are_stored_in_the_dtype_that_is_asked_for(tmp_path, dtype):
    base, (tuned,) = models(1)
    written = export_lora(base, tuned, tmp_path / "out", rank=2, dtype=dtype)
    held = open_tensors(tmp_path / "out")
    assert {held.dtype(name) for name in held} == {dtype}
    exact = plan_lora(base, tuned, rank=2).energy
    assert written.energy == pytest.approx(exact, abs=1e-4)


def test_files_folders_and_a_module_s_own_layouts(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6, 5), nn.LayerNorm(5))
    module = module.double()
    base = {n: t.clone() for n, t in module.state_dict().items()}
    tuned = {n: t + 0.1 * draw(*t.shape, seed=i) for i, (n, t) in enumerate(base.items())}
    plan = plan_lora(base, tuned, rank=4, model=module)
    assert {m.target.name: m.target.kind for m in plan.matrices} == {
        "0.weight": "conv", "2.weight": "linear",
    }  # fmt: skip
    plan.write(tmp_path / "out")
    found = open_adapter(tmp_path / "out")
    update = (tuned["0.weight"] - base["0.weight"]).flatten(1)
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    best = ((u[:, :4] * s[:4]) @ vh[:4]).reshape(6, 3, 3, 3)
    assert torch.allclose(found.update("0.weight", torch.float64), best, rtol=0, atol=1e-10)
    save_tensors(tmp_path / "tuned.safetensors", tuned)
    with ShardedWriter(tmp_path / "base", 200) as shards:
        for name, tensor in base.items():
            shards.add(name, tensor)
    again = plan_lora(tmp_path / "base", tmp_path / "tuned.safetensors", rank=4, model=module)
    assert again.energy == pytest.approx(plan.energy, abs=1e-12)


def test_a_lora_of_the_base_is_made_smaller(tmp_path):
    base, (tuned,) = models(1)
    export_lora(base, tuned, tmp_path / "large", rank=5, exclude=["embed"])
    written = export_lora(base, tmp_path / "large", tmp_path / "small", rank=2)
    large, small = open_adapter(tmp_path / "large"), open_adapter(tmp_path / "small")
    for name in large:
        u, s, vh = torch.linalg.svd(large.update(name, torch.float64), full_matrices=False)
        best = (u[:, :2] * s[:2]) @ vh[:2]
        assert torch.allclose(small.update(name, torch.float64), best, rtol=0, atol=1e-10)
    assert 0 < written.energy < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("scale"), "lacks 'scale'"),
        (lambda t: t.update(more=torch.ones(2)), "has 'more' more"),
        (
            lambda t: t.update({"embed.weight": torch.ones(14, 6)}),
            r"shape \(14, 6\) in the model and \(12, 6\) in the base.*tokens were added",
        ),
        (
            lambda t: t.update({"layers.0.up.weight": torch.ones(10, 7)}),
            "a LoRA cannot change a shape.*--as merged",
        ),
        (
            lambda t: t["layers.0.up.weight"][0].fill_(float("nan")),
            "up.weight' of the model is not",
        ),
        (lambda t: t["scale"].fill_(float("inf")), "'scale' of the model is not finite"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, change, message):
    base, (tuned,) = models(1)
    change(tuned)
    with pytest.raises(ValueError, match=message):
        export_lora(base, tuned, tmp_path / "out", rank=2)
    assert list(tmp_path.iterdir()) == []


def test_equal_models_and_options_out_of_range_are_refused(tmp_path):
    base, (tuned,) = models(1)
    with pytest.raises(ValueError, match="do not differ in any matrix"):
        plan_lora(base, base, rank=2)
    with pytest.raises(ValueError, match="rank = 7 exceeds"):
        plan_lora(base, tuned, rank=7)
    with pytest.raises(ValueError, match="no matrix that a LoRA could change"):
        plan_lora(base, tuned, exclude=["weight"])
    with pytest.raises(TypeError, match="exclude must be a sequence"):
        plan_lora(base, tuned, exclude="weight")
    with pytest.raises(ValueError, match="dtype must be one of"):
        plan_lora(base, tuned, dtype=torch.int8)
    large = {n: 1e12 * t if t.is_floating_point() else t for n, t in tuned.items()}
    with pytest.raises(ValueError, match=r"leaves the range of torch\.float16"):
        export_lora(base, large, tmp_path / "out", rank=2, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.bad_input
def test_another_decomposition_is_refused():
    base, (tuned,) = models(1)
    with pytest.raises(ValueError, match="svd must be one of exact, randomized"):
        plan_lora(base, tuned, svd="sloppy")


def test_what_is_there_is_not_replaced_unless_asked(tmp_path):
    base, (tuned,) = models(1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    plan = plan_lora(base, tuned, rank=2)
    with pytest.raises(FileExistsError):
        plan.write(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["notes.txt"]
    plan.write(tmp_path / "out", overwrite=True)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {FILE, CONFIG, RECORD}


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_looks_like_a_lora(tmp_path):
    base, (tuned,) = models(1)
    plan = plan_lora(base, tuned, rank=2)
    for kill in range(len(plan.chosen)):
        child = os.fork()
        if not child:

            def watch(done, total, kill=kill):
                if done > kill:
                    os.kill(os.getpid(), signal.SIGKILL)

            plan.write(tmp_path / "out", watch=watch)
            os._exit(0)
        os.waitpid(child, 0)
        assert not (tmp_path / "out").exists()
        assert not [p for p in tmp_path.rglob("*") if p.name == FILE]

    def stop(done, total):
        raise KeyboardInterrupt

    for leftover in tmp_path.iterdir():
        assert leftover.name.startswith(".out.")
        assert leftover.name.endswith(".tmp")
    with pytest.raises(KeyboardInterrupt):
        plan.write(tmp_path / "other", watch=stop)
    assert not [p for p in tmp_path.iterdir() if "other" in p.name]


def test_a_truncated_file_is_named(tmp_path):
    base, (tuned,) = models(1)
    save_tensors(tmp_path / "base.safetensors", base)
    save_tensors(tmp_path / "tuned.safetensors", tuned)
    file = tmp_path / "tuned.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"tuned\.safetensors is damaged: it is truncated"):
        plan_lora(tmp_path / "base.safetensors", file, rank=2)


def test_quantised_weights_are_refused():
    base, (tuned,) = models(1)
    base["layers.0.up.qweight"] = torch.ones(3, dtype=torch.int32)
    with pytest.raises(ValueError, match="the base holds quantised weights"):
        plan_lora(base, tuned, rank=2)


def test_an_adapter_s_table_is_read_as_peft_adds_it():
    a, b = draw(2, 12, seed=1), draw(6, 2, seed=2)
    start = "base_model.model.embed"
    held = {f"{start}.lora_embedding_A": a, f"{start}.lora_embedding_B": b}
    found = Adapter(held, {"lora_alpha": 4})
    assert (list(found), found.embeddings) == (["embed.weight"], {"embed.weight"})
    assert found.shape("embed.weight") == (12, 6)
    assert torch.allclose(found.update("embed.weight", torch.float64), 2 * (b @ a).mT)
    rows = found.update("embed.weight", torch.float64, rows=slice(3, 7))
    assert torch.allclose(rows, 2 * (b @ a).mT[3:7])
    # A head that is tied to it has the same factors once more, turned round: one weight.
    head = {
        "base_model.model.head.lora_A.weight": b.mT,
        "base_model.model.head.lora_B.weight": a.mT,
    }
    assert list(Adapter({**held, **head}, {"ensure_weight_tying": True})) == ["embed.weight"]
    assert len(Adapter({**held, **head})) == 2

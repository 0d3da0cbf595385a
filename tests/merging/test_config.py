"""Merges of transformers folders: what is written, what is checked first, and configurations."""

import json

import pytest
import torch
import yaml
from tests.merging.llamas import WORDS, changed, llama, loaded, tokenizer, transformers

from spanwise.atlas import Atlas
from spanwise.cli import main
from spanwise.io import open_tensors, save_tensors
from spanwise.merging import Stats, merge, merge_config, merge_folders, plan_config, plan_folders
from spanwise.merging._open import locate

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A base, three fine-tunes (one in shards), and two with other vocabularies."""
    root = tmp_path_factory.mktemp("zoo")
    base = llama(root / "base", 0)
    llama(root / "a", 1, base=base)
    llama(root / "b", 2, base=base, shard="5KB")
    llama(root / "c", 3, base=base)
    llama(root / "more", 4, base=base, words=(*WORDS, "extra", "shared"))
    llama(root / "mixed", 5, base=base, words=(*WORDS[:3][::-1], *WORDS[3:], "shared", "other"))
    return root


def tensors(folder):
    return dict(open_tensors(folder))


def equal(a, b):
    assert set(a) == set(b)
    return all(torch.equal(a[name], b[name]) for name in a)


# -- folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [("task_arithmetic", {"alpha": 0.4}), ("ties", {}), ("linear", {"weight": [0.2, 0.8]})],
)
def test_a_merged_folder_loads_and_equals_the_merge_in_memory(zoo, tmp_path, method, options):
    paths = [zoo / "a", zoo / "b"]
    out = merge_folders(
        zoo / "base", paths, method, tmp_path / "out", max_shard_bytes=9e3, **options
    ).folder
    assert len(list(out.glob("*.safetensors"))) > 1
    held = [tensors(zoo / n) for n in ("base", "a", "b")]
    assert equal(tensors(out), dict(merge(held[0], held[1:], method, **options)))
    model, wrong = loaded(out)
    assert wrong == set()
    assert model(torch.tensor([[0, 5, 9]])).logits.isfinite().all()
    again = transformers.AutoTokenizer.from_pretrained(out)
    assert again("w3 w4")["input_ids"] == tokenizer()("w3 w4")["input_ids"]


def test_tied_embeddings_stay_tied(tmp_path):
    base = llama(tmp_path / "base", 0, tied=True)
    tuned = [llama(tmp_path / n, i, base=base, tied=True) for i, n in enumerate("ab", 1)]
    out = merge_folders(base, tuned, "task_arithmetic", tmp_path / "out", alpha=0.5).folder
    model, wrong = loaded(out)
    assert wrong == set()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in tensors(out)


def test_lora_folders_of_peft_are_added(zoo, tmp_path):
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(zoo / "base")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(tmp_path / "lora")
    expected = adapted.merge_and_unload().state_dict()
    found = merge_folders(
        zoo / "base", [tmp_path / "lora"], "task_arithmetic", tmp_path / "out"
    ).folder
    assert all(torch.allclose(t, expected[n], atol=1e-6) for n, t in tensors(found).items())
    # mergekit's spelling, on the base and on another model
    for root, name in (("base", "one"), ("a", "two")):
        recipe = {
            "merge_method": "task_arithmetic", "base_model": str(zoo / "base"),
            "models": [{"model": f"{zoo / root}+{tmp_path / 'lora'}"}], "parameters": {"weight": 1},
        }  # fmt: skip
        got = tensors(merge_config(recipe, tmp_path / name).folder)
        own, base = tensors(zoo / root), tensors(zoo / "base")
        assert all(torch.allclose(got[n], expected[n] - base[n] + own[n], atol=1e-6) for n in got)


def test_what_an_adapter_keeps_whole_replaces_the_base_s(zoo, tmp_path, capsys):
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    held = {
        f"{prefix}.lora_A.weight": torch.ones(1, 16),
        f"{prefix}.lora_B.weight": torch.ones(24, 1),
        "base_model.model.lm_head.weight": torch.ones(64, 16),
    }
    (tmp_path / "lora").mkdir()
    save_tensors(tmp_path / "lora" / "adapter_model.safetensors", held)
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')
    argv = ["merge", str(zoo / "base"), str(tmp_path / "lora"), "--method", "task_arithmetic"]
    assert main([*argv, "--out", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    note = "lora keeps 1 tensors whole, 'base_model.model.lm_head.weight' first"
    assert f"note: {note}" in captured.err
    assert note in json.loads(captured.out)["notes"][0]
    assert torch.allclose(tensors(tmp_path / "out")[HEAD], torch.ones(64, 16), atol=1e-6)
    # the same on another model, and when both are given to `merge`
    recipe = {
        "merge_method": "task_arithmetic", "base_model": str(zoo / "base"),
        "models": [{"model": f"{zoo / 'a'}+{tmp_path / 'lora'}"}], "parameters": {"weight": 1},
    }  # fmt: skip
    other = tensors(merge_config(recipe, tmp_path / "other").folder)
    assert torch.allclose(other[HEAD], torch.ones(64, 16), atol=1e-6)
    memory = merge(zoo / "base", [tmp_path / "lora"], "task_arithmetic")
    assert all(torch.equal(memory[name], t) for name, t in tensors(tmp_path / "out").items())


def test_modules_to_save_of_peft_are_merged(zoo, tmp_path):
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(zoo / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(tmp_path / "lora")
    expected = adapted.merge_and_unload().state_dict()
    out = merge_folders(zoo / "base", [tmp_path / "lora"], "linear", tmp_path / "out").folder
    assert all(torch.allclose(t, expected[n], atol=1e-6) for n, t in tensors(out).items())


@pytest.mark.parametrize(
    ("said", "noted"), [("owner/Other-7B", True), ("owner/BASE", False), (None, False)]
)
def test_an_adapter_of_another_base_is_noted(zoo, tmp_path, said, noted):
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    factors = {
        f"{prefix}.lora_A.weight": torch.ones(1, 16),
        f"{prefix}.lora_B.weight": torch.ones(24, 1),
    }
    save_tensors(tmp_path / "lora" / "adapter_model.safetensors", factors)
    held = {"peft_type": "LORA", "r": 1, "base_model_name_or_path": said}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(held))
    plan = plan_folders(zoo / "base", [tmp_path / "lora"], "task_arithmetic")
    told = [note for note in plan.notes if "says that it was trained on owner/Other-7B" in note]
    assert len(told) == noted == len(plan.notes)


def test_models_that_equal_the_base_are_noted(zoo):
    plan = plan_folders(zoo / "base", [zoo / "a", zoo / "base"], "task_arithmetic")
    assert "model 2 equals the base: it adds nothing" in plan.notes


def test_the_dtype_of_the_result_is_written_into_its_configuration(zoo, tmp_path):
    out = merge_folders(
        zoo / "base", [zoo / "a"], "linear", tmp_path / "out", out_dtype=torch.bfloat16
    ).folder
    assert {t.dtype for t in tensors(out).values()} == {torch.bfloat16}
    assert loaded(out)[0].dtype == torch.bfloat16


def test_energy_removed_by_an_atlas_is_told(zoo, tmp_path):
    base, tuned = tensors(zoo / "base"), tensors(zoo / "a")
    atlas = Atlas.from_delta(base, tuned, rank=2)
    written = merge_folders(
        zoo / "base", [zoo / "a", zoo / "b"], "task_arithmetic", tmp_path / "out", avoid=atlas
    )
    shares = [taken / before for taken, before in written.removed.values() if before]
    assert shares
    assert all(0 < share < 1 for share in shares)


def test_a_plan_tells_how_every_tensor_is_treated(zoo):
    plan = plan_folders(zoo / "base", [zoo / "a"], "task_arithmetic", exclude=["embed", "head"])
    rows = {t.tensors: t for t in plan.treatments}
    query = rows["model.layers.*.self_attn.q_proj.weight"]
    assert (query.count, query.kind, query.shape) == (2, "matrix", (16, 16))
    assert rows["model.embed_tokens.weight"].kind == "vector"
    assert sum(t.nbytes for t in plan.treatments) == open_tensors(zoo / "base").nbytes
    assert plan.peak(workers=1) <= plan.peak(workers=4)
    assert plan.shards(5e3) > plan.shards() == 1


# -- checks before the first byte ----------------------------------------------------------------


def test_another_architecture_is_refused_by_its_configuration(zoo, tmp_path):
    other = llama(tmp_path / "other", 1, base=zoo / "base")
    changed(other, num_attention_heads=4)
    with pytest.raises(ValueError, match="num_attention_heads is 4 in other and 2 in base"):
        plan_folders(zoo / "base", [other], "linear")
    changed(other, num_attention_heads=2, rms_norm_eps=1e-3)
    assert "rms_norm_eps is 0.001" in plan_folders(zoo / "base", [other], "linear").notes[0]


def test_tokenizers_that_disagree_are_refused_and_longer_ones_noted(zoo, tmp_path):
    other = llama(tmp_path / "other", 1, base=zoo / "base")
    tokenizer(WORDS[::-1]).save_pretrained(other)
    with pytest.raises(ValueError, match=r"differ in 60 tokens: row 3 is 'w60' in other"):
        plan_folders(zoo / "base", [other], "linear")
    tokenizer((*WORDS, "unused")).save_pretrained(other)
    notes = plan_folders(zoo / "base", [other], "linear").notes
    assert "1 tokens that base lacks, 'unused' first" in notes[0]


def test_a_base_without_tokenizer_gets_a_model_s(zoo, tmp_path):
    bare = llama(tmp_path / "bare", 0)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    written = merge_folders(bare, [zoo / "a"], "linear", tmp_path / "out")
    assert "has no tokenizer" in written.notes[0]
    assert transformers.AutoTokenizer.from_pretrained(written.folder)("w1")["input_ids"] == [4]


@pytest.mark.bad_input
def test_what_is_not_there_is_told(zoo, tmp_path):
    with pytest.raises(FileNotFoundError, match="No model there"):
        plan_folders(zoo / "base", [zoo / "none"], "linear")
    with pytest.raises(FileNotFoundError, match="hf download own/name"):
        locate("own/name")
    with pytest.raises(TypeError, match="models must be a sequence"):
        plan_folders(zoo / "base", str(zoo / "a"), "linear")
    with pytest.raises(ValueError, match="more has a vocabulary of 66 tokens"):
        plan_folders(zoo / "base", [zoo / "more"], "linear")
    assert not (tmp_path / "out").exists()


# -- mergekit's configurations -------------------------------------------------------------------


def recipe(zoo, method, models, **more):
    listed = [{"model": str(zoo / m), "parameters": p} for m, p in models.items()]
    return {"merge_method": method, "base_model": str(zoo / "base"), "models": listed, **more}


def test_gradients_and_filters_are_the_sums_they_say(zoo, tmp_path):
    held = recipe(
        zoo, "task_arithmetic",
        {"a": {"weight": [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.5}]},
         "b": {"weight": 1e-1}},
        parameters={"lambda": 0.5},
    )  # fmt: skip
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(held))
    got = tensors(merge_config(file, tmp_path / "out").folder)
    base, a, b = (tensors(zoo / n) for n in ("base", "a", "b"))
    for name, tensor in got.items():
        weight = 0.5 if "mlp" not in name else 0.9 if ".1." in name else 0.1
        update = weight * (a[name] - base[name]) + 0.1 * (b[name] - base[name])
        assert torch.allclose(tensor, base[name] + 0.5 * update, atol=1e-7)


def test_paths_may_lie_beside_the_configuration(zoo):
    file = zoo / "relative.yml"
    file.write_text(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}"
    )
    assert plan_config(file).method == "linear"


def test_layers_are_stacked_renumbered_and_counted(zoo, tmp_path):
    changed(zoo / "a", layer_types=["full_attention", "other"])
    held = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(zoo / "a"), "layer_range": [0, 2]}]},
            {"sources": [{"model": str(zoo / "b"), "layer_range": [1, 2],
                          "parameters": {"scale": [{"filter": "o_proj", "value": 0.5}]}}]},
        ],
    }  # fmt: skip
    out = merge_config(held, tmp_path / "out").folder
    changed(zoo / "a", layer_types=None)
    got, a, b = tensors(out), tensors(zoo / "a"), tensors(zoo / "b")
    up = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(got[up.format(1)], a[up.format(1)])
    assert torch.equal(got[up.format(2)], b[up.format(1)])
    out_proj = "model.layers.{}.self_attn.o_proj.weight"
    assert torch.equal(got[out_proj.format(2)], 0.5 * b[out_proj.format(1)])
    assert torch.equal(got["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(got["model.norm.weight"], b["model.norm.weight"])
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["layer_types"][:2] == ["full_attention", "other"]
    changed(out, layer_types=None)
    model, wrong = loaded(out)
    assert wrong == set()
    assert len(model.model.layers) == 3


def test_the_base_of_a_slice_is_its_own_layers(zoo, tmp_path):
    held = {
        "merge_method": "task_arithmetic", "base_model": str(zoo / "base"),
        "slices": [
            {"sources": [{"model": str(zoo / "base"), "layer_range": [0, 1]},
                         {"model": str(zoo / "a"), "layer_range": [1, 2]}]},
            {"sources": [{"model": str(zoo / "base"), "layer_range": [0, 2]}]},
        ],
        "parameters": {"weight": 0.5},
    }  # fmt: skip
    got = tensors(merge_config(held, tmp_path / "out").folder)
    base, a = tensors(zoo / "base"), tensors(zoo / "a")
    name = "model.layers.{}.mlp.up_proj.weight"
    expected = (base[name.format(0)] + a[name.format(1)]) / 2
    assert torch.allclose(got[name.format(0)], expected, atol=1e-7)
    assert torch.equal(got[name.format(2)], base[name.format(1)])


@pytest.mark.bad_input
def test_slices_beyond_the_model_and_atlases_of_slices_are_refused(zoo):
    part = {"sources": [{"model": str(zoo / "a"), "layer_range": [1, 3]}]}
    held = {"merge_method": "passthrough", "slices": [part]}
    with pytest.raises(ValueError, match=r"layer_range \[1, 3\] .* beyond its 2 layers"):
        plan_config(held)
    atlas = Atlas.from_delta({"x.weight": torch.zeros(4, 4)}, {"x.weight": torch.eye(4)})
    with pytest.raises(ValueError, match="which slices number anew"):
        plan_config(held, avoid=atlas)
    gap = recipe(zoo, "ties", {"a": {"weight": [{"filter": "mlp", "value": 1}]}})
    with pytest.raises(ValueError, match=r"no filter of weight fits .lm_head\.weight."):
        plan_config(gap)


def test_another_order_of_slices_is_another_job(zoo, tmp_path):
    def held(first, second):
        parts = [
            {"sources": [{"model": str(zoo / "a"), "layer_range": [n, n + 1]}]}
            for n in (first, second)
        ]
        return {"merge_method": "passthrough", "slices": parts}

    merge_config(held(0, 1), tmp_path / "out")
    assert merge_config(held(0, 1), tmp_path / "out").tensors == 0
    with pytest.raises(FileExistsError):
        merge_config(held(1, 0), tmp_path / "out")


# -- vocabularies --------------------------------------------------------------------------------


def rows(folder, name=EMBEDDING):
    ids = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    table = open_tensors(folder)[name]
    return {token: table[row] for token, row in ids.items() if row < len(table)}, table


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_a_union_gives_missing_tokens_the_base_s_row_or_the_owner_s_or_the_mean(
    zoo, tmp_path, name
):
    models = {"base": {"weight": 0.5}, "more": {"weight": 0.3}, "mixed": {"weight": 0.2}}
    held = recipe(zoo, "linear", models, tokenizer={"source": "union", "pad_to_multiple_of": 8})
    out = merge_config(held, tmp_path / "out").folder
    got, table = rows(out, name)
    base, more, mixed = (rows(zoo / n, name)[0] for n in ("base", "more", "mixed"))
    assert set(got) == {*base, *more, *mixed}
    mean = (more["shared"] + mixed["shared"]) / 2
    expected = {
        "w1": 0.5 * base["w1"] + 0.3 * more["w1"] + 0.2 * mixed["w1"],
        "extra": more["extra"],
        "other": mixed["other"],
        "shared": 0.5 * mean + 0.3 * more["shared"] + 0.2 * mixed["shared"],
    }
    for token, row in expected.items():
        assert torch.allclose(got[token], row, atol=1e-6), token
    assert table.shape[0] == 72
    assert loaded(out)[0].config.vocab_size == 72
    assert torch.allclose(table[67:], table[:67].mean(0).expand(5, -1), atol=1e-6)


def test_rows_come_in_the_order_of_the_chosen_tokenizer(zoo, tmp_path):
    held = recipe(
        zoo, "task_arithmetic", {"mixed": {"weight": 1.0}}, tokenizer_source=str(zoo / "mixed")
    )
    out = merge_config(held, tmp_path / "out").folder
    assert torch.allclose(rows(out)[1], rows(zoo / "mixed")[1], atol=1e-7)
    files = [(f / "tokenizer.json").read_bytes() for f in (out, zoo / "mixed")]
    assert files[0] == files[1]
    small = merge_folders(
        zoo / "base", [zoo / "more"], "linear", tmp_path / "small", tokenizer="base"
    ).folder
    assert rows(small)[1].shape == (64, 16)
    assert torch.equal(rows(small)[1], rows(zoo / "more")[1][:64])


def test_a_token_s_row_may_be_chosen_or_forced(zoo, tmp_path):
    tokens = {
        "new": {"source": {"kind": "model_token", "model": str(zoo / "more"), "token": "w3"}},
        "w1": {"source": str(zoo / "more"), "force": True},
        "nil": {"source": {"kind": "zero"}},
        "orphan": {},
    }
    models = {"base": {"weight": 1}, "more": {"weight": 1}}
    held = recipe(zoo, "linear", models, tokenizer={"source": "base", "tokens": tokens})
    written = merge_config(held, tmp_path / "out")
    got, more = rows(written.folder)[0], rows(zoo / "more")[0]
    assert torch.allclose(got["new"], more["w3"])
    assert torch.allclose(got["w1"], more["w1"])
    assert not got["nil"].any()
    assert any("no model has a row for 'orphan'" in note for note in written.notes)
    tokens["new"]["source"]["token"] = "absent"
    with pytest.raises(ValueError, match="has no token 'absent'"):
        plan_config(held)


def test_rows_read_in_blocks_are_those_read_at_once(zoo):
    models = {"more": {"weight": 0.5}, "mixed": {"weight": 0.5}}
    held = recipe(zoo, "linear", {"base": {"weight": 1}, **models})
    held["tokenizer"] = {"source": "union", "pad_to_multiple_of": 16}
    for source in plan_config(held).parts.jobs[0].inputs.models:
        whole = source.tensors[EMBEDDING]
        blocks = [source.tensors.rows(EMBEDDING, i, i + 7) for i in range(0, 77, 7)]
        assert torch.equal(torch.cat([*blocks, source.tensors.rows(EMBEDDING, 77, 80)]), whole)


def test_special_tokens_of_the_configuration_follow_the_tokenizer(zoo, tmp_path):
    turned = llama(tmp_path / "turned", 1, base=zoo / "base")
    ids = tokenizer().get_vocab()
    fast = json.loads((turned / "tokenizer.json").read_text())
    fast["model"]["vocab"] = {token: 63 - i for token, i in ids.items()}
    for entry in fast["added_tokens"]:
        entry["id"] = 63 - entry["id"]
    (turned / "tokenizer.json").write_text(json.dumps(fast))
    held = recipe(zoo, "linear", {"base": {"weight": 1}}, tokenizer_source=str(turned))
    config = json.loads((merge_config(held, tmp_path / "out").folder / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (63, 62)


def test_chat_templates_are_given_or_the_commonest(zoo, tmp_path):
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    models = {"a": {"weight": 1}, "b": {"weight": 1}}
    merge_config(recipe(zoo, "linear", models | {"base": {"weight": 1}}, chat_template=text),
                 tmp_path / "out")  # fmt: skip
    said = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert said.chat_template == text
    auto = plan_config(
        recipe(zoo, "linear", models | {"base": {"weight": 1}}, chat_template="auto")
    )
    assert any("no model has one" in note for note in auto.notes)


# -- statistics ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*lack statistics")
@pytest.mark.slow  # the wrappers of a typed run would stand between caller and warning
def test_a_configuration_names_each_model_s_statistics(zoo, tmp_path):
    for seed, name in enumerate("ab"):
        grams = {
            n: {"gram": torch.randn(40, t.shape[1]).T.cov() + (seed + 1) * torch.eye(t.shape[1])}
            for n, t in tensors(zoo / name).items()
            if "proj" in n
        }
        Stats.from_means(grams).save(zoo / f"{name}.safetensors")
    models = [{"model": str(zoo / n), "stats": f"{n}.safetensors"} for n in "ab"]
    held = {"merge_method": "regmean", "models": models, "parameters": {"lam": 0.8}}
    file = zoo / "regmean.yml"
    file.write_text(yaml.safe_dump(held))
    got = tensors(merge_config(file, tmp_path / "out").folder)
    files = [zoo / f"{n}.safetensors" for n in "ab"]
    expected = merge(None, [tensors(zoo / n) for n in "ab"], "regmean", stats=files, lam=0.8)
    assert equal(got, dict(expected))
    with pytest.warns(UserWarning, match="lack statistics") as caught:
        merge_folders(None, [zoo / n for n in "ab"], "regmean", tmp_path / "f", stats=files)
    assert {warning.filename for warning in caught} == {__file__}
    del models[1]["stats"]
    with pytest.raises(ValueError, match=r"stats are given for some models only: .*b has none"):
        plan_config(held)
    with pytest.raises(ValueError, match=r"models\[0\]: ties takes no stats"):
        plan_config({"merge_method": "ties", "base_model": str(zoo / "base"), "models": models})

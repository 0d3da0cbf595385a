"""Folders that would not load, found out before a server does; adapters that do not fit."""

import json

import pytest
import torch
from tests.merging.llamas import changed, llama, tokenizer

from spanwise.io import open_tensors, save_tensors
from spanwise.lora import CONFIG, FILE
from spanwise.merging import check_model, export_lora, export_merged, merge_folders
from spanwise.merging._export.commands import serve_lora, serve_model
from spanwise.merging._export.merged import plan_merged


@pytest.fixture
def folder(tmp_path):
    return llama(tmp_path / "model", 0)


def test_a_whole_folder_has_no_problem(folder):
    found = check_model(folder)
    assert found.problems == ()
    assert found.architecture == "LlamaForCausalLM"
    assert found.dtype == "float32"
    assert found.tensors == len(open_tensors(folder))
    assert any("chat template" in note for note in found.notes)


def test_a_merge_passes(tmp_path):
    base = llama(tmp_path / "base", 0, shard="3KB", tied=True)
    models = [llama(tmp_path / name, 1, base=base, tied=True) for name in "ab"]
    merge_folders(base, models, "task_arithmetic", tmp_path / "out", max_shard_bytes=4000)
    assert check_model(tmp_path / "out").problems == ()


def edit(name, value):
    def do(folder):
        changed(folder, **{name: value})

    return do


def rewrite(change):
    def do(folder):
        held = {name: t.clone() for name, t in open_tensors(folder).items()}
        change(held)
        save_tensors(folder / "model.safetensors", held, {"format": "pt"})

    return do


def without(*names):
    def do(folder):
        for name in names:
            (folder / name).unlink()

    return do


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config.json"), "config.json is missing"),
        (edit("architectures", None), "names no architectures"),
        (edit("quantization_config", {"quant_method": "gptq"}), "quantization_config of gptq"),
        (edit("vocab_size", 65), "vocab_size = 65, but no table has so many rows"),
        (edit("num_hidden_layers", 3), "is missing: it would be drawn at random"),
        (edit("intermediate_size", 32), "its configuration asks for"),
        (edit("eos_token_id", 99), "eos_token_id = 99, the tables have 64 rows"),
        (without("tokenizer.json", "tokenizer_config.json"), "there is no tokenizer"),
        (without("model.safetensors"), "holds no safetensors file"),
        (truncated, "it is truncated"),
        (rewrite(lambda t: t["model.norm.weight"].fill_(float("nan"))), "'model.norm.weight' (1"),
        (rewrite(lambda t: t.pop("model.norm.weight")), "(1 such tensors) is missing"),
        (
            rewrite(lambda t: t.update({n: x.double() for n, x in t.items()})),
            "float64, which vLLM and llama.cpp do not read",
        ),
        (
            lambda folder: tokenizer([f"w{i}" for i in range(80)]).save_pretrained(folder),
            "writes id 82 ('w79'), but the tables have 64 rows",
        ),
    ],
)  # fmt: skip
def test_what_would_fail_later_is_a_problem_now(folder, damage, message):
    damage(folder)
    problems = check_model(folder).problems
    assert any(message in problem for problem in problems), problems


def test_what_forbids_nothing_is_a_note(folder):
    changed(folder, dtype="bfloat16")
    (folder / "old.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"old")
    found = check_model(folder)
    assert found.problems == ()
    for part in ("says bfloat16, most weights are float32", "old.safetensors", "pytorch_model.bin"):
        assert any(part in note for note in found.notes)


def test_a_missing_shard_is_named(tmp_path):
    folder = llama(tmp_path / "model", 0, shard="3KB")
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()
    assert any("shard" in problem for problem in check_model(folder).problems)
    with pytest.raises(FileNotFoundError):
        check_model(tmp_path / "nowhere")


@pytest.fixture
def adapter(tmp_path):
    base = llama(tmp_path / "base", 0)
    tuned = llama(tmp_path / "tuned", 1, base=base)
    export_lora(base, tuned, tmp_path / "lora", rank=2)
    return tmp_path / "lora"


def test_the_base_s_problems_are_told_before_the_first_byte(adapter, tmp_path):
    (tmp_path / "base" / "tokenizer.json").unlink()
    (tmp_path / "base" / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"the base .*there is no tokenizer"):
        export_merged(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    other = llama(tmp_path / "other", 0, layers=1)
    with pytest.raises(ValueError, match="belongs to another model"):
        export_merged(adapter, tmp_path / "out", base=other)
    with pytest.raises(FileNotFoundError):
        export_merged(adapter, tmp_path / "out", base=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no adapter"):
        export_merged(tmp_path / "base", tmp_path / "out")
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not say what it was trained on"):
        export_merged(adapter, tmp_path / "out")


def test_another_base_than_the_adapter_names_is_noted(adapter, tmp_path):
    (tmp_path / "base").rename(tmp_path / "other")
    config = json.loads((adapter / CONFIG).read_text())
    held = {**config, "base_model_name_or_path": "owner/Base-7B"}
    (adapter / CONFIG).write_text(json.dumps(held))
    note = f"it says that it was trained on owner/Base-7B, and is added to {tmp_path / 'other'}"
    assert plan_merged(adapter, tmp_path / "other").notes[0] == note
    (adapter / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "owner/OTHER"}))
    assert not any("trained on" in n for n in plan_merged(adapter, tmp_path / "other").notes)


def test_what_is_neither_factor_nor_tensor_is_refused(adapter, tmp_path):
    held = {name: t.clone() for name, t in open_tensors(adapter).items()}
    more = {**held, "base_model.model.score.weight": torch.ones(2, 16)}
    save_tensors(adapter / FILE, more)
    with pytest.raises(ValueError, match=r"score.weight', which is no factor"):
        export_merged(adapter, tmp_path / "out")
    save_tensors(adapter / FILE, {**held, "base_model.model.lm_head.weight": torch.ones(70, 16)})
    with pytest.raises(ValueError, match=r"\(70, 16\).*vocabulary was resized"):
        export_merged(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def lines(commands, program):
    return [command.line for command in commands if command.program == program]


def test_lines_for_a_model_quote_its_path():
    found = serve_model("/models/my model")
    assert lines(found, "vLLM") == ["vllm serve '/models/my model'"]
    assert lines(found, "llama.cpp") == [
        "python convert_hf_to_gguf.py '/models/my model' --outfile '/models/my model.gguf' "
        "--outtype bf16",
        "llama-quantize '/models/my model.gguf' '/models/my model-Q4_K_M.gguf' Q4_K_M",
        "llama-server -m '/models/my model-Q4_K_M.gguf'",
    ]


def test_lines_for_a_lora_reserve_its_largest_rank_and_keep_its_scale():
    found = serve_lora("/out/code", "/models/llama", [3, 20, 7])
    assert lines(found, "vLLM") == [
        "vllm serve /models/llama --enable-lora --max-lora-rank 32 --lora-modules code=/out/code"
    ]
    assert lines(found, "llama.cpp") == [
        "python convert_lora_to_gguf.py /out/code --base /models/llama --outfile /out/code.gguf",
        "gguf-set-metadata --force /out/code.gguf adapter.lora.alpha 0",
        "llama-server -m /models/llama.gguf --lora /out/code.gguf",
    ]
    alike = serve_lora("/out/code", "/models/llama", [16, 16])
    assert "--max-lora-rank 16" in lines(alike, "vLLM")[0]
    assert not any("alpha" in line for line in lines(alike, "llama.cpp"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"whole": True}, "no vectors"), ({"tied": True}, "tied"), ({"transposed": True}, "GPT-2")],
)
def test_what_a_server_cannot_read_is_merged_instead(options, reason):
    found = serve_lora("/out/code", "/models/llama", [16, 4], **options)
    merge = "spanwise export /out/code --as merged --base /models/llama --out MERGED"
    assert lines(found, "llama.cpp") == [merge]
    assert any(reason in command.note for command in found)
    too_high = serve_lora("/out/code", "/models/llama", [600])
    assert lines(too_high, "vLLM") == [merge]
    assert "--max-rank" in next(c.note for c in too_high if c.program == "vLLM")

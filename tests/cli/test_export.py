"""`spanwise export` as a person meets it."""

import json

import pytest
import torch
import yaml

from conformance.merging import models
from spanwise.cli import main
from spanwise.io import open_tensors, save_tensors
from spanwise.lora import CONFIG, FILE


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and a fine-tune, without configuration or tokenizer."""
    root = tmp_path_factory.mktemp("models")
    base, tuned = models(1, dtype=torch.float32)
    for name, tensors in (("base", base), ("tuned", tuned[0])):
        (root / name).mkdir()
        save_tensors(root / name / "model.safetensors", tensors)
    return root


@pytest.fixture
def argv(folders, tmp_path):
    return [
        "export", str(folders / "tuned"), "--as", "lora", "--base", str(folders / "base"),
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def test_a_lora_tells_what_it_keeps_and_how_to_serve_it(argv, tmp_path, capsys):
    assert main([*argv, "--budget-rank", "2"]) == 0
    out = capsys.readouterr().out
    for part in (
        "tuned minus the base", "layers.*.up.weight", "left behind", "a vector has no factors",
        "of the difference's energy", "uniform rank 2", "wrote", "vLLM: vllm serve",
        "--lora-modules out=", "convert_lora_to_gguf.py", "note:",
    ):  # fmt: skip
        assert part in out
    assert "\x1b" not in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {FILE, CONFIG, "export.json"}


def test_a_plan_writes_nothing(argv, tmp_path, capsys):
    assert main([*argv, "--energy", "0.9", "--plan", "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert 0.9 * (1 - sum(f["energy"] for f in told["left"].values())) <= told["energy"] < 1
    assert told["budget"] == {"energy": 0.9}
    assert "Nothing was written" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_document_and_quiet_is_silent(argv, capsys):
    assert main([*argv, "--rank", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ranks"]["layers.0.up.weight"] == 2
    assert told["serve"][0]["program"] == "vLLM"
    assert main([*argv, "--rank", "2", "--quiet", "--overwrite"]) == 0
    assert capsys.readouterr() == ("", "")


def test_print_config_repeats_the_export(argv, tmp_path, capsys):
    assert main([*argv, "--rank", "3", "--exclude", "embed", "--print-config"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(text)
    assert yaml.safe_load(text)["as_"] == "lora"
    assert main(["export", "--config", str(tmp_path / "run.yaml"), "--quiet"]) == 0
    assert not any("embed" in name for name in open_tensors(tmp_path / "out"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rank", "0"], "rank must be at least 1, got 0"),
        (["--rank", "7"], "rank = 7 exceeds min(m, n) = 6"),
        (["--energy", "95"], "energy is a share of the difference and must be in (0, 1], got 95"),
        (["--rank", "2", "--energy", "0.5"], "rank and energy both say how large"),
        (["--megabytes", "1e-6"], "is below the"),
        (["--device", "abacus"], "device = abacus cannot be used here"),
        (["--quick"], "--quick is for --as merged"),
        (["--base", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_option_is_one_line(argv, more, message, tmp_path, capsys):
    assert main([*argv, *more]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named(folders, argv, tmp_path, capsys):
    tuned = str(folders / "tuned")
    assert main(["export", tuned, "--as", "lora", "--plan"]) == 1
    assert "base is missing" in capsys.readouterr().err
    assert main(["export", tuned, "--as", "lora", "--base", str(folders / "base")]) == 1
    assert "out is missing" in capsys.readouterr().err
    assert main(["export", tuned, "--as", "merged", "--rank", "3"]) == 1
    assert "--rank is for --as lora" in capsys.readouterr().err
    assert main(["export", tuned, "--as", "merged", "--out", str(tmp_path / "x")]) == 1
    assert "is a whole model already" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main(argv) == 1
    assert "already exists" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_folder_that_would_not_load_fails_with_its_problems(folders, capsys):
    assert main(["export", str(folders / "tuned"), "--as", "merged"]) == 1
    captured = capsys.readouterr()
    assert "problem: config.json is missing" in captured.out
    assert "problem: there is no tokenizer" in captured.out
    assert (
        "would not load: config.json is missing: copy the base's (1 more problem)" in captured.err
    )
    assert "vllm" not in captured.out


def test_a_merge_knows_its_base_and_an_adapter_too(folders, tmp_path, capsys):
    merged = str(tmp_path / "merged")
    models = [str(folders / n) for n in ("base", "tuned")]
    assert main(["merge", *models, "--method", "task_arithmetic", "--out", merged, "--quiet"]) == 0
    assert (
        main(["export", merged, "--as", "lora", "--rank", "5", "--out", str(tmp_path / "a")]) == 0
    )
    small = ["export", str(tmp_path / "a"), "--as", "lora", "--rank", "2"]
    assert main([*small, "--out", str(tmp_path / "b"), "--quiet"]) == 0
    capsys.readouterr()
    held = open_tensors(tmp_path / "b")
    assert held.shape("base_model.model.layers.0.up.lora_A.weight") == (2, 6)


def test_ctrl_c_says_that_nothing_is_left(argv, tmp_path, capsys, monkeypatch):
    def stop(self, done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr("spanwise.cli._progress.Progress.__call__", stop)
    assert main(argv) == 130
    assert "nothing half is left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_becomes_a_whole_model(tmp_path, capsys):
    pytest.importorskip("transformers")
    from tests.merging.llamas import llama, loaded

    base = llama(tmp_path / "base", 0)
    tuned = llama(tmp_path / "tuned", 1, base=base)
    root = ["--base", str(base)]
    assert main(["export", str(tuned), "--as", "lora", *root, "--out", str(tmp_path / "lora")]) == 0
    capsys.readouterr()
    whole = ["export", str(tmp_path / "lora"), "--as", "merged"]
    assert main(whole) == 1
    assert "is an adapter: name the folder of the whole model" in capsys.readouterr().err
    assert main([*whole, "--plan"]) == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert main([*whole, *root, "--out", str(tmp_path / "whole"), "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    for part in ("changes 16 matrices", "LlamaForCausalLM", "bfloat16", "vLLM: vllm serve",
                 "convert_hf_to_gguf.py"):  # fmt: skip
        assert part in out
    model, odd = loaded(tmp_path / "whole")
    assert odd == set()
    assert model.dtype == torch.bfloat16
    assert main(["export", str(tmp_path / "whole"), "--as", "merged"]) == 0
    assert "checked" in capsys.readouterr().out

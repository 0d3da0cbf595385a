"""`spanwise atlas`: extract, show and compare from a model folder and a text file."""

import json

import pytest
import torch

from spanwise.atlas import Atlas
from spanwise.cli import main

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama on bytes, as a transformers folder."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=259,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    (path / "old.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    (path / "new.txt").write_text("0123456789 + 9876543210 = 9999999999\n" * 60)
    return path


def run(*arguments):
    return main(["atlas", *map(str, arguments)])


def extract(folder, data, out, *more):
    flags = ["--tokenizer", "bytes", "--sequence", 32, "--tokens", 1024, "--out", out]
    return run("extract", folder, "--data", data, *flags, *more)


@pytest.fixture(scope="module")
def atlases(folder, texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("atlases")
    for name in ("old", "new"):
        assert extract(folder, texts / f"{name}.txt", path / name, "--quiet") == 0
    return path


def test_extract_writes_what_the_python_call_gives(folder, atlases, texts):
    atlas = Atlas.load(atlases / "old", base=folder)
    assert atlas.metadata["source"] == "activations"
    assert atlas.metadata["data"] == str(texts / "old.txt")
    assert len(atlas.metadata["data_sha256"]) == 64
    assert (atlas.metadata["sequence"], atlas.metadata["batches"]) == ("32", "4")
    assert (len(atlas), len(atlas.subspaces)) == (14, 8)
    from spanwise.datasets import load_text
    from spanwise.training.data import pack
    from spanwise.zoo import load_model

    loaded = load_model(folder, tokenizer="bytes")
    blocks, _ = pack(load_text(texts / "old.txt"), loaded.tokenizer, 32)
    batches = [{"input_ids": b["input_ids"]} for b in blocks.spread(32).batches(8)]
    direct = Atlas.from_activations(loaded.model, batches)
    for entry in direct:
        assert torch.equal(atlas.entries[entry.key].subspace.basis, entry.subspace.basis)


def test_extract_tells_sizes_before_writing_and_the_next_command(folder, texts, tmp_path, capsys):
    out = tmp_path / "know.atlas.safetensors"
    assert extract(folder, texts / "old.txt", out, "--rank", 4) == 0
    printed = capsys.readouterr().out
    assert "model.layers.1.self_attn.q_proj/k_proj/v_proj  input   32     4     12%" in printed
    assert printed.index("writing 4.7 kB to") < printed.index("next: spanwise train")
    assert f"--avoid {out}" in printed


def test_extract_records_the_choice_of_sides_and_maps(folder, texts, tmp_path):
    more = ["--sides", "input", "output", "--include", "mlp", "--dtype", "bfloat16"]
    assert extract(folder, texts / "old.txt", tmp_path / "a", *more, "--layers", 1) == 0
    atlas = Atlas.load(tmp_path / "a")
    assert atlas.sides == ("output", "input")
    assert {name.split(".")[2] for name in atlas.names} == {"0"}
    assert all("mlp" in name for name in atlas.names)


def test_a_plan_reads_no_data_and_writes_nothing(folder, tmp_path, capsys):
    out = tmp_path / "a"
    assert run("extract", folder, "--out", out, "--plan", "--rank", 4, "--json") == 0
    captured = capsys.readouterr()
    # Per layer six activations of width 32 and one of 48, four columns each.
    numbers = 2 * 4 * (6 * 32 + 48)
    assert json.loads(captured.out)["file"] == 4 * numbers
    assert "the file holds at most" in captured.err
    assert not out.exists()


def test_show_lists_every_basis_and_its_origin(atlases, folder, capsys):
    assert run("show", atlases / "old", "--base", folder) == 0
    printed = capsys.readouterr().out
    assert "source       activations" in printed
    assert "model.layers.0.mlp.gate_proj/up_proj" in printed
    assert f"it belongs to {folder}" in printed
    assert run("show", atlases / "old", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["entries"]) == 14
    assert data["entries"][0]["layout"] == "linear"
    assert data["metadata"]["energy"] == "0.8"


def test_compare_puts_chance_beside_the_angles(atlases, capsys):
    assert run("compare", atlases / "old", atlases / "new") == 0
    printed = capsys.readouterr().out
    assert "by chance" in printed
    assert "model.layers.0.self_attn.q_proj/k_proj/v_proj" in printed
    assert run("compare", atlases / "old", atlases / "old", "--json", "--quiet") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["shared"] == pytest.approx(1, abs=1e-5)
    assert data["expected_shared"] < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda good: good[:-1], "is damaged: it is truncated"),
        (lambda good: good[:-1] + bytes([good[-1] ^ 1]), "is damaged: its content does not match"),
    ],
)
def test_damaged_files_are_named_in_one_line(atlases, tmp_path, capsys, change, message):
    path = tmp_path / "bad.atlas.safetensors"
    path.write_bytes(change((atlases / "old").read_bytes()))
    assert run("show", path) == 1
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert error.count("\n") == 1


def test_an_atlas_of_another_model_is_named(atlases, tmp_path, capsys, folder):
    other = transformers.LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight += 1
    other.save_pretrained(tmp_path)
    assert run("show", atlases / "old", "--base", tmp_path) == 1
    assert "the atlas belongs to another base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "missing.txt"], "missing.txt"),
        ([], "give the text whose responses are to be kept"),
        (["--data", "{old}", "--energy", "2"], "energy must be a share in (0, 1], got 2.0"),
        (["--data", "{old}", "--rank", "0"], "rank must be at least 1, got 0"),
        (["--data", "{old}", "--rank", "33"], "rank = 33 exceeds the 32 dimensions"),
        (["--data", "{old}", "--include", "nothing"], "no linear map is left"),
        (["--data", "{old}", "--tokens", "8"], "tokens = 8 is less than one sequence of 32"),
        (["--data", "{empty}"], "empty.txt"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    folder, texts, tmp_path, capsys, arguments, message
):
    (tmp_path / "empty.txt").write_text("")
    names = {"old": texts / "old.txt", "empty": tmp_path / "empty.txt"}
    out = tmp_path / "out.atlas.safetensors"
    flags = ["--tokenizer", "bytes", "--sequence", "32", "--out", str(out), "--quiet"]
    filled = [argument.format(**names) for argument in arguments]
    assert run("extract", folder, *flags, *filled) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == [tmp_path / "empty.txt"]


def test_an_existing_file_is_kept_unless_overwriting_is_asked(folder, texts, tmp_path, capsys):
    out = tmp_path / "a"
    out.write_text("precious")
    assert extract(folder, texts / "old.txt", out) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert extract(folder, texts / "old.txt", out, "--overwrite", "--quiet") == 0
    assert len(Atlas.load(out)) == 14
    assert extract(folder, texts / "old.txt", tmp_path) == 1


def test_a_resolved_configuration_runs_again(folder, texts, tmp_path, capsys):
    out = tmp_path / "a"
    assert extract(folder, texts / "old.txt", out, "--print-config") == 0
    config = tmp_path / "run.yaml"
    config.write_text(capsys.readouterr().out)
    assert not out.exists()
    assert run("extract", "--config", config, "--quiet") == 0
    assert out.exists()


def test_compare_draws_the_angles_beside_random_ones(atlases, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "angles.svg"
    assert run("compare", atlases / "old", atlases / "new", "--plot", plot) == 0
    assert f"heat map: {plot}" in capsys.readouterr().out
    text = plot.read_text()
    assert "A and random subspaces" in text
    assert "mlp.down_proj" in text
    again = tmp_path / "again.svg"
    run("compare", atlases / "old", atlases / "new", "--plot", again, "--quiet")
    assert again.read_bytes() == plot.read_bytes()
    capsys.readouterr()
    for name, message in (("a.pdf", ".svg or .png, got 'a.pdf'"), ("again.svg/b", "is a file")):
        assert run("compare", atlases / "old", atlases / "new", "--plot", tmp_path / name) == 1
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "nope"], "device = nope cannot be used here"),
        (["--device", "cuda:99"], "device = cuda:99 cannot be used here"),
        (["--rank", "0"], "rank must be at least 1, got 0"),
        (["--energy", "1.5"], "energy must be a share in (0, 1], got 1.5"),
        (["--plan", "--rank", "0"], "rank must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_extracted_is_one_line_before_any_work(
    folder, texts, tmp_path, capsys, flags, message
):
    try:
        code = extract(folder, texts / "old.txt", tmp_path / "a", *flags)
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.replace("│", " ").split())
    assert "Traceback" not in captured.err
    assert "reads" not in captured.out
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_the_atlas_is_told_before_any_work(folder, texts, capsys):
    out = texts / "old.txt" / "a.atlas"
    assert extract(folder, texts / "new.txt", out) == 1
    captured = capsys.readouterr()
    assert "old.txt is a file. Name another place" in captured.err
    assert "reads" not in captured.out

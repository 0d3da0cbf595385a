"""`spanwise train` as a person meets it."""

import json
import resource
import signal
import subprocess
import sys

import pytest
import torch

from spanwise.cli import main
from spanwise.datasets import ByteTokenizer
from spanwise.optim import METHODS

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small Llama on bytes, as a transformers folder."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=259, max_position_embeddings=64, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    ByteTokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def argv(tiny, tmp_path):
    text = tmp_path / "new.txt"
    text.write_text("0123456789 + 9876543210 = 9999999999\n" * 60)
    return [
        "train", tiny, "--data", str(text), "--out", str(tmp_path / "run"), "--rank", "4",
        "--steps", "6", "--batch", "2", "--sequence", "32", "--device", "cpu",
        "--eval-sequences", "2", "--save-every", "2", "--log-every", "1",
    ]  # fmt: skip


def spawn(argv, **options):
    command = "import sys; from spanwise.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-u", "-c", command, *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_a_run_prints_its_story_and_its_result(argv, tmp_path, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    for part in ("tensors projected", "step 6/6", "held_out", "predicted", "measured", "saved"):
        assert part in out
    assert "\x1b" not in out
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_json_goes_to_stdout_alone(argv, capsys):
    assert main([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["steps"] == 6
    assert "step 6/6" in captured.err


def test_quiet_says_nothing(argv, capsys):
    assert main([*argv, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_the_written_config_repeats_the_run(argv, tmp_path, capsys):
    assert main(argv) == 0
    saved = tmp_path / "run" / "config.yaml"
    assert main(["train", "--config", str(saved), "--out", str(tmp_path / "again")]) == 0
    models = [(tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("run", "again")]
    assert models[0] == models[1]


def test_print_config_resolves_and_stops(argv, tmp_path, capsys):
    assert main([*argv, "--print-config"]) == 0
    assert "rank: 4" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_plan_is_a_table_of_all_methods(tiny, capsys):
    assert main(["train", tiny, "--rank", "4", "--plan"]) == 0
    out = capsys.readouterr().out
    for word in (*METHODS, "docs/optimizers.md", "states", "activations", "peak"):
        assert word in out
    assert main(["train", tiny, "--rank", "4", "--plan", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["method"] for row in rows} == set(METHODS)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--rank", "0"], 2, "rank must be at least 1"),
        (["--method", "galor"], 2, "Did you mean 'galore'"),
        (["--rnk", "3"], 2, "--rank"),
        (["--data", "nope.txt"], 1, "no file or folder at 'nope.txt'"),
        (["--avoid", "no.atlas"], 1, "no atlas at no.atlas"),
        (["--resume"], 1, "no run at"),
        (["--rank", "32"], 1, "not below the width"),
    ],
)
def test_wrong_input_is_one_clear_line_and_leaves_nothing(
    argv, tmp_path, capsys, change, code, message
):
    try:
        found = main([*argv, *change])
    except SystemExit as stop:
        found = stop.code
    assert found == code
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).replace("│", " ").split())
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_in_the_config_file_names_the_nearest(argv, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("optimizer:\n  rnk: 3\n")
    assert main([*argv, "--config", str(tmp_path / "c.yaml")]) == 1
    assert "did you mean 'rank'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_saves_and_the_printed_line_resumes(argv, tmp_path, number, code):
    steps = argv.index("--steps") + 1
    argv[steps] = "2000"
    process = spawn(argv)
    for line in process.stdout:
        if line.startswith("step    3"):
            process.send_signal(number)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert f"spanwise train --config {tmp_path}/run/config.yaml --resume" in err
    last = max(int(p.name.partition("-")[2]) for p in (tmp_path / "run").glob("checkpoint-*"))
    assert last >= 3
    assert (tmp_path / "run" / f"checkpoint-{last}" / "complete.json").is_file()
    assert not (tmp_path / "run" / "model").exists()


@pytest.fixture
def file_size_limit():
    """Sets a limit in kB that this process may lift again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda kilobytes: resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kilobytes", [50, 100])
def test_a_file_size_limit_leaves_no_folder_that_looks_whole(
    argv, tmp_path, capsys, file_size_limit, kilobytes
):
    """The weights take 68 kB and the moments 137 kB: one limit hits each."""
    file_size_limit(kilobytes)
    assert main([*argv, "--method", "adamw"]) == 1
    err = capsys.readouterr().err
    assert "could not be written" in err
    assert "Traceback" not in err
    left = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert left == ["config.yaml", "events.jsonl", "manifest.json"]

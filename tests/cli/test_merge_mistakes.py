"""What a tired person types: one line that names it and the way out, before any byte is written."""

import resource
import shlex
import shutil

import pytest
from tests.merging.llamas import WORDS, llama

from spanwise.cli import main
from spanwise.io import open_tensors, save_tensors


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Models, and what is none."""
    root = tmp_path_factory.mktemp("zoo")
    base = llama(root / "llama", 0)
    for seed, name in enumerate(("llama-code", "llama-math"), start=1):
        llama(root / name, seed, base=base)
    llama(root / "more", 3, base=base, words=(*WORDS, "extra"))
    llama(root / "turned", 3, base=base, words=WORDS[::-1])
    shutil.copytree(base, root / "bare")
    for file in (root / "bare").glob("*token*"):
        file.unlink()
    shutil.copytree(base, root / "torn")
    (root / "torn" / "tokenizer.json").write_text("{")
    wide = {name: t.repeat(1, 2) if t.ndim == 2 else t for name, t in open_tensors(base).items()}
    save_tensors(root / "wide" / "model.safetensors", wide)
    (root / "run" / "model").mkdir(parents=True)
    shutil.copy(base / "model.safetensors", root / "run" / "model")
    (root / "empty").mkdir()
    (root / "notes.txt").write_text("w1 w2 w3\n" * 9)
    (root / "typo.yml").write_text(
        "merge_method: ties\nbase_model: llama\nmodels:\n  - model: llama-code\n"
        "    parameters: {wieght: 1}\n"
    )
    (root / "outside.yml").write_text(
        "merge_method: ties\nbase_model: llama\nlambda: 2\nmodels:\n  - model: llama-code\n"
    )
    (root / "plain.yml").write_text("merge_method: linear\nmodels: [llama-code, llama-math]\n")
    return root


MISTAKES = [
    ("merge llam llama-code --out x", "llam: No model there: did you mean llama?"),
    ("merge llama owner/none --out x", "hf download owner/none"),
    ("merge llama-60m llama-code --out x", "llama-60m is a size with fresh weights"),
    ("merge smollm2-13m llama-code --out x", "Did you mean 'smollm2-135m'?"),
    ("merge '' llama-code --out x", "a model has no name"),
    ("merge llama notes.txt --out x", "notes.txt is a file, but no .safetensors"),
    ("merge llama empty --out x", "empty holds no safetensors file. A model's folder has"),
    ("merge llama run --out x", "run holds no safetensors file. Did you mean run/model?"),
    ("merge llama wide --out x", "in model 1 (wide). Merge copies of one model."),
    ("merge llama more --out x", "more has a vocabulary of 65 tokens, llama one of 64. Say which"),
    ("merge llama turned --out x", "--tokenizer base, union or a folder"),
    ("merge llama torn --out x", "torn/tokenizer.json is damaged"),
    ("merge llama more --tokenizer uniom --out x", "did you mean 'union'?"),
    ("merge llama llama-code llama-code --out x", "llama-code is named twice: name each model"),
    ("merge llama llama-code ./llama-code --out x", "named twice, also as llama-code"),
    ("merge llama llama-code --out notes.txt", "notes.txt cannot be a folder"),
    ("merge llama llama-code --out llama-code --overwrite", "llama-code is read as model 1"),
    ("merge llama llama-code --out x --include nothing", "include = nothing fits no tensor"),
    ("merge llama llama-code --out x --method regmean", "spanwise merge stats"),
    ("merge llama llama-code --out x --avoid none", "spanwise atlas extract llama"),
    ("merge llama llama-code --out x --avoid llama", "llama is a folder: name an atlas"),
    ("merge none llama-code --out x --method linear --alpha 2", "alpha = 2.0 scales what is added"),
    ("merge stat llama --data notes.txt", "unknown verb 'stat': did you mean 'stats'?"),
    ("merge typo.yml --out x", "typo.yml: models[0]: ties has no parameter 'wieght': did you mean"),
    ("merge outside.yml --out x", "outside.yml: lambda belongs under parameters"),
    ("merge plain.yml --out x", "plain.yml: models[0] must be a mapping: write `- model: llama-c"),
    ("merge typo.yml llama --out x", "typo.yml names its models itself: give it alone"),
    ("merge diagnose llama llama-code more", "Rows of different tokens cannot be compared"),
    ("merge diagnose llama llama-code llama-code", "llama-code is named twice: name each model o"),
    ("merge diagnose llama llama-code llama-math --memory 0", "memory must be positive"),
    (
        "merge stats llam --data notes.txt",
        "no model at 'llam': not a folder, a size or a name. Did",
    ),
    ("merge stats notes.txt --data notes.txt", "notes.txt is a file: name the folder of the model"),
    ("merge stats bare --data notes.txt", "bare holds no tokenizer that can be read"),
    ("merge stats llama --data notes.txt --text body", "text = 'body' names a column or key"),
    ("merge stats llama --data notes.txt --include none", "the model's begin with model.layers.0"),
    ("merge stats llama --data notes.txt --out notes.txt/x", "notes.txt is a file. Name another"),
    ("merge stats --merge a.st ./a.st a.st", "a.st is named twice: name each file once, or its d"),
    ("export llama-cod --as merged", "llama-cod: No model there: did you mean llama-code?"),
    (
        "export llama-code --as lora --base llama-1b --out x",
        "llama-1b is a size with fresh weights",
    ),
    ("export llama-code --as lora --base llama --out notes.txt/x", "notes.txt is a file"),
    (
        "export llama-code --as lora --base llama --out llama --overwrite",
        "llama is read as the bas",
    ),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(zoo, line, message, capsys, monkeypatch):
    monkeypatch.chdir(zoo)
    before = sorted(path.name for path in zoo.iterdir())
    assert main(shlex.split(line)) in (1, 2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert "tensor 1/" not in captured.out
    assert sorted(path.name for path in zoo.iterdir()) == before


def test_no_tokenizer_and_an_exclusion_that_fits_nothing_are_noted(
    zoo, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(zoo)
    shutil.copytree("bare", tmp_path / "copy")
    argv = ["merge", "bare", str(tmp_path / "copy"), "--method", "linear", "--exclude", "nothing"]
    assert main([*argv, "--plan", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "note: no model has a tokenizer, and neither will the result" in out
    assert "note: exclude = nothing fits no tensor" in out


def test_a_full_disk_names_the_file_and_the_same_call_goes_on(zoo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(zoo)
    out = tmp_path / "out"
    merge = ["merge", "llama", "llama-code", "--out", str(out), "--quiet"]
    lora = ["export", "llama-code", "--as", "lora", "--base", "llama", "--out", str(out), "--quiet"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        for argv in (merge, lora):
            assert main(argv) == 1
            assert "model.safetensors: File too large" in capsys.readouterr().err
            assert not out.exists()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # In the same process, which still runs: its claim on the file must not keep it waiting.
    assert main(merge) == 0

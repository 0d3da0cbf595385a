"""What the pages under docs/ show runs as it stands, and every command they name is parsed.

A reader's own models are tiny Llamas here, in folders of the names that the pages use.
"""

import pytest
import torch

import examples
from examples import ROOT
from spanwise import cli

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

PAGES = sorted((ROOT / "docs").rglob("*.md"))
SHOWN = {page.relative_to(ROOT / "docs").as_posix(): page.read_text("utf-8") for page in PAGES}
WITH_PYTHON = [page for page, text in SHOWN.items() if examples.blocks(text, "python")]
MODELS = ("base", "tuned", "tuned-a", "tuned-b", "llama-code", "llama-math", "llama-chat")
MODELS += ("llama-french", "llama-maths")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A reader's folder: a base called llama and its fine-tunes, texts, and a clone's results."""
    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    examples.save_family(folder, "llama", *MODELS)
    (folder / "smollm2-135m").symlink_to(folder / "llama")
    (folder / "old.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    (folder / "new.txt").write_text("".join(f"{n} + {n} = {2 * n}\n" for n in range(200)))
    (folder / "results").symlink_to(ROOT / "results")
    return folder


@pytest.fixture
def names(home, tmp_path, monkeypatch):
    """What the pages call the reader's own, in a folder of its own beside the models."""
    for path in home.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    load = transformers.AutoModelForCausalLM.from_pretrained
    model, model1, model2 = (load(name) for name in ("llama", "tuned-a", "tuned-b"))
    model, old, new, loss = examples.language_model(model)
    rows = [{key: tensor[0] for key, tensor in batch.items()} for batch in new]
    return {
        "model": model, "old_data": old, "new_data": new, "other_data": new, "loss": loss,
        "batch": new[0], "dataset": rows, "data": rows, "data1": old, "data2": new,
        "base": "llama", "tuned": "tuned", "model1": model1, "model2": model2, "evaluate": len,
        "args": transformers.TrainingArguments("runs/mine", report_to="none", use_cpu=True),
    }  # fmt: skip


@pytest.fixture
def short_runs(monkeypatch):
    """Runs of a step where the page has the customary thousand."""
    from spanwise.training import TrainConfig

    flat = TrainConfig.flat
    short = {"steps": 1, "batch": 2, "sequence": 16, "eval_sequences": 2}
    monkeypatch.setattr(TrainConfig, "flat", lambda model, **given: flat(model, **short, **given))


@pytest.mark.filterwarnings("ignore:.*rank")  # the tiny models leave less room than the pages' rank
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_a_pages_python_runs_from_top_to_bottom(page, names, short_runs):
    if page == "train.md":  # its first block takes the atlas that the console above it wrote
        extract = next(words for words in examples.commands(SHOWN[page]) if words[0] == "atlas")
        assert cli.main([*extract, "--sequence", "16", "--quiet"]) == 0
    for block in examples.blocks(SHOWN[page], "python"):
        examples.run(block, names, page)


def _pages():
    return {"README.md": (ROOT / "README.md").read_text("utf-8"), **SHOWN}.items()


def _code(argv):
    try:
        return cli.main(argv)
    except SystemExit as stop:
        return stop.code


def test_every_command_shown_is_parsed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "runs/new/config.yaml"
    config.parent.mkdir(parents=True)
    wrong, seen = {}, []
    for page, text in _pages():
        for words in examples.commands(text):
            if words in seen:
                continue
            seen.append(words)
            code = _code([*words, "--print-config"])
            told = capsys.readouterr()
            if code:
                wrong[page, *words] = told.err
            elif words[0] == "train" and not config.exists():
                config.write_text(told.out)  # what `--config runs/new/config.yaml` names
    assert wrong == {}
    assert len(seen) > 20


def test_every_command_named_in_passing_has_its_verb_and_flags(capsys):
    helps, wrong = {}, {}
    for page, text in _pages():
        for words in examples.mentions(text):
            if words[0].startswith("-"):
                assert _code(words) == 0
                continue
            verb = tuple(words[: 2 if words[0] in ("atlas", "merge") and len(words) > 1 else 1])
            if words[0] == "reproduce" and len(words) > 1:
                verb = tuple(words[:2])
            if verb not in helps:
                helps[verb] = _code([*verb, "--help"]), capsys.readouterr().out
            code, page_of_flags = helps[verb]
            flags = [word for word in words if word.startswith("--")]
            if code or not all(flag in page_of_flags for flag in flags):
                wrong[page, *words] = code
    assert wrong == {}

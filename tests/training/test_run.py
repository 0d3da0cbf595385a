"""A whole run: what it learns, what it writes, what it refuses."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from spanwise.atlas import Atlas
from spanwise.datasets import ByteTokenizer, load_text
from spanwise.io.runs import RunFolder
from spanwise.optim import METHODS, OURS
from spanwise.training import TrainConfig, train
from spanwise.training.data import pack
from spanwise.training.evaluation import loss_on
from spanwise.training.inputs import Texts
from spanwise.training.reporting import Silent
from spanwise.zoo import load_model

GUARDED = sorted(METHODS)


class Listener(Silent):
    """Remembers what is said."""

    def __init__(self):
        self.lines, self.progress, self.tables = [], [], []

    def say(self, text=""):
        self.lines.append(text)

    def live(self, text):
        self.progress.append(text)

    def table(self, columns, rows, *, title=None):
        self.tables.append((columns, rows))


@pytest.fixture(scope="module")
def atlas(tiny, texts, tmp_path_factory):
    """What the tiny model uses to read the old text."""
    model = load_model(tiny).model
    blocks, _ = pack(load_text(texts / "old.txt"), ByteTokenizer(), 32)
    found = Atlas.from_activations(model, list(blocks.batches(8)), rank=6)
    path = tmp_path_factory.mktemp("atlas") / "know.atlas.safetensors"
    found.save(path)
    return path


@pytest.fixture(scope="module")
def finished(flat_options, tmp_path_factory):
    """A run with a sweep over alpha, and what it said."""
    heard = Listener()
    options = flat_options(tmp_path_factory.mktemp("finished") / "run")
    return train(TrainConfig.flat(**options | {"alpha": "sweep", "steps": 20}), heard), heard


def test_the_new_text_is_learned(finished):
    result, _ = finished
    assert result.learned > 0.5
    assert result.steps == 20
    assert result.forgot.keys() == {"old"}


def test_the_folder_holds_what_a_run_needs_to_be_repeated(finished):
    out = finished[0].out
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.yaml", "manifest.json", "events.jsonl", "result.json", "model"}
    assert names >= {"loss.svg", "loss.png", "alpha.svg", "alpha.png"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["texts"]["data"]["sha256"]
    assert manifest["inputs"]["model"]["sha256"]
    assert {"torch", "transformers"} <= manifest["versions"].keys()
    assert (manifest["seed"], manifest["device"]) == (0, "cpu")
    assert {"command", "threads"} <= manifest.keys()


def test_every_step_is_in_the_events(finished):
    run = RunFolder(finished[0].out, resume=True)
    assert [e["step"] for e in run.events("step")] == list(range(1, 21))
    assert [e["step"] for e in run.events("eval")] == [0, 4, 8, 12, 16, 20]
    assert run.events()[-1]["event"] == "done"
    logged = run.events("log")[3]
    steps = [e["loss"] for e in run.events("step")]
    assert logged["loss"] == pytest.approx(sum(steps[6:8]) / 2, rel=1e-6)


def test_the_schedule_warms_up_and_falls_to_a_tenth_along_a_cosine(finished):
    def expected(step):
        if step <= 2:
            return 1e-2 * (step - 1) / 2
        return 1e-2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 3) / 18)))

    rates = {e["step"]: e["lr"] for e in RunFolder(finished[0].out, resume=True).events("log")}
    assert len(rates) == 10
    assert rates == pytest.approx({step: expected(step) for step in rates}, rel=1e-12)


def test_the_live_line_shows_losses_speed_and_state(finished):
    line = finished[1].progress[-1]
    for part in ("step 20/20", "loss ", "held_out ", "old ", "tok/s", "state "):
        assert part in line


def test_predicted_memory_stands_beside_measured(finished):
    result, heard = finished
    assert result.predicted_bytes > result.state_bytes > 0
    assert any("predicted" in line and "measured" in line for line in heard.lines)


def test_alpha_runs_from_the_start_to_the_end(finished):
    result, heard = finished
    assert result.alphas[0].losses == result.before
    assert result.alphas[-1].losses == result.after
    assert [columns for columns, _ in heard.tables] == [
        ["text", "before", "after", "change"],
        ["alpha", "held_out", "old"],
    ]


def test_the_saved_model_has_the_losses_told(finished, flat_options):
    result, _ = finished
    texts = Texts.open(TrainConfig.flat(**flat_options("unused")))
    model = load_model(result.model).model
    again = {name: loss_on(model, blocks, batch=2) for name, blocks in texts.looked_at.items()}
    assert again == pytest.approx(result.after, rel=1e-6)


def test_a_fraction_is_saved_as_that_fraction(options, tiny):
    whole = train(TrainConfig.flat(**options))
    half = train(TrainConfig.flat(**{**options, "out": options["out"].parent / "half"}, alpha=0.5))
    start = {n: p.detach() for n, p in load_model(tiny).model.named_parameters()}
    end, middle = (load_file(r.model / "model.safetensors") for r in (whole, half))
    for name, tensor in middle.items():
        torch.testing.assert_close(
            tensor, torch.lerp(start[name], end[name], 0.5), rtol=0, atol=1e-6
        )
    assert half.alpha == 0.5
    assert half.after == whole.after
    assert [p.alpha for p in half.alphas] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("method", GUARDED)
def test_no_update_enters_the_atlas_whatever_the_method(options, atlas, method):
    options |= {"method": method, "avoid": atlas, "weight_decay": 0.1}
    if method == "grass":  # a selection needs more rows than there are directions to avoid
        options["rank"] = 12
    if method not in OURS or method in ("osd", "adamsn"):  # nothing is ever redrawn
        options["refresh_every"] = None
    heard = Listener()
    result = train(TrainConfig.flat(**options), heard)
    assert result.inside < 1e-10
    assert result.outside == pytest.approx(1)
    assert "outside atlas" in heard.progress[-1]
    assert any(" guarded" in line and ", 0 guarded" not in line for line in heard.lines)


def test_measuring_does_not_obey(options, atlas):
    result = train(TrainConfig.flat(**options, measure=atlas))
    assert 0.01 < result.inside < 0.99


def test_within_keeps_the_update_inside(options, atlas):
    result = train(TrainConfig.flat(**options, within=atlas))
    assert result.outside < 1e-10


def test_a_preset_trains_from_fresh_weights(options):
    options |= {"model": "llama-1m", "layers": 1, "steps": 2, "rank": 8, "watch": ()}
    result = train(TrainConfig.flat(**options))
    model, tokenizer = load_model(result.model)
    assert isinstance(tokenizer, ByteTokenizer)
    assert len(model.model.layers) == 1


def test_mixed_precision_and_half_weights_run(options):
    options |= {"steps": 2, "watch": ()}
    mixed = train(TrainConfig.flat(**options, precision="mixed"))
    assert load_file(mixed.model / "model.safetensors")["lm_head.weight"].dtype == torch.float32
    options["out"] = options["out"].parent / "half"
    half = train(TrainConfig.flat(**options, precision="bfloat16"))
    assert load_file(half.model / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nope.txt"}, "no file or folder at 'nope.txt'"),
        ({"sequence": 65}, "sequence = 65 exceeds what"),
        ({"sequence": 60, "data": "SHORT"}, "has 6 tokens"),
        ({"data": "EMPTY"}, "is empty"),
        ({"rank": 32}, "rank = 32 is not below the width"),
        ({"rank": 33}, "rank = 33 is not below the width"),
        ({"avoid": "no.safetensors"}, "no atlas at no.safetensors"),
        ({"model": "llama-2m"}, "no model at 'llama-2m'"),
        ({"watch": {"old": "nope.txt"}}, "no file or folder"),
        pytest.param(
            {"device": "cuda"},
            "sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"),
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    options, tmp_path, change, message
):
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "empty.txt").write_text("")
    places = {"SHORT": str(tmp_path / "short.txt"), "EMPTY": str(tmp_path / "empty.txt")}
    change = {k: places.get(v, v) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(TrainConfig.flat(**{**options, **change}))
    assert not options["out"].exists()


def test_an_atlas_of_another_model_is_refused(options, atlas, tmp_path, tiny):
    other = load_model(tiny).model
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    ByteTokenizer().save_pretrained(tmp_path / "other")
    options |= {"model": str(tmp_path / "other"), "avoid": atlas}
    heard = Listener()
    with pytest.raises(ValueError, match=r"know\.atlas\.safetensors: .*belongs to another base"):
        train(TrainConfig.flat(**options), heard)
    assert heard.lines == []  # before the plan and whatever else takes time
    assert not options["out"].exists()


def test_a_truncated_atlas_is_refused(options, atlas, tmp_path):
    cut = tmp_path / "cut.atlas.safetensors"
    cut.write_bytes(atlas.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"cut\.atlas\.safetensors"):
        train(TrainConfig.flat(**options, avoid=cut))
    assert not options["out"].exists()


def test_a_folder_that_is_taken_is_refused(options):
    options["out"].mkdir()
    (options["out"] / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty"):
        train(TrainConfig.flat(**options))
    assert [p.name for p in options["out"].iterdir()] == ["thesis.tex"]


def test_a_diverging_run_stops_before_it_saves_the_wreck(options):
    options |= {"lr": 1e30, "clip": 0.0, "method": "sgd", "refresh_every": None}
    with pytest.raises(ValueError, match="the run has diverged"):
        train(TrainConfig.flat(**options))
    assert not list(options["out"].glob("checkpoint-*"))
    assert not (options["out"] / "model").exists()


def test_sharding_that_cannot_happen_is_refused(options, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="nothing would be sharded"):
        train(TrainConfig.flat(**options))
    assert not options["out"].exists()

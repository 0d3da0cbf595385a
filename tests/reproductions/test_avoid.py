"""The 135M experiment, on a stand-in of one layer: its loop, its texts, its committed result."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from spanwise import zoo
from spanwise.datasets import ByteTokenizer
from spanwise.report import Result
from spanwise.reproductions import _teach_135m as teaching
from spanwise.reproductions import avoid

RESULT = Path(__file__).parents[2] / "results" / "avoid.json"
SMALL = replace(avoid.PRESETS["quick"], length=32, rates=(1e-2,), energy=0.9)


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A fresh byte model instead of the packaged one, and a few questions with their intents."""
    rows = [[f"what is {i} plus {i}", "calculator" if i % 2 else "sum"] for i in range(60)]
    file = tmp_path / "data_full.json.gz"
    file.write_bytes(gzip.compress(json.dumps({"train": rows[:40], "val": rows[40:]}).encode()))
    monkeypatch.setenv("SPANWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(teaching, "resolve", lambda name: file)
    monkeypatch.setattr(teaching, "load_model", lambda name: zoo.load("llama-1m", layers=1))
    monkeypatch.setattr(teaching, "_tokenizer", lambda model: ByteTokenizer())
    caches = (teaching.old_text, teaching.new_text)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("preset", list(avoid.PRESETS))
def test_tuning_and_judging_seeds_are_disjoint(preset):
    settings = avoid.PRESETS[preset]
    assert not {*settings.seeds} & {*settings.tuning_seeds}
    assert min(settings.seeds) >= 100
    assert settings.checkpoints[-1] == settings.steps


def test_questions_are_followed_by_their_intents_and_mixed(stand_in):
    text = ByteTokenizer().decode(teaching.new_text("any").train.tolist())
    lines = text.splitlines()
    assert len(lines) == 40
    assert sorted(lines)[0] == "what is 0 plus 0 -> sum"
    assert lines != sorted(lines)


def test_the_old_text_is_split_by_documents(stand_in):
    old = teaching.old_text("any")
    assert 0.1 < len(old.held_out) / len(old.train) < 0.5


def test_the_atlas_is_made_once_for_all_seeds(stand_in, monkeypatch):
    first = teaching.Lesson(SMALL, 0).atlas
    monkeypatch.setattr(teaching.Atlas, "from_activations", None)
    again = teaching.Lesson(SMALL, 5).atlas
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.subspace.basis, b.subspace.basis)


def test_every_arm_starts_from_the_pretrained_weights(stand_in):
    lesson = teaching.Lesson(SMALL, 0)
    lesson.teach("adamw", 1e-2)
    before = lesson.teach("galore_avoid", 1e-2)
    fresh = teaching.Lesson(SMALL, 0).teach("galore_avoid", 1e-2)
    assert before.path == fresh.path


def test_only_the_arm_that_avoids_keeps_out_of_the_atlas(stand_in, tmp_path):
    lesson = teaching.Lesson(SMALL, 0)
    inside = {}
    for arm in ("adamw", "galore_random", "galore_avoid"):
        lesson.teach(arm, 1e-2)
        inside[arm] = lesson.inside(tmp_path / f"{arm}.safetensors")
    assert inside.pop("galore_avoid") < 1e-9
    assert min(inside.values()) > 0.05


def test_a_cell_refuses_other_data(stand_in):
    own = {"length": 32, "steps": 2, "checkpoints": (1, 2)}
    with pytest.raises(ValueError, match="the texts have changed"):
        avoid.cell({"arm": "adamw", "rate": 1e-3, "seed": 0, "settings": own, "data": "other"})


@pytest.mark.skipif(not RESULT.is_file(), reason="the committed run is not there yet")
def test_the_committed_result_was_made_with_these_settings_and_this_criterion():
    result = Result.load(RESULT)
    assert result.matches(avoid.PRESETS["default"])
    assert result.criterion == avoid.CRITERION
    assert {row["seed"] for row in result.rows} == {100, 101, 102}
    assert result.verdict.checks == tuple(avoid.judge(result.rows, avoid.OURS, avoid.CONTROLS))

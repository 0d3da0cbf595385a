"""The whole demo on a few steps, and its experiment."""

import json
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from spanwise.atlas import Atlas
from spanwise.cli import main
from spanwise.demo import DemoOptions
from spanwise.demo.show import SHORTER, continue_text, settings_of, told_settings
from spanwise.io import open_tensors
from spanwise.report import Result
from spanwise.reproductions import demo as experiment
from spanwise.reproductions._byte_texts import byte_text
from spanwise.reproductions._lesson import Lesson, Texts, base_file, new_model

QUICK = experiment.PRESETS["quick"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One folder of pre-trained models for the whole file."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SPANWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def lesson(cache):
    return Lesson.prepare(QUICK, 0)


def test_both_texts_are_there_and_share_no_document():
    texts = Texts.load(QUICK)
    assert len(texts.old.train) > 5e6
    assert len(texts.new.train) > 3e5
    for text in (texts.old, texts.new):
        assert len(text.digest) == 64
        assert 0.02 < len(text.held_out) / len(text.train) < 0.3
    assert texts.old.digest != texts.new.digest


def test_bytes_are_shifted_as_the_tokenizer_shifts_them():
    ids = byte_text("unicode-names").train
    assert bytes((ids[:12] - 3).tolist()) == b"U+0020 SPACE"
    assert ids[-1] == 1  # every document ends the text


def test_a_pretrained_model_is_taken_from_the_cache(lesson):
    def fail(step, losses):
        raise AssertionError("trained again")

    again = Lesson.prepare(QUICK, 0, fail)
    assert again.base == lesson.base
    assert base_file(QUICK, lesson.texts, 0) != base_file(QUICK, lesson.texts, 1)


def test_a_damaged_model_in_the_cache_is_trained_again(lesson):
    whole = lesson.file.read_bytes()
    lesson.file.write_bytes(whole[:1000])
    again = Lesson.prepare(QUICK, 0)
    assert again.base == lesson.base
    assert lesson.file.read_bytes() == whole


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["rank", "layers", "steps", "pretrain_steps"])
def test_settings_of_nothing_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        replace(QUICK, **{name: 0})


def test_equal_seeds_give_equal_lessons(lesson):
    (a, first), (b, second) = (lesson.teach("galore_avoid", 1e-2) for _ in range(2))
    assert first.path == second.path
    for name, p in a.state_dict().items():
        assert torch.equal(p, b.state_dict()[name])


@pytest.mark.parametrize("arm", list(experiment.ARMS))
def test_only_the_arm_that_avoids_keeps_out_of_the_atlas(lesson, arm, tmp_path):
    model, taught = lesson.teach(arm, 1e-2)
    inside = lesson.inside(model, tmp_path / "tuned.safetensors")
    assert inside < 1e-9 if arm == experiment.OURS else inside > 0.05
    base, tuned = open_tensors(lesson.file), open_tensors(tmp_path / "tuned.safetensors")
    fixed = [name for name in base if "embed" in name or "norm" in name or "lm_head" in name]
    assert fixed
    assert all(torch.equal(base[name], tuned[name]) for name in fixed)
    assert taught.state_bytes < 1_700_000 * (0.5 if "galore" in arm else 1.0)


@pytest.mark.slow
def test_the_screens_the_page_and_the_files(cache, tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--quick", "--json", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    text = captured.err  # with --json, stdout is for machines alone
    for part in ("LLaMA-7B", "outside the atlas", "with alpha", "Your turn", "spanwise train"):
        assert part in text
    assert "\x1b" not in text
    assert "\r" not in text
    result = Result.load(out / "demo.json")
    assert json.loads(captured.out) == result.to_dict()
    assert result.verdict.outcome == "no verdict"
    assert [row["arm"] for row in result.rows] == list(experiment.ARMS)
    page = (out / "demo.html").read_text()
    assert page.count("data:image/svg") >= 2
    assert "spanwise atlas extract" in page
    assert (out / "demo.svg").read_text().startswith("<?xml")
    atlas = Atlas.load(out / "old.atlas.safetensors")
    base = new_model(QUICK, base_file(QUICK, Texts.load(QUICK), 0))
    assert atlas.update_share(base, out / "galore_avoid.safetensors").inside < 1e-9


def test_a_showing_differs_from_the_committed_experiment_only_where_it_says_so():
    shown, committed = settings_of(DemoOptions()), settings_of(DemoOptions(full=True))
    assert committed == experiment.PRESETS["default"]
    differ = {k: v for k, v in asdict(shown).items() if v != asdict(committed)[k]}
    assert differ == SHORTER
    told = told_settings(DemoOptions())
    assert all(str(value) in told for value in SHORTER.values())


def test_ctrl_c_gives_130_and_the_command(cache, tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("spanwise.demo.show.memory_plans", stop)
    assert main(["demo", "--quick", "--out", str(tmp_path / "demo")]) == 130
    assert "spanwise demo --quick" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_file_in_the_way_is_told_before_the_pre_training(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(["demo", "--quick", "--out", str(tmp_path / "file")]) == 1
    captured = capsys.readouterr()
    assert "file is a file. Name another place" in captured.err
    assert "What training takes" not in captured.out


def test_a_continuation_depends_on_the_model_alone(lesson):
    model = new_model(QUICK, lesson.file)
    first = continue_text(model, "def ", 12)
    torch.rand(3)
    assert continue_text(model, "def ", 12) == first
    assert model.training

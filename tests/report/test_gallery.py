import json

import pytest

from spanwise.report import Figure, build_gallery

SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'


def page_of(folder, **options):
    return build_gallery(folder, **options).read_text()


def test_one_result_becomes_one_card_with_the_picture_beside_it(result, tmp_path):
    result.save(tmp_path / "deep" / "demo-method.json")
    (tmp_path / "deep" / "demo-method.svg").write_text(SVG)
    page = page_of(tmp_path)
    assert page.count("<section") == 1
    assert "data:image/svg+xml" in page
    assert 'class="index"' not in page
    assert "1 result." in page


def test_figures_can_be_drawn_by_the_caller(result, tmp_path):
    path = result.save(tmp_path / "r.json")
    seen = []

    def draw(found, file):
        seen.append((found.slug, file))
        return [Figure(SVG, alt="drawn here")]

    assert 'alt="drawn here"' in page_of(tmp_path, figures=draw)
    assert seen == [("demo-method", path)]


def test_several_experiments_get_an_index(make, tmp_path):
    make().save(tmp_path / "a.json")
    make(slug="other").save(tmp_path / "b.json")
    page = page_of(tmp_path, out=tmp_path / "page.html", title="All of it")
    assert page.count('<a href="#') == 2
    assert 'href="#other"' in page
    assert 'id="other"' in page
    assert "<title>All of it</title>" in page
    assert "runs of" not in page


def test_runs_with_equal_inputs_stand_side_by_side(make, tmp_path):
    make().save(tmp_path / "a.json")
    make(wall_seconds=99.0).save(tmp_path / "b.json")
    page = page_of(tmp_path)
    assert "2 runs of demo-method" in page
    assert "Same data and settings; mean validation loss in nats" in page
    assert "1 min 39 s" in page
    assert "Not compared" not in page


def test_runs_with_unequal_inputs_are_not_compared_and_the_page_says_why(make, tmp_path):
    first = make()
    first.save(tmp_path / "a.json")
    make(data={"name": "text", "digest": "cd" * 32}).save(tmp_path / "b.json")
    make(settings={**first.settings, "steps": 60}, preset="quick").save(tmp_path / "c.json")
    page = page_of(tmp_path)
    assert "Not compared, because their inputs are not equal" in page
    assert "data digests differ" in page
    assert "steps differs (300, 60)" in page
    assert "Same data and settings" not in page
    assert page.count('id="demo-method') == 3


def test_an_empty_or_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no results"):
        build_gallery(tmp_path)
    with pytest.raises(FileNotFoundError, match="No such folder"):
        build_gallery(tmp_path / "nowhere")


def test_a_truncated_result_is_named_and_other_json_is_left_alone(result, tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    (tmp_path / "broken.json").write_text("{")
    path = result.save(tmp_path / "r.json")
    assert "1 result." in page_of(tmp_path)
    path.write_text(path.read_text()[:400])
    with pytest.raises(ValueError, match=r"r\.json"):
        build_gallery(tmp_path)


def training(folder, *, digest="aa", steps=10, method="galore", outside=None, picture=True):
    """What `spanwise train` leaves behind, as far as the gallery reads it."""
    folder.mkdir(parents=True)
    outcome = {
        "method": method,
        "steps": steps,
        "before": {"held_out": 3.0, "old": 2.0},
        "after": {"held_out": 2.5, "old": 2.125},
        "tokens_per_second": 12345.6,
        "state_bytes": 857_088,
        "outside": outside,
    }
    texts = {"data": {"source": "text", "sha256": digest * 32, "documents": 3}}
    (folder / "result.json").write_text(json.dumps(outcome))
    (folder / "manifest.json").write_text(json.dumps({"inputs": {}, "texts": texts}))
    config = f"model: llama-1m\nschedule:\n  steps: {steps}\noptimizer:\n  method: {method}\n"
    (folder / "config.yaml").write_text(config)
    if picture:
        (folder / "loss.svg").write_text(SVG)


def test_training_runs_on_equal_inputs_share_a_table(tmp_path):
    training(tmp_path / "a", method="galore", outside=1.0)
    training(tmp_path / "b", method="adamw")
    page = page_of(tmp_path)
    assert "Training runs, side by side" in page
    assert page.count("<section") == 1
    for text in ("-0.500", "+0.125", "857 kB", "12,346", "100.00 %", "One seed a run"):
        assert text in page
    assert page.count("data:image/svg+xml") == 2


def test_training_runs_on_other_text_or_steps_stay_apart(tmp_path):
    training(tmp_path / "a")
    training(tmp_path / "b", digest="bb", picture=False)
    training(tmp_path / "c", steps=20)
    page = page_of(tmp_path)
    assert "side by side" not in page
    assert "Training runs that stay apart" in page
    assert "text data differs (aaaaaaaaaaaa, bbbbbbbbbbbb)" in page
    assert "schedule.steps differs (10, 20)" in page


def test_a_run_that_has_not_finished_is_left_out(tmp_path):
    training(tmp_path / "a")
    training(tmp_path / "b")
    (tmp_path / "b" / "result.json").write_text("{")
    assert "Training run a" in page_of(tmp_path)

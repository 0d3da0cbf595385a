import json
from dataclasses import dataclass

import pytest

from spanwise.report import Result, compare, differences


def test_a_result_survives_the_way_through_a_file(result, tmp_path):
    path = result.save(tmp_path / "deep" / "demo.json")
    again = Result.load(path)
    assert again.to_dict() == result.to_dict()
    assert again.verdict == result.verdict
    assert again.metrics == result.metrics


def test_diverged_numbers_become_null_not_nan(make, tmp_path):
    rows = ({"arm": "plain", "seed": 100, "loss": float("nan")},)
    path = make(rows=rows).save(tmp_path / "r.json")
    row = json.loads(path.read_text())["rows"][0]
    assert row["loss"] is None
    assert row["diverged"]


@dataclass(frozen=True)
class Settings:
    steps: int = 300
    rates: tuple[float, ...] = (0.005, 0.01, 0.02)
    seeds: tuple[int, ...] = (100, 101, 102)


def test_matching_settings_survive_the_file_and_a_changed_one_does_not(result, tmp_path):
    again = Result.load(result.save(tmp_path / "r.json"))
    assert again.matches(Settings())
    assert not again.matches(Settings(steps=301))
    assert not again.matches({"steps": 300})
    assert differences(again.settings, Settings(steps=1)) == {"steps": (300, 1)}


def test_results_of_other_data_or_settings_are_not_compared(make):
    first = make()
    other_data = make(data={"name": "text", "digest": "cd" * 32})
    with pytest.raises(ValueError, match=r"data digests differ \(ababababab…, cdcdcdcdcd…\)"):
        compare([first, other_data])
    with pytest.raises(ValueError, match=r"steps differs \(300, 60\)"):
        compare([first, make(settings={**first.settings, "steps": 60})])
    with pytest.raises(ValueError, match="experiments differ"):
        compare([first, make(slug="another")])


def test_equal_inputs_are_compared_arm_by_arm(make):
    table = compare([make(), make(wall_seconds=1.0)])
    assert table["plain"] == pytest.approx([2.21, 2.21])
    assert list(table) == ["plain", "ours"]


def test_values_are_keyed_by_seed_and_refuse_diverged_runs(make):
    result = make()
    assert result.values("loss", "plain") == {100: 2.2, 101: 2.21, 102: 2.22}
    with pytest.raises(ValueError, match="no fresh rows"):
        result.values("loss", "nobody")
    row = {"arm": "plain", "seed": 100, "loss": None}
    with pytest.raises(ValueError, match="'plain' diverged: it has no loss"):
        make(rows=({**row, "diverged": True},)).values("loss", "plain")
    with pytest.raises(ValueError, match="'plain' has no loss"):
        make(rows=(row,)).values("loss", "plain")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no result"),
        ({"version": 99}, "version 99 are unknown"),
        ({"surprise": 1}, r"unknown keys \['surprise'\]"),
        ({"verdict": {"outcome": "reproduced"}}, "damaged"),
        ({"metrics": 3}, "damaged"),
    ],
)
def test_a_damaged_file_is_named(result, tmp_path, change, message):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**result.to_dict(), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        Result.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"format": "spanwise-res', "\x00\xff"])
def test_a_file_that_is_no_result_is_an_error(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json"):
        Result.load(path)

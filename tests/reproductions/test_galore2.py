import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from spanwise import reproductions
from spanwise.report import Result
from spanwise.reproductions import galore2

RESULT = Path(__file__).parents[2] / "results" / "galore2.json"


def rows(adamw, exact, randomized, seeds=(100, 101, 102), state=(2_654_208, 857_088)):
    """Fresh rows with given losses."""
    losses = {"adamw": adamw, "galore_exact": exact, "galore_randomized": randomized}
    return tuple(
        {"arm": arm, "seed": seed, "loss": loss, "matrix_state_bytes": state[arm != "adamw"]}
        for arm, values in losses.items()
        for seed, loss in zip(seeds, values, strict=True)
    )


def holds(checks):
    return [check.holds for check in checks]


@pytest.mark.parametrize("preset", list(galore2.PRESETS))
def test_tuning_and_judging_seeds_are_disjoint(preset):
    settings = galore2.PRESETS[preset]
    assert not {*settings.seeds} & {*settings.tuning_seeds}
    assert min(settings.seeds) >= 100
    assert len(settings.seeds) >= 3 or preset == "quick"


def test_the_three_parts_of_the_criterion_are_judged_by_their_intervals():
    flat = galore2.judge(rows([2.0] * 3, [2.1] * 3, [2.105] * 3))
    assert holds(flat) == [True, True, True]
    assert flat[1].value == pytest.approx(5.25)
    assert flat[2].value == 857_088 / 2_654_208 == 31 / 96
    far = galore2.judge(rows([2.0] * 3, [2.1] * 3, [2.125] * 3))
    assert holds(far) == [False, False, True]
    noisy = galore2.judge(rows([2.0] * 3, [2.1] * 3, [2.08, 2.10, 2.12]))
    assert holds(noisy)[0] is False
    assert noisy[0].direction


def test_a_diverged_run_fails_the_criterion():
    checks = galore2.judge(rows([2.0] * 3, [2.1] * 3, [2.1, None, 2.1]))
    assert holds(checks) == [False, False, True]
    assert checks[0].value is None


def test_more_state_than_a_third_fails_the_criterion():
    checks = galore2.judge(rows([2.0] * 3, [2.0] * 3, [2.0] * 3, state=(900, 301)))
    assert holds(checks) == [True, True, False]
    exactly = galore2.judge(rows([2.0] * 3, [2.0] * 3, [2.0] * 3, state=(900, 300)))
    assert exactly[2].holds


def sweep(adamw, galore):
    """Rows of a sweep over three rates."""
    losses = {"adamw": adamw, "galore_exact": galore, "galore_randomized": galore}
    return tuple(
        {"arm": arm, "rate": rate, "seed": 0, "loss": loss}
        for arm, values in losses.items()
        for rate, loss in zip((1e-3, 2e-3, 4e-3), values, strict=True)
    )


def test_a_note_tells_when_the_rate_matters_more_than_the_method():
    best = dict.fromkeys(galore2.ARMS, 2e-3)
    steep = galore2.notes(sweep((2.3, 2.0, 2.2), (2.5, 2.1, 2.4)), best)
    assert "at least 0.200 nats/byte" in steep[-1]
    assert "0.100 apart" in steep[-1]
    flat = galore2.notes(sweep((2.3, 2.0, 2.05), (2.5, 2.1, 2.4)), best)
    assert not any("matters more" in note for note in flat)
    diverged = galore2.notes(sweep((None, 2.0, None), (2.5, 2.1, 2.4)), best)
    assert not any("matters more" in note for note in diverged)


def test_experiments_are_found_by_slug_and_an_unknown_one_names_the_nearest():
    assert "galore2" in reproductions.slugs()
    assert reproductions.load("galore2") is galore2
    with pytest.raises(ValueError, match="did you mean 'galore2'"):
        reproductions.load("galore")


@pytest.mark.slow
@pytest.mark.reproduction
def test_the_quick_run_goes_from_text_to_verdict(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    result = galore2.run(preset="quick", cache=tmp_path / "cells")
    assert result.verdict.outcome == "no verdict"
    assert {row["arm"] for row in result.rows} == set(galore2.ARMS)
    assert len(result.sweep) == 6
    exact, randomized = (result.values("loss", f"galore_{k}")[100] for k in ("exact", "randomized"))
    assert exact != randomized
    assert abs(exact - randomized) < 0.02
    assert all(row["loss"] < 5.2 for row in result.rows)  # log 256 = 5.55 before training
    figure = Figure()
    galore2.figure(result, figure.subplots(1, 2))
    again = galore2.run(preset="quick", cache=tmp_path / "cells")
    assert [row["loss"] for row in again.rows] == [row["loss"] for row in result.rows]


def test_the_committed_result_is_of_this_code_s_settings_and_fixed_its_criterion_before():
    result = Result.load(RESULT)
    assert result.matches(galore2.Settings())
    assert result.criterion == galore2.CRITERION
    assert result.criterion_commit
    assert result.verdict.outcome != "no verdict"
    again = galore2.judge(result.rows)
    assert holds(again) == [check.holds for check in result.verdict.checks]


def test_a_default_setting_is_the_card_s():
    settings = dataclasses.asdict(galore2.Settings())
    card = {
        "width": 96, "depth": 3, "hidden": 256, "length": 96, "batch": 12, "steps": 300,
        "warmup": 0, "rank": 24, "refresh_every": 50, "scale": 0.25, "plain_rate": 3e-3,
        "clip": 1.0,
    }  # fmt: skip
    assert {key: settings[key] for key in card} == card

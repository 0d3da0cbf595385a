"""The demo's committed results: made by these settings, judged by this criterion."""

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from spanwise.report import Result
from spanwise.reproductions import demo, demo_near

RESULTS = Path(__file__).parents[2] / "results"
both = pytest.mark.parametrize(
    ("experiment", "name", "new"),
    [(demo, "demo", "unicode-names"), (demo_near, "demo-near", "python-docs")],
)


@both
def test_the_committed_result_matches_settings_and_criterion(experiment, name, new):
    result = Result.load(RESULTS / f"{name}.json")
    assert result.matches(experiment.PRESETS["default"])
    assert result.criterion == demo.CRITERION
    assert result.verdict.checks == tuple(demo.judge_rows(result.rows))


@both
def test_the_demo_shows_the_rates_that_the_sweep_chose(experiment, name, new):
    assert dict(Result.load(RESULTS / f"{name}.json").chosen) == demo.RATES[new]


@pytest.mark.parametrize("new", list(demo.LEVELS))
def test_every_preset_judges_on_seeds_that_tuned_nothing(new):
    for preset in demo.presets(new).values():
        assert not {*preset.seeds} & {*preset.tuning_seeds}
        assert preset.checkpoints[-1] == preset.steps
        assert preset.checkpoints == sorted(set(preset.checkpoints))

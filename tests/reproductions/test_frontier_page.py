"""The page that compares optimizers repeats the committed run and the committed timings."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from spanwise.optim import METHODS
from spanwise.report import Result
from spanwise.reproductions import frontier

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")


def timings():
    return json.loads((ROOT / "results" / "benchmarks" / "optimizers.json").read_text())["rows"]


def test_the_table_is_that_of_the_committed_run():
    result = Result.load(ROOT / "results" / "frontier.json")
    assert frontier.table(result, timings()) in PAGE


def test_the_timings_are_the_committed_ones():
    assert frontier.timing_table(timings()) in PAGE


def test_every_method_of_the_command_line_has_its_row():
    for method in METHODS:
        if method != "sgd":
            assert f'<a id="{method}"></a>' in PAGE

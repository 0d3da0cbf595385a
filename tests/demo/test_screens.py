"""What the demo writes, from numbers alone."""

import pytest

pytest.importorskip("transformers")

from spanwise.demo import screens
from spanwise.demo.options import DemoOptions
from spanwise.demo.screens import Shown

OURS = "avoiding"


def shown(**changes):
    values = {
        "label": "AdamW", "learned": 1.0, "forgot": 0.5, "inside": 0.25, "state_bytes": 1_600_000,
        "step_ms": 123.4, "continuation": "x",
    }  # fmt: skip
    return Shown(**{**values, **changes})


def test_a_row_shows_the_share_outside_and_the_bytes():
    columns, ((label, *cells),) = screens.arms_table([shown()])
    assert (label, *cells) == ("AdamW", "1.000", "0.500", "75 %", "1.6 MB", "123")
    assert len(columns) == len(cells) + 1


def test_a_share_close_to_one_is_not_rounded_away():
    assert screens.share_outside(3e-14) == "100 % - 3e-12 %"
    assert screens.share_outside(1.0) == "0 %"


def test_the_longest_bar_is_the_worst_and_negative_cost_has_no_bar():
    lines = screens.bars({"a": 0.4, "b": 0.1, "c": -0.2, "d": None})
    assert lines[0].count("█") == screens.BAR
    assert lines[1].count("█") == screens.BAR // 4
    assert "█" not in lines[2]
    assert lines[2].endswith("-0.200")
    assert lines[3].endswith("never learns that much")


def test_code_is_shown_on_one_line_and_cut():
    assert screens.one_line("    a = 1\n\n    b\x00") == "a = 1 ⏎ b·"
    cut = screens.one_line("y" * 100, 10)
    assert len(cut) == 10
    assert cut.endswith("…")


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"a": 0.4, "b": 0.2, OURS: 0.05}, "b, cost 0.200: 4.0 times as much"),
        ({"a": 0.4, "b": 0.2, OURS: 0.3}, "Avoiding did not help in this run"),
        ({"a": 0.4, "b": None, OURS: 0.1}, "a, cost 0.400: 4.0 times as much"),
        ({"a": 0.4, OURS: -0.01}, "a, cost 0.400."),
        ({"a": 0.4, OURS: None}, "nothing can be compared"),
        ({"a": None, OURS: 0.1}, "nothing can be compared"),
    ],
)
def test_the_verdict_says_what_happened(values, part):
    assert part in screens.verdict(values, OURS, 0.8)


@pytest.mark.bad_input
def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        DemoOptions(seed=-1)


@pytest.mark.bad_input
def test_quick_and_full_exclude_each_other():
    with pytest.raises(ValueError, match="--quick and --full exclude each other"):
        DemoOptions(quick=True, full=True)

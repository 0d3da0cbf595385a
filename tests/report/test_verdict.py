import pytest

from spanwise.report import Check, Verdict
from spanwise.report._verdict import measured

SEEDS = (100, 101, 102)


def check(holds, direction=True):
    return Check(statement="it is so", value=1.0, holds=holds, direction=direction)


@pytest.mark.parametrize(
    ("checks", "outcome"),
    [
        ([check(True), check(True)], "reproduced"),
        ([check(True), check(False)], "direction only"),
        ([check(True), check(False, False)], "not reproduced"),
        ([check(False), check(False, False)], "not reproduced"),
    ],
)
def test_the_weakest_check_decides(checks, outcome):
    assert Verdict.of(checks, fresh_seeds=SEEDS).outcome == outcome


def test_fewer_than_three_fresh_seeds_give_no_verdict():
    verdict = Verdict.of([check(True)], fresh_seeds=(100, 101, 101))
    assert verdict.outcome == "no verdict"
    assert "3 fresh seeds" in verdict.reason


def test_an_arm_tuned_to_the_edge_of_its_grid_gives_no_verdict():
    verdict = Verdict.of([check(True)], fresh_seeds=SEEDS, untuned=["AdamW"])
    assert verdict.outcome == "no verdict"
    assert "AdamW" in verdict.reason


def test_a_seed_that_tuned_may_not_judge():
    with pytest.raises(ValueError, match=r"seeds \[1\]"):
        Verdict.of([check(True)], fresh_seeds=(1, 2, 3), tuning_seeds=(0, 1))


def test_a_check_holds_with_its_whole_interval_and_points_with_its_mean():
    zero = dict.fromkeys(SEEDS, 0.0)
    tight = {100: 0.010, 101: 0.011, 102: 0.012}
    wide = {100: 0.001, 101: 0.011, 102: 0.021}
    assert Check.paired("small", tight, zero, -0.02, 0.02).holds
    loose = Check.paired("small", wide, zero, -0.02, 0.02)
    assert not loose.holds
    assert loose.direction
    far = Check.paired("small", dict.fromkeys(SEEDS, 0.03), zero, -0.02, 0.02)
    assert not far.direction


def test_a_seed_without_a_number_fails_the_check():
    found = Check.paired("finite", {100: None, 101: 1.0}, {100: 1.0, 101: 1.0}, -1, 1)
    assert (found.value, found.holds, found.direction) == (None, False, False)
    assert measured(found) == "no number"


def test_one_seed_has_a_value_and_no_interval():
    found = Check.paired("small", {100: 1.0}, {100: 0.5}, high=1.0)
    assert (found.value, found.low) == (0.5, None)


def test_checks_of_other_seeds_are_refused():
    with pytest.raises(ValueError, match="equal seeds"):
        Check.paired("small", {100: 1.0}, {101: 1.0})


def test_what_holds_cannot_point_the_wrong_way():
    with pytest.raises(ValueError, match="cannot hold"):
        check(True, False)


@pytest.mark.bad_input
def test_an_unknown_outcome_is_refused():
    with pytest.raises(ValueError, match="outcome must be one of"):
        Verdict(outcome="probably", reason="")

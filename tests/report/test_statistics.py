import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanwise.report import paired_interval
from spanwise.report._statistics import t_quantile

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10, 29, 60, 61])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.995, 0.9995])
def test_quantiles_of_student_t_agree_with_scipy(degrees, probability):
    expected = scipy_stats.t.ppf(probability, degrees)
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-10, abs=1e-10)


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=12))
def test_the_paired_interval_is_scipys(pairs):
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    differences = [x - y for x, y in pairs]
    ours = paired_interval(a, b, confidence=0.9)
    if max(differences) - min(differences) < 1e-6:
        assert ours.low == pytest.approx(ours.high, abs=1e-5)
        return
    expected = scipy_stats.ttest_rel(a, b).confidence_interval(0.9)
    assert ours.low == pytest.approx(expected.low, abs=1e-8)
    assert ours.high == pytest.approx(expected.high, abs=1e-8)
    assert ours.low <= ours.mean <= ours.high


def test_what_the_arms_share_cancels():
    shared = {100: 3.0, 101: 9.0, 102: -4.0}
    other = {seed: value - 0.25 for seed, value in shared.items()}
    interval = paired_interval(shared, other)
    assert (interval.low, interval.high) == (0.25, 0.25)
    assert interval.within(0.2, 0.3)
    assert not interval.within(0.25, 0.3)


def test_mappings_are_paired_by_seed_not_by_order():
    a, b = {1: 1.0, 2: 5.0}, {2: 4.0, 1: 0.0}
    assert paired_interval(a, b).high == paired_interval(a, b).low == 1.0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({1: 0.0, 2: 0.0}, {1: 0.0, 3: 0.0}, "same seeds"),
        ([1.0, 2.0], [1.0], "paired"),
        ([1.0], [1.0], "at least two"),
        ([1.0, float("nan")], [1.0, 2.0], "finite"),
    ],
)
def test_unpaired_values_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_interval(a, b)


def test_a_confidence_outside_zero_one_is_refused():
    with pytest.raises(ValueError, match="confidence"):
        paired_interval([1.0, 2.0], [1.0, 2.0], confidence=95)


@pytest.mark.bad_input
def test_a_mapping_and_a_list_cannot_be_paired():
    with pytest.raises(TypeError, match="both"):
        paired_interval({1: 1.0, 2: 2.0}, [1.0, 2.0])

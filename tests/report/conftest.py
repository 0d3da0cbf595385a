import pytest

from spanwise.report import Check, Metric, Result, Verdict

ARMS = {"plain": "Plain", "ours": "Ours"}


def make_result(**changes):
    """A small result with two arms, three fresh seeds and a sweep."""
    rows = tuple(
        {
            "arm": arm,
            "seed": seed,
            "rate": 0.01,
            "loss": base + 0.01 * i,
            "state_bytes": size,
            "processor_seconds": 10.0,
        }
        for arm, base, size in (("plain", 2.2, 2_654_208), ("ours", 2.3, 857_088))
        for i, seed in enumerate((100, 101, 102))
    )
    sweep = tuple(
        {
            "arm": arm,
            "rate": rate,
            "seed": 0,
            "loss": 2.2 + abs(rate - 0.01),
            "processor_seconds": 9.0,
        }
        for arm in ARMS
        for rate in (0.005, 0.01, 0.02)
    )
    check = Check.paired(
        "Ours is at most 0.2 worse",
        {r["seed"]: r["loss"] for r in rows if r["arm"] == "ours"},
        {r["seed"]: r["loss"] + 0.001 * i for i, r in enumerate(rows[:3])},
        high=0.2,
        unit="nats",
    )
    fields = {
        "slug": "demo-method",
        "title": "A method & its <claim>",
        "claim": "Ours keeps up with a third of the state.",
        "criterion": "(1) at most 0.2 worse on fresh seeds.",
        "criterion_commit": "0123456789abcdef0123456789abcdef01234567",
        "commit": "fedcba9876543210fedcba9876543210fedcba98+",
        "preset": "default",
        "settings": {"steps": 300, "rates": (0.005, 0.01, 0.02), "seeds": (100, 101, 102)},
        "data": {"name": "text", "digest": "ab" * 32},
        "metrics": {
            "loss": Metric(label="validation loss", unit="nats", better="lower"),
            "state_bytes": Metric(label="state", unit="B", better="lower"),
        },
        "arms": ARMS,
        "rows": rows,
        "sweep": sweep,
        "chosen": {"plain": 0.01, "ours": 0.01},
        "verdict": Verdict.of([check], fresh_seeds=(100, 101, 102), tuning_seeds=(0,)),
        "notes": ("A note with `code` in it.",),
        "environment": {"python": "3.11", "versions": {"torch": "2.6"}, "threads": 1},
        "wall_seconds": 212.0,
        "peak_bytes": 700_000_000,
    }
    return Result(**{**fields, **changes})


@pytest.fixture
def result():
    return make_result()


@pytest.fixture
def make():
    return make_result

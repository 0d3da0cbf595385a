"""Options survive the way to YAML and back; what does not fit is told with its key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from spanwise.io.configs import from_plain, read_yaml, to_yaml


@dataclass(frozen=True)
class Inner:
    rank: int = 4


@dataclass(frozen=True)
class Outer:
    name: str
    rates: tuple[float, ...] = (1e-3,)
    pair: tuple[int, str] = (1, "a")
    where: Path | None = None
    kind: Annotated[Literal["a", "b"], "note"] = "a"
    flag: bool = False
    inner: Inner = Inner()
    watch: dict[str, str] = field(default_factory=dict)


def test_yaml_round_trip(tmp_path):
    options = Outer("x", (1e-5, 2.0), (2, "b"), Path("a/b"), "b", True, Inner(8), {"old": "p"})
    file = tmp_path / "a.yaml"
    file.write_text(to_yaml(options))
    assert from_plain(Outer, read_yaml(file)) == options


def test_a_float_without_a_dot_is_a_float():
    assert from_plain(Outer, {"name": "x", "rates": ["1e-3", 2]}).rates == (1e-3, 2.0)


def test_dashes_in_keys_are_underscores():
    @dataclass
    class Dashed:
        warm_up: int = 0

    assert from_plain(Dashed, {"warm-up": 3}).warm_up == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "missing key 'name'"),
        ({"name": "x", "rate": 1}, "did you mean 'rates'"),
        ({"name": "x", "inner": {"rnak": 1}}, "unknown key 'rnak'"),
        ({"name": "x", "rank": 1}, "unknown key 'rank': it belongs one level down, under 'inner'"),
        ({"name": "x", "inner": {"rank": True}}, "rank must be a whole number, got True"),
        ({"name": "x", "rates": ["fast"]}, r"rates\[0\] must be a number, got 'fast'"),
        ({"name": "x", "pair": [1]}, "pair must have 2 values, got 1"),
        ({"name": "x", "kind": "c"}, "kind must be one of 'a', 'b', got 'c'"),
        ({"name": 3}, "name must be text, got 3"),
        ({"name": "x", "flag": "yes"}, "flag must be true or false, got 'yes'"),
        ({"name": "x", "flag": 1}, "flag must be true or false, got 1"),
        ({"name": "x", "rates": 1.0}, "rates"),
        ({"name": "x", "watch": "p"}, "watch"),
    ],
)
def test_what_does_not_fit_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        from_plain(Outer, data)

"""What `GODS` may be asked, and the settings that have names."""

import math
import warnings
from numbers import Integral
from typing import Any, Literal, get_args

from spanwise.estimators._gods.features import Scaling
from spanwise.estimators._gods.starts import Start

Preset = Literal["paper", "tuned", "kernel"]

PAPER: dict[str, Any] = {
    "n_directions": 2,
    "eta": 0.01,
    "lam": 0.001,
    "coupling": 0.0,
    "scaling": "rows",
    "contamination": None,
    "start": "official",
    "max_iter": 99,
    "tol": 0.0,
    "retries": 0,
}
"""Those of the released code."""

KERNEL: dict[str, Any] = {"kernel": "rbf", "n_components": 100, "eta": 2.0, "lam": 1.0}
"""What 16 sets chose for KODS; its width is the default of `gamma`."""
PRESETS: dict[Preset, dict[str, Any]] = {"paper": PAPER, "tuned": {}, "kernel": KERNEL}

MOST_BY_SHARE = 64
"""A share of very many features is no more directions than this: steps cost d k^2."""


def check_options(options: dict[str, Any]) -> None:
    """Refuse parameters out of range.

    Args:
        options: Parameter -> value.

    Raises:
        ValueError: If one is out of range.
    """
    for name, least in (
        ("max_iter", 0), ("retries", 0), ("n_init", 1), ("max_landmarks", 1),
    ):  # fmt: skip
        value = options[name]
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}.")
    k = options["n_directions"]
    if not (k >= 1 if _is_count(k) else 0 < k <= 1):
        raise ValueError(
            f"n_directions must be at least 1, or a share of the features in (0, 1], got {k}."
        )
    count = options["n_components"]
    if count is not None and not (0 < count < 1 or (count >= 1 and count == int(count))):
        raise ValueError(
            f"n_components must be None, at least 1, or a share in (0, 1), got {count}."
        )
    for name, strict in (("eta", True), ("lam", False), ("coupling", False), ("tol", False)):
        value = options[name]
        if not 0 <= value < math.inf or (strict and value == 0):
            bound = "above 0" if strict else "at least 0"
            raise ValueError(f"{name} must be finite and {bound}, got {value}.")
    contamination, gamma = options["contamination"], options["gamma"]
    if contamination is not None and not 0 < contamination <= 0.5:
        raise ValueError(f"contamination must be None or in (0, 0.5], got {contamination}.")
    if gamma is not None and not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be None or above 0, got {gamma}.")
    for name, known in (("start", get_args(Start)), ("scaling", (None, *get_args(Scaling)))):
        if options[name] not in known:
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, known))}, got {options[name]!r}."
            )
    kernel = options["kernel"]
    if kernel not in (None, "linear", "rbf") and not callable(kernel):
        raise ValueError(f"kernel must be None, 'linear', 'rbf' or a function, got {kernel!r}.")


def _is_count(k: Any) -> bool:
    return isinstance(k, Integral)


def directions(asked: float, d: int) -> int:
    """How many for d features: a count, clipped with a warning, or a share, one at least."""
    if not _is_count(asked):
        return max(1, min(round(asked * d), MOST_BY_SHARE))
    if asked > d:
        warnings.warn(
            f"n_directions = {asked} exceeds the {d} features: {d} are used.", stacklevel=4
        )
    return min(int(asked), d)

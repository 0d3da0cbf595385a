"""Options that every optimizer of this room shares, and the engine's own with their defaults."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from typing_extensions import TypedDict

from spanwise.atlas import Atlas
from spanwise.optim._guard.constraint import BiasRule

SIDES = ("short", "long", "left", "right", "full", "local")
GALORE_SIDES = {"std": "short", "reverse_std": "long"}
SVD_METHODS = ("randomized", "exact", "gram", "warm")
MOMENT_RULES = ("keep", "rotate", "project_aware", "reset")
RESIDUALS = ("drop", "scaled", "fira")

# What torch, its schedulers and `Optimizer.param_groups` of other optimizers put into a group.
_TORCH_KEYS = (
    "params", "lr", "param_names", "name", "initial_lr", "max_lr", "min_lr", "swa_lr",
    "base_momentum", "max_momentum", "foreach", "fused", "capturable", "decoupled_weight_decay",
)  # fmt: skip
# Switches of torch's optimizers that would change the method: only off is what we do.
_TORCH_OFF = ("maximize", "amsgrad", "differentiable")
_BASIS_KEYS = {"rows": ("select", "rho_max"), "walk": ("walk_angle",), "track": ("walk_angle",)}


class CommonOptions(TypedDict, total=False, closed=True):
    """Keyword arguments of every optimizer of `spanwise.optim`."""

    betas: tuple[float, float]
    """Decay rates of the two moments, each in [0, 1); (0.9, 0.999)."""
    eps: float
    """Added to the square root of the second moment; 1e-6."""
    weight_decay: float
    """Decoupled decay of the whole weight; 0."""
    rank: int | None
    """Subspace dimension r for groups that do not name one; None leaves those plain AdamW."""
    clamp_rank: bool
    """Use min(m, n) where rank exceeds it instead of raising."""
    on_nonfinite: str
    """A gradient that is not finite at a refresh: `keep` the old basis, skip the tensor and warn
    once, or `raise`."""
    seed: int
    """Seeds every sketch and draw together with parameter and step; the global generator is
    never touched."""
    avoid: Atlas | None
    """Directions that updates must keep out of, exactly."""
    within: Atlas | None
    """Directions that updates must stay in, exactly."""
    bias: BiasRule
    """Whether an input entry freezes its map's bias (`freeze`) or not (`allow`)."""


GROUP_DEFAULTS: dict[str, Any] = {
    "betas": (0.9, 0.999),
    "eps": 1e-6,
    "weight_decay": 0.0,
    "rank": None,
    "basis": "svd",
    "init": None,
    "svd": "randomized",
    "side": "short",
    "refresh_every": 200,
    "stagger": False,
    "refresh_warmup": 0,
    "moments": "keep",
    "residual": "drop",
    "residual_scale": None,
    "growth_limit": 1.01,
    "scale": 1.0,
}
"""What a group holds unless the class, the constructor or the group itself says otherwise.

`basis`: where a basis comes from. `init`: the first one, if it comes from elsewhere. `svd`: how a
decomposition is computed. `refresh_every`: steps between two bases; None keeps the first.
`refresh_warmup`: steps over which the rate rises again after a refresh. `moments`: what a refresh
does to them. `residual`: what becomes of the gradient outside the subspace; `residual_scale`: its
factor, None for `scale` (for `fira`: 1); `growth_limit`: how much its norm may grow in one step,
None for no limit. `scale`: factor of the update.
"""


def check_keys(
    group: Mapping[str, Any], options: Iterable[str], bases: Iterable[Any], aliases: Iterable[str]
) -> None:
    """Raise if a parameter group has a key that nothing would read.

    Args:
        group: The group as it was given, aliases already renamed.
        options: Keys that the optimizer reads.
        bases: Kinds of bases that it may have, some with keys of their own.
        aliases: Other spellings that it takes, to be suggested as well.
    """
    for key in _TORCH_OFF:
        if group.get(key):
            raise ValueError(
                f"a parameter group has {key} = {group[key]!r}, which only torch's own optimizers "
                "have; remove the key."
            )
    own = [
        *dict.fromkeys([*options, "layouts", *(k for b in bases for k in _BASIS_KEYS.get(b, ()))])
    ]
    known = {*own, *_TORCH_KEYS, *_TORCH_OFF}
    for key in group:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key), [*known, *aliases], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(sorted({*own, *aliases} - set(_TORCH_KEYS)))
        raise ValueError(
            f"a parameter group has the key {key!r}, which nothing would read.{hint} Beside "
            f"torch's own keys a group may have {listed}."
        )


def check_switch(name: str, value: Any) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise unless `value` is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        listed = ", ".join("None" if c is None else str(c) for c in choices)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}.")


def check_number(name: str, value: Any, least: float, *, above: bool = False) -> None:
    """Raise unless `value` is a finite number and at least (with `above`: above) `least`."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number < math.inf or number < least or (above and number == least):
        bound = "above" if above else "at least"
        raise ValueError(f"{name} must be finite and {bound} {least:g}, got {value!r}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless `value` is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}.")

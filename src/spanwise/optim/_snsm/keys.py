"""The released code's group keys of subspace momentum, in ours."""

from typing import Any

from spanwise.optim._engine.options import check_switch

# The released code's names for a way to find a subspace, in ours.
_PROJECTIONS: dict[str, dict[str, Any]] = {
    "svd": {"basis": "svd", "svd": "exact"},
    "rsvd": {"basis": "svd", "svd": "randomized"},
    "uniform": {"basis": "rows", "select": "uniform_nr"},
    "topk": {"basis": "rows", "select": "topr"},
    "srht": {"basis": "srht"},
}


def translate(group: dict[str, Any]) -> None:
    """The released code's group keys that are more than another spelling, in place."""
    meant: dict[str, tuple[Any, str]] = {}
    kind = group.pop("proj_type", None)
    if kind is not None:
        if kind not in _PROJECTIONS:
            raise ValueError(f"proj_type must be one of {', '.join(_PROJECTIONS)}; got {kind!r}.")
        meant |= {key: (value, "proj_type") for key, value in _PROJECTIONS[kind].items()}
    for key in ("approx_svd", "overlap_state"):
        check_switch(key, group.get(key, False))
    if group.pop("approx_svd", False):
        meant["svd"] = ("randomized", "approx_svd")
    group.pop("asvd_rank_scale", None)  # columns of its sketch; ours has eight more than r
    if group.pop("overlap_state", False):
        meant["moments"] = ("keep", "overlap_state")
    for ours, (value, theirs) in meant.items():
        if ours in group:
            raise ValueError(
                f"a parameter group has both {ours!r} and its alias {theirs!r}; keep one."
            )
        group[ours] = value


def default_side(basis: str) -> str:
    """Where a basis goes unless an option says so, as in the released code."""
    return "long" if basis == "rows" else "short"

"""Bytes of optimizer state, predicted from shapes alone."""

import inspect
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from spanwise.optim._engine.options import GROUP_DEFAULTS
from spanwise.optim._zoo import OURS

RIVALS = ("adamw", "muon", "sgd", "sgd_momentum")


def plan_state_bytes(
    shapes: Mapping[str, Sequence[int]],
    method: str,
    *,
    rank: int | None = None,
    projected: Sequence[str] = (),
    itemsize: int = 4,
    **options: Any,
) -> int:
    """Bytes of optimizer state that `method` will keep, predicted from shapes alone.

    Args:
        shapes: Parameter name to shape.
        method: An optimizer of this library by name, `adamw`, `muon` (one momentum for
            matrices, AdamW for the rest), `sgd` (none) or `sgd_momentum`.
        rank: Subspace dimension, for methods that have one.
        projected: Names that are projected (`muon`: orthogonalised); the rest is AdamW.
        itemsize: Bytes per number of AdamW's state. Projected state is float32 at least.
        **options: Options of the method that change its state, such as `side`.

    Raises:
        ValueError: If `method` is unknown, or it needs a rank and has none.
    """
    if method not in OURS and method not in RIVALS:
        raise ValueError(f"method must be one of {', '.join((*OURS, *RIVALS))}, got {method!r}.")
    chosen, total = set(projected), 0
    for name, shape in shapes.items():
        moments = {"sgd": 0, "sgd_momentum": 1}.get(method, 2)
        if name in chosen and method in OURS:
            total += max(4, itemsize) * _numbers(shape, method, rank, options)
        elif name in chosen and method == "muon":
            total += itemsize * prod(shape)
        else:
            total += itemsize * moments * prod(shape)
    return total


def _numbers(
    shape: Sequence[int], method: str, rank: int | None, options: Mapping[str, Any]
) -> int:
    stack, rows = (shape[0], shape[1]) if len(shape) == 3 else (1, shape[0])
    cols = prod(shape[1:]) if len(shape) != 3 else shape[2]
    signature = inspect.signature(OURS[method].__init__).parameters
    own = {k: v.default for k, v in signature.items() if v.default is not v.empty}
    group = {**GROUP_DEFAULTS, **own, **options}
    if OURS[method].needs_rank:
        if rank is None:
            raise ValueError(f"{method} needs rank=... to predict its state.")
        group["rank"] = min(rank, rows, cols)
    return stack * OURS[method].state_numbers(rows, cols, group)

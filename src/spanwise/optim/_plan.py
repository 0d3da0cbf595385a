"""Bytes of optimizer state, predicted from shapes alone."""

import inspect
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from spanwise.layouts import Layout, is_transposed, map_dims
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
    layouts: Mapping[str, Layout] | None = None,
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
        layouts: How parameters are stored, by name, as `spanwise.layouts.linear_maps` tells of a
            model. Without it three dimensions are stacked experts where the name has "expert" in
            it, and the kernel of a 1-D convolution elsewhere.
        **options: Options of the method that change its state, such as `side`.

    Raises:
        ValueError: If `method` is unknown, it needs a rank and has none, or a layout does not fit.
    """
    if method not in OURS and method not in RIVALS:
        raise ValueError(f"method must be one of {', '.join((*OURS, *RIVALS))}, got {method!r}.")
    chosen, total = set(projected), 0
    for name, shape in shapes.items():
        moments = {"sgd": 0, "sgd_momentum": 1}.get(method, 2)
        if name in chosen and method in OURS:
            guess = "experts" if "expert" in name and len(shape) == 3 else "conv"
            layout = (layouts or {}).get(name, guess if len(shape) > 2 else "linear")
            total += max(4, itemsize) * _numbers(shape, layout, method, rank, options)
        elif name in chosen and method == "muon" and len(shape) == 2:
            total += itemsize * prod(shape)
        else:
            total += itemsize * moments * prod(shape)
    return total


def _numbers(
    shape: Sequence[int],
    layout: Layout,
    method: str,
    rank: int | None,
    options: Mapping[str, Any],
) -> int:
    stack, outputs, inputs = map_dims(shape, layout)
    rows, cols = (inputs, outputs) if is_transposed(layout) else (outputs, inputs)
    signature = inspect.signature(OURS[method].__init__).parameters
    own = {k: v.default for k, v in signature.items() if v.default is not v.empty}
    group = {**GROUP_DEFAULTS, **own, **options}
    if OURS[method].needs_rank:
        if rank is None:
            raise ValueError(f"{method} needs rank=... to predict its state.")
        group["rank"] = min(rank, rows, cols)
    return prod(stack) * OURS[method].state_numbers(rows, cols, group)

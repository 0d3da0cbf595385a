"""Whether a saved state fits an optimizer, told before anything of it is loaded."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spanwise.layouts import strip_prefixes
from spanwise.optim._engine.groups import Member

if TYPE_CHECKING:
    from spanwise.optim._engine.refresh import RefreshingOptimizer

# Every optimizer of this room saves these; one that did not is another method's.
_ALWAYS = ("rank", "side", "basis")
# What a step starts anew where the state lacks it: options that may come on amid a run need it.
_STARTED = ("residual_norm", "row_age")


def check_checkpoint(optimizer: "RefreshingOptimizer", state_dict: Mapping[str, Any]) -> None:
    """Raise unless `state_dict` is of the same method, options, parameters and shapes.

    Torch checks the number of parameters only. Moments of another shape would be read beyond
    their end by the fused kernel.

    Raises:
        ValueError: If a group has another rank, side or method than this optimizer's, names
            other parameters, or has moments of another shape than its parameter asks for.
    """
    pairs = zip(optimizer.param_groups, state_dict["param_groups"], strict=False)
    for i, (ours, saved) in enumerate(pairs):
        lacking = [key for key in _ALWAYS if key not in saved]
        if optimizer.is_projected(ours) and lacking:
            raise ValueError(
                f"the checkpoint's group {i} has no {lacking[0]}: it was not saved by "
                f"{type(optimizer).__name__}. Load it into the optimizer that saved it, or start "
                "without the optimizer's state."
            )
        for key in optimizer.fixed:
            if ours.get(key) != saved.get(key, ours.get(key)):
                raise ValueError(
                    f"the checkpoint's group {i} has {key} = {saved.get(key)!r}, this "
                    f"optimizer {ours.get(key)!r}; build it with the checkpoint's {key}, or "
                    "start without the optimizer's state."
                )
        names = [[strip_prefixes(n) for n in g.get("param_names", ())] for g in (ours, saved)]
        for here, there in zip(*names, strict=False):
            if here != there:
                raise ValueError(
                    f"the checkpoint's group {i} has {there} where this optimizer has {here}; "
                    "build it from the same parameters in the same order."
                )
        # The checkpoint's options are those that will hold.
        options = {**ours, **{k: v for k, v in saved.items() if k in ours and k != "params"}}
        members = optimizer._group_members(i)
        for member, key in zip(members, saved["params"], strict=False):
            if held := state_dict["state"].get(key):
                _check_shapes(optimizer, options, member, held)


def _check_shapes(
    optimizer: "RefreshingOptimizer",
    options: dict[str, Any],
    member: Member,
    held: Mapping[str, Any],
) -> None:
    p = member.parameter
    constraint = optimizer._constraints.get(member.name, p)
    if constraint is not None and constraint.frozen:
        return
    treated = optimizer.is_projected(options)
    if treated:
        rank = options["rank"] and optimizer.rank_of(member, options)
        # Shapes without memory, of all shards together, and without the atlas, which has lowered
        # the rank already.
        bare = replace(
            member, name="", parameter=torch.empty(p.shape, dtype=p.dtype, device="meta")
        )
        own = {**options, "rank": rank}
        expected = {**optimizer._allocate_basis(own, bare), **optimizer._allocate(own, bare)}
        shapes = {key: tuple(value.shape) for key, value in expected.items()}
    else:
        rank = None
        shapes = dict.fromkeys(("exp_avg", "exp_avg_sq"), tuple(member.parameter.shape))
    for key, shape in shapes.items():
        value = held.get(key)
        if isinstance(value, Tensor) and _fits(tuple(value.shape), shape, rank, options["rank"]):
            continue
        if value is None and key in _STARTED:
            continue
        if treated or isinstance(value, Tensor):
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else "nothing"
            raise ValueError(
                f"the checkpoint has {found} as {key} of {member.name}, this optimizer needs shape "
                f"{shape} for a parameter of shape {tuple(member.parameter.shape)}. Load it into "
                "the optimizer and model that saved it, or start without the optimizer's state."
            )


def _fits(found: tuple[int, ...], shape: tuple[int, ...], rank: Any, most: Any) -> bool:
    """Whether shapes are equal up to the rank, which an atlas may have lowered on one of them."""
    return len(found) == len(shape) and all(
        a == b or (rank is not None and b == rank and a <= most)
        for a, b in zip(found, shape, strict=True)
    )

"""Parameter groups: which tensors are projected, under which names and options."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from spanwise.layouts import LAYOUTS, Layout, linear_maps, stored_matrix, strip_prefixes
from spanwise.optim._engine.options import GALORE_SIDES
from spanwise.optim._sharding.shard import Shard, own_part


class ParamGroups(list[dict[str, Any]]):
    """What `param_groups` returns: a plain list of groups that also prints what it holds."""

    def __str__(self) -> str:
        kinds = [("projected" if "layouts" in group else "plain", group) for group in self]
        parts = [
            f"{len(group['params'])} {kind} tensors "
            f"({sum(p.numel() for _, p in group['params']) / 1e6:.1f}M numbers)"
            for kind, group in kinds
        ]
        return ", ".join(parts)


def param_groups(
    model: nn.Module,
    rank: int | None = 128,
    *,
    target: str | Sequence[str] = "all-linear",
    exclude: Sequence[str] = ("lm_head", "embed"),
    min_dim: int | None = None,
    plain: dict[str, Any] | None = None,
    **options: Any,
) -> ParamGroups:
    """Two parameter groups: the linear maps to project, and everything else for plain AdamW.

    Args:
        model: Its trainable parameters are taken; frozen ones are left out.
        rank: Dimension r of each projected gradient's subspace. None: no subspace, for a method
            that treats matrices in another way (`AdamSN`).
        target: `"all-linear"` (Linear, Conv1D, convolutions and stacked experts; embeddings
            never), a regular expression that is searched in the parameter's name, or a list of
            name fragments as `TrainingArguments.optim_target_modules` takes them.
        exclude: Name fragments that are never projected; one string is one fragment.
        min_dim: Leave matrices whose shorter side is below this to AdamW. None: those with a
            shorter side of at most `rank`, for which projecting saves nothing.
        plain: Options of the plain group, such as `{"lr": 3e-4}`.
        **options: Options of the projected group, such as `refresh_every=500`.

    Returns:
        Groups with named parameters, ready for any optimizer of `spanwise.optim`.

    Raises:
        ValueError: If nothing is left to project.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    exclude = (exclude,) if isinstance(exclude, str) else exclude
    if rank is not None:
        check_rank(rank)
    smallest = (rank or 1) + 1 if min_dim is None else min_dim
    chosen: dict[int, tuple[str, Tensor, Layout]] = {}
    small: list[str] = []
    for map_ in linear_maps(model):
        names = (map_.name, *map_.aliases)
        if not map_.parameter.requires_grad or not _wanted(map_.name, target):
            continue
        if any(fragment in name for fragment in exclude for name in names):
            continue
        if min(stored_matrix(map_.parameter, map_.layout).shape[-2:]) < smallest:
            small.append(map_.name)
            continue
        chosen[id(map_.parameter)] = (map_.name, map_.parameter, map_.layout)
    if not chosen:
        why = (
            f"{len(small)} matched but have a shorter side below {smallest} (the first: "
            f"{small[0]}); lower rank or set min_dim"
            if small
            else f"target = {target!r} with exclude = {tuple(exclude)} matches no trainable one"
        )
        raise ValueError(f"no linear map of the model is left to project: {why}.")
    rest = [
        (strip_prefixes(name), p)
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) not in chosen
    ]
    groups = ParamGroups()
    groups.append(
        {
            "params": [(name, p) for name, p, _ in chosen.values()],
            "layouts": [layout for _, _, layout in chosen.values()],
            **({} if rank is None else {"rank": rank}),
            **options,
        }
    )
    if rest:
        groups.append({"params": rest, **(plain or {})})
    return groups


def _wanted(name: str, target: str | Sequence[str]) -> bool:
    if target == "all-linear":
        return True
    if isinstance(target, str):
        return re.search(target, name) is not None
    return any(fragment in name for fragment in target)


def check_rank(rank: Any) -> None:
    """Raise unless `rank` is an int of at least 1."""
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"rank must be an int, got {rank!r} ({type(rank).__name__}).")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}.")


def resolve_aliases(group: dict[str, Any], aliases: dict[str, str]) -> None:
    """Rename a paper's group keys to ours, in place; both spellings at once is an error."""
    for theirs, ours in aliases.items():
        if theirs in group:
            if ours in group:
                raise ValueError(
                    f"a parameter group has both {ours!r} and its alias {theirs!r}; keep one."
                )
            group[ours] = group.pop(theirs)
    if "side" in group:
        group["side"] = GALORE_SIDES.get(group["side"], group["side"])


@dataclass(frozen=True)
class Member:
    """One parameter of a group, with what the engine needs to know about it."""

    name: str
    parameter: Tensor
    layout: Layout
    index: int
    """Position among all parameters of the optimizer: seeds and staggering."""

    @cached_property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the stored matrix."""
        rows, cols = stored_matrix(self.parameter.detach(), self.layout).shape[-2:]
        return rows, cols

    @cached_property
    def shard(self) -> Shard | None:
        """Which rows this process holds, if the parameter is spread over processes."""
        return Shard.of(self.parameter)

    @property
    def held(self) -> Tensor:
        """What this process holds of the parameter, in its memory: all of it, or its rows."""
        return self.parameter if self.shard is None else own_part(self.parameter)

    @property
    def held_shape(self) -> tuple[int, int]:
        """Rows and columns of what this process holds of the stored matrix."""
        rows, cols = self.matrix_shape
        return rows if self.shard is None else self.shard.count, cols

    def whole(self, side: str, basis: Tensor) -> Tensor:
        """All rows of a basis or selection as the state holds it."""
        return basis if self.shard is None or side == "right" else self.shard.gather(basis)

    def own(self, side: str, basis: Tensor) -> Tensor:
        """What the state holds of a whole basis or selection."""
        return basis if self.shard is None or side == "right" else self.shard.rows(basis).clone()

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """Leading axes of the stored matrix: `(experts,)`, or none."""
        return tuple(self.parameter.shape[:1]) if self.layout.startswith("experts") else ()

    @property
    def stack(self) -> int:
        """How many matrices are stacked (experts), 1 for an ordinary weight."""
        return self.parameter.shape[0] if self.stack_shape else 1


def resolve_side(side: str, rows: int, cols: int) -> str:
    """`"left"`, `"right"` or `"full"` for a stored matrix, from the full shape alone.

    Never inferred from the low-rank shape, where r == min(m, n) would be ambiguous.
    """
    if side == "short":
        return "right" if rows >= cols else "left"
    if side == "short_left":  # rows of a square matrix are contiguous, its columns are not
        return "left" if rows <= cols else "right"
    if side == "long":
        return "left" if rows >= cols else "right"
    # Rows are what FSDP2 shards, so a right basis needs no communication.
    return "right" if side == "local" else side


def check_layouts(group: dict[str, Any]) -> list[Layout]:
    """The layout of every parameter of a projected group, by declaration or by dimensions.

    Raises:
        ValueError: If a parameter without a declared layout is not a matrix.
    """
    declared = group.get("layouts")
    if declared is not None:
        if len(declared) != len(group["params"]) or any(x not in LAYOUTS for x in declared):
            raise ValueError(
                f"layouts must name one of {', '.join(LAYOUTS)} for each of the group's "
                f"{len(group['params'])} parameters, got {declared!r}."
            )
        return list(declared)
    names = group.get("param_names") or [f"#{i}" for i in range(len(group["params"]))]
    for name, p in zip(names, group["params"], strict=True):
        if p.ndim != 2:
            raise ValueError(
                f"parameter {name} of shape {tuple(p.shape)} is in a projected group but is no "
                "matrix. Build the groups with spanwise.optim.param_groups(model, rank=...), "
                "which knows convolutions and experts and leaves vectors to AdamW. (Flat "
                "parameters of FSDP1 cannot be projected: use fully_shard.)"
            )
    return ["linear"] * len(group["params"])

"""Interpolation of two models along an arc: SLERP of weights, NuSLERP of updates."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._method import Method
from spanwise.merging._methods._sparse import check_choice
from spanwise.merging._methods.averages import divisor
from spanwise.merging._schedule import Schedule
from spanwise.merging._work import BLOCK, Work

Pair = Callable[[Work], tuple[Tensor, Tensor]]

NEARLY = 0.9995
"""Weights with a larger cosine are interpolated on a line, as everywhere SLERP is used."""
PARALLEL = 1 - 1e-12
"""Only updates nearer than this are; opposite ones have no arc, and keep to the line from -0.9995.
"""


@dataclass(frozen=True, kw_only=True)
class Slerp(Method):
    """Spherical interpolation of the weights of two models, tensor by tensor.

    With the cosine c of the flattened tensors and th = arccos c, the result is
    `sin((1 - t) th) / sin th * theta_1 + sin(t th) / sin th * theta_2`, and the line
    `(1 - t) theta_1 + t theta_2` if |c| > 0.9995 or one of them is zero. Fine-tunes of one base
    nearly always are that near: `nuslerp` with the base interpolates what they learned.

    Args:
        t: From 0, the first model, to 1, the second; a list is interpolated over the layers, a list
            of `{"filter": text, "value": ...}` goes by names.
    """

    gives: ClassVar[Literal["update", "weights"]] = "weights"
    needs_base: ClassVar[bool] = False
    fewest: ClassVar[int] = 2
    most: ClassVar[int | None] = 2
    reference: ClassVar[str] = "https://doi.org/10.1145/325334.325242"

    t: Any = 0.5

    def __post_init__(self) -> None:
        for value in Schedule("t", self.t).values:
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= 1
            ):
                raise ValueError(
                    f"t must be from 0 (the first model) to 1 (the second), got {value!r}."
                )

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        t = Schedule("t", self.t)(work.name, work.depth)
        if t is None:
            raise ValueError(f"no filter of t fits {work.name!r}: add an entry without a filter.")
        return _along_arc(work, lambda part: (part.weight(0), part.weight(1)), float(t), NEARLY)

    @override
    def copies(self, work: Work) -> float:
        return _copies(work)


@dataclass(frozen=True, kw_only=True)
class NuSlerp(Method):
    """Spherical interpolation of the updates of two models, or of their weights without a base.

    As `slerp`, with t = w_2 / (w_1 + w_2); the line only if they are parallel or opposite.

    Args:
        scope: Whether the arc is that of a whole `tensor` or of every `row`.
    """

    needs_base: ClassVar[bool] = False
    fewest: ClassVar[int] = 2
    most: ClassVar[int | None] = 2
    per_model: ClassVar[Mapping[str, float]] = {"weight": 1.0}

    scope: Literal["tensor", "row"] = "tensor"

    def __post_init__(self) -> None:
        check_choice("scope", self.scope, ("tensor", "row"))

    @override
    def check(self, values: Mapping[str, list[float]]) -> None:
        for weight in values["weight"]:
            if weight < 0:
                raise ValueError(
                    f"weight must be >= 0: nuslerp stays between its models, got {weight:g}."
                )

    @override
    def splits(self, shape: tuple[int, ...]) -> bool:
        return self.scope == "row" and len(shape) > 1

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        weights = work.values("weight")
        t = weights[1] / divisor(weights, work.name)
        if self.scope == "tensor":
            return _along_arc(work, _vectors, t, PARALLEL)
        if len(work.shape) < 2:
            return _rows_along_arc(work, t)
        parts = [_rows_along_arc(part, t) for part in work.parts()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @override
    def copies(self, work: Work) -> float:
        return _copies(work)


def _vectors(part: Work) -> tuple[Tensor, Tensor]:
    if part.inputs.base is None:
        return part.weight(0), part.weight(1)
    base = part.base()
    return part.update(0, base), part.update(1, base)


def _along_arc(work: Work, pair: Pair, t: float, nearly: float) -> Tensor:
    dot = first = second = 0.0
    parts = work.parts()
    for part in parts:
        a, b = (x.reshape(-1) for x in pair(part))
        dot, first, second = (
            dot + float(a @ b), first + float(a @ a), second + float(b @ b)
        )  # fmt: skip
    size = math.sqrt(first * second)
    cosine = dot / size if size > 0 else 1.0
    found = torch.empty(work.shape, dtype=work.dtype, device=work.device)
    for part in parts:
        a, b = pair(part)
        if cosine > nearly or cosine < -NEARLY:
            mixed = torch.lerp(a, b, t)  # equal models give themselves, bit for bit
        else:
            angle = math.acos(cosine)
            mixed = torch.mul(a, math.sin((1 - t) * angle) / math.sin(angle))
            mixed.add_(b, alpha=math.sin(t * angle) / math.sin(angle))
        if len(parts) == 1:
            return mixed
        found[part.rows] = mixed
    return found


def _rows_along_arc(part: Work, t: float) -> Tensor:
    pair = _vectors(part)
    a, b = (x.reshape(-1, part.row) for x in pair)
    size = a.norm(dim=1).double() * b.norm(dim=1).double()
    cosine = ((a * b).sum(1).double() / size).nan_to_num_(1.0).clamp_(-1, 1)
    angle, line = cosine.arccos(), (cosine > PARALLEL) | (cosine < -NEARLY)
    first = torch.where(line, 1 - t, torch.sin((1 - t) * angle) / angle.sin())
    second = torch.where(line, t, torch.sin(t * angle) / angle.sin())
    mixed = a * first[:, None].to(a.dtype) + b * second[:, None].to(b.dtype)
    return mixed.view(pair[0].shape)


def _copies(work: Work) -> float:
    count = math.prod(work.shape)
    return 5.0 if count <= BLOCK else 1.0 + 5.0 * BLOCK / count

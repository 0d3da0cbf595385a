"""Model Stock: how far to go from the base to the average follows from the angle between models."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._method import Method
from spanwise.merging._work import BLOCK, Work


@dataclass(frozen=True, kw_only=True)
class ModelStock(Method):
    """The average update, times a ratio from the angle between models; Jang et al., 2403.19522.

    With the mean cosine c over pairs of the N updates of a tensor, the ratio is
    `t = N c / (1 + (N - 1) c)`: equal updates give 1, orthogonal ones 0. A negative c counts as 0.

    Args:
        filter_wise: Whether every row (the weights that feed one output) has a ratio of its own;
            vectors are one row.
    """

    fewest: ClassVar[int] = 2
    reference: ClassVar[str] = "https://arxiv.org/abs/2403.19522"

    filter_wise: bool = False

    @override
    def splits(self, shape: tuple[int, ...]) -> bool:
        return self.filter_wise and len(shape) > 1

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        parts = work.parts()
        if self.filter_wise and len(work.shape) > 1:
            found = [_merge([part], part.row) for part in parts]
            return found[0] if len(found) == 1 else torch.cat(found)
        return _merge(parts, None)

    @override
    def copies(self, work: Work) -> float:
        count = math.prod(work.shape)
        return 6.0 if count <= BLOCK else 1.0 + 6.0 * BLOCK / count


def _merge(parts: list[Work], row: int | None) -> Tensor:
    """The merged update of parts that share ratios.

    Args:
        parts: The whole tensor, or a single one with some of its rows.
        row: Elements that share a ratio; None for all.
    """
    count = parts[0].count
    sizes = sum(torch.stack([_squares(u, row) for u in part.updates()]) for part in parts)
    assert isinstance(sizes, Tensor)
    sizes = sizes.sqrt()
    scales = torch.where(sizes > 0, 1 / sizes, 0.0)  # a model that did not change has no angle
    overlap = torch.zeros_like(sizes[0])
    means: list[Tensor] = []
    for part in parts:
        units: Tensor | None = None
        mean: Tensor | None = None
        for update, scale in zip(part.updates(), scales, strict=True):
            unit = _rows(update, row) * scale[:, None].to(update.dtype)
            units = unit if units is None else units.add_(unit)
            mean = update if mean is None else mean.add_(update)
        assert units is not None
        assert mean is not None
        overlap += _squares(units, row)
        means.append(mean)
    # |sum u_i|^2 holds every pair of unit vectors twice, and each with itself.
    cosine = (overlap - (sizes > 0).sum(0)) / (count * (count - 1))
    cosine.clamp_(0, 1)
    ratio = cosine / (1 + (count - 1) * cosine)  # of the sum; N times as much of the mean
    for mean in means:
        _rows(mean, row).mul_(ratio[:, None].to(mean.dtype))
    return means[0] if len(means) == 1 else torch.cat(means)


def _rows(tensor: Tensor, row: int | None) -> Tensor:
    return tensor.view(-1, row or max(1, tensor.numel()))


def _squares(tensor: Tensor, row: int | None) -> Tensor:
    """Sums of squares, `(rows,)` in float64."""
    return _rows(tensor, row).square().sum(1).double()

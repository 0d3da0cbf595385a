"""What the bases of many parameters learn from one step's gradients, matrix by matrix."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.optim._bases.projector import DenseProjector
from spanwise.optim._engine.subspace import Work
from spanwise.optim._osd.online_pca import MEMORY, Side, frobenius, in_range, pca_gradient, slope


@dataclass(frozen=True)
class Lesson:
    """What one basis learns from one gradient."""

    basis: Float[Tensor, "d r"]
    """A view into the state."""
    slope: Float[Tensor, "d r"]
    """Gradient of the online-PCA loss."""
    memory: list[Tensor]
    """What the basis's rule remembers, as views into the state."""
    step: int
    """Lessons of this basis, this one included."""


def find_lessons(works: list[Work], rule: str, ortho_penalty: float) -> list[list[Lesson]]:
    """One list for each parameter, with a lesson for each matrix whose gradient has a direction.

    A gradient that is zero or not finite teaches nothing and is not counted.

    Args:
        works: Parameters that learn at this step, each with one dense basis.
        rule: A key of `MEMORY`.
        ortho_penalty: Weight of ||P^T P - I||_F^2 in the loss.
    """
    if not works:
        return []
    grads = [work.g.to(_basis(work)[1].dtype) for work in works]
    norms = [
        _across(work, torch.linalg.vector_norm(g, dim=(-2, -1)))
        for work, g in zip(works, grads, strict=True)
    ]
    # One wait for the device, not one for each matrix.
    values = torch.cat([n.reshape(-1).to(norms[0].device) for n in norms]).tolist()
    lessons = []
    for work, g, norm in zip(works, grads, norms, strict=True):
        own, values = values[: norm.numel()], values[norm.numel() :]
        lessons.append(_lessons_of(work, rule, ortho_penalty, g, norm, own))
    return lessons


def _lessons_of(
    work: Work, rule: str, penalty: float, g: Tensor, norm: Tensor, values: list[float]
) -> list[Lesson]:
    side, basis = _basis(work)
    if all(map(in_range, values)):
        weight = 2 / values[0] ** 2 if g.ndim == 2 else 2 / norm.square()[..., None, None]
        slopes = slope(g, basis, side, work.r, weight, penalty, work.member.shard)
    else:
        norm = _across(work, frobenius(g))
        values = norm.reshape(-1).tolist()
        if not any(map(_teaches, values)):
            return []
        slopes = pca_gradient(
            g, basis, side, coordinates=work.r, norm=norm, ortho_penalty=penalty,
            shard=work.member.shard,
        )  # fmt: skip
    tensors = (basis, slopes, *(work.state[key] for key in MEMORY[rule]))
    counts = work.state["proj_step"].view(-1)  # a view: it counts in the state
    lessons = []
    for i in (i for i, value in enumerate(values) if _teaches(value)):
        counts[i] += 1
        own = [t[i] if g.ndim > 2 else t for t in tensors]
        lessons.append(Lesson(own[0], own[1], own[2:], int(counts[i])))
    return lessons


def _across(work: Work, norm: Tensor) -> Tensor:
    """The norm of the whole gradient from that of what this process holds."""
    return norm if work.member.shard is None else work.member.shard.hypot(norm)


def _teaches(norm: float) -> bool:
    return 0 < norm < math.inf


def _basis(work: Work) -> tuple[Side, Tensor]:
    projector = work.projector
    assert isinstance(projector, DenseProjector)
    if projector.left is not None:
        return "left", projector.left
    assert projector.right is not None
    return "right", projector.right


def batches_of(lessons: list[list[Lesson]]) -> Iterator[list[Lesson]]:
    """Lessons that one fused call may take: of one count, dtype and device."""
    batches: dict[tuple[int, torch.dtype, torch.device], list[Lesson]] = {}
    for lesson in (lesson for own in lessons for lesson in own):
        key = (lesson.step, lesson.basis.dtype, lesson.basis.device)
        batches.setdefault(key, []).append(lesson)
    yield from batches.values()


def hold_basis(work: Work) -> None:
    """Put a basis back into what its constraint allows, exactly: its own rule leads it out."""
    if work.constraint is None:
        return
    side, basis = _basis(work)
    allowed = work.constraint.rows if side == "left" else work.constraint.columns
    if allowed is not None:
        basis.copy_(allowed.rows(basis))

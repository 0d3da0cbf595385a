"""Online principal components: the loss of a basis on one gradient, its slope, and its steps.

A matrix G is read from the side that carries the basis: X = G for a left basis, X = G^T for a
right one, so X is (d, l) and the basis P is (d, r). With Xh = X / ||X||_F the loss is

    L(P) = ||P P^T Xh - Xh||_F^2 + penalty ||P^T P - I||_F^2.

With C = P^T P, S = Xh Xh^T P and H = P^T S its gradient is 2 (P H + S (C - 2 I)) + 4 penalty
P (C - I): one product of G's size beside R = P^T X, which a projected step has already, and four
of size r. P P^T is never formed and G never transposed in memory.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg.bases import orthonormalize
from spanwise.optim._engine.rules import adam_
from spanwise.optim._osd.other_rules import adafactor_, lion_
from spanwise.optim._sharding.shard import Shard

Side = Literal["left", "right"]

# Between these, products of two gradients stay clear of float32's ends.
_SMALL, _LARGE = 1e-12, 1e12


def coordinates_of(
    g: Float[Tensor, "*batch m n"], basis: Float[Tensor, "*batch d r"], side: Side
) -> Float[Tensor, "*batch a b"]:
    """R = P^T G for a left basis, G P for a right one."""
    return basis.mT @ g if side == "left" else g @ basis


def in_range(norm: float) -> bool:
    """Whether the square of a norm can be used as it is."""
    return _SMALL < norm < _LARGE


def _all_in_range(norms: Tensor) -> bool:
    return bool(((norms > _SMALL) & (norms < _LARGE)).all())


def frobenius(g: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
    """||G||_F, exact where the squares of the entries would leave the range of the dtype."""
    norm = torch.linalg.vector_norm(g, dim=(-2, -1))
    if _all_in_range(norm):
        return norm
    peak = g.abs().amax(dim=(-2, -1), keepdim=True)
    safe = torch.where((peak > 0) & peak.isfinite(), peak, torch.ones_like(peak))
    return torch.linalg.vector_norm(g / safe, dim=(-2, -1)) * safe[..., 0, 0]


def pca_gradient(
    g: Float[Tensor, "*batch m n"],
    basis: Float[Tensor, "*batch d r"],
    side: Side,
    *,
    coordinates: Float[Tensor, "*batch a b"] | None = None,
    norm: Float[Tensor, "*batch"] | None = None,
    ortho_penalty: float = 0.0,
    shard: Shard | None = None,
) -> Float[Tensor, "*batch d r"]:
    """The gradient of the online-PCA loss at `basis`, which need not be orthonormal.

    At an orthonormal basis without penalty it is -2 (I - P P^T) Xh Xh^T P, the Oja direction on
    the Grassmann manifold.

    Args:
        g: The matrix G; its norm does not matter.
        basis: P.
        side: Where P stands: `left` (d = m) or `right` (d = n).
        coordinates: R if known, `coordinates_of(g, basis, side)` otherwise.
        norm: ||G||_F if known.
        ortho_penalty: Weight of ||P^T P - I||_F^2, at least 0.
        shard: As for `slope`; then `coordinates` and `norm` must be given, of the whole G.

    Returns:
        (d, r); not finite where `g` is zero or not finite, which the caller keeps out.

    Sources:
        Liang et al., "Memory-efficient LLM training with online subspace descent", 2024,
        section 4; the closed form is derived here.
    """
    r = coordinates_of(g, basis, side) if coordinates is None else coordinates
    norm = frobenius(g) if norm is None else norm
    scale = norm[..., None, None]
    if not _all_in_range(norm):
        g, r, scale = g / scale, r / scale, torch.ones_like(scale)
    return slope(g, basis, side, r, 2 / scale.square(), ortho_penalty, shard)


def slope(
    g: Float[Tensor, "*batch m n"],
    basis: Float[Tensor, "*batch d r"],
    side: Side,
    coordinates: Float[Tensor, "*batch a b"],
    weight: Float[Tensor, "*#batch 1 1"] | float,
    ortho_penalty: float = 0.0,
    shard: Shard | None = None,
) -> Float[Tensor, "*batch d r"]:
    """`pca_gradient` where `weight` = 2 / ||G||_F^2 is known to be in range: products only.

    With a `shard`, G has this process's rows, and so has a left basis.
    """
    s = g @ coordinates.mT if side == "left" else g.mT @ coordinates
    if shard is not None and side == "right":
        s = shard.sum(s)
    gram, inner = basis.mT @ basis, basis.mT @ s
    if shard is not None and side == "left":
        gram, inner = shard.sum(gram), shard.sum(inner)
    # The weight enters through the r x r factors, so that no pass over S is spent on it.
    inner.mul_(weight)
    if ortho_penalty:
        inner.add_(gram, alpha=4 * ortho_penalty)
        inner.diagonal(dim1=-2, dim2=-1).sub_(4 * ortho_penalty)
    gram.diagonal(dim1=-2, dim2=-1).sub_(2)
    gram.mul_(weight)
    inside = basis @ inner
    return inside.addmm_(s, gram) if s.ndim == 2 else inside.add_(s @ gram)


def retract(basis: Float[Tensor, "*batch d r"], how: str) -> Float[Tensor, "*batch d r"]:
    """The orthonormal basis that stands for `basis`, of the same span.

    Args:
        basis: P, of full column rank.
        how: `qr` keeps the span of the first j columns for every j; `polar` is the nearest
            orthonormal matrix, P (P^T P)^(-1/2).
    """
    if how == "qr":
        return orthonormalize(basis)
    values, vectors = torch.linalg.eigh(basis.mT @ basis)
    # The Gram matrix squares the condition number; a basis far from orthonormal takes the SVD.
    if float(values[..., 0].min()) < 0.1 * float(values[..., -1].max()):
        u, _, vh = torch.linalg.svd(basis, full_matrices=False)
        return u @ vh
    return basis @ ((vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT)


MEMORY = {
    "adamw": ("proj_exp_avg", "proj_exp_avg_sq"),
    "lion": ("proj_exp_avg",),
    "adafactor": ("proj_row_means", "proj_col_means"),
    "sgd": (),
}
"""What each rule for the basis remembers, by the names of its tensors."""


def memory_shapes(rule: str, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of what `rule` remembers for a basis of `shape`, `(*batch, d, r)`."""
    whole = tuple(shape)
    if rule == "adafactor":
        return dict(zip(MEMORY[rule], (whole[:-1], (*whole[:-2], whole[-1])), strict=True))
    return dict.fromkeys(MEMORY[rule], whole)


def step_bases_(
    rule: str,
    bases: list[Tensor],
    slopes: list[Tensor],
    memory: list[list[Tensor]],
    *,
    step: int,
    lr: float,
    weight_decay: float,
) -> None:
    """One step of `rule` on many bases at once, in place; they may differ in shape.

    The settings are those of the released code: AdamW with betas (0.9, 0.999) and epsilon 1e-8,
    Lion with (0.9, 0.99), Adafactor with decay t^-0.8 and clipping at 1, plain SGD.

    Args:
        rule: A key of `MEMORY`.
        bases: Matrices `(d, r)`, written.
        slopes: Gradients of the loss at each.
        memory: For each basis, what `MEMORY[rule]` names, updated.
        step: Steps that the memories have seen, this one included. One for all.
        lr: Rate.
        weight_decay: Decoupled decay of the bases.
    """
    held = [list(column) for column in zip(*memory, strict=True)]
    if rule == "adamw":
        adam_(
            bases, slopes, *held, step=torch.tensor(float(step)), lr=lr, betas=(0.9, 0.999),
            eps=1e-8, weight_decay=weight_decay,
        )  # fmt: skip
    elif rule == "lion":
        lion_(bases, slopes, *held, lr=lr, weight_decay=weight_decay)
    elif rule == "adafactor":
        adafactor_(bases, slopes, *held, step=step, lr=lr, weight_decay=weight_decay)
    else:
        if weight_decay:
            torch._foreach_mul_(bases, 1 - lr * weight_decay)
        torch._foreach_add_(bases, slopes, alpha=-lr)

"""GaLore: Adam on a low-rank projection of every weight matrix's gradient."""

from collections.abc import Iterable
from typing import Any, ClassVar, Unpack

from spanwise.optim._engine.options import CommonOptions
from spanwise.optim._engine.subspace import SubspaceOptimizer


class GaLore(SubspaceOptimizer):
    """AdamW whose moments live in the top-r subspace of each gradient.

    For a weight W (m x n) with gradient G, a basis P of the r leading left (or right) singular
    vectors of G is redrawn every T steps; Adam runs on R = P^T G, and W moves by a P N with N
    Adam's direction. State is r min(m, n) + 2 r max(m, n) numbers instead of 2 m n.

    Args:
        params: Groups from `spanwise.optim.param_groups(model, rank=128)`, or your own; a group
            without `rank` is plain AdamW. galore_torch's keys `update_proj_gap` and `proj_type`
            are accepted.
        lr: Learning rate. The projected groups move by `scale * lr`.
        refresh_every: T, steps between two bases.
        scale: a, the factor of the lifted update.
        side: Which side carries the basis: `short` (default; a square matrix counts as right),
            `long`, `left`, `right`, `full` (both), or `local` (the one that needs no
            communication when rows are sharded).
        svd: `randomized` (GaLore 2; two power passes, seeded), `exact` (GaLore), `gram`
            (eigenvectors of G G^T) or `warm` (one power step from the old basis).
        moments: At a refresh: `keep` them as the paper does, `rotate` the first,
            `project_aware` (both, as LDAdam), or `reset`.
        stagger: Spread refreshes over the interval so that no single step pays for all.
        residual: `drop` the gradient outside the subspace as the paper does, or bring it back
            `scaled` by how far Adam scaled each column inside (`fira`: as that package does).
        compat: `"galore_torch"` follows that package's trajectory: its epsilon outside the bias
            correction, decay after the update, exact SVD with LAPACK's signs, states in the
            weight's dtype.
        **common: What all optimizers share: `betas`, `eps`, `weight_decay`, `rank`, `clamp_rank`,
            `on_nonfinite`, `seed`, `avoid`, `within`, `bias` (see `CommonOptions`).

    Raises:
        ValueError: If no group has a rank, a rank exceeds its matrix, an option is unknown, or
            an atlas matches nothing.

    Sources:
        Zhao et al., "GaLore: Memory-efficient LLM training by gradient low-rank projection",
        2024, algorithm 2; Su et al., "GaLore 2: Large-scale LLM pre-training by gradient
        low-rank projection", 2025.

    Example:
        >>> opt = GaLore(param_groups(model, rank=128), lr=1e-2)  # doctest: +SKIP
    """

    method = "galore"
    aliases: ClassVar = {"update_proj_gap": "refresh_every", "proj_type": "side"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        refresh_every: int | None = 200,
        scale: float = 0.25,
        side: str = "short",
        svd: str = "randomized",
        moments: str = "keep",
        residual: str = "drop",
        stagger: bool = False,
        compat: str | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        own = {
            "lr": lr, "refresh_every": refresh_every, "scale": scale, "side": side,
            "svd": "exact" if compat else svd, "moments": moments, "residual": residual,
            "stagger": stagger,
        }  # fmt: skip
        super().__init__(params, own, compat=compat, **common)

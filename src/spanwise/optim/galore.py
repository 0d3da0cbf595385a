"""GaLore: Adam on a low-rank projection of every weight matrix's gradient."""

from collections.abc import Iterable
from typing import Any

from spanwise.atlas import Atlas
from spanwise.optim._constraint import BiasRule
from spanwise.optim._engine import SubspaceOptimizer


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
        betas: Decay rates of the moments, each in [0, 1).
        eps: Added to the square root of the second moment.
        weight_decay: Decoupled decay, applied to the whole weight.
        rank: Subspace dimension r for groups that do not name one; None leaves those plain.
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
        clamp_rank: Use min(m, n) where rank exceeds it instead of raising.
        on_nonfinite: A gradient that is not finite at a refresh: `keep` the old basis, skip the
            tensor and warn once, or `raise`.
        seed: Seeds every sketch together with parameter and step; the global generator is
            never touched.
        avoid: Directions that updates must keep out of, exactly.
        within: Directions that updates must stay in, exactly.
        bias: Whether an input entry freezes its map's bias (`freeze`) or not (`allow`).
        compat: `"galore_torch"` follows that package's trajectory: its epsilon outside the bias
            correction, decay after the update, exact SVD with LAPACK's signs, states in the
            weight's dtype.

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
    aliases = {"update_proj_gap": "refresh_every", "proj_type": "side"}  # noqa: RUF012

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        rank: int | None = None,
        refresh_every: int = 200,
        scale: float = 0.25,
        side: str = "short",
        svd: str = "randomized",
        moments: str = "keep",
        stagger: bool = False,
        clamp_rank: bool = False,
        on_nonfinite: str = "keep",
        seed: int = 0,
        avoid: Atlas | None = None,
        within: Atlas | None = None,
        bias: BiasRule = "freeze",
        compat: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rank": rank,
            "refresh_every": refresh_every, "scale": scale, "side": side,
            "svd": "exact" if compat else svd, "moments": moments, "stagger": stagger,
        }  # fmt: skip
        super().__init__(
            params,
            defaults,
            avoid=avoid,
            within=within,
            bias=bias,
            seed=seed,
            on_nonfinite=on_nonfinite,
            clamp_rank=clamp_rank,
            compat=compat,
        )

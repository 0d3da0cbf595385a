"""Row selections: which rows (or columns) of a gradient are kept, and what one does with them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from spanwise.linalg.bases import orthonormalize
from spanwise.optim._guard.constraint import SideConstraint

Selection = Literal["topr", "multinomial_norm", "multinomial_norm_nr", "uniform", "uniform_nr"]
SELECTIONS: tuple[str, ...] = (
    "topr", "multinomial_norm", "multinomial_norm_nr", "uniform", "uniform_nr",
)  # fmt: skip
SCALED: tuple[str, ...] = ("multinomial_norm", "uniform")
"""Selections drawn with replacement, whose rows have a scale."""

# Past this mean a Poisson count and its mean agree to 3e-5, and torch draws no larger ones.
_MANY = 1e9


def line_norms(
    g: Float[Tensor, "*batch rows cols"], side: Literal["left", "right"]
) -> Float[Tensor, "*batch d"]:
    """Euclidean norms of the rows (`left`) or columns (`right`) of `g`, in float32 at least.

    Where squares would leave float32's range and make rows equal, in float64.
    """
    dim = -1 if side == "left" else -2
    if g.dtype != torch.float64:
        if side == "right":
            norms = _column_norms(g.float())
        else:
            norms = torch.linalg.vector_norm(g, dim=-1, dtype=torch.float32)
        largest = norms.amax(-1) if norms.numel() else norms
        if bool(((largest > 1e-15) & (largest < 1e18)).all()):  # of each matrix of a stack
            return norms
    return torch.linalg.vector_norm(g, dim=dim, dtype=torch.float64)


def _column_norms(g: Tensor) -> Tensor:
    # On a CPU torch's norm over the leading axis runs at a tenth of the speed of this.
    blocks = g.split(256, dim=-2)
    return torch.stack([block.square().sum(-2) for block in blocks]).sum(0).sqrt_()


def choose_rows(
    norms: Float[Tensor, "*batch d"],
    rank: int,
    how: str = "topr",
    generator: torch.Generator | None = None,
    *,
    rho_max: float | None = None,
) -> tuple[Int[Tensor, "*batch r"], Float[Tensor, "*batch r"] | None]:
    """Choose `rank` different rows by their norms, and the scale rho of each.

    With P = I[:, rows] diag(rho), a sampled selection has E[P P^T] = I where rows are drawn with
    replacement, and rho = 1 otherwise:

    - `topr`: the largest norms; ties go to the lower index.
    - `multinomial_norm`: drawn with replacement, q_i = c_i / sum c.
    - `multinomial_norm_nr`: the same without replacement, rho = 1.
    - `uniform`, `uniform_nr`: as the two above with q_i = 1 / d.

    Drawing with replacement r times gives fewer than r different rows. We draw on, until the
    next draw would bring row number r + 1: a row drawn k times out of N in all has
    rho^2 = k / (N q). No place is wasted on a duplicate, E[P P^T] = I holds exactly, and without
    duplicates N = r and rho = 1 / sqrt(r q), the paper's scale. If at most r rows are not zero,
    all of them are taken, places left over go to zero rows drawn uniformly, and rho = 1.

    Args:
        norms: Row norms c, `(*batch, d)`, at least 0. Each matrix of a stack draws for itself.
        rank: r, from 1 to d.
        how: One of the five names above.
        generator: Source of the draws; `topr` needs none.
        rho_max: Largest rho allowed, above 0. Adam's direction does not see the scale of its
            gradient, so rho only lengthens the update of rarely drawn rows; this bounds it, and
            costs E[P P^T] = I where it acts.

    Returns:
        Row indices in ascending order, `(*batch, r)` int64, and rho, `(*batch, r)` float64, or
        None where rho = 1 by definition.

    Raises:
        ValueError: If `how` is unknown, `rank` is not in 1..d, or a norm is not finite.

    Sources:
        Muhamed et al., "Grass: Compute efficient low-memory LLM training with structured sparse
        gradients", 2024, section 3. Pathak, "Unbiased estimation in fixed cost sequential
        sampling schemes", 1976: leaving out the last draw is what makes drawing on unbiased.
    """
    d = norms.shape[-1]
    if how not in SELECTIONS:
        raise ValueError(f"select must be one of {', '.join(SELECTIONS)}; got {how!r}.")
    if not 1 <= rank <= d:
        raise ValueError(f"rank must be from 1 to the {d} rows there are, got {rank}.")
    if not bool(torch.isfinite(norms).all()):
        raise ValueError(
            "a row norm is not finite, so rows cannot be compared; keep the old rows for this "
            "step, lower the learning rate or clip gradients."
        )
    norms = norms.double()
    if how == "topr":
        order = norms.sort(dim=-1, descending=True, stable=True).indices
        return order[..., :rank].sort(dim=-1).values, None
    weights = torch.ones_like(norms) if how.startswith("uniform") else norms
    q = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(norms.dtype).tiny)
    order, clocks = _drawing_order(q, generator)
    rows = order[..., :rank].sort(dim=-1).values
    if how.endswith("_nr"):
        return rows, None
    rho = _scales(q, clocks, order, rows, generator)
    return rows, rho if rho_max is None else rho.clamp(max=rho_max)


def _drawing_order(q: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The order in which draws with probabilities q meet the rows, and the times they do.

    Draws come as a Poisson process of rate 1, so row i first appears after an exponential time
    of rate q_i, whatever the other rows do. Rows of no mass follow in a uniform order.
    """
    clocks = torch.empty_like(q).exponential_(generator=generator)
    clocks = torch.where(q > 0, clocks / q, torch.inf)
    ties = torch.rand(q.shape, generator=generator, device=q.device, dtype=q.dtype)
    shuffled = ties.argsort(dim=-1)
    order = clocks.gather(-1, shuffled).argsort(dim=-1, stable=True)
    return shuffled.gather(-1, order), clocks


def _scales(
    q: Tensor, clocks: Tensor, order: Tensor, rows: Tensor, generator: torch.Generator | None
) -> Tensor:
    rank, d = rows.shape[-1], q.shape[-1]
    ones = torch.ones(rows.shape, dtype=q.dtype, device=q.device)
    if rank == d:
        return ones
    stop = clocks.gather(-1, order[..., rank : rank + 1])
    mass, first = q.gather(-1, rows), clocks.gather(-1, rows)
    certain = stop.isinf()
    mean = torch.where(certain, 0.0, mass * (stop - first))
    repeats = torch.poisson(mean.clamp(max=_MANY), generator=generator)
    count = 1 + torch.where(mean < _MANY, repeats, mean)
    rho = (count / (count.sum(-1, keepdim=True) * mass)).sqrt()
    return torch.where(certain, ones, rho)


@dataclass(frozen=True)
class RowProjector:
    """P = I[:, rows] diag(scale) on one side of a stored matrix G, `(*batch, rows, cols)`.

    Left: R = P^T G, chosen rows. Right: R = G P, chosen columns. The lift is the transpose.
    Indices are different from each other, so nothing is ever written twice.
    """

    rows: Int[Tensor, "*batch r"]
    side: Literal["left", "right"]
    size: int
    """Length of the selected side."""
    scale: Float[Tensor, "*batch r"] | None = None

    @property
    def sides(self) -> tuple[str, ...]:
        """The side that is selected from."""
        return (self.side,)

    @property
    def _dim(self) -> int:
        return -2 if self.side == "left" else -1

    def _along(self, v: Tensor) -> Tensor:
        """A vector over the selection, shaped to meet a matrix of coordinates."""
        return v[..., :, None] if self.side == "left" else v[..., None, :]

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale is None else x * self._along(self.scale.to(x.dtype))

    def _with_side(self, shape: torch.Size, length: int) -> list[int]:
        sizes = list(shape)
        sizes[self._dim] = length
        return sizes

    def gather(self, g: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch a b"]:
        """The chosen rows or columns of `g`, unscaled, in its own dtype."""
        if g.ndim == 2:
            return g.index_select(self._dim, self.rows)
        shape = self._with_side(g.shape, self.rows.shape[-1])
        return g.gather(self._dim, self._along(self.rows).expand(shape))

    def project(self, g: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch a b"]:
        """Coordinates R of `g`; half precision comes out in float32."""
        r = self.gather(g)
        return self._scaled(r if r.dtype == torch.float64 else r.float())

    def coordinates_of(self, w: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch a b"]:
        """Coordinates whose lift is the chosen rows or columns of `w` themselves."""
        chosen = RowProjector.gather(self, w)
        return chosen if self.scale is None else chosen / self._along(self.scale.to(chosen.dtype))

    def lift(self, x: Float[Tensor, "*batch a b"]) -> Float[Tensor, "*batch rows cols"]:
        """The ambient matrix with coordinates `x`."""
        out = x.new_zeros(self._with_side(x.shape, self.size))
        self.lift_add_(out, x, 1.0)
        return out

    def lift_add_(self, w: Tensor, x: Float[Tensor, "*batch a b"], alpha: float) -> None:
        """`w += alpha * lift(x)`, touching what is selected and nothing else."""
        x, index = self._scaled(x), self._along(self.rows)
        if w.dtype != x.dtype:
            # Added in full precision and rounded once.
            chosen = RowProjector.gather(self, w).to(x.dtype).add_(x, alpha=alpha)
            w.scatter_(self._dim, index.expand(x.shape), chosen.to(w.dtype))
        elif w.ndim == 2 and self.side == "left":
            w.index_add_(0, self.rows, x, alpha=alpha)
        else:
            # On columns scatter_add_ is five times faster than index_add_ on a CPU.
            w.scatter_add_(self._dim, index.expand(x.shape), x * alpha)


def always_free(allowed: SideConstraint, rank: int) -> bool:
    """Whether every choice of `rank` rows leaves a coordinate to `allowed`."""
    if allowed.blocked is not None:
        return allowed.blocked.shape[-1] < rank
    assert allowed.allowed is not None
    dim, inside = allowed.allowed.shape[-2:]
    return inside > dim - rank


def coordinates_inside(
    projector: RowProjector, allowed: SideConstraint, name: str = "this parameter"
) -> SideConstraint:
    """What coordinates X may be so that P X obeys a constraint on the selected side itself.

    A selection cannot be turned towards the allowed directions as a dense basis can. To avoid U,
    X keeps out of Q = orth(P^T U). To stay within K, P X = K c must vanish on all other rows:
    c lies in the null space of those rows of K.

    Args:
        projector: The selection.
        allowed: The constraint on the side that `projector` selects from.
        name: The parameter, for the error.

    Returns:
        The constraint on the coordinates, of length r.

    Raises:
        ValueError: If no coordinate is free.
    """
    rows, scale = projector.rows, projector.scale
    rank = rows.shape[-1]
    basis = allowed.blocked if allowed.blocked is not None else allowed.allowed
    assert basis is not None
    index = rows[..., :, None].expand(*rows.shape, basis.shape[-1])
    inside = basis.gather(-2, index)
    if allowed.blocked is not None:
        if scale is not None:
            inside = inside * scale[..., :, None].to(inside.dtype)
        u, values, _ = torch.linalg.svd(inside, full_matrices=False)
        used = _rank(values, inside)
        if used < rank:
            return SideConstraint(blocked=u[..., :used])
        word, why = "avoid", f"the {basis.shape[-1]} avoided directions fill all"
    else:
        others = basis.scatter(-2, index, 0.0)
        _, values, vh = torch.linalg.svd(others, full_matrices=True)
        null = vh[..., _rank(values, others) :, :].mT
        if null.shape[-1]:
            free = inside @ null
            if scale is not None:
                free = orthonormalize(free / scale[..., :, None].to(free.dtype))
            return SideConstraint(allowed=free)
        word, why = "within", "no allowed direction lies in"
    raise ValueError(
        f"{word}: {why} {rank} selected rows of {name}, so nothing would be updated. Use a "
        "higher rank, an atlas with fewer directions on that side, side=... to select from the "
        "other side, or an optimizer with a dense basis (GaLore)."
    )


def _rank(values: Tensor, matrix: Tensor) -> int:
    # The largest over a stack: keeping out of one more direction is safe, of one less is not.
    tolerance = torch.finfo(values.dtype).eps * max(matrix.shape[-2:])
    return int((values > tolerance).sum(-1).max()) if values.numel() else 0


class GatheredRows(RowProjector):
    """The same selection, of gradients whose chosen rows alone are at hand."""

    @override
    def gather(self, g: Float[Tensor, "*batch a b"]) -> Float[Tensor, "*batch a b"]:
        """`g` itself: what `grass_linear_` left of the gradient."""
        return g


@dataclass
class RowGradient:
    """Chosen rows (or columns) of a weight's gradient, in place of the whole of it.

    `grass_linear_` leaves one as `weight.spanwise_grad`; an optimizer that knows them reads it
    instead of `weight.grad`, which stays None.
    """

    values: Float[Tensor, "a b"]
    """G[rows, :] or G[:, rows], unscaled, summed over the micro-batches of this step."""
    projector: RowProjector
    """The selection they belong to: the optimizer's own, or a new one where a refresh is due."""
    chosen: bool = False
    """Whether `projector` was chosen anew, from this step's first gradient."""
    finite: bool = True
    """Whether that first gradient was finite; nothing is chosen from one that is not."""
    group: Any = None
    """The process group over which `values` are still to be averaged, if any."""

    @override
    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        # An unpickled model has ordinary layers, and no process group can be pickled.
        return _no_rows, ()


def _no_rows() -> None:
    return None


def row_gradient(p: Tensor) -> RowGradient | None:
    """The `RowGradient` that a parameter holds, if any."""
    return getattr(p, "spanwise_grad", None)


def average_(t: Tensor, group: Any) -> None:
    """Average `t` over a process group, in place."""
    dist.all_reduce(t, group=group)
    t.div_(dist.get_world_size(group))


def synchronize(parameters: Iterable[Tensor]) -> None:
    """Average the rows that these parameters hold over their process groups, once."""
    for p in parameters:
        held = row_gradient(p)
        if held is not None and held.group is not None:
            average_(held.values, held.group)
            held.group = None

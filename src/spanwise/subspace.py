"""`Subspace`: an orthonormal basis, its values, and what one does with it.

Every method of the library finds one of these, confines work to one, keeps out of one or
compares several. Vectors are columns: what acts on `x` expects `(*batch, d, k)`, or `(d,)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.layouts import Side
from spanwise.linalg import bases, svd

Metric = Literal["chordal", "geodesic", "projection"]
Vectors = Float[Tensor, "*batch d k"] | Float[Tensor, " d"]
Coordinates = Float[Tensor, "*batch r k"] | Float[Tensor, " r"]


@dataclass(frozen=True, eq=False)
class Subspace:
    """The span of `basis`, in a space of `dim` dimensions.

    Args:
        basis: Orthonormal columns, `(*batch, d, r)`. Leading axes hold one subspace each
            (one for every expert of a layer).
        values: What each direction weighs, largest first, `(*batch, r)`: singular values of a
            matrix, root energies of activations. None where weights mean nothing: after a
            union, or for a random basis.
        mean: The point that `values` were measured around, `(*batch, d)`; carried along, never
            used by `project`.

    Raises:
        ValueError: If the shapes do not fit each other.
        TypeError: If `basis` is not a real floating-point tensor.

    Example:
        >>> plane = Subspace(torch.eye(3)[:, :2])
        >>> (~plane).project(torch.ones(3))
        tensor([0., 0., 1.])
    """

    basis: Float[Tensor, "*batch d r"]
    values: Float[Tensor, "*batch r"] | None = None
    mean: Float[Tensor, "*batch d"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.basis, Tensor) or not self.basis.is_floating_point():
            kind = getattr(self.basis, "dtype", type(self.basis).__name__)
            raise TypeError(f"basis must be a real floating-point tensor, got {kind}.")
        *batch, d, r = self.basis.shape if self.basis.ndim >= 2 else (0, 0, 1)
        if r > d:
            raise ValueError(
                f"basis must be tall, (*batch, d, r) with r <= d, got {tuple(self.basis.shape)}. "
                "Transpose a basis that is stored as rows with .mT."
            )
        for name, held, expected in (("values", self.values, r), ("mean", self.mean, d)):
            if held is not None and tuple(held.shape) != (*batch, expected):
                raise ValueError(
                    f"{name} must have shape {(*batch, expected)} beside a basis of shape "
                    f"{tuple(self.basis.shape)}, got {tuple(held.shape)}."
                )

    @classmethod
    def from_matrix(
        cls,
        m: Float[Tensor, "*batch m n"],
        *,
        rank: int | None = None,
        energy: float | None = None,
        side: Side = "output",
    ) -> "Subspace":
        """The leading singular directions of a matrix.

        Args:
            m: The matrix of a map with m outputs and n inputs.
            rank: How many directions to keep.
            energy: Instead of `rank`: keep the fewest directions whose squared singular values
                sum to at least this share of the total, in `(0, 1]`. 1 keeps the range.
            side: `"output"` for left singular vectors in R^m, `"input"` for right ones in R^n.

        Raises:
            ValueError: If not exactly one of `rank` and `energy` is given, either is out of
                range, or `m` is all zero or not finite under an energy rule.
        """
        if (rank is None) == (energy is None):
            raise ValueError(
                f"give exactly one of rank and energy, got rank = {rank}, energy = {energy}."
            )
        if side not in ("output", "input"):
            raise ValueError(f'side must be "output" or "input", got {side!r}.')
        left, values, right = svd.truncated_svd(
            m, min(m.shape[-2:]) if rank is None else rank, method="exact"
        )
        if energy is not None:
            kept = energy_rank(values.square(), energy)
            left, values, right = left[..., :kept], values[..., :kept], right[..., :kept]
        return cls(left if side == "output" else right, values)

    @classmethod
    def random(
        cls,
        d: int,
        r: int,
        *,
        generator: torch.Generator | None = None,
        batch: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> "Subspace":
        """A uniformly random subspace; the same one every time unless `generator` moves on."""
        return cls(
            bases.random_basis(d, r, generator=generator, batch=batch, dtype=dtype, device=device)
        )

    @property
    def dim(self) -> int:
        """d, the dimension of the space around."""
        return self.basis.shape[-2]

    @property
    def rank(self) -> int:
        """r, the dimension of the subspace."""
        return self.basis.shape[-1]

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading axes, `()` for a single subspace."""
        return tuple(self.basis.shape[:-2])

    def __repr__(self) -> str:
        batch = f", batch={self.batch}" if self.batch else ""
        return f"Subspace(rank={self.rank}, dim={self.dim}{batch}, {self.basis.dtype})"

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Subspace":
        """The same on another device or in another dtype; a coarser dtype rounds the basis."""
        basis, values, mean = (
            None if t is None else t.to(device=device, dtype=dtype)
            for t in (self.basis, self.values, self.mean)
        )
        assert basis is not None
        return replace(self, basis=basis, values=values, mean=mean)

    def project(self, x: Vectors) -> Vectors:
        """The part of `x` inside: U U^T x."""
        return _on_columns(lambda c: bases.project(self.basis, c), x)

    def reject(self, x: Vectors) -> Vectors:
        """The part of `x` outside: x - U U^T x."""
        return _on_columns(lambda c: bases.reject(self.basis, c), x)

    def coordinates(self, x: Vectors) -> Coordinates:
        """U^T x."""
        return _on_columns(lambda c: bases.coordinates(self.basis, c), x)

    def lift(self, c: Coordinates) -> Vectors:
        """U c, the vector with coordinates `c`."""
        return _on_columns(lambda column: bases.lift(self.basis, column), c)

    def energy(
        self, m: Float[Tensor, "*batch m n"], side: Side = "output"
    ) -> Float[Tensor, "*batch"]:
        """Share of the squared norm of `m` inside the subspace, in `[0, 1]`.

        Args:
            m: A matrix whose columns (`side="output"`) or rows (`side="input"`) live here.
            side: Which side of `m` the subspace belongs to.
        """
        return svd.captured_energy(m, self.basis, "left" if side == "output" else "right")

    def angles(self, other: "Subspace") -> Float[Tensor, "*batch k"]:
        """Principal angles to `other` in radians, smallest first, `min(r, s)` of them."""
        return bases.principal_angles(self.basis, other.basis)

    def distance(self, other: "Subspace", metric: Metric = "chordal") -> Float[Tensor, "*batch"]:
        """Distance to a subspace of the same rank."""
        return bases.distance(self.basis, other.basis, metric=metric)

    def union(self, other: "Subspace", *, tolerance: float = 1e-6) -> "Subspace":
        """The span of both. Directions of `other` within `tolerance` of this one add nothing."""
        self._check_single(other, "union")
        return Subspace(bases.union(self.basis, other.basis, tolerance=tolerance))

    def intersection(self, other: "Subspace", *, max_angle: float = 1e-6) -> "Subspace | None":
        """The directions that both share up to `max_angle` radians, or None if there are none."""
        self._check_single(other, "intersection")
        basis = bases.intersection(self.basis, other.basis, max_angle=max_angle)
        return Subspace(basis) if basis.shape[-1] else None

    def __invert__(self) -> "Complement":
        return Complement(self)

    def _check_single(self, other: "Subspace", verb: str) -> None:
        if self.batch or other.batch:
            raise ValueError(
                f"{verb} takes single subspaces, got batches {self.batch} and {other.batch}: the "
                "ranks may differ from one to the next. Index the bases and call it for each."
            )


@dataclass(frozen=True, eq=False)
class Complement:
    """Everything orthogonal to `subspace`, without a basis of its own; made by `~subspace`."""

    subspace: Subspace

    @property
    def dim(self) -> int:
        """d, the dimension of the space around."""
        return self.subspace.dim

    @property
    def rank(self) -> int:
        """Dimension of the complement: d - r."""
        return self.subspace.dim - self.subspace.rank

    def project(self, x: Vectors) -> Vectors:
        """The part of `x` outside the subspace."""
        return self.subspace.reject(x)

    def reject(self, x: Vectors) -> Vectors:
        """The part of `x` inside the subspace."""
        return self.subspace.project(x)

    def materialize(self) -> Subspace:
        """The complement as a `Subspace`: builds the d x (d - r) basis.

        Raises:
            ValueError: If the subspace is the whole space.
        """
        return Subspace(bases.complement(self.subspace.basis))

    def __invert__(self) -> Subspace:
        return self.subspace


def energy_rank(
    energies: Float[Tensor, "*batch k"],
    energy: float,
    total: Float[Tensor, "*batch"] | None = None,
) -> int:
    """The fewest leading entries that hold a share of the total.

    With leading axes the largest of the ranks, so that every row keeps at least its share.

    Args:
        energies: Non-negative, largest first (squared singular values, eigenvalues).
        energy: Share in `(0, 1]`. At 1, what is below rounding does not count.
        total: What the shares are of, where `energies` are not all of them.

    Raises:
        ValueError: If `energy` is out of range, or the energies are all zero or not finite.
    """
    check_energy(energy)
    energies = energies.detach().double().clamp(min=0)
    total = (energies.sum(-1) if total is None else total.detach().double()).unsqueeze(-1)
    if not torch.isfinite(total).all() or not (total > 0).any():
        raise ValueError(
            "the energy rule needs finite values that are not all zero, got a total of "
            f"{total.max().item():.3g}."
        )
    # A share that a partial sum reaches exactly must not be missed by one rounding error.
    reached = energies.cumsum(-1) >= energy * total * (1 - 1e-12)
    ranks = reached.int().argmax(-1) + 1
    return int(torch.where(total.squeeze(-1) > 0, ranks, 0).max())


def check_energy(energy: float) -> None:
    """Raise unless `energy` is a share in `(0, 1]`."""
    if isinstance(energy, bool) or not isinstance(energy, (int, float)) or not 0 < energy <= 1:
        raise ValueError(f"energy must be a share in (0, 1], got {energy!r}.")


def _on_columns(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return act(x.unsqueeze(-1)).squeeze(-1) if x.ndim == 1 else act(x)

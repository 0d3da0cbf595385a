"""Uncentred second moments X^T X, summed as the data streams by, and their leading directions."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spanwise.linalg._arrays import peak_sign
from spanwise.linalg.svd import truncated_svd
from spanwise.subspace import Subspace, energy_rank

MAX_DIM = 16384
"""Widest side whose n x n moments are accumulated: 1 GiB in float32."""
WIDE_DIM = 1536
"""Up to here sums run in float64; above, in float32, and sketches look for the basis first."""
NARROW_DIM = 256
"""Up to here float32 bases are decomposed in float64 too, which costs nothing."""


def moment_bytes(dim: int, batch: int = 1) -> int:
    """What the moments of one side hold in memory while data streams by."""
    return batch * dim * dim * (8 if dim <= WIDE_DIM else 4)


def check_dim(name: str, dim: int) -> None:
    """Refuse a side whose moments would not fit."""
    if dim > MAX_DIM:
        raise ValueError(
            f"{name}: its activations are {dim} wide and the {dim} x {dim} moments would take "
            f"{moment_bytes(dim) / 2**30:.1f} GiB; the limit is {MAX_DIM}. Leave it out with "
            "exclude=, or record its other side."
        )


@dataclass(eq=False)
class Moments:
    """The sums that a basis is taken from.

    Products are formed in float32 (float64 for float64 rows); the sum runs in float64 for
    narrow sides, so that it does not depend on how the data was cut into batches.
    """

    total: Float[Tensor, "*batch n n"]
    sum: Float[Tensor, "*batch n"]
    count: Int[Tensor, "*batch"]

    @classmethod
    def zeros(
        cls, dim: int, *, batch: tuple[int, ...] = (), like: Tensor, device: torch.device | None
    ) -> "Moments":
        """Empty sums for rows of width `dim` such as `like`."""
        device = like.device if device is None else device
        # MPS has no float64.
        wide = like.dtype == torch.float64 or (dim <= WIDE_DIM and device.type != "mps")
        dtype = torch.float64 if wide else torch.float32
        return cls(
            torch.zeros(*batch, dim, dim, dtype=dtype, device=device),
            torch.zeros(*batch, dim, dtype=dtype, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def add_rows(self, rows: Float[Tensor, "k n"], expert: int | None = None) -> None:
        """Count `k` samples (for one expert)."""
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.float()
        at = () if expert is None else (expert,)
        self.total[at] += (rows.mT @ rows).to(self.total)
        self.sum[at] += rows.sum(0).to(self.sum)
        self.count[at] += rows.shape[0]

    def add(self, other: "Moments") -> None:
        """Merge the sums of other data."""
        self.total += other.total
        self.sum += other.sum
        self.count += other.count

    def copy(self) -> "Moments":
        """Independent sums of the same data."""
        return Moments(self.total.clone(), self.sum.clone(), self.count.clone())


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How many directions to keep of some moments, and how."""

    energy: float
    rank: int | None = None
    """Overrides `energy`."""
    center: bool = False
    dtype: torch.dtype = torch.float32
    """Of the basis."""

    def metadata(self) -> dict[str, str]:
        """As an atlas records it."""
        size = {"energy": str(self.energy)} if self.rank is None else {"rank": str(self.rank)}
        return {**size, "centered": str(self.center).lower()}


@dataclass(frozen=True)
class Leading:
    """The leading directions of some moments, or why there are none."""

    subspace: Subspace | None
    kept: float = 0.0
    """Share of the energy that the subspace holds; the least over experts."""
    reason: str = ""
    empty: tuple[int, ...] = field(default=())
    """Experts that saw nothing: their basis is arbitrary."""


def leading(moments: Moments, keep: Keep) -> Leading:
    """The subspace that holds `keep.energy` of the moments, or the leading directions."""
    count = moments.count.clamp(min=1).to(moments.total.dtype)
    matrix = moments.total / count[..., None, None]
    mean = moments.sum / count[..., None]
    if keep.center:
        matrix = matrix - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    if not torch.isfinite(matrix).all():
        return Leading(None, reason="its activations are not finite")
    energies, vectors, total = _eigen((matrix + matrix.mT) / 2, keep)
    available = int((energies > 0).sum(-1).max())
    if available == 0:
        return Leading(None, reason="its activations are all zero")
    if keep.rank is None:
        kept = energy_rank(energies, keep.energy, total)
    else:
        kept = min(keep.rank, available)
    share = energies[..., :kept].sum(-1) / torch.where(total > 0, total, 1)
    basis = vectors[..., :kept] * peak_sign(vectors[..., :kept])
    return Leading(
        Subspace(
            basis.to(keep.dtype).contiguous(),
            energies[..., :kept].sqrt().to(keep.dtype),
            mean.to(keep.dtype) if keep.center else None,
        ),
        kept=float(torch.where(total > 0, share, 1).min()),
        empty=tuple(torch.nonzero(total.reshape(-1) == 0).flatten().tolist()) if total.ndim else (),
    )


def _eigen(
    matrix: Float[Tensor, "*batch n n"], keep: Keep
) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch n k"], Float[Tensor, "*batch"]]:
    """Leading energies, largest first, their directions, and the total energy.

    At least as many as `keep` asks for; those below rounding are zero.
    """
    n = matrix.shape[-1]
    if n > WIDE_DIM:
        total = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
        rank = keep.rank or min(256, n // 8)
        # A few sketches cost less than one full decomposition, as long as they stay thin.
        while rank <= n // 8:
            vectors, energies, _ = truncated_svd(matrix, rank, method="randomized")
            if keep.rank or (energies.sum(-1) >= keep.energy * total).all():
                return _above_rounding(energies, matrix), vectors, total
            rank *= 2
    if n > NARROW_DIM and keep.dtype == torch.float32:
        matrix = matrix.float()
    energies, vectors = torch.linalg.eigh(matrix)
    energies = _above_rounding(energies.flip(-1), matrix)
    return energies, vectors.flip(-1), energies.sum(-1)


def _above_rounding(
    energies: Float[Tensor, "*batch k"], matrix: Float[Tensor, "*batch n n"]
) -> Float[Tensor, "*batch k"]:
    """Zero for what is below rounding of the largest: no direction of the data."""
    floor = torch.finfo(matrix.dtype).eps * matrix.shape[-1] * energies[..., :1].clamp(min=0)
    return torch.where(energies > floor, energies, 0)

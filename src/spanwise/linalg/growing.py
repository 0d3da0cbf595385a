"""A basis that takes in, batch after batch, the directions it lacks."""

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg._arrays import largest_entry, matrix
from spanwise.linalg.bases import outside, project, reject
from spanwise.linalg.svd import truncated_svd


class GrowingBasis:
    """An orthonormal basis that grows until it holds a share of the energy of what it is shown.

    Args:
        d: Ambient dimension.
        energy: Share of the squared norm of each batch to hold, in `(0, 1]`.
        max_rank: Columns at most; None means d.

    Attributes:
        basis: The basis so far, `(d, r)`; the first columns never change.

    Raises:
        ValueError: If `energy` or `max_rank` is out of range.

    Example:
        >>> growing = GrowingBasis(64, energy=0.95)
        >>> growing.append(activations_of_task_one)  # columns
        12

    Sources:
        Saha, Garg and Roy, "Gradient projection memory for continual learning", 2021, eq. 9.
    """

    def __init__(self, d: int, *, energy: float = 0.95, max_rank: int | None = None) -> None:
        if not 0 < energy <= 1:
            raise ValueError(f"energy must be a share in (0, 1], got {energy}.")
        if max_rank is not None and not 1 <= max_rank <= d:
            raise ValueError(f"max_rank must be between 1 and d = {d}, got {max_rank}.")
        self.energy = energy
        self.max_rank = d if max_rank is None else max_rank
        self.basis: Float[Tensor, "d r"] = torch.empty(d, 0)

    def append(self, samples: Float[Tensor, "d n"]) -> int:
        """Add the fewest directions that make the basis hold `energy` of `samples`.

        Args:
            samples: Columns; they decide dtype and device at the first call.

        Returns:
            How many columns were added, 0 if the basis holds enough already.

        Raises:
            ValueError: If `samples` is not `(d, n)` or not finite.
        """
        d, r = self.basis.shape
        samples = matrix("samples", samples)
        if samples.ndim != 2 or samples.shape[0] != d:
            raise ValueError(
                f"samples must be columns of shape ({d}, n), got {tuple(samples.shape)}. "
                "Transpose rows with .mT."
            )
        peak = largest_entry("samples", samples)
        if not samples.numel() or not float(peak):
            return 0
        basis = self.basis.to(samples) if r else samples.new_empty(d, 0)
        samples = samples / peak
        total = samples.double().square().sum()
        held = project(basis, samples).double().square().sum()
        room = min(self.max_rank - r, samples.shape[1])
        # Rounding of the total must not ask for directions of noise.
        lack = self.energy * total - held - torch.finfo(samples.dtype).eps * total
        if lack <= 0 or room <= 0:
            return 0
        rest = reject(basis, samples)
        new, values, _ = truncated_svd(rest, min(rest.shape), method="exact")
        reached = values.double().square().cumsum(0) >= lack
        count = int(reached.int().argmax()) + 1 if bool(reached.any()) else len(values)
        count = min(count, room)
        self.basis = torch.cat([basis, outside(new[:, :count], basis)], dim=-1)
        return count

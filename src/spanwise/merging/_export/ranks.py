"""How many directions each matrix gets: all alike, or where a byte holds most energy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Energies = Sequence[Tensor]
"""For each matrix its squared singular values, largest first, in float64."""

BUDGETS = ("rank", "budget_rank", "parameters", "megabytes", "energy")
"""The ways to say how large a LoRA may be; exactly one is chosen."""

DEFAULT_RANK = 16


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How large a LoRA may be: one of the first five; if none is given, `budget_rank` 16.

    Args:
        rank: The same rank everywhere, less only where a matrix has fewer directions.
        budget_rank: The parameters that this rank would take everywhere, spent where they hold
            most energy.
        parameters: So many, spent likewise.
        megabytes: So many (10^6 bytes) of tensors, spent likewise.
        energy: As few parameters as hold this share of the difference's squared Frobenius norm,
            in (0, 1]; of what a LoRA can hold.
        max_rank: No matrix gets more, whatever the budget.

    Raises:
        ValueError: If two are given, or one is out of its range.
    """

    rank: int | None = None
    budget_rank: int | None = None
    parameters: int | None = None
    megabytes: float | None = None
    energy: float | None = None
    max_rank: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{given[0]} and {given[1]} both say how large the LoRA may be: give one of "
                f"{', '.join(BUDGETS)}."
            )
        for name in ("rank", "budget_rank", "parameters", "max_rank"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, got {value!r}.")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.megabytes is not None and not 0 < self.megabytes < math.inf:
            raise ValueError(f"megabytes must be positive, got {self.megabytes}.")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(
                f"energy is a share of the difference and must be in (0, 1], got {self.energy}: "
                "0.95 for 95 %."
            )

    def check(self, dims: Sequence[tuple[int, int]], itemsize: int) -> None:
        """Raise `ValueError` before anything is read, if no matrix can have such a rank.

        Args:
            dims: m and n of every matrix.
            itemsize: Bytes of a parameter.
        """
        widest = max(min(pair) for pair in dims)
        for name in ("rank", "budget_rank"):
            value = getattr(self, name)
            if value is not None and value > widest:
                raise ValueError(
                    f"{name} = {value} exceeds min(m, n) = {widest} of the largest matrix: rank "
                    f"{widest} already holds everything. Lower it, or ask for energy=1."
                )
        cheapest = min(sum(pair) for pair in dims)
        if self._given is not None and self._given(itemsize) < cheapest:
            total = self._given(itemsize)
            raise ValueError(
                f"a budget of {total} parameters ({total * itemsize / 1e6:.3g} MB) is below the "
                f"{cheapest} that one direction of the smallest matrix takes: raise it."
            )

    def most(self, dims: Sequence[tuple[int, int]], itemsize: int) -> int:
        """How many directions of a matrix are worth a sketch: eight times the mean rank."""
        if self.rank is not None or self.max_rank is not None:
            return min(r for r in (self.rank, self.max_rank) if r is not None)
        if self.energy is not None:
            return 256
        if self.shared_rank is not None:
            return 8 * self.shared_rank
        assert self._given is not None
        return 8 * math.ceil(self._given(itemsize) / sum(m + n for m, n in dims))

    def choose(
        self, energies: Energies, costs: Sequence[int], itemsize: int, total: float
    ) -> list[int]:
        """The rank of every matrix.

        Args:
            energies: Of each matrix; what counts as zero is zero.
            costs: Parameters that one more rank takes, m + n for each matrix.
            itemsize: Bytes of a parameter.
            total: Energy of all matrices, directions that were not looked at included.
        """
        held = [e if self.max_rank is None else e[: self.max_rank] for e in energies]
        if self.rank is not None:
            return uniform_ranks(held, self.rank)
        if self.energy is not None:
            return ranks_for_energy(held, costs, self.energy * total)
        if self._given is not None:
            return greedy_ranks(held, costs, self._given(itemsize))
        assert self.shared_rank is not None
        alike = uniform_ranks(energies, self.shared_rank)
        return greedy_ranks(
            held, costs, sum(cost * rank for cost, rank in zip(costs, alike, strict=True))
        )

    @property
    def shared_rank(self) -> int | None:
        """The rank whose bytes are shared out; None for other budgets."""
        others = ("rank", "parameters", "megabytes", "energy")
        if any(getattr(self, name) is not None for name in others):
            return None
        return DEFAULT_RANK if self.budget_rank is None else self.budget_rank

    @property
    def _given(self) -> Callable[[int], int] | None:
        """Parameters that were asked for in so many words, given the bytes of one."""
        if self.parameters is not None:
            parameters = self.parameters
            return lambda itemsize: parameters
        if self.megabytes is not None:
            megabytes = self.megabytes
            return lambda itemsize: int(megabytes * 1e6) // itemsize
        return None


def uniform_ranks(energies: Energies, rank: int) -> list[int]:
    """`rank` everywhere, or as many directions as are not zero."""
    return [min(rank, int((e > 0).sum())) for e in energies]


def greedy_ranks(energies: Energies, costs: Sequence[int], budget: float) -> list[int]:
    """The ranks that hold most energy, direction by direction, dearest energy per byte first.

    Direction k of matrix i holds s_ik^2 and takes c_i. Within a matrix c_i is constant and s_ik^2
    falls, so taking all directions in the order of s_ik^2 / c_i takes the leading ones of each
    matrix: what is taken is a choice of ranks, and truncated SVDs are the best matrices of these
    ranks (Eckart and Young). Let l be the ratio of the last one taken before one does not fit, r
    the ranks then and b(r) what they take. Any other ranks r' lack directions of ratio >= l and
    have others of ratio <= l, so energy(r) - energy(r') >= l (b(r) - b(r')): **no ranks of as many
    bytes or fewer hold more energy**, and none within the budget hold more by l times what is left
    of it, which is less than one direction. What is left is filled with the next that fit.

    Args:
        energies: Squared singular values of each matrix, largest first.
        costs: What one direction of each takes.
        budget: What all may take together, in the same unit.

    Returns:
        A rank for each matrix; directions of no energy are never taken.
    """
    gains, prices, owners = _ordered(energies, costs)
    over = (prices.cumsum(0) > budget).nonzero()
    first = int(over[0]) if len(over) else len(gains)
    ranks = torch.bincount(owners[:first], minlength=len(costs)).tolist()
    left = budget - float(prices[:first].sum())
    # One that does not fit never will, nor will the later ones of its matrix: still prefixes.
    while len(rest := (prices[first:] <= left).nonzero()):
        first += int(rest[0])
        ranks[int(owners[first])] += 1
        left -= float(prices[first])
        first += 1
    return ranks


def ranks_for_energy(energies: Energies, costs: Sequence[int], energy: float) -> list[int]:
    """The ranks that hold `energy` in few bytes: in the same order, until there is enough.

    By the argument of `greedy_ranks` no ranks that take less than these without their last
    direction hold as much as those: the bytes are the fewest there are, but for that direction.

    Args:
        energies: Squared singular values of each matrix, largest first.
        costs: What one direction of each takes.
        energy: What shall be held; more than there is takes everything.
    """
    gains, _, owners = _ordered(energies, costs)
    # Rounding of sums must not ask for the last direction of every matrix.
    enough = (gains.cumsum(0) >= energy * (1 - 1e-12)).nonzero()
    count = int(enough[0]) + 1 if len(enough) else len(owners)
    return torch.bincount(owners[:count], minlength=len(costs)).tolist()


def kept(energies: Energies, ranks: Sequence[int]) -> float:
    """The energy that these ranks hold."""
    return sum(float(e[:r].sum()) for e, r in zip(energies, ranks, strict=True))


def _ordered(energies: Energies, costs: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Energy, price and matrix of every direction that has energy, most energy per byte first."""
    empty = torch.zeros(0, dtype=torch.float64)
    counts = torch.tensor([len(e) for e in energies], dtype=torch.int64)
    owners = torch.repeat_interleave(torch.arange(len(energies)), counts)
    gains = torch.cat([empty, *(e.double().cpu() for e in energies)])
    prices = torch.tensor(costs, dtype=torch.float64)[owners]
    # Stable: equal directions of one matrix stay in their order.
    order = torch.sort(gains / prices, descending=True, stable=True).indices
    order = order[gains[order] > 0]
    return gains[order], prices[order], owners[order]

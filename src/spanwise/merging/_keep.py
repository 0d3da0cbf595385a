"""What `avoid` and `within` leave of an update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from spanwise.atlas import Atlas, Entry
from spanwise.layouts import matrix_view

Keep = Callable[[Tensor], Tensor]
"""Projects an update of one tensor; it returns a tensor of its own."""


@dataclass
class Keeper:
    """Projects the updates of a merge, and counts what it takes away.

    `avoid` promises that outputs along its output entries and responses to inputs in its input
    entries stay those of the base; `within` the same of everything else of the maps it speaks of.
    As with the guard of training, a map's bias obeys its output entry, and an input entry freezes
    it, since a bias answers to every input.

    Args:
        avoid: Directions that must not change.
        within: The only directions that may.
        shape_of: The shape of a tensor by name; None if there is none of that name.
    """

    avoid: Atlas | None
    within: Atlas | None
    shape_of: Callable[[str], Sequence[int] | None]
    removed: dict[str, list[float]] = field(default_factory=dict)
    """Name -> [energy taken away, energy before], summed over the models' updates."""

    def __post_init__(self) -> None:
        self._biases: dict[str, list[Entry]] = {}
        for atlas in self._atlases:
            for entry in atlas:
                for name in entry.bias_names(self.shape_of):
                    self._biases.setdefault(name, []).append(entry)

    def of(self, name: str, *, counted: bool = True) -> Keep | None:
        """What projects updates of one tensor; None if neither atlas speaks of it.

        Args:
            name: The tensor.
            counted: Whether what is taken away counts. What a merge makes of updates that were
                projected before does not: it would dilute the share.
        """
        entries = [e for atlas in self._atlases for e in atlas.get(name).values()]
        bias = not entries
        entries = entries or self._biases.get(name, [])
        if not entries:
            return None

        def keep(update: Tensor) -> Tensor:
            kept = _held_bias(update, entries, self._avoids) if bias else update
            for entry in () if bias else entries:
                kept = _project(kept, entry, self._avoids(entry))
            if counted:
                counts = self.removed.setdefault(name, [0.0, 0.0])
                counts[0] += float((update - kept).double().square().sum())
                counts[1] += float(update.double().square().sum())
            return kept

        return keep

    @property
    def _atlases(self) -> list[Atlas]:
        return [atlas for atlas in (self.avoid, self.within) if atlas is not None]

    def _avoids(self, entry: Entry) -> bool:
        return self.avoid is not None and self.avoid.get(entry.name).get(entry.side) is entry


def _held_bias(update: Tensor, entries: Sequence[Entry], avoids: Callable[[Entry], bool]) -> Tensor:
    if any(entry.side == "input" for entry in entries):
        return update.new_zeros(update.shape)
    column = update.unsqueeze(-1)
    for entry in entries:
        column = _outputs(column, entry, avoids(entry))
    return column.squeeze(-1)


def _project(update: Tensor, entry: Entry, avoid: bool) -> Tensor:
    kept = update.clone()
    x = matrix_view(kept, entry.layout)
    if entry.side == "output":
        x.copy_(_outputs(x, entry, avoid))
    else:
        x.copy_(_outputs(x.mT, entry, avoid).mT)
    return kept


def _outputs(x: Tensor, entry: Entry, avoid: bool) -> Tensor:
    """The columns of `x` without the entry's directions, or with nothing else."""
    u = entry.subspace.basis.to(x.device, x.dtype)
    inside = u @ (u.mT @ x)
    return x - inside if avoid else inside

"""What `avoid` and `within` leave of an update."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from spanwise.atlas import Atlas, Entry
from spanwise.layouts import matrix_view


@dataclass
class Keeper:
    """Projects the updates of a merge, and counts what it takes away.

    `avoid` promises that outputs along its output entries and responses to inputs in its input
    entries stay those of the base; `within` that nothing else changes.
    """

    avoid: Atlas | None = None
    within: Atlas | None = None
    removed: dict[str, list[float]] = field(default_factory=dict)
    """Name -> [energy taken away, energy before], summed over the updates."""

    def of(self, name: str) -> Callable[[Tensor], Tensor] | None:
        """What projects updates of one tensor; None if neither atlas speaks of it."""
        steps = [
            (entry, atlas is self.avoid)
            for atlas in (self.avoid, self.within)
            if atlas is not None
            for entry in atlas.get(name).values()
        ]
        if not steps:
            return None

        def keep(update: Tensor) -> Tensor:
            before = float(update.double().square().sum())
            kept = update
            for entry, avoid in steps:
                kept = _project(kept, entry, avoid)
            counts = self.removed.setdefault(name, [0.0, 0.0])
            counts[0] += float((update - kept).double().square().sum())
            counts[1] += before
            return kept

        return keep


def _project(update: Tensor, entry: Entry, avoid: bool) -> Tensor:
    kept = update.clone()
    x = matrix_view(kept, entry.layout)
    u = entry.subspace.basis.to(x.device, x.dtype)
    inside = u @ (u.mT @ x) if entry.side == "output" else (x @ u) @ u.mT
    x.copy_(x - inside if avoid else inside)
    return kept

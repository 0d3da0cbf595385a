"""Which maps a source looks at, and what it keeps of them."""

from collections.abc import Sequence

from torch import nn

from spanwise.atlas._entry import Entry
from spanwise.layouts import LinearMap, Side, linear_maps
from spanwise.subspace import Subspace, check_energy


def chosen_maps(
    model: nn.Module,
    include: Sequence[str] | None,
    exclude: Sequence[str],
    *,
    embeddings: bool = False,
) -> list[LinearMap]:
    """The linear maps whose names match, LoRA factors aside (they take their base's entry).

    Raises:
        ValueError: If none matches.
    """
    found = [m for m in linear_maps(model, embeddings=embeddings) if ".lora_" not in m.name]
    chosen = [m for m in found if wanted(m.name, include, exclude)]
    if not chosen:
        known = ", ".join(m.name for m in found[:4]) or "none"
        raise ValueError(
            f"no linear map is left with include = {include}, exclude = {tuple(exclude)}; the "
            f"model has {len(found)}: {known}{', ...' if len(found) > 4 else ''}."
        )
    return chosen


def wanted(name: str, include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    """Whether a parameter's name contains a part of `include` and none of `exclude`."""
    for option, given in (("include", include), ("exclude", exclude)):
        if isinstance(given, str):
            raise TypeError(f"{option} takes a sequence of name parts, got {given!r}: [{given!r}].")
    asked = include is None or any(part in name for part in include)
    return asked and not any(part in name for part in exclude)


def check_sides(sides: Sequence[Side]) -> tuple[Side, ...]:
    """`sides` without repetitions, or an error that says what it may hold."""
    if isinstance(sides, str) or not sides or not set(sides) <= {"output", "input"}:
        raise ValueError(f'sides must be a sequence of "output" and "input", got {sides!r}.')
    return tuple(side for side in ("output", "input") if side in sides)


def check_size(energy: float, rank: int | None) -> None:
    """Raise unless `energy` is a share and `rank` a positive integer or None."""
    check_energy(energy)
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be a positive integer or None, got {rank!r}.")


def entry_of(found: LinearMap, side: Side, subspace: Subspace) -> Entry:
    """The entry that holds `subspace` for one side of a map."""
    return Entry(
        name=found.name,
        side=side,
        subspace=subspace,
        layout=found.layout,
        shape=found.shape,
        aliases=found.aliases,
        bias=found.bias,
    )

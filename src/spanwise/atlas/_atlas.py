"""The Atlas type: entries by parameter name and side, and the set algebra on them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spanwise.atlas import _algebra
from spanwise.atlas._entry import Entry, Key, lora_entry
from spanwise.atlas._weights import Weights
from spanwise.layouts import Side, strip_prefixes
from spanwise.lora import LORA_FACTOR
from spanwise.subspace import Subspace

if TYPE_CHECKING:
    from spanwise.atlas._compare import AtlasComparison
    from spanwise.atlas._share import UpdateShare


class Atlas:
    """The named subspaces of a model.

    Entries whose layers read the same activation hold the same `Subspace` object: it is counted
    and stored once.

    Args:
        entries: One `Entry` for each side of each parameter.
        metadata: Strings about where the entries come from; `source` and `base` (the digest of
            the weights that they belong to, see `weights_digest`) have a meaning here.

    Raises:
        ValueError: If two entries claim the same side of the same parameter.
    """

    def __init__(
        self, entries: Iterable[Entry] = (), metadata: Mapping[str, str] | None = None
    ) -> None:
        self.entries: dict[Key, Entry] = {}
        self.metadata: dict[str, str] = dict(metadata or {})
        self.skipped: dict[str, str] = {}
        """Maps that a source could not describe, with the reason; not stored in the file."""
        self._canonical: dict[str, str] = {}
        for entry in entries:
            for name in (entry.name, *entry.aliases):
                if self._canonical.setdefault(name, entry.name) != entry.name:
                    raise ValueError(f"{name} is claimed by two entries of the atlas.")
            if entry.key in self.entries:
                raise ValueError(f"the atlas has two entries for {entry.name}, {entry.side} side.")
            self.entries[entry.key] = entry

    # -- Reading ------------------------------------------------------------------------------

    def get(self, name: str) -> dict[Side, Entry]:
        """The entries of a parameter by side; empty if the atlas does not know it.

        Wrappers' prefixes are stripped and tied names resolved. The two factors of a LoRA
        update W + s B A take what W has: A its input side, B its output side; the shape of such
        an entry is -1 where the adapter's rank would stand.
        """
        name = strip_prefixes(name)
        canonical = self._canonical.get(name)
        if canonical is not None:
            return {
                side: self.entries[canonical, side]
                for side in ("output", "input")
                if (canonical, side) in self.entries
            }
        factor = LORA_FACTOR.fullmatch(name)
        if factor is None:
            return {}
        side: Side = "input" if factor["factor"] == "A" else "output"
        whole = self.get(f"{factor['module']}.weight").get(side)
        return {} if whole is None else {side: lora_entry(whole, name)}

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.get(name))

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that have an entry, in order."""
        return tuple(dict.fromkeys(name for name, _ in self.entries))

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that occur."""
        held = {side for _, side in self.entries}
        return tuple(side for side in ("output", "input") if side in held)

    @property
    def subspaces(self) -> tuple[Subspace, ...]:
        """The distinct subspaces; entries that share one count once."""
        return tuple({id(entry.subspace): entry.subspace for entry in self}.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors held, shared ones once."""
        return sum(
            t.nbytes for s in self.subspaces for t in (s.basis, s.values, s.mean) if t is not None
        )

    def __repr__(self) -> str:
        ranks = [s.rank for s in self.subspaces]
        span = f"rank {min(ranks)} to {max(ranks)}, " if ranks else ""
        return (
            f"Atlas({len(self)} entries on {len(self.names)} parameters, {len(ranks)} bases, "
            f"{span}sides {'/'.join(self.sides) or 'none'}, {self.nbytes / 1e6:.1f} MB)"
        )

    # -- Algebra ------------------------------------------------------------------------------

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Atlas":
        """The same on another device or in another dtype."""
        return self.map(lambda subspace: subspace.to(device, dtype))

    def map(self, change: Callable[[Subspace], Subspace]) -> "Atlas":
        """The same entries with every distinct subspace changed once."""
        changed = {id(subspace): change(subspace) for subspace in self.subspaces}
        return type(self)(
            (replace(entry, subspace=changed[id(entry.subspace)]) for entry in self), self.metadata
        )

    def select(self, keep: Callable[[Entry], bool]) -> "Atlas":
        """The entries that `keep` says yes to."""
        return type(self)(filter(keep, self), self.metadata)

    def union(self, other: "Atlas", *, tolerance: float = 1e-6) -> "Atlas":
        """What either holds: entry by entry, the span of both.

        Raises:
            ValueError: If the two describe one parameter with different shapes or layouts.
        """
        return _algebra.union(self, other, tolerance)

    def intersection(self, other: "Atlas", *, max_angle: float = 1e-6) -> "Atlas":
        """What both hold, up to `max_angle` radians; entries that share nothing drop out.

        Raises:
            ValueError: If the two describe one parameter with different shapes or layouts.
        """
        return _algebra.intersection(self, other, max_angle)

    def random_like(self, seed: int = 0) -> "Atlas":
        """Random subspaces of the same names, sides and ranks: the control for every claim."""
        return _algebra.random_like(self, seed)

    def compare(self, other: "Atlas", *, draws: int = 4, seed: int = 0) -> "AtlasComparison":
        """Angles and overlaps, entry by entry, beside random subspaces of the same rank."""
        from spanwise.atlas._compare import compare

        return compare(self, other, draws=draws, seed=seed)

    def update_share(self, base: Weights, tuned: Weights) -> "UpdateShare":
        """How much of the update `tuned - base` lies inside the atlas, tensor by tensor."""
        from spanwise.atlas._share import update_share

        return update_share(self, base, tuned)

    # -- File ---------------------------------------------------------------------------------

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write the atlas as one safetensors file, whole or not at all.

        Args:
            path: The file, "know.atlas.safetensors".
            dtype: Store the bases in this dtype; `torch.bfloat16` halves the file, and loading
                makes them orthonormal again (principal angles move by about 2e-3).
        """
        from spanwise.atlas._storage import save

        return save(self, Path(path), dtype)

    @classmethod
    def load(cls, path: str | Path, base: Weights | None = None) -> "Atlas":
        """Read an atlas.

        Args:
            path: A file that `save` wrote.
            base: The model (or its state dict, file, folder or digest) that the atlas must
                belong to.

        Raises:
            CorruptFileError: If the file is truncated or any of its bits changed.
            ValueError: If it is no atlas, has an unknown version, or belongs to another base.
        """
        from spanwise.atlas._storage import load

        return load(Path(path), base)

    def check_base(self, base: Weights) -> None:
        """Raise `ValueError` unless the atlas was made from these weights."""
        from spanwise.atlas._storage import check_base

        check_base(self, base)

    # -- Sources ------------------------------------------------------------------------------

    @classmethod
    def from_activations(
        cls,
        model: nn.Module,
        data: Iterable[Any],
        *,
        energy: float = 0.8,
        rank: int | None = None,
        sides: Sequence[Side] = ("input",),
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = ("lm_head",),
        embeddings: bool = False,
        center: bool = False,
        device: torch.device | str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> "Atlas":
        """The directions that a model's activations use on `data`; see `record_activations`."""
        from spanwise.atlas._activations import record_activations

        return record_activations(
            model,
            data,
            energy=energy,
            rank=rank,
            sides=sides,
            include=include,
            exclude=exclude,
            embeddings=embeddings,
            center=center,
            device=device,
            progress=progress,
        )

    @classmethod
    def from_delta(
        cls,
        base: Weights,
        finetuned: Weights,
        *,
        energy: float = 0.8,
        rank: int | None = None,
        sides: Sequence[Side] = ("output", "input"),
        model: nn.Module | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = ("lm_head",),
    ) -> "Atlas":
        """The directions that a fine-tuning wrote; see `delta_atlas`."""
        from spanwise.atlas._delta import delta_atlas

        return delta_atlas(
            base,
            finetuned,
            energy=energy,
            rank=rank,
            sides=sides,
            model=model,
            include=include,
            exclude=exclude,
        )

    @classmethod
    def from_gradients(
        cls,
        model: nn.Module,
        data: Iterable[Any],
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        *,
        energy: float = 0.8,
        rank: int | None = None,
        sides: Sequence[Side] = ("output", "input"),
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = ("lm_head",),
        progress: Callable[[int], None] | None = None,
    ) -> "Atlas":
        """The directions along which a loss would move the maps; see `gradient_atlas`."""
        from spanwise.atlas._gradients import gradient_atlas

        return gradient_atlas(
            model,
            data,
            loss,
            energy=energy,
            rank=rank,
            sides=sides,
            include=include,
            exclude=exclude,
            progress=progress,
        )

    @classmethod
    def from_adapter(
        cls,
        adapter: str | Path | Mapping[str, Tensor],
        *,
        sides: Sequence[Side] = ("output", "input"),
        model: nn.Module | None = None,
    ) -> "Atlas":
        """The directions that a LoRA adapter reads and writes; see `adapter_atlas`."""
        from spanwise.atlas._adapter import adapter_atlas

        return adapter_atlas(adapter, sides=sides, model=model)

    @classmethod
    def from_optimizer(
        cls,
        optimizer: torch.optim.Optimizer | Mapping[str, Any],
        model: nn.Module | None = None,
    ) -> "Atlas":
        """The subspaces that a projected optimizer works in now; see `optimizer_atlas`."""
        from spanwise.atlas._optimizer import optimizer_atlas

        return optimizer_atlas(optimizer, model)

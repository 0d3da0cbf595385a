"""What statistics are collected of a model: its tensors, their maps, and the bytes of the sums."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn

from spanwise.atlas._moments import MAX_DIM, moment_bytes
from spanwise.atlas._select import wanted
from spanwise.layouts import Layout, LinearMap, linear_maps, strip_prefixes
from spanwise.merging._stats import BLOCK_FISHER, DIAG_FISHER, GRADIENT_GRAM, GRAM

COLLECTED = ("gram", "kfac", "diag_fisher")
KNOWN = (*COLLECTED, BLOCK_FISHER)
STORED = 4
"""Bytes of a number in a file."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Tensors, and what is summed of each."""

    kinds: frozenset[str]
    singly: bool
    """Whether each tensor has its own gradient, from one backward pass an example."""
    tensors: Mapping[str, nn.Parameter]
    maps: tuple[LinearMap, ...]
    """Linear maps whose Gram matrices (and Fisher diagonals, unless `singly`) are summed."""
    layouts: Mapping[str, Layout]
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Name -> why a tensor has fewer statistics than were asked for."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        kinds: Sequence[str] = COLLECTED,
        modules: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        *,
        others: bool = True,
    ) -> "Chosen":
        """From the options of `collect_stats`; weights may lie on the meta device.

        Raises:
            ValueError: If a kind is unknown, weights are quantised, or nothing is left.
        """
        if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KNOWN):
            raise ValueError(f"kinds must be some of {', '.join(KNOWN)}, got {kinds!r}.")
        if {BLOCK_FISHER, DIAG_FISHER} <= set(kinds) and not others:
            raise ValueError(
                "block_fisher looks at one example at a time: leave others on, or diag_fisher out."
            )
        tensors = _tensors(model, modules, exclude)
        if set(kinds) == {BLOCK_FISHER}:
            tensors = {name: p for name, p in tensors.items() if is_vector(p.shape)}
        maps: list[LinearMap] = []
        skipped: dict[str, str] = {}
        for found in linear_maps(model):
            if found.name not in tensors:
                continue
            if found.kind not in ("linear", "conv1d"):
                skipped[found.name] = f"Gram matrices of a {found.kind} layer are not summed"
            elif found.inputs > MAX_DIM:
                skipped[found.name] = f"its input is wider than {MAX_DIM}"
            else:
                maps.append(found)
                if "kfac" in kinds and not _has_gradient_gram(found):
                    skipped[f"{found.name}::{GRADIENT_GRAM}"] = "vocabulary by vocabulary"
        singly = BLOCK_FISHER in kinds or (DIAG_FISHER in kinds and others)
        if not maps and not (singly and tensors):
            names = [found.name for found in linear_maps(model)][:3]
            raise ValueError(
                f"no linear map is left with modules = {modules}, exclude = {tuple(exclude)}: "
                f"the model's begin with {', '.join(names) or 'none at all'}."
            )
        layouts = {m.name: m.layout for m in linear_maps(model, embeddings=True)}
        return cls(
            kinds=frozenset(kinds), singly=singly, tensors=tensors, maps=tuple(maps),
            layouts=layouts, skipped=skipped,
        )  # fmt: skip

    @property
    def gram(self) -> bool:
        """Whether inputs are looked at."""
        return bool({"gram", "kfac"} & self.kinds)

    @property
    def diagonal(self) -> bool:
        """Whether gradients are squared."""
        return DIAG_FISHER in self.kinds

    @property
    def needs_loss(self) -> bool:
        """Whether there is a backward pass."""
        return bool({"kfac", DIAG_FISHER, BLOCK_FISHER} & self.kinds)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What must be part of the graph while data is seen."""
        if not self.needs_loss:
            return []
        return list(self.tensors.values()) if self.singly else [m.parameter for m in self.maps]

    def kinds_of(self, found: LinearMap) -> tuple[str, ...]:
        """The Gram matrices of a map."""
        both = "kfac" in self.kinds and _has_gradient_gram(found)
        return (*([GRAM] if self.gram else []), *([GRADIENT_GRAM] if both else []))

    @cached_property
    def units(self) -> dict[str, tuple[str, ...]]:
        """Tensors that are looked at together: a map and its bias, or each by itself."""
        if self.singly:
            return {name: (name,) for name in self.tensors}
        own = {m.name: m.bias for m in self.maps}
        return {n: (n,) if b not in self.tensors else (n, b) for n, b in own.items()}

    def part(self, units: Sequence[str]) -> "Chosen":
        """Some of the units, and nothing else."""
        names = {name for unit in units for name in self.units[unit]}
        return replace(
            self,
            tensors={n: p for n, p in self.tensors.items() if n in names},
            maps=tuple(m for m in self.maps if m.name in names),
            skipped={},
        )

    def stored(self, unit: str) -> dict[str, int]:
        """Kind -> bytes in a file."""
        found: dict[str, int] = {}
        for kind, n in self._sides(unit):
            found[kind] = n * (n + 1) // 2 * STORED
        if self.diagonal:
            numbers = sum(math.prod(self.tensors[name].shape) for name in self.units[unit])
            found[DIAG_FISHER] = numbers * STORED
        if self.has_block(unit):
            n = self.tensors[unit].numel()
            found[BLOCK_FISHER] = n * (n + 1) // 2 * STORED
        return found

    def held(self, unit: str) -> int:
        """Bytes of a unit's sums in memory at most, while they are summed and packed."""
        # A backward pass keeps activations, and with them their products, until it is done.
        waiting = 2 if self.needs_loss else 1
        sums = sum(int((waiting + 0.5) * moment_bytes(n)) for _, n in self._sides(unit))
        block = 2 * moment_bytes(self.tensors[unit].numel()) if self.has_block(unit) else 0
        return sums + block + 2 * self.stored(unit).get(DIAG_FISHER, 0)

    def has_block(self, name: str) -> bool:
        """Whether outer products of a tensor's gradients are summed: of vectors only."""
        return BLOCK_FISHER in self.kinds and is_vector(self.tensors[name].shape)

    def _sides(self, unit: str) -> list[tuple[str, int]]:
        """(Kind, width) of every Gram matrix of a unit."""
        found = self._by_name.get(unit)
        if found is None:
            return []
        widths = {GRAM: found.inputs, GRADIENT_GRAM: found.outputs}
        return [(kind, widths[kind]) for kind in self.kinds_of(found)]

    @cached_property
    def _by_name(self) -> dict[str, LinearMap]:
        return {m.name: m for m in self.maps}


def is_vector(shape: Sequence[int]) -> bool:
    """Whether all numbers lie along one axis, and are few enough for a matrix of their pairs."""
    count = math.prod(shape)
    return 0 < count <= MAX_DIM and count == max(shape, default=0)


def _has_gradient_gram(found: LinearMap) -> bool:
    return "lm_head" not in found.name and found.outputs <= MAX_DIM


def _tensors(
    model: nn.Module, modules: Sequence[str] | None, exclude: Sequence[str]
) -> dict[str, nn.Parameter]:
    """Parameters by canonical name, without a LoRA's factors and the copies PEFT keeps."""
    found: dict[str, nn.Parameter] = {}
    for full, parameter in model.named_parameters():
        name = strip_prefixes(full)
        if ".lora_" in name or ".original_module." in name or not wanted(name, modules, exclude):
            continue
        if not parameter.is_floating_point() or hasattr(parameter, "quant_state"):
            raise ValueError(
                f"{name!r} is quantised ({parameter.dtype}): load the model in floating point, "
                "because what is merged are its weights."
            )
        found[name] = parameter
    return found

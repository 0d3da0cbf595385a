"""From atlases and names to the constraint of every parameter of an optimizer."""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spanwise.atlas import Atlas, Entry
from spanwise.layouts import Side, is_transposed, stored_matrix, strip_prefixes
from spanwise.lora import LORA_FACTOR
from spanwise.optim._guard.constraint import (
    BiasRule,
    Constraint,
    Moved,
    SideConstraint,
    weight_constraint,
)
from spanwise.optim._sharding.shard import Shard, gathered, own_part
from spanwise.optim._sharding.sharded import spread_constraint

_LORA_SUFFIX = re.compile(r"\.lora_[AB](\.[^.]+)?\.weight$")


@dataclass
class Constraints:
    """Which parameters are held to what, by name.

    Names, not identities: a copied or unpickled optimizer stays guarded.
    """

    by_name: dict[str, Constraint] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    """Weights that an atlas knows and this optimizer does not train: frozen, or left out."""
    _moved: Moved = field(default_factory=dict, repr=False)

    def get(self, name: str, like: Tensor) -> Constraint | None:
        """The constraint of parameter `name`, moved to `like`'s device and precision once."""
        if not self.by_name:  # asked several times for every tensor of a step
            return None
        name = strip_prefixes(name)
        constraint = self.by_name.get(name)
        if constraint is None:
            return None
        if not constraint.fits(like):
            constraint = constraint.to(like, self._moved)
            if (shard := Shard.of(like)) is not None:
                constraint = spread_constraint(constraint, shard)
            self.by_name[name] = constraint
        return constraint

    def __len__(self) -> int:
        return len(self.by_name)

    @classmethod
    def resolve(
        cls,
        named: Iterable[tuple[str, Tensor]],
        avoid: Atlas | None,
        within: Atlas | None,
        *,
        bias: BiasRule = "freeze",
    ) -> "Constraints":
        """Match the entries of `avoid` and `within` to parameters by name.

        Args:
            named: The optimizer's parameters with their names.
            avoid: Directions that updates must keep out of.
            within: Directions that updates must stay in.
            bias: What an input entry does to the bias of its map. `"freeze"` (default) keeps
                responses to the protected inputs exactly; `"allow"` lets all outputs shift.

        Raises:
            ValueError: If an atlas matches no parameter, an entry does not fit the parameter
                of its name, or a guarded map has trainable parts that cannot be held.
        """
        self = cls()
        if avoid is None and within is None:
            return self
        if bias not in ("freeze", "allow"):
            raise ValueError(f'bias must be "freeze" or "allow", got {bias!r}.')
        table = {strip_prefixes(name): p for name, p in named}
        matched = {"avoid": 0, "within": 0}
        for name, p in table.items():
            found: dict[str, dict[Side, Entry]] = {}
            for word, atlas in (("avoid", avoid), ("within", within)):
                found[word] = {} if atlas is None else atlas.get(name)
                matched[word] += len(found[word])
                for entry in found[word].values():
                    _check_fit(name, p, entry, word)
            if any(found.values()):
                self._add(name, p, found)
        for word, hits in self._add_biases(table, avoid, within, bias).items():
            matched[word] += hits
        _check_parts(table, self.by_name, avoid, within)
        trained = {strip_prefixes(_LORA_SUFFIX.sub(".weight", name)) for name in table}
        known = dict.fromkeys(n for a in (avoid, within) if a is not None for n in a.names)
        self.idle = [name for name in known if name not in trained]
        for word, atlas in (("avoid", avoid), ("within", within)):
            if atlas is not None and not matched[word]:
                raise ValueError(_no_match(word, atlas, list(table)))
        if self.frozen:
            warnings.warn(
                f"{len(self.frozen)} parameters have no free direction left and stay frozen, "
                f"the first: {self.frozen[0]}. A lower energy or rank in the atlas frees them.",
                stacklevel=5,
            )
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in table.values()):
            warnings.warn(
                "half-precision weights round every write, which leaks a few per cent of the "
                "update into the guarded directions over a few hundred steps; train a float32 "
                "master copy for the full guarantee.",
                stacklevel=5,
            )
        return self

    def _add(
        self,
        name: str,
        p: Tensor,
        found: dict[str, dict[Side, Entry]],
    ) -> None:
        entry = next(iter((found["avoid"] or found["within"]).values()))
        bases = _bases(found)
        lora = _lora_factor(name)
        if lora is not None:
            keep: Side = "input" if lora == "A" else "output"
            bases = {w: {s: b for s, b in d.items() if s == keep} for w, d in bases.items()}
            if not any(bases.values()):
                return
            constraint = weight_constraint("linear", bases["avoid"], bases["within"])
            _check_lora_start(name, p, constraint)
        else:
            constraint = weight_constraint(entry.layout, bases["avoid"], bases["within"])
        self.by_name[name] = constraint
        if constraint.frozen:
            self.frozen.append(name)

    def _add_biases(
        self, table: dict[str, Tensor], avoid: Atlas | None, within: Atlas | None, bias: BiasRule
    ) -> dict[str, int]:
        """Hold the biases of all maps, also of those whose weight itself does not train."""
        matched = {"avoid": 0, "within": 0}

        def shape_of(name: str) -> tuple[int, ...] | None:
            return tuple(table[name].shape) if name in table else None

        for name in dict.fromkeys(n for a in (avoid, within) if a is not None for n in a.names):
            found: dict[str, dict[Side, Entry]] = {
                word: {} if atlas is None else atlas.get(name)
                for word, atlas in (("avoid", avoid), ("within", within))
            }
            entries = [e for held in found.values() for e in held.values()]
            names = dict.fromkeys(n for e in entries for n in e.bias_names(shape_of))
            if not names:
                continue
            bases = _bases(found)
            of_map = weight_constraint(entries[0].layout, bases["avoid"], bases["within"])
            frozen = "input" in of_map.sides and bias == "freeze"
            vector = of_map.columns if is_transposed(of_map.layout) else of_map.rows
            vector = vector if "output" in of_map.sides else None
            for bias_name in names if frozen or vector is not None else ():
                self.by_name[bias_name] = Constraint(
                    "linear", vector=vector, frozen=frozen, sides=("output",)
                )
                for word in matched:
                    matched[word] += bool(found[word])
        return matched


def _bases(found: dict[str, dict[Side, Entry]]) -> dict[str, dict[Side, Tensor]]:
    return {
        word: {side: e.subspace.basis for side, e in entries.items()}
        for word, entries in found.items()
    }


def _check_parts(
    table: dict[str, Tensor],
    held: dict[str, Constraint],
    avoid: Atlas | None,
    within: Atlas | None,
) -> None:
    """Refuse what changes a guarded map by another way than its weight, its bias or LoRA."""
    atlases = [a for a in (avoid, within) if a is not None]
    maps = {n for a in atlases for e in a for n in (e.name, *e.aliases)}
    for name in table:
        if name in held or name in maps or _lora_factor(name):
            continue
        parts = name.split(".")
        modules = (".".join(parts[:i]) for i in range(1, len(parts)))
        on = next((m for m in modules if f"{m}.weight" in maps), None)
        if on is not None and name != f"{on}.bias":
            raise ValueError(
                f"{name} changes the map of {on}.weight, which the atlas covers, in a way that "
                "cannot be held (DoRA's magnitudes, adapters other than LoRA, parametrized "
                "weights). Freeze it with requires_grad_(False), or leave the map out with "
                "atlas.select(...)."
            )


def _lora_factor(name: str) -> str | None:
    found = LORA_FACTOR.fullmatch(name)
    return None if found is None else found["factor"]


def _check_lora_start(name: str, p: Tensor, constraint: Constraint) -> None:
    """W + s B A obeys only if A itself does: B carries whatever A already reads."""
    p = gathered(p)
    with torch.no_grad():
        inside = float(constraint.to(p).inside(p)) if bool(p.any()) else 0.0
    if inside > 1e-3:
        raise ValueError(
            f"LoRA factor {name} starts with {inside:.0%} of its norm in the forbidden directions; "
            "call spanwise.optim.project_lora_(model, avoid=..., within=...) with the same atlases "
            "on the fresh adapter (B = 0) first."
        )


def _check_fit(name: str, p: Tensor, entry: Entry, word: str) -> None:
    if _lora_factor(name) is not None:
        return
    if tuple(entry.shape) != tuple(p.shape):
        raise ValueError(
            f"{word}: the atlas has {name} with shape {tuple(entry.shape)}, the model has "
            f"{tuple(p.shape)}. It was made from another model; extract one from this model."
        )
    stored_matrix(p.detach(), entry.layout)
    basis = entry.subspace.basis
    lengths = basis.detach().to(torch.promote_types(basis.dtype, torch.float32)).norm(dim=-2)
    if not bool(((lengths - 1).abs() < 1e-2).all()):
        raise ValueError(
            f"{word}: the basis of {name}, {entry.side} side, has columns that are not of length "
            "1, so it projects nothing. Make it with Subspace.from_matrix or linalg.orthonormalize."
        )


def _no_match(word: str, atlas: Atlas, names: list[str]) -> str:
    first = next(iter(atlas)).name if len(atlas) else "nothing"
    shown = names[0] if names else "none"
    return (
        f"{word}: none of the atlas's {len(atlas)} entries (the first: {first}) matches a "
        f"trainable parameter of this optimizer (the first: {shown}). Names must agree after "
        "stripping module., _orig_mod. and base_model.model.; give named parameters "
        "(model.named_parameters() or spanwise.optim.param_groups)."
    )


@torch.no_grad()
def project_lora_(
    model: torch.nn.Module, avoid: Atlas | None = None, within: Atlas | None = None
) -> int:
    """Project every fresh LoRA factor A of `model` off `avoid`'s input directions, in place.

    With `within`, into that atlas's input directions.

    With B = 0 the model's function does not change. Returns the number of factors projected.

    Raises:
        ValueError: If a factor B is no longer zero, so that projecting would change the model.
    """
    parameters = {strip_prefixes(n): p for n, p in model.named_parameters()}
    count = 0
    for name, a in parameters.items():
        if _lora_factor(name) != "A":
            continue
        found = [None if atlas is None else atlas.get(name) for atlas in (avoid, within)]
        bases = [e["input"].subspace.basis if e and "input" in e else None for e in found]
        side = SideConstraint.build(*bases)
        if side is None:
            continue
        b = parameters.get(name.replace(".lora_A.", ".lora_B."))
        if b is not None and bool(gathered(b).any()):
            raise ValueError(f"{name}: its factor B is not zero; project before training.")
        side, a = side.to(a), own_part(a)
        a.copy_(side.columns(a if a.dtype == torch.float64 else a.float()))
        count += 1
    return count


def merge_names(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module | None
) -> list[tuple[str, Tensor]]:
    """The optimizer's parameters with names, from its own groups or from `model`.

    Raises:
        ValueError: If neither knows the names.
    """
    known: dict[int, str] = {} if model is None else {id(p): n for n, p in model.named_parameters()}
    named: list[tuple[str, Tensor]] = []
    for group in optimizer.param_groups:
        names = group.get("param_names") or [known.get(id(p)) for p in group["params"]]
        named += [(n, p) for n, p in zip(names, group["params"], strict=True) if n is not None]
    if not named:
        raise ValueError(
            "the optimizer's parameters have no names to match an atlas with. Build it from "
            "model.named_parameters() or spanwise.optim.param_groups(model), or pass model=model."
        )
    return named

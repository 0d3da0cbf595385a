"""What of a model a LoRA can hold, and where PEFT looks for it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spanwise.layouts import Layout, guess_layout, linear_maps, map_dims, matrix_view
from spanwise.merging._open import read_config

Kind = Literal["linear", "conv1d", "conv", "embedding"]

PREFIX = "base_model.model."
"""What PEFT puts before every name."""

_LAYOUTS: dict[Kind, Layout] = {
    "linear": "linear", "conv1d": "transposed", "conv": "conv", "embedding": "transposed",
}  # fmt: skip
_EXPANDS = ("c_attn.weight", "c_fc.weight")
"""Maps of GPT-2's kind with more outputs than inputs: wider than tall means transposed."""
_CONV1D = (*_EXPANDS, "c_proj.weight", "q_attn.weight")
_TABLES = ("embed", "wte", "wpe", "shared.weight")
_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""Kinds of models whose fused kernels read `out_proj` without calling it: PEFT refuses it."""
_UNCALLED = "the model reads its weight without calling it, and PEFT's factors would not be heard"


@dataclass(frozen=True)
class Target:
    """A matrix that a LoRA can change."""

    name: str
    """As the checkpoint stores it."""
    kind: Kind
    shape: tuple[int, ...]
    """As it is stored."""
    head: str | None = None
    """The output head that holds the same tensor."""

    @property
    def module(self) -> str:
        """The module that PEFT wraps."""
        return self.name.rpartition(".")[0]

    @property
    def layout(self) -> Layout:
        """How the map is stored."""
        return _LAYOUTS[self.kind]

    @property
    def dims(self) -> tuple[int, int]:
        """Outputs m and inputs n; of a table its width and its rows."""
        return map_dims(self.shape, self.layout)[1:]

    @property
    def cost(self) -> int:
        """Parameters that one rank takes; of a tied table twice, once for its head."""
        return sum(self.dims) * (1 if self.head is None else 2)

    def matrix(self, stored: Tensor) -> Tensor:
        """The map (m, n) of a stored tensor, a view."""
        return matrix_view(stored, self.layout)

    def tensors(
        self, a: Float[Tensor, "r n"], b: Float[Tensor, "m r"]
    ) -> dict[str, Float[Tensor, "..."]]:
        """PEFT's names of the factors, and the factors in its shapes.

        A tied head gets the table's factors once more, turned round, as PEFT itself saves them.
        """
        start = f"{PREFIX}{self.module}.lora_"
        if self.kind == "embedding":
            found = {f"{start}embedding_A": a, f"{start}embedding_B": b}
            if self.head is not None:
                head = f"{PREFIX}{self.head}.lora_"
                found |= {f"{head}A.weight": b.mT, f"{head}B.weight": a.mT}
            return found
        if self.kind == "conv":
            kernel = self.shape[2:]
            a = a.unflatten(1, self.shape[1:])
            b = b.unflatten(1, (-1, *(1 for _ in kernel)))
        return {f"{start}A.weight": a, f"{start}B.weight": b}

    def shapes(self, rank: int) -> dict[str, tuple[int, ...]]:
        """PEFT's names of the factors, and their shapes."""
        m, n = self.dims
        empty = torch.empty(rank, n, device="meta"), torch.empty(m, rank, device="meta")
        return {name: tuple(x.shape) for name, x in self.tensors(*empty).items()}

    @property
    def modules(self) -> list[str]:
        """The modules that PEFT gives factors."""
        return [self.module] if self.head is None else [self.module, self.head]


@dataclass(frozen=True)
class Structure:
    """Which tensor of a checkpoint is which part of the model.

    Attributes:
        kinds: Name -> kind, of everything that PEFT can give factors to.
        aliases: Another name of a tied tensor -> the name that counts.
        modules: Names of all modules; empty where only tensors are known.
        refused: Name -> why factors cannot change it, for maps of other kinds.
        note: Why the architecture was not looked at, if it was not.
    """

    kinds: Mapping[str, Kind]
    aliases: Mapping[str, str] = field(default_factory=dict)
    modules: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None

    def target(self, name: str, shape: Sequence[int]) -> Target | None:
        """The matrix that a stored tensor is; None if factors cannot change it."""
        kind = self.kinds.get(name)
        if kind is None or math.prod(shape) == 0:
            return None
        head = next((a for a, own in self.aliases.items() if own == name), None)
        return Target(name, kind, tuple(shape), head and head.rpartition(".")[0])


def structure_of(
    shapes: Mapping[str, tuple[int, ...]], model: nn.Module | None, folder: Path | None
) -> Structure:
    """What is known of a model: from the module, its configuration, or the names alone.

    Args:
        shapes: Of every tensor of the base.
        model: The model, if it is at hand; a meta device will do.
        folder: A transformers folder, whose architecture is built without weights.
    """
    note = None
    if model is None and folder is not None:
        model, note = built(folder)
    if model is not None:
        return _of_module(model)
    return _of_names(shapes, read_config(folder), note)


def _of_module(model: nn.Module) -> Structure:
    kinds: dict[str, Kind] = {}
    aliases: dict[str, str] = {}
    refused: dict[str, str] = {}
    mamba = getattr(getattr(model, "config", None), "model_type", None) in _MAMBA
    fused = [n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    for found in linear_maps(model, embeddings=True):
        module = found.name.rpartition(".")[0]
        aliases |= dict.fromkeys(found.aliases, found.name)
        head = len(found.others) == 1 and isinstance(found.others[0], nn.Linear)
        if found.kind == "experts":
            refused[found.name] = "stacked experts, which are no module of their own"
        elif found.aliases and not (found.kind == "embedding" and head):
            refused[found.name] = "several modules share it, and PEFT would change one"
        elif (mamba and _is_fused(module)) or module.rpartition(".")[0] in fused:
            refused[found.name] = _UNCALLED
        elif found.name.rpartition(".")[2] == "weight":
            kinds[found.name] = found.kind
    modules = frozenset(name for name, _ in model.named_modules() if name)
    return Structure(kinds, aliases, modules, refused)


def _of_names(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], note: str | None
) -> Structure:
    wide = [shape for name, shape in shapes.items() if name.endswith(_EXPANDS)]
    conv1d = bool(wide) and all(len(s) == 2 and s[0] < s[1] for s in wide)
    kinds: dict[str, Kind] = {}
    refused: dict[str, str] = {}
    mamba = config.get("model_type") in _MAMBA
    for name, shape in shapes.items():
        if len(shape) != 2 or not name.endswith("weight"):
            continue
        if guess_layout(name, shape) is None or any(part in name for part in _TABLES):
            kinds[name] = "embedding"
        elif mamba and _is_fused(name.rpartition(".")[0]):
            refused[name] = _UNCALLED
        elif "expert" not in name and "router" not in name:
            kinds[name] = "conv1d" if conv1d and name.endswith(_CONV1D) else "linear"
    aliases = {}
    if config.get("tie_word_embeddings"):
        tables = [n for n, kind in kinds.items() if kind == "embedding" and "pos" not in n]
        if tables and "wpe" not in tables[0]:
            aliases["lm_head.weight"] = tables[0]
            kinds.pop("lm_head.weight", None)
    return Structure(kinds, aliases, refused=refused, note=note)


def _is_fused(module: str) -> bool:
    return module.rpartition(".")[2] in ("out_proj", "conv1d")


def built(folder: Path) -> tuple[nn.Module | None, str | None]:
    """The model that a configuration describes, without weights; or why it could not be built."""
    architectures = read_config(folder).get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else None
    if name is None:
        return None, "its config.json names no architecture: layers are told by their names"
    if find_spec("transformers") is None:
        return None, "transformers is not installed: layers are told by their names"
    import transformers
    from transformers.utils import logging

    kind = getattr(transformers, name, None)
    if kind is None:
        return None, f"transformers does not know {name}: layers are told by their names"
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            return kind(transformers.AutoConfig.from_pretrained(folder)), None
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return None, f"{name} could not be built ({reason}): layers are told by their names"
    finally:
        logging.set_verbosity(level)


def anchored(module: str) -> str:
    """A pattern that PEFT matches with this module alone.

    PEFT reads the keys of `rank_pattern` as expressions that may begin at any dot of a name, so
    that a bare `layers.1.up` also speaks of `decoder.layers.1.up` and of `layers-1.up`.
    """
    escaped = "".join(rf"\{c}" if c in r".^$*+?{}[]\|()" else c for c in module)
    return f"^{escaped}"


def confused(modules: Iterable[str], chosen: Iterable[str]) -> list[str]:
    """Modules that PEFT would take for chosen ones, because their names end alike."""
    chosen = set(chosen)
    found = []
    for name in modules:
        parts = name.split(".")
        ends = (".".join(parts[i:]) for i in range(1, len(parts)))
        if name not in chosen and any(end in chosen for end in ends):
            found.append(name)
    return found

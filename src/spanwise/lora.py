"""LoRA adapters as PEFT stores them: W += s B A, read without forming the update."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spanwise.io import open_tensors
from spanwise.layouts import strip_prefixes

LORA_FACTOR = re.compile(r"(?P<module>.*)\.lora_(?P<factor>[AB])(\.[^.]+)?\.weight")
"""The weight of one factor of a LoRA update, with or without the adapter's name."""

EMBEDDING_FACTOR = re.compile(r"(?P<module>.*)\.lora_embedding_(?P<factor>[AB])(\.[^.]+)?")
"""The same for a table of tokens, whose factors PEFT keeps without a module around them."""

_WAYS = {
    "IA3": " To average the vectors themselves, give their tensors as state dicts to "
    "spanwise.merging.merge(None, [safetensors.torch.load_file(FILE), ...], 'linear').",
}
"""Kinds of adapters -> what else can be done with them."""

_OWN_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin (`init_lora_weights`) that PEFT subtracts from the base, now and when it loads."""

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Adapter:
    """The changes that a LoRA adapter makes, by the name of the weight that it changes.

    Args:
        tensors: `lora_A` and `lora_B` weights by PEFT's names.
        config: PEFT's `adapter_config.json`: `lora_alpha`, `use_rslora`, `rank_pattern`,
            `alpha_pattern` and `fan_in_fan_out` are heard; without it the scale is 1.

    Attributes:
        others: Tensors that are no factors of a linear map -> why they are none. PEFT keeps whole
            tensors so (`modules_to_save`, biases); `other` reads them.
        tensors: All of them, factors too, by PEFT's names.
        embeddings: Which of the weights are tables of tokens.

    Raises:
        ValueError: If there are no factors, one lacks its other half, several adapters are mixed,
            the adapter is a DoRA, whose update is no product of its factors, or it was started from
            a base that it changed itself.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
    ) -> None:
        self.config, self.tensors = dict(config or {}), open_tensors(tensors)
        _check_start(self.config, "the adapter")
        self._pairs, self.others, self.embeddings = _pairs(tensors)
        if self.config.get("ensure_weight_tying"):
            # A tied head's factors are the table's once more; its weight is the table's.
            tied = [n for n in self._pairs if any(self._turned(n, e) for e in self.embeddings)]
            self._pairs = {n: pair for n, pair in self._pairs.items() if n not in tied}
        self._fan_in_fan_out = bool(self.config.get("fan_in_fan_out"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, name: object) -> bool:
        return name in self._pairs

    def other(self, key: str, rows: slice | None = None) -> Tensor:
        """One of `others` as it is stored, or some of its rows."""
        if rows is None:
            return self.tensors[key].detach()
        return self.tensors.rows(key, rows.start, rows.stop).detach()

    def is_transposed(self, name: str) -> bool:
        """Whether a weight is stored with its inputs as rows: tables, and `fan_in_fan_out`."""
        return self._fan_in_fan_out or name in self.embeddings

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the weight that is changed, as it is stored."""
        a, b = self._pairs[name]
        if self.is_transposed(name):
            return (a.shape[1], b.shape[0])
        return (b.shape[0], *a.shape[1:])

    def _turned(self, name: str, table: str) -> bool:
        (a, b), (c, d) = self._pairs[name], self._pairs[table]
        alike = a.shape == d.mT.shape and b.shape == c.mT.shape
        return alike and torch.equal(a, d.mT) and torch.equal(b, c.mT)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """A `(r, n, ...)` and B `(m, r, ...)` as they are stored, in float32 or wider."""
        a, b = self._pairs[name]
        return _wide(a), _wide(b)

    def scale(self, name: str) -> float:
        """s: `lora_alpha / r`, or `lora_alpha / sqrt(r)` for rank-stabilised LoRA."""
        if "lora_alpha" not in self.config:
            return 1.0
        rank, module = self._pairs[name][0].shape[0], name.removesuffix(".weight")
        alpha = self.config["lora_alpha"]
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def factors(self, name: str, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """(L, R) with `L @ R` the whole update of the stored matrix, kernels flattened; L holds s.

        L is `(m, r)` and R `(r, n)`; for transposed storage L is `(n, r)` and R `(r, m)`. They
        come in `dtype`, by default in float32 or wider.
        """
        a, b = (x.flatten(1).to(dtype or x.dtype) for x in self.pair(name))
        left, right = (a.mT, b.mT) if self.is_transposed(name) else (b, a)
        return left * self.scale(name), right

    def update(
        self,
        name: str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rows: slice | None = None,
    ) -> Tensor:
        """The update s B A in the shape of the stored weight, or some of its rows."""
        left, right = (x.to(device) for x in self.factors(name, dtype))
        left = left if rows is None else left[rows]
        return (left @ right).reshape(-1, *self.shape(name)[1:])

    def digest(self) -> str:
        """SHA-256 of names, factors, scales and whole tensors, 64 hexadecimal digits."""
        held = {f"{n} {i} {self.scale(n)}": x for n in self for i, x in enumerate(self._pairs[n])}
        return open_tensors({**held, **{key: self.other(key) for key in self.others}}).digest()


def is_adapter(path: str | Path) -> bool:
    """Whether a folder (or file) is what PEFT saves for an adapter."""
    path = Path(path)
    return path.name == FILE or (path / FILE).is_file() or (path / CONFIG).is_file()


def open_adapter(source: str | Path | Mapping[str, Tensor]) -> Adapter:
    """A LoRA adapter from a folder that PEFT saved, its safetensors file, or a state dict.

    Raises:
        ValueError: If it holds no LoRA factors, is an adapter of another kind, or was started from
            a base that it changed itself.
    """
    if isinstance(source, Mapping):
        return Adapter(source)
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    tensors = folder / FILE if path.is_dir() else path
    if not tensors.is_file():
        raise ValueError(
            f"{path} holds no {FILE}; save the adapter with PEFT's save_pretrained (safetensors "
            "is its default)."
        )
    file = folder / CONFIG
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(
            f"{path} is a {kind} adapter; only LORA has factors A, B. Merge it into its model "
            f"(PEFT's merge_and_unload), save that, and give the whole model.{_WAYS.get(kind, '')}"
        )
    _check_start(config, str(path))
    return Adapter(open_tensors(tensors), config)


def _check_start(config: Mapping[str, Any], label: str) -> None:
    """Raise `ValueError` for factors that are no update of the base as it is."""
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_OWN_BASES):
        raise ValueError(
            f"{label} was started by {start}, which takes its first factors out of the base: they "
            "are no update of the base as it is. Save it by PEFT's save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...), or merge it into its model "
            "(merge_and_unload), and give that."
        )


def _pairs(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str], frozenset[str]]:
    """(A, B) by the name of the weight that they change, what was left out, and the tables."""
    found: dict[str, dict[str, Tensor]] = {}
    others: dict[str, str] = {}
    embeddings: set[str] = set()
    for key in tensors:
        match = LORA_FACTOR.fullmatch(strip_prefixes(key))
        if match is None:
            match = EMBEDDING_FACTOR.fullmatch(strip_prefixes(key))
            if match is not None:
                embeddings.add(f"{match['module']}.weight")
        if "lora_magnitude_vector" in key:
            raise ValueError(
                f"{key}: a DoRA adapter rescales whole rows, so its update leaves the spans of its "
                "factors. Merge it into its model first (PEFT's merge_and_unload)."
            )
        if match is None:
            others[key] = "it is no LoRA factor of a linear map"
            continue
        halves = found.setdefault(f"{match['module']}.weight", {})
        if match["factor"] in halves:
            raise ValueError(
                f"{key}: more than one adapter in this state dict; give the factors of one."
            )
        halves[match["factor"]] = tensors[key].detach()
    if not found:
        raise ValueError(
            "no lora_A and lora_B weights among the adapter's tensors: "
            f"{', '.join(list(tensors)[:3]) or 'none at all'}."
        )
    pairs = {name: _checked(name, halves) for name, halves in found.items()}
    return pairs, others, frozenset(embeddings)


def _checked(name: str, halves: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if set(halves) != {"A", "B"}:
        raise ValueError(f"{name}: the adapter has lora_{'/'.join(halves)} without its other half.")
    a, b = halves["A"], halves["B"]
    if a.shape[0] != b.shape[1]:
        raise ValueError(
            f"{name}: lora_A has rank {a.shape[0]} and lora_B {b.shape[1]}; they do not belong "
            "together."
        )
    return a, b


def _wide(tensor: Tensor) -> Tensor:
    wide = tensor.dtype in (torch.float32, torch.float64)
    return tensor if wide else tensor.float()

"""Tensors by canonical name, from a module, a mapping, a file or a folder."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from spanwise.layouts import strip_prefixes

Weights = nn.Module | Mapping[str, Tensor] | str | Path
"""Anything that holds a model's tensors by name: a module, a state dict, a safetensors file or
a folder of them."""


class CanonicalWeights(Mapping[str, Tensor]):
    """Any holder of tensors, read one at a time under names without wrappers' prefixes."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._names: dict[str, str] = {}
        for name in tensors:
            self._names.setdefault(strip_prefixes(name), name)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it where the holder knows."""
        known = getattr(self._tensors, "shape", None)
        stored = self._names[name]
        return tuple(known(stored) if callable(known) else self._tensors[stored].shape)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_weights(source: Weights) -> CanonicalWeights:
    """`source` as a mapping from canonical names to tensors.

    Raises:
        TypeError: If it is none of the kinds that hold weights.
    """
    if isinstance(source, CanonicalWeights):
        return source
    if isinstance(source, nn.Module):
        # Not the state dict: it lists tied weights once for each of their names.
        return CanonicalWeights(dict([*source.named_parameters(), *source.named_buffers()]))
    if isinstance(source, (str, Path)):
        from spanwise.io import open_tensors

        return CanonicalWeights(open_tensors(source))
    if isinstance(source, Mapping):
        return CanonicalWeights(source)
    raise TypeError(
        "weights must be a module, a mapping of tensors, a safetensors file or a folder, got "
        f"{type(source).__name__}."
    )


def weights_digest(source: Weights, names: Mapping[str, Sequence[str]]) -> str:
    """A digest of the named weights that survives a change of storage.

    Values are rounded to bfloat16 first: a float32 copy of a bfloat16 checkpoint, a sharded and
    a single file, a wrapped and a bare model all agree, while training changes it at once.

    Args:
        source: Where the weights are.
        names: The parameters to look at, each with the other names it may go by.

    Returns:
        64 hexadecimal digits (sha256).

    Raises:
        ValueError: If a parameter is missing.
    """
    weights = open_weights(source)
    digest = hashlib.sha256()
    for name in sorted(names):
        stored = next((n for n in (name, *names[name]) if n in weights), None)
        if stored is None:
            raise ValueError(
                f"{name} is not among these weights ({len(weights)} tensors): they belong to "
                "another model. Extract an atlas from this one."
            )
        tensor = weights[stored].detach()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        # In pieces: a copy of an embedding table would double the memory.
        for piece in tensor.reshape(-1).split(2**24):
            rounded = piece.to(device="cpu", dtype=torch.bfloat16).contiguous()
            digest.update(rounded.view(torch.uint8).numpy().data)
    return digest.hexdigest()

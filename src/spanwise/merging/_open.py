"""Models that a merge names: found on disk, opened, and compared before anything is written."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.io import TensorReader
from spanwise.io._reader import PICKLED, ReaderAround
from spanwise.lora import Adapter
from spanwise.merging._parts import LAYER_KEYS
from spanwise.merging._sources import whole_tensors
from spanwise.merging._vocabulary import FILES

_MUST = (
    "model_type", "architectures", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act",
)  # fmt: skip
"""What must be the same in two configurations."""
_SHOULD = ("rope_theta", "rope_parameters", "rope_scaling", "rms_norm_eps", "sliding_window")
"""What should be: the result gets the base's."""


class Applied(ReaderAround):
    """A model with a LoRA adapter added to it; adapted tensors are float32 or wider.

    What the adapter keeps whole replaces the model's.
    """

    def __init__(self, tensors: TensorReader, adapter: Adapter, label: str) -> None:
        super().__init__(tensors)
        self._adapter = adapter
        for name in adapter:
            if name not in tensors or tensors.shape(name) != adapter.shape(name):
                raise ValueError(f"{label}: the adapter's {name!r} does not fit the model.")
        self._whole = whole_tensors(label, adapter, tensors)

    @override
    def __getitem__(self, name: str) -> Tensor:
        whole = self._whole.get(name)
        stored = self._tensors[name] if whole is None else self._adapter.other(whole)
        if name not in self._adapter:
            return stored
        dtype = self.dtype(name)
        return stored.to(dtype) + self._adapter.update(name, dtype)

    @override
    def dtype(self, name: str) -> torch.dtype:
        whole = self._whole.get(name)
        own = (self._tensors if whole is None else self._adapter.tensors).dtype(whole or name)
        return torch.promote_types(own, torch.float32) if name in self._adapter else own

    @override
    def rows(self, name: str, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        if name in self._whole:
            stored = self._adapter.other(self._whole[name], slice(start, stop))
        else:
            stored = self._tensors.rows(name, start, stop, into)
        if name not in self._adapter:
            return stored
        dtype = self.dtype(name)
        return stored.to(dtype) + self._adapter.update(name, dtype, rows=slice(start, stop))


def locate(path: str, revision: str | None = None, beside: Path | None = None) -> Path:
    """The folder or file of a model: as the path says, beside the configuration, or in the cache.

    Args:
        path: A path, or a name on the Hugging Face hub that was downloaded before.
        revision: Of the download.
        beside: Where the configuration lies.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it is a file of another kind.
    """
    plain = Path(path).expanduser()
    for candidate in (plain, *([beside / plain] if beside is not None else [])):
        if candidate.exists():
            _check_kind(candidate, path)
            return candidate
    hint = _nearby(plain)
    if path.count("/") == 1 and not path.startswith((".", "~", "/")):
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(path, revision=revision, local_files_only=True))
        except (ImportError, OSError, ValueError):
            if "did you mean" not in hint:
                hint = f" nor in the hub's cache: hf download {path}"
    raise FileNotFoundError(2, f"No model there{hint}", path)


def _check_kind(place: Path, path: str) -> None:
    """Raise `ValueError` for a file that cannot hold a model's weights."""
    known = (".safetensors", ".safetensors.index.json")
    if place.is_file() and place.suffix not in PICKLED and not place.name.endswith(known):
        raise ValueError(
            f"{path} is a file, but no .safetensors: name a model's folder, or its .safetensors "
            "file."
        )


def _nearby(path: Path) -> str:
    """What lies beside a misspelt name, as the end of a sentence."""
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    names = [p.name for p in folder.iterdir() if p.is_dir() or p.suffix == ".safetensors"]
    near = get_close_matches(path.name, names, n=1)
    return f": did you mean {folder / near[0]}?" if near else ""


def read_config(folder: Path | None, name: str = "config.json") -> dict[str, Any]:
    """A JSON file of a model's folder; empty if there is none.

    Raises:
        ValueError: If it is damaged.
    """
    if folder is None or not (folder / name).is_file():
        return {}
    try:
        held = json.loads((folder / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / name} is damaged: {error}") from error
    return held if isinstance(held, dict) else {}


def other_base(config: Mapping[str, Any], path: str | Path) -> str | None:
    """The base that an adapter says it was trained on, if it does not look like this one.

    Folders are renamed and copied: the last part of a name is all that can tell.

    Args:
        config: The adapter's.
        path: The base that it is added to.
    """
    said = str(config.get("base_model_name_or_path") or "")
    same = ("", Path(path).expanduser().name.lower())
    return None if Path(said).name.lower() in same else said


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a configuration says of its language model: its own part for models of several."""
    inner = config.get("text_config")
    nested = isinstance(inner, Mapping) and not any(key in config for key in LAYER_KEYS)
    return inner if nested and isinstance(inner, Mapping) else config


def check_configs(
    configs: Sequence[tuple[str, Mapping[str, Any]]], *, sliced: bool = False
) -> list[str]:
    """Compare configurations with the first one.

    Args:
        configs: (Name, configuration); those without a configuration are passed over.
        sliced: Whether layers are taken from anywhere, so that their number does not matter.

    Returns:
        What differs without forbidding a merge.

    Raises:
        ValueError: If two models are not of one architecture.
    """
    held = [(name, text_part(config), config) for name, config in configs if config]
    notes = []
    for name, part, config in held[1:]:
        first, root, whole = held[0]
        layers = () if sliced else LAYER_KEYS
        for key in (*_MUST, *layers):
            a, b = (whole, config) if key in ("model_type", "architectures") else (root, part)
            if key in a and key in b and a[key] != b[key]:
                raise ValueError(
                    f"{name} and {first} are not the same architecture: {key} is {b[key]!r} in "
                    f"{name} and {a[key]!r} in {first}. Merge copies of one model."
                )
        for key in _SHOULD:
            if root.get(key) != part.get(key):
                notes.append(
                    f"{key} is {part.get(key)!r} in {name} and {root.get(key)!r} in {first}, "
                    "which the merged model gets"
                )
    return notes


def check_tokens(
    models: Sequence[tuple[str, Mapping[str, int] | None]], rows: int, remedy: str
) -> list[str]:
    """Compare tokenizers with the first one, where no vocabulary was asked for.

    Args:
        models: (Name, token -> id or None without a tokenizer).
        rows: Rows of the embeddings.
        remedy: What to do where they differ, a sentence.

    Returns:
        What differs without spoiling a merge.

    Raises:
        ValueError: If a row means one token in one model and another in the other.
    """
    known = [(name, ids) for name, ids in models if ids is not None]
    notes = []
    if known and models[0][1] is None:
        notes.append(f"{models[0][0]} has no tokenizer: the result gets that of {known[0][0]}")
    for name, ids in known[1:]:
        first, root = known[0]
        token_of = {number: token for token, number in root.items()}
        other = [(t, i) for t, i in ids.items() if i < rows and token_of.get(i, t) != t]
        if other:
            token, number = other[0]
            raise ValueError(
                f"the tokenizers of {name} and {first} differ in {len(other)} tokens: row {number} "
                f"is {token!r} in {name} and {token_of[number]!r} in {first}. {remedy}"
            )
        more = [token for token in ids if token not in root]
        if more:
            notes.append(
                f"{name} has {len(more)} tokens that {first} lacks, {more[0]!r} first, and the "
                "result gets the tokenizer of "
                f"{first}: tokenizer {name!r} or 'union' would keep them"
            )
    return notes


def check_rows(configs: Sequence[tuple[str, Mapping[str, Any]]], remedy: str) -> None:
    """Raise `ValueError` if vocabularies are of different sizes, by the configurations.

    Args:
        configs: (Name, configuration); those without a size are passed over.
        remedy: What to do, a sentence.
    """
    sizes = [(n, text_part(c).get("vocab_size")) for n, c in configs]
    known = [(name, size) for name, size in sizes if isinstance(size, int)]
    for name, size in known[1:]:
        first, own = known[0]
        if size != own:
            raise ValueError(
                f"{name} has a vocabulary of {size} tokens, {first} one of {own}. {remedy}"
            )


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in a folder."""
    return any((folder / name).is_file() for name in FILES)

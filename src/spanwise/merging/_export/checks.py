"""Whether a model's folder will load: what other programs would find out, found out before."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spanwise.errors import CorruptFileError
from spanwise.io import TensorReader, open_tensors
from spanwise.merging._export.targets import built
from spanwise.merging._open import has_tokenizer, read_config, text_part
from spanwise.merging._vocabulary import read_ids, tables

_SERVED = (torch.float32, torch.bfloat16, torch.float16)
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Checked:
    """What a folder holds, and what is wrong with it.

    Attributes:
        folder: The folder.
        architecture: The class that its configuration names; None without one.
        dtype: Of most of its numbers, such as `"bfloat16"`.
        tensors: How many.
        nbytes: Of all of them.
        problems: Why it would not load, or not do what it should; none is what one wants.
        notes: What is worth knowing and forbids nothing.
    """

    folder: Path
    architecture: str | None
    dtype: str | None
    tensors: int
    nbytes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def check_model(
    folder: str | Path,
    *,
    values: bool = True,
    watch: Callable[[int, int], None] | None = None,
) -> Checked:
    """Look a transformers folder over, before a server or a converter does.

    Looked at are: `config.json` and its `architectures`; a quantiser's configuration that was left
    behind; every file of the index, to its last byte; names and shapes beside the architecture's,
    if transformers is installed; the dtype; the tokenizer, and its ids beside the rows of the
    tables of tokens; and, unless `values` is False, whether every number is finite.

    Args:
        folder: What `save_pretrained` or `spanwise merge` wrote.
        values: Whether all tensors are read, one at a time.
        watch: Told how many tensors are read, and of how many.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(2, "No such folder", str(folder))
    problems: list[str] = []
    notes: list[str] = []
    config = _config(folder, problems)
    tensors = _weights(folder, problems, notes)
    if tensors is None:
        return Checked(folder, _architecture(config), None, 0, 0, tuple(problems), tuple(notes))
    dtype = _dtypes(tensors, config, problems, notes)
    _names(folder, config, tensors, problems, notes)
    _vocabulary(folder, config, tensors, problems, notes)
    if values:
        _values(tensors, problems, watch)
    return Checked(
        folder, _architecture(config), dtype, len(tensors), tensors.nbytes, tuple(problems),
        tuple(notes),
    )  # fmt: skip


def _config(folder: Path, problems: list[str]) -> dict[str, Any]:
    try:
        config = read_config(folder)
    except ValueError as error:
        problems.append(str(error))
        return {}
    if not config:
        problems.append("config.json is missing: copy the base's")
        return {}
    if _architecture(config) is None:
        problems.append(
            'config.json names no architectures: add the class, such as ["LlamaForCausalLM"]'
        )
    if config.get("quantization_config"):
        method = config["quantization_config"]
        name = method.get("quant_method", "a quantiser") if isinstance(method, dict) else method
        problems.append(
            f"config.json still has the quantization_config of {name}: servers would read these "
            "weights as quantised. Delete it"
        )
    return config


def _weights(folder: Path, problems: list[str], notes: list[str]) -> TensorReader | None:
    try:
        found = open_tensors(folder)
    except (CorruptFileError, ValueError) as error:
        problems.append(str(error).rstrip("."))
        return None
    except FileNotFoundError as error:
        problems.append(f"{error.filename}: {error.strerror}")
        return None
    files = {path.name for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if not (folder / "model.safetensors").is_file() and index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        extra = sorted(files - named)
    else:
        extra = sorted(files - {"model.safetensors"})
    if extra:
        notes.append(f"{extra[0]} ({len(extra)} such files) belongs to no index: vLLM may read it")
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        notes.append(f"{pickled[0]} lies beside the safetensors: delete what is old")
    return found


def _dtypes(
    tensors: TensorReader, config: Mapping[str, Any], problems: list[str], notes: list[str]
) -> str | None:
    sizes: dict[torch.dtype, int] = {}
    for name in tensors:
        dtype = tensors.dtype(name)
        if dtype.is_floating_point:
            sizes[dtype] = sizes.get(dtype, 0) + math.prod(tensors.shape(name))
    if not sizes:
        problems.append("no tensor holds floating-point numbers: are these quantised weights?")
        return None
    most = max(sizes, key=lambda d: sizes[d])
    name = str(most).removeprefix("torch.")
    if most not in _SERVED:
        problems.append(
            f"the weights are {name}, which vLLM and llama.cpp do not read: write them with "
            "--dtype bfloat16"
        )
    said = config.get("dtype", config.get("torch_dtype"))
    if said is not None and str(said).removeprefix("torch.") != name:
        notes.append(f"config.json says {said}, most weights are {name}: they are cast when loaded")
    elif len(sizes) > 1:
        rest = ", ".join(str(d).removeprefix("torch.") for d in sizes if d != most)
        notes.append(f"most weights are {name}, some {rest}")
    return name


def _names(
    folder: Path,
    config: Mapping[str, Any],
    tensors: TensorReader,
    problems: list[str],
    notes: list[str],
) -> None:
    """Compare with the architecture's own tensors."""
    if _architecture(config) is None:
        return
    model, reason = built(folder)
    if model is None:
        notes.append(f"names and shapes were not compared: {reason}")
        return
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    optional = set(getattr(model, "all_tied_weights_keys", None) or ())
    unknown = [name for name in tensors if name not in expected]
    missing = [name for name in expected if name not in tensors and name not in optional]
    if missing and unknown:
        # transformers renames and stacks some tensors as it loads them.
        notes.append(
            f"names differ from {_architecture(config)}'s in memory ({missing[0]!r} there, "
            f"{unknown[0]!r} here): load it once to be sure"
        )
        return
    if missing:
        problems.append(
            f"{missing[0]!r} ({len(missing)} such tensors) is missing: it would be drawn at random"
        )
    elif unknown:
        notes.append(f"{unknown[0]!r} ({len(unknown)} such tensors) would be left unread")
    for name, shape in expected.items():
        if name in tensors and tensors.shape(name) != shape:
            problems.append(
                f"{name!r} has shape {tensors.shape(name)}, its configuration asks for {shape}"
            )
            return


def _vocabulary(
    folder: Path,
    config: Mapping[str, Any],
    tensors: TensorReader,
    problems: list[str],
    notes: list[str],
) -> None:
    part = text_part(config)
    rows = part.get("vocab_size")
    if isinstance(rows, int) and not tables(tensors, rows):
        held = sorted({tensors.shape(n)[0] for n in tensors if "embed" in n or "lm_head" in n})
        problems.append(
            f"config.json says vocab_size = {rows}, but no table has so many rows"
            + (f" (there are {', '.join(map(str, held))})" if held else "")
        )
    if not has_tokenizer(folder):
        problems.append("there is no tokenizer: copy the base's tokenizer files")
        return
    try:
        ids = read_ids(folder)
    except (ValueError, OSError) as error:
        problems.append(f"the tokenizer cannot be read: {error}")
        return
    if not ids or not isinstance(rows, int):
        return
    highest = max(ids.values())
    if highest >= rows:
        token = next(t for t, i in ids.items() if i == highest)
        problems.append(
            f"the tokenizer writes id {highest} ({token!r}), but the tables have {rows} rows: take "
            "the tokenizer that belongs to these weights, or resize the tables"
        )
    for key in _IDS:
        held = part.get(key, config.get(key))
        for number in held if isinstance(held, list) else [held]:
            if isinstance(number, int) and number >= rows:
                problems.append(f"config.json says {key} = {number}, the tables have {rows} rows")
    template = (folder / "chat_template.jinja").is_file() or "chat_template" in read_config(
        folder, "tokenizer_config.json"
    )
    if not template:
        notes.append("no chat template: servers will complete text but not chat")


def _values(
    tensors: TensorReader, problems: list[str], watch: Callable[[int, int], None] | None
) -> None:
    bad = []
    for index, name in enumerate(tensors):
        if tensors.dtype(name).is_floating_point:
            held = tensors[name]
            # One pass without a mask: only a sum that overflows is looked at again.
            summed = held.sum(dtype=torch.float32)
            if not bool(torch.isfinite(summed)) and not bool(torch.isfinite(held).all()):
                bad.append(name)
        if watch:
            watch(index + 1, len(tensors))
    if bad:
        problems.append(f"{bad[0]!r} ({len(bad)} such tensors) holds NaN or infinity")


def _architecture(config: Mapping[str, Any]) -> str | None:
    held = config.get("architectures")
    return str(held[0]) if isinstance(held, list) and held else None

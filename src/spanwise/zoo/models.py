"""Causal language models by preset, folder or name."""

import contextlib
import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spanwise.datasets import ByteTokenizer
from spanwise.datasets.resolve import nearest
from spanwise.errors import CorruptFileError
from spanwise.zoo.llama import SHAPES, llama_config
from spanwise.zoo.smollm import smollm_folder

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_PACKAGED = {"smollm2-135m": smollm_folder}


class Loaded(NamedTuple):
    """A model and the tokenizer that writes its ids."""

    model: "PreTrainedModel"
    tokenizer: Any


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own chatter and progress bars out of what a person reads."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def names() -> list[str]:
    """Every name that `load` knows: fresh LLaMA sizes and packaged pretrained models."""
    return [*(f"llama-{size}" for size in SHAPES), *_PACKAGED]


def load(name: str, **options: Any) -> Loaded:
    """A model by name; `options` as in `load_model`.

    Raises:
        ValueError: If the name is unknown; the message tells the nearest.
    """
    if _preset(name) is None and name not in _PACKAGED:
        raise ValueError(f"unknown model {name!r}. {nearest(name, names())}")
    return load_model(name, **options)


def load_model(
    spec: str | Path,
    *,
    dtype: "torch.dtype | str" = "float32",
    seed: int = 0,
    layers: int | None = None,
    tokenizer: str | Path | None = None,
) -> Loaded:
    """A causal language model and its tokenizer.

    Args:
        spec: A size preset ("llama-60m": fresh weights), a transformers folder, or a packaged
            model ("smollm2-135m").
        dtype: Of the weights.
        seed: Draws a preset's fresh weights; the global generator is left alone.
        layers: Keep only the first so many layers.
        tokenizer: Where another tokenizer lies: "bytes", a folder or a model's name.

    Raises:
        ValueError: If nothing answers to `spec`, `layers` exceeds what the model has, or a weight
            is not finite.
        CorruptFileError: If a file of weights is damaged.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    config = load_config(spec, layers=layers, tokenizer=tokenizer)
    reader = load_tokenizer(tokenizer or spec)
    if folder := _folder(spec):
        # transformers leaves weights of dropped layers unread.
        try:
            with quiet_transformers():
                model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype)
        except SafetensorError as error:
            raise CorruptFileError(
                f"the weights in {folder} are damaged ({error}). Copy the folder again."
            ) from error
        _check_finite(model, spec)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return Loaded(model, reader)


def load_config(
    spec: str | Path, *, layers: int | None = None, tokenizer: str | Path | None = None
) -> "PretrainedConfig":
    """The configuration behind `spec`, without its weights.

    Args:
        spec: As in `load_model`.
        layers: Keep only the first so many layers.
        tokenizer: A preset's vocabulary grows to hold this tokenizer's ids.

    Raises:
        ValueError: If nothing answers to `spec`, `layers` exceeds what the model has, or a
            pretrained model has too few embeddings for the tokenizer.
    """
    from transformers import AutoConfig

    if preset := _preset(spec):
        config = llama_config(preset)
    elif folder := _folder(spec):
        config = AutoConfig.from_pretrained(folder)
        config.use_cache = False
    else:
        raise ValueError(_unknown(spec))
    if layers is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise ValueError(
                f"layers = {layers}: {spec} has {config.num_hidden_layers}; keep at least 1."
            )
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    if tokenizer is not None:
        needed = len(load_tokenizer(tokenizer))
        if needed > config.vocab_size and _preset(spec) is None:
            raise ValueError(
                f"tokenizer {str(tokenizer)!r} has {needed} ids, {spec} embeds {config.vocab_size}."
            )
        config.vocab_size = max(config.vocab_size, needed)
    return config


def load_tokenizer(spec: str | Path) -> Any:
    """The tokenizer of a model; presets read bytes.

    Raises:
        ValueError: If nothing answers to `spec`.
    """
    if str(spec) == "bytes" or _preset(spec):
        return ByteTokenizer()
    folder = _folder(spec)
    if folder is None:
        raise ValueError(_unknown(spec, "tokenizer"))
    if _reads_bytes(folder):
        return ByteTokenizer()
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(" :") if str(error) else type(error).__name__
        raise ValueError(
            f"{folder} holds no tokenizer that can be read ({reason}). Copy its tokenizer files, "
            "or name another one's folder."
        ) from error


def is_pretrained(spec: str | Path) -> bool:
    """Whether `spec` names trained weights rather than a size."""
    return _preset(spec) is None


def source_folder(spec: str | Path) -> Path | None:
    """The folder that `spec` is read from; None for a size.

    Raises:
        ValueError: If it is a folder without a model.
    """
    return None if _preset(spec) else _folder(spec)


def _check_finite(model: "PreTrainedModel", spec: str | Path) -> None:
    import torch

    for name, parameter in model.named_parameters():
        # The extremes tell it without a mask of the parameter's size: aminmax passes NaN on.
        if parameter.numel() and not all(map(torch.isfinite, parameter.detach().aminmax())):
            raise ValueError(
                f"{name} of {spec} holds values that are not finite: nothing can be learned from "
                "such a model. Take a checkpoint from before it diverged."
            )


def _preset(spec: str | Path) -> str | None:
    """The size behind "llama-60m" or "60m", or None."""
    size = str(spec).lower().removeprefix("llama-")
    return size if size in SHAPES and not Path(spec).is_dir() else None


def _folder(spec: str | Path) -> Path | None:
    path = Path(spec).expanduser()
    if (path / "config.json").is_file():
        return path
    if path.is_dir():
        raise ValueError(f"{spec} is a folder without config.json: not a transformers model.")
    return _PACKAGED[str(spec)]() if str(spec) in _PACKAGED else None


def _reads_bytes(folder: Path) -> bool:
    """Whether the tokenizer there is the one `ByteTokenizer` saves, which ours reads faster."""
    try:
        written = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return written.get("tokenizer_class") == "ByT5Tokenizer" and written.get("extra_ids") == 0


def _unknown(spec: str | Path, what: str = "model") -> str:
    path = Path(spec).expanduser()
    if path.is_file():
        return f"{spec} is a file: name the folder of the {what}."
    here = path.parent
    beside = [here / p.name for p in here.iterdir() if p.is_dir()] if here.is_dir() else []
    known = [*map(str, beside), *names()]
    near = nearest(str(spec), known if get_close_matches(str(spec), known) else names())
    return f"no {what} at {str(spec)!r}: not a folder, a size or a name. {near}"

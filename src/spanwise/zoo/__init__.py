"""Models by name: fresh LLaMA sizes, packaged pretrained models, sentence encoders."""

from spanwise.zoo.llama import SHAPES, LlamaShape, llama_config
from spanwise.zoo.minilm import encoder_folder, load_encoder, minilm_folder
from spanwise.zoo.models import (
    Loaded,
    is_pretrained,
    load,
    load_config,
    load_model,
    load_tokenizer,
    names,
    quiet_transformers,
    source_folder,
)
from spanwise.zoo.smollm import smollm_folder

__all__ = [
    "SHAPES",
    "LlamaShape",
    "Loaded",
    "encoder_folder",
    "is_pretrained",
    "llama_config",
    "load",
    "load_config",
    "load_encoder",
    "load_model",
    "load_tokenizer",
    "minilm_folder",
    "names",
    "quiet_transformers",
    "smollm_folder",
    "source_folder",
]

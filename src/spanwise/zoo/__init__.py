"""Models by name: fresh LLaMA sizes and packaged pretrained ones."""

from spanwise.zoo.llama import SHAPES, LlamaShape, llama_config
from spanwise.zoo.models import Loaded, load, load_config, load_model, load_tokenizer, names
from spanwise.zoo.smollm import smollm_folder

__all__ = [
    "SHAPES",
    "LlamaShape",
    "Loaded",
    "llama_config",
    "load",
    "load_config",
    "load_model",
    "load_tokenizer",
    "names",
    "smollm_folder",
]

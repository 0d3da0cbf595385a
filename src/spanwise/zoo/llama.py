"""LLaMA shapes by size: the GaLore papers' five, and three small ones of our own."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """The numbers that fix a LLaMA model's size."""

    hidden: int
    feed_forward: int
    heads: int
    layers: int
    vocabulary: int = 32000
    context: int = 1024


# Small sizes read bytes (259 ids): a 32000-row table would outweigh all their layers.
_BYTES = 259

SHAPES: dict[str, LlamaShape] = {
    "1m": LlamaShape(hidden=128, feed_forward=352, heads=4, layers=5, vocabulary=_BYTES),
    "3m": LlamaShape(hidden=192, feed_forward=512, heads=6, layers=7, vocabulary=_BYTES),
    "10m": LlamaShape(hidden=320, feed_forward=864, heads=5, layers=8, vocabulary=_BYTES),
    "60m": LlamaShape(hidden=512, feed_forward=1376, heads=8, layers=8),
    "130m": LlamaShape(hidden=768, feed_forward=2048, heads=12, layers=12),
    "350m": LlamaShape(hidden=1024, feed_forward=2736, heads=16, layers=24),
    "1b": LlamaShape(hidden=2048, feed_forward=5461, heads=32, layers=24),
    "7b": LlamaShape(hidden=4096, feed_forward=11008, heads=32, layers=32, context=2048),
}


def llama_config(size: str, *, vocab_size: int | None = None) -> "LlamaConfig":
    """A LLaMA configuration of a known size.

    Args:
        size: "1m", "3m", "10m" (ours, byte vocabulary) or "60m", "130m", "350m", "1b", "7b"
            (the papers', vocabulary 32000), with or without "llama-" in front.
        vocab_size: Another number of token ids.

    Raises:
        ValueError: If the size is unknown.

    Sources:
        Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
        2024, table 5, and the configurations released with it.
    """
    from transformers import LlamaConfig

    shape = SHAPES.get(size.lower().removeprefix("llama-"))
    if shape is None:
        raise ValueError(
            f"unknown size {size!r}; sizes are {', '.join(f'llama-{name}' for name in SHAPES)}."
        )
    return LlamaConfig(
        vocab_size=vocab_size or shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        use_cache=False,
    )

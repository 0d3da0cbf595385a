"""Batches as examples: their losses one by one, and which of their tokens count."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from spanwise.atlas._rows import token_mask

Loss = Callable[[Any, Any], Tensor]
"""`loss(output, batch)`: what each example loses, `(batch,)`."""

IGNORED = -100
_CROSS = re.compile(
    r"(EncDecAttention|encoder_attn|cross_?attn\w*|crossattention).*\.(k|v|key|value)"
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some examples: what the model is called with, and their labels beside it."""

    inputs: Any
    labels: Tensor | None = None

    @classmethod
    def of(cls, batch: Any, device: torch.device) -> "Batch":
        """From what a data loader yields: a mapping, a tensor, or a pair (inputs, labels).

        Raises:
            TypeError: If it is none of these.
        """
        labels = None
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            batch, labels = batch
        if isinstance(batch, Tensor):
            inputs: Any = batch.to(device)
        elif isinstance(batch, Mapping):
            inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            labels = inputs.get("labels") if labels is None else labels
        else:
            raise TypeError(
                "a batch must be a mapping for model(**batch), a tensor for model(batch), or a "
                f"pair (inputs, labels), got {type(batch).__name__}."
            )
        return cls(inputs=inputs, labels=None if labels is None else labels.to(device))

    def __len__(self) -> int:
        held = self.inputs.values() if isinstance(self.inputs, Mapping) else [self.inputs]
        sizes = [len(v) for v in held if isinstance(v, Tensor) and v.ndim]
        if not sizes:
            raise TypeError("a batch must hold at least one tensor of examples.")
        return sizes[0]

    def part(self, start: int, stop: int) -> "Batch":
        """Some of the examples."""
        size = len(self)

        def cut(value: Any) -> Any:
            whole = isinstance(value, Tensor) and value.ndim and len(value) == size
            return value[start:stop] if whole else value

        inputs = self.inputs
        cut_inputs = (
            {k: cut(v) for k, v in inputs.items()} if isinstance(inputs, Mapping) else cut(inputs)
        )
        return Batch(inputs=cut_inputs, labels=cut(self.labels))

    def run(self, model: nn.Module) -> Any:
        """The model's output."""
        return model(**self.inputs) if isinstance(self.inputs, Mapping) else model(self.inputs)


@dataclass(frozen=True)
class Tokens:
    """Which tokens of a batch are no padding; None where all count."""

    mask: Bool[Tensor, "batch length"] | None = None
    decoder: Bool[Tensor, "batch length"] | None = None
    """Of an encoder-decoder's decoder."""
    two: bool = False
    """Whether there is a decoder with tokens of its own."""

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> "Tokens":
        """From `attention_mask`, `decoder_attention_mask`, or labels of -100 in a decoder."""
        mask = token_mask(batch.inputs)
        if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            return cls(mask)
        decoder = batch.inputs.get("decoder_attention_mask")
        if decoder is None and batch.labels is not None:
            decoder = batch.labels != IGNORED
        return cls(mask, None if decoder is None else decoder.bool(), two=True)

    def of_map(self, name: str) -> Bool[Tensor, "batch length"] | None:
        """The mask of what enters and leaves a map; cross-attention reads the encoder's tokens."""
        decodes = self.two and ("decoder" in name or "lm_head" in name)
        return self.decoder if decodes and not _CROSS.search(name) else self.mask


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Negative log-likelihoods of examples, under given labels or the model's own."""

    fisher: Literal["empirical", "true"]
    reduction: Literal["mean", "sum"]
    shift: bool
    """Whether position i predicts label i + 1, as in causal language models."""
    generator: torch.Generator
    loss: Loss | None = None

    def __call__(self, output: Any, batch: Batch) -> tuple[Float[Tensor, " batch"], int]:
        """Each example's loss, and how many have a label at all.

        Raises:
            ValueError: If there are no labels or logits where they are needed, or they do not fit.
        """
        if self.loss is not None:
            losses = self.loss(output, batch.inputs if batch.labels is None else _pair(batch))
            if losses.shape != (len(batch),):
                raise ValueError(
                    f"loss must give one number for each of the {len(batch)} examples, got shape "
                    f"{tuple(losses.shape)}: use reduction='none' and sum over tokens."
                )
            return losses, len(batch)
        logits = _logits(output)
        labels = self._labels(logits, batch)
        if self.shift and logits.ndim == 3:
            logits, labels = logits[:, :-1], labels[:, 1:]
        if self.fisher == "true":
            labels = self._sampled(logits, labels)
        counted = (labels != IGNORED).reshape(len(labels), -1).sum(1)
        losses = functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED,
            reduction="none",
        )  # fmt: skip
        losses = losses.reshape(len(labels), -1).sum(1)
        if self.reduction == "mean":
            losses = losses / counted.clamp(min=1)
        return losses, int((counted > 0).sum())

    def _labels(self, logits: Tensor, batch: Batch) -> Tensor:
        labels = batch.labels
        if labels is None and self.fisher == "empirical":
            raise ValueError(
                "the empirical Fisher needs labels: put labels into the batches, yield pairs "
                "(inputs, labels), or take fisher='true', which draws them from the model."
            )
        if labels is None:
            labels = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
            mask = token_mask(batch.inputs)
            if mask is not None and mask.shape == labels.shape:
                labels = labels.masked_fill(~mask, IGNORED)
        if labels.is_floating_point() or labels.shape != logits.shape[:-1]:
            raise ValueError(
                f"labels must be classes of shape {tuple(logits.shape[:-1])}, one for each row of "
                f"logits, got {labels.dtype} of shape {tuple(labels.shape)}. For another kind of "
                "target give loss=lambda output, batch: ... with one number for each example."
            )
        return labels

    def _sampled(self, logits: Tensor, labels: Tensor) -> Tensor:
        chances = logits.detach().reshape(-1, logits.shape[-1]).softmax(-1)
        drawn = torch.multinomial(chances, 1, generator=self.generator)
        return torch.where(labels == IGNORED, labels, drawn.reshape(labels.shape))


def _pair(batch: Batch) -> Any:
    return batch.inputs if isinstance(batch.inputs, Mapping) else (batch.inputs, batch.labels)


def _logits(output: Any) -> Tensor:
    """The scores of classes or tokens, at least in float32."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor) or found.ndim not in (2, 3):
        raise ValueError(
            "the model must return logits (batch, classes) or (batch, length, classes), got "
            f"{type(output).__name__}: give loss=lambda output, batch: ... instead."
        )
    return found.to(torch.promote_types(found.dtype, torch.float32))

"""Everything a run reads, opened and checked before anything is written."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from spanwise.atlas import Atlas, UpdateShare
from spanwise.atlas._weights import open_weights
from spanwise.datasets import TextData, load_text
from spanwise.optim import OURS, build_optimizer, guard
from spanwise.training.config import TrainConfig
from spanwise.training.data import Blocks, pack
from spanwise.training.planning import check_own_options, load_atlas, resolve_rank
from spanwise.zoo import is_pretrained, load_config, load_model, load_tokenizer, source_folder

HASHED = 4e9
"""Bytes of weights that are hashed twice, about a second a gigabyte, to tell a mistake early."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is learned, and what is only looked at."""

    learned: Blocks
    looked_at: dict[str, Blocks]
    """`held_out` first, then the watched texts by name."""
    data: dict[str, TextData]
    """Name to source; the learned text is `data`."""
    tokenizer: Any

    @classmethod
    def open(cls, config: TrainConfig) -> "Texts":
        """Read, tokenise and pack.

        Raises:
            FileNotFoundError: If a text is missing.
            ValueError: If a text is empty or shorter than a sequence.
        """
        options = config.texts
        data = {"data": load_text(list(options.data), text=options.text, label=options.label)}
        for name, source in options.watched.items():
            data[name] = load_text(source)
        tokenizer = load_tokenizer(options.tokenizer or config.model)
        learned, held_out = pack(
            data["data"], tokenizer, options.sequence, held_out=options.held_out
        )
        looked_at = {"held_out": held_out}
        for name in options.watched:
            looked_at[name], _ = pack(data[name], tokenizer, options.sequence)
        most = config.record.eval_sequences
        return cls(
            learned=learned,
            looked_at={name: blocks.spread(most) for name, blocks in looked_at.items()},
            data=data,
            tokenizer=tokenizer,
        )

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of every text by name."""
        return {name: data.digest for name, data in self.data.items()}


@dataclass(frozen=True, kw_only=True)
class Atlases:
    """The atlases of a run and the weights they are measured from."""

    avoid: Atlas | None
    within: Atlas | None
    shown: Atlas | None
    """The one that the share of the update is measured against."""
    start: Mapping[str, Tensor]
    """The weights that `shown` covers, as they were before training, on the CPU."""

    @classmethod
    def open(cls, config: TrainConfig, model: nn.Module) -> "Atlases":
        """Read the atlases and check that they belong to `model`.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or belongs to another model.
        """
        options = config.optimizer
        loaded: dict[Path, Atlas] = {}
        for path in (options.avoid, options.within, options.measure):
            if path is not None and path not in loaded:
                loaded[path] = load_atlas(config, path, base=model)
        shown_path = options.measure or options.avoid or options.within
        shown = loaded[shown_path] if shown_path else None
        return cls(
            avoid=loaded[options.avoid] if options.avoid else None,
            within=loaded[options.within] if options.within else None,
            shown=shown,
            start=_copy_of_covered(model, shown) if shown else {},
        )

    def share(self, tuned: nn.Module | Path) -> UpdateShare | None:
        """How the update so far divides, on the covered tensors; None without an atlas."""
        if self.shown is None:
            return None
        held = tuned
        if isinstance(tuned, nn.Module):
            held = {n: p for n, p in tuned.named_parameters() if n in self.start}
        return self.shown.update_share(self.start, held)


def check_atlases(config: TrainConfig) -> None:
    """Raise before anything large is read or planned, if an atlas is missing or another model's.

    What the weights themselves have to say is asked of files up to `HASHED`; of larger ones, and
    of models that transformers renames as it loads them, `Atlases.open` asks it.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged or belongs to another model.
    """
    options = config.optimizer
    folder = source_folder(config.model)
    files = [] if folder is None else list(folder.glob("*.safetensors"))
    small = sum(file.stat().st_size for file in files) <= HASHED
    for path in dict.fromkeys((options.avoid, options.within, options.measure)):
        if path is None:
            continue
        atlas = load_atlas(config, path)
        if folder is not None and files and small:
            weights = open_weights(folder)
            if all(any(n in weights for n in (e.name, *e.aliases)) for e in atlas):
                load_atlas(config, path, base=folder)


def open_model(config: TrainConfig) -> PreTrainedModel:
    """The model to train, in the dtype that `precision` asks for.

    Raises:
        ValueError: If there is no such model.
    """
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    return load_model(
        config.model,
        dtype=dtype,
        seed=config.seed,
        layers=config.layers,
        tokenizer=config.texts.tokenizer,
    ).model


def open_optimizer(config: TrainConfig, model: PreTrainedModel, atlases: Atlases) -> Optimizer:
    """The optimizer that the options describe, guarded by the atlases.

    Raises:
        ValueError: If the rank leaves nothing to project, or an atlas matches nothing.
    """
    options = config.optimizer
    rate = peak_rate(config)
    common: dict[str, Any] = {"lr": rate, "weight_decay": options.weight_decay}
    constraint = {"avoid": atlases.avoid, "within": atlases.within, "bias": options.bias}
    if options.method not in OURS:
        optimizer = build_optimizer(options.method, model, **common)
        if atlases.avoid is not None or atlases.within is not None:
            guard(optimizer, **constraint)
        return optimizer
    return build_optimizer(
        options.method,
        model,
        rank=resolve_rank(config, model.config.hidden_size),
        plain={"lr": options.plain_lr or rate},
        seed=config.seed,
        **common,
        **constraint,
        **options.own_options,
    )


def peak_rate(config: TrainConfig) -> float:
    """The peak learning rate, given or by method and kind of model."""
    return config.optimizer.rate(pretrained=is_pretrained(config.model))


def check_shape(config: TrainConfig) -> None:
    """Raise `ValueError` for what machine and model rule out, before weights load."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device = cuda, but torch {torch.__version__} sees no GPU. Leave --device out, or "
            "install a build of torch for your GPU."
        )
    shape = load_config(config.model, layers=config.layers, tokenizer=config.texts.tokenizer)
    rank, width = resolve_rank(config, shape.hidden_size), shape.hidden_size
    check_own_options(config)
    ours = OURS.get(config.optimizer.method)
    if ours is not None and ours.needs_rank and rank >= width:
        raise ValueError(
            f"rank = {rank} is not below the width of {config.model}, {width}: there is nothing "
            f"to project. Try --rank {width // 4}."
        )
    context = getattr(shape, "max_position_embeddings", None)
    if context and config.texts.sequence > context:
        raise ValueError(
            f"sequence = {config.texts.sequence} exceeds what {config.model} can read at once, "
            f"{context} tokens."
        )


def check_sharding_asked() -> bool:
    """Whether FSDP was asked for; raises `ValueError` if it cannot happen here.

    Without this a run on one process, or on a CPU, would go on as if nothing had been asked,
    with every process holding the whole model.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")
    if asked and (int(os.environ.get("WORLD_SIZE", "1")) < 2 or not torch.cuda.is_available()):
        raise ValueError(
            "FSDP was asked for (ACCELERATE_USE_FSDP), but nothing would be sharded: it needs "
            "two processes or more and GPUs. Launch with torchrun or accelerate, or unset it."
        )
    return asked


def _copy_of_covered(model: nn.Module, atlas: Atlas) -> dict[str, Tensor]:
    biases = {entry.bias for entry in atlas if entry.bias}
    return {
        name: p.detach().to("cpu", copy=True)
        for name, p in model.named_parameters()
        if atlas.get(name) or name in biases
    }

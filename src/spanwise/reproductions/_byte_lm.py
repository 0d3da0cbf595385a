"""The experiment that the optimizer family shares: a byte-level LLaMA on Python source code.

Small enough that a run takes a quarter of a minute on one thread, real enough that the
choice of a rate matters more than the choice of a method, as it does at full size.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn
from torch.optim import Optimizer

from spanwise._lazy import require
from spanwise.datasets import python_stdlib
from spanwise.layouts import linear_maps
from spanwise.report import Progress, Row, Tuning, Workers, tune
from spanwise.reproductions._settings import check_counts, check_rank

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import LlamaForCausalLM

HELD_OUT_EVERY = 20
"""Every such document is for validation: whole files, so that no window spans the split."""

Parts = tuple[list[nn.Parameter], list[nn.Parameter]]
"""The matrices that methods differ on, and the rest: embeddings, norms, the head."""


@dataclass(frozen=True, kw_only=True)
class ByteLM:
    """Model and training, equal for every arm."""

    width: int = 96
    """Hidden size d."""
    depth: int = 3
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    hidden: int = 256
    """Width of the gated MLP."""
    length: int = 96
    """Bytes in a training window."""
    batch: int = 12
    """Windows in a step."""
    steps: int = 300
    """Training steps; the rate falls to zero along half a cosine."""
    warmup: int = 0
    """Steps over which the rate rises to its peak, under the cosine."""
    plain_rate: float = 3e-3
    """Rate of AdamW on embeddings, norms and the head, in every arm."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    validation_windows: int = 256
    """Windows of held-out files, the same for every run."""

    def __post_init__(self) -> None:
        check_counts(
            self, "width", "depth", "heads", "hidden", "length", "batch", "steps",
            "validation_windows",
        )  # fmt: skip
        if hasattr(self, "rank"):
            check_rank(self, self.width)


@dataclass(frozen=True)
class Text:
    """The bytes to learn from and those to judge by."""

    train: UInt8[Tensor, " n"]
    validation: UInt8[Tensor, " m"]
    name: str
    digest: str
    files: int

    def describe(self) -> dict[str, Any]:
        """What a result records about its data."""
        return {
            "name": self.name,
            "digest": self.digest,
            "files": self.files,
            "train_bytes": len(self.train),
            "validation_bytes": len(self.validation),
        }


@functools.lru_cache(maxsize=1)
def load_text() -> Text:
    """The interpreter's own sources as bytes, split by files."""
    data = python_stdlib()
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for index, document in enumerate(data.documents):
        parts[index % HELD_OUT_EVERY == 0].append(document.text.encode("utf-8", "replace"))
    train, validation = (
        torch.frombuffer(bytearray(b"\n\n".join(part)), dtype=torch.uint8) for part in parts
    )
    return Text(train, validation, data.name, data.digest, len(data.documents))


def windows(
    text: UInt8[Tensor, " n"], count: int, length: int, generator: torch.Generator
) -> Int64[Tensor, "count length"]:
    """`count` random windows of `length` bytes."""
    start = torch.randint(len(text) - length + 1, (count, 1), generator=generator)
    return text[start + torch.arange(length)].long()


def build(settings: ByteLM, seed: int) -> "LlamaForCausalLM":
    """The model, in float32, initialised from `seed` without touching the global generator."""
    transformers = require("transformers", "the byte-level language model")
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=settings.width,
        intermediate_size=settings.hidden,
        num_hidden_layers=settings.depth,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.length,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config).float()


def split(model: nn.Module) -> Parts:
    """The linear maps inside the layers, and every other parameter."""
    matrices = [m.parameter for m in linear_maps(model) if "lm_head" not in m.name]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in chosen]


def state_bytes(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> int:
    """Bytes that an optimizer keeps for `parameters`; single numbers are not counted.

    Some peers keep their bases inside objects; those tensors count as well.
    """
    return sum(_bytes(value) for p in parameters for value in optimizer.state[p].values())


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size() if value.numel() > 1 else 0
    held = vars(value).values() if hasattr(value, "__dict__") else ()
    return sum(_bytes(inner) for inner in held)


def rate_at(step: int, settings: ByteLM) -> float:
    """Share of the peak rate at a step, counted from 0."""
    rise = min(1.0, (step + 1) / (settings.warmup + 1))
    return rise * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def loss_of(model: "LlamaForCausalLM", batch: Int64[Tensor, "b t"]) -> Tensor:
    """Mean cross-entropy of the next byte, in nats."""
    logits = model(input_ids=batch[:, :-1]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def train(
    settings: ByteLM,
    seed: int,
    make_optimizer: Callable[[Parts], Optimizer],
    text: Text,
    watch: Callable[[int, Optimizer, Parts], None] | None = None,
) -> dict[str, Any]:
    """Train one model and measure it.

    Args:
        settings: Model and training.
        seed: Start and batches; equal seeds pair the arms.
        make_optimizer: Gets the matrices and the rest, returns the optimizer of both.
        text: Where windows are drawn from.
        watch: Called before every step, with its number, while the gradients are there; its
            time is not counted.

    Returns:
        `loss` (validation, nats per byte; None if it diverged), `train_loss` (mean of the last
        tenth of the steps), `matrix_state_bytes`, `state_bytes`, `step_ms` (processor time of
        the median step), `stall` (the slowest fiftieth of the steps, in medians), and `diverged`
        if it did.
    """
    torch.set_flush_denormal(True)  # attention's far tails otherwise cost 5 % of the time
    model = build(settings, seed).train()
    parts = split(model)
    optimizer = make_optimizer(parts)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, settings))
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    times: list[float] = []
    for _ in range(settings.steps):
        batch = windows(text.train, settings.batch, settings.length + 1, generator)
        start = time.process_time()  # of one thread: what other processes take is not counted
        loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        spent = time.process_time() - start
        if watch is not None:
            watch(len(losses), optimizer, parts)
        start = time.process_time()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        times.append(spent + time.process_time() - start)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
    validation = evaluate(model, settings, text)
    tail = losses[-max(1, settings.steps // 10) :]
    finite = math.isfinite(validation)
    return {
        "loss": validation if finite else None,
        "train_loss": statistics.fmean(tail) if math.isfinite(sum(tail)) else None,
        "matrix_state_bytes": state_bytes(optimizer, parts[0]),
        "state_bytes": state_bytes(optimizer, [*parts[0], *parts[1]]),
        "step_ms": 1e3 * statistics.median(times),
        "stall": stall(times[1:]),
        **({} if finite else {"diverged": True}),
    }


def stall(times: Sequence[float]) -> float | None:
    """Mean of the slowest fiftieth of the steps (as many as refresh at T = 50), in medians."""
    if not times:
        return None
    slowest = sorted(times)[-max(1, len(times) // 50) :]
    return statistics.fmean(slowest) / statistics.median(times)


@torch.no_grad()
def evaluate(model: "LlamaForCausalLM", settings: ByteLM, text: Text) -> float:
    """Mean validation loss in nats per byte, on windows that never change."""
    generator = torch.Generator().manual_seed(0)
    held_out = windows(text.validation, settings.validation_windows, settings.length + 1, generator)
    model.eval()
    total = sum(loss_of(model, chunk).item() * len(chunk) for chunk in held_out.split(64))
    return total / len(held_out)


def shared(settings: ByteLM) -> dict[str, Any]:
    """The settings of the model and the training alone, as a cell carries them."""
    return {f.name: getattr(settings, f.name) for f in fields(ByteLM)}


def sweep_and_judge(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    arms: Sequence[str],
    settings: Any,
    digest: str,
    *,
    workers: int | None = None,
    cache: "str | Path | None" = None,
    progress: Progress | None = None,
) -> tuple[Tuning, tuple[Row, ...]]:
    """Tune every arm alike, then run each at its best rate on the fresh seeds.

    Args:
        function: Runs one cell `{"arm", "rate", "seed", "settings", "data"}`.
        arms: Names of the arms.
        settings: A dataclass with `rates`, `tuning_seeds`, `seeds`, `extensions`.
        digest: Digest of the data, so that cells of other data are not used again.
        workers: As `run_cells`.
        cache: As `run_cells`.
        progress: As `run_cells`.

    Returns:
        The sweep, and one row for each arm and fresh seed.
    """
    # What decides about other cells does not belong to a cell.
    schedule = ("rates", "tuning_seeds", "seeds", "extensions")
    own = {k: v for k, v in asdict(settings).items() if k not in schedule}

    with Workers(function, workers, cache=cache, progress=progress) as pool:

        def evaluate_cells(cells: Sequence[Mapping[str, Any]]) -> list[Row]:
            full = [{**cell, "settings": own, "data": digest} for cell in cells]
            return [{**c, **r} for c, r in zip(cells, pool.map(full), strict=True)]

        tuning = tune(
            evaluate_cells,
            arms,
            settings.rates,
            settings.tuning_seeds,
            extensions=settings.extensions,
        )
        fresh = evaluate_cells(
            [
                {"arm": arm, "rate": tuning.best[arm], "seed": seed}
                for seed in settings.seeds
                for arm in arms
            ]
        )
    return tuning, tuple(fresh)

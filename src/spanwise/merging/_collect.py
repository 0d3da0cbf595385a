"""`collect_stats`: what a model's data says of its weights, summed as it streams by."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from spanwise.atlas._recorder import check_batches, evaluating
from spanwise.merging._chosen import COLLECTED, Chosen
from spanwise.merging._collector import Collector, check_told
from spanwise.merging._examples import Batch, Loss, Losses
from spanwise.merging._stats import Stats


def collect_stats(
    model: nn.Module,
    dataloader: Iterable[Any],
    kinds: Sequence[str] = COLLECTED,
    *,
    fisher: Literal["empirical", "true"] = "empirical",
    loss_reduction: Literal["mean", "sum"] = "mean",
    max_examples: int | None = 1000,
    modules: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    others: bool = True,
    loss: Loss | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Stats:
    """Sum the statistics that `merge(..., stats=[...])` takes, one file a model.

    Memory while it runs: for a map with n inputs and m outputs one n x n and one m x m sum, in
    float64 up to a width of 1536 and in float32 above. Where that is too much,
    `collect_stats_to_file` takes as many passes over the data as a ceiling demands.

    Args:
        model: The fine-tuned model; it runs in evaluation mode, and is left as it was.
        dataloader: Batches: mappings for `model(**batch)`, tensors, or pairs (inputs, labels).
            Where there is an `attention_mask`, padding does not count; in the decoder of an
            encoder-decoder, nor do labels of -100.
        kinds: `"gram"`: mean x x^T over tokens, x what enters a map. `"kfac"`: that and mean
            g g^T, g the gradient of an example's loss at the map's output. `"diag_fisher"`: mean
            squared gradient over examples. `"block_fisher"`: of vectors (norms, biases, IA3's)
            mean g g^T of the gradient itself over examples, one at a time.
        fisher: Labels of the data (`"empirical"`), or drawn from the model's own distribution at
            each labelled position (`"true"`).
        loss_reduction: Over an example's labelled tokens; never over the batch.
        max_examples: Stop there; None for all.
        modules: Only tensors whose name contains one of these.
        exclude: No tensors whose name contains one of these.
        others: Whether the diagonal Fisher is collected for every tensor (norms, embeddings,
            convolutions), at one backward pass an example; otherwise for linear maps only, from
            whole batches.
        loss: `loss(output, batch)`, one number an example; by default cross-entropy of logits,
            shifted by one for causal language models.
        seed: Of the labels that `fisher="true"` draws.
        device: Where sums are kept; by default beside the activations.
        progress: Told the number of examples seen, after each batch.

    Returns:
        Sums and counts by canonical name. `skipped` says what is missing and why: output heads
        of language models have no gradient Gram (vocabulary by vocabulary), convolutions and
        experts no Gram.

    Raises:
        ValueError: If an option is out of range, there is no data or no matching module, weights
            are quantised, examples cannot be told apart, or gradients are not finite or all zero.
        TypeError: If a batch is of another kind.
    """
    reading = Reading(
        fisher=fisher, loss_reduction=loss_reduction, max_examples=max_examples, loss=loss,
        seed=seed, device=None if device is None else torch.device(device),
    )  # fmt: skip
    chosen = Chosen.of(model, kinds, modules, exclude, others=others)
    found = reading(model, chosen, dataloader, progress)
    check_told(found)
    return found


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data is read, whatever is summed: one call is one pass over it."""

    fisher: Literal["empirical", "true"] = "empirical"
    loss_reduction: Literal["mean", "sum"] = "mean"
    max_examples: int | None = 1000
    loss: Loss | None = None
    seed: int = 0
    device: torch.device | None = None

    def __post_init__(self) -> None:
        for key, value, known in (
            ("fisher", self.fisher, ("empirical", "true")),
            ("loss_reduction", self.loss_reduction, ("mean", "sum")),
        ):
            if value not in known:
                raise ValueError(f"{key} must be {known[0]!r} or {known[1]!r}, got {value!r}.")
        if self.max_examples is not None and self.max_examples < 1:
            raise ValueError(f"max_examples must be at least 1, got {self.max_examples}.")
        if self.loss is not None and self.fisher == "true":
            raise ValueError("fisher='true' draws labels from logits, which loss hides: give one.")

    def __call__(
        self,
        model: nn.Module,
        chosen: Chosen,
        dataloader: Iterable[Any],
        progress: Callable[[int], None] | None = None,
    ) -> Stats:
        """The sums of the chosen tensors; labels that are drawn are the same in every pass."""
        collector = Collector(model, chosen, self.device)
        place = next((p.device for p in model.parameters()), torch.device("cpu"))
        losses = Losses(
            fisher=self.fisher, reduction=self.loss_reduction, shift=_shifts(model),
            loss=self.loss, generator=torch.Generator(place).manual_seed(self.seed),
        )  # fmt: skip
        seen = 0
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            # Compiled code would trace the hooks instead of running them.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(_only(model, chosen.parameters))
            collector.install(stack)
            for held in check_batches(dataloader):
                batch = Batch.of(held, place)
                if self.max_examples is not None:
                    batch = batch.part(0, self.max_examples - seen)
                step = 1 if chosen.singly else len(batch)
                for start in range(0, len(batch), step):
                    collector.see(batch.part(start, start + step), losses)
                seen += len(batch)
                if progress is not None:
                    progress(seen)
                if seen == self.max_examples:
                    break
        if not seen:
            raise ValueError("dataloader yielded no batch: statistics need data.")
        return collector.result(self.options if chosen.needs_loss else {})

    @property
    def options(self) -> dict[str, str]:
        """What statistics must agree in to be added up."""
        return {"fisher": self.fisher, "loss_reduction": self.loss_reduction}


@contextmanager
def _only(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Generator[None]:
    """Gradients of these weights, frozen ones too, and of no others, while this lasts."""
    chosen = {id(parameter) for parameter in parameters}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def _shifts(model: nn.Module) -> bool:
    """Whether the model predicts the next token, by the name of its class."""
    names = {type(module).__name__ for module in model.modules()}
    return any("CausalLM" in name or "LMHeadModel" in name for name in names)

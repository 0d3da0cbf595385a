"""`collect_stats`: what a model's data says of its weights, summed as it streams by."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spanwise.atlas._gradients import requiring_grad
from spanwise.atlas._moments import MAX_DIM, Moments
from spanwise.atlas._reads import Reads
from spanwise.atlas._recorder import check_batches, evaluating
from spanwise.atlas._rows import valid_rows
from spanwise.atlas._select import wanted
from spanwise.layouts import LinearMap, linear_maps, matrix_view, side_dim, strip_prefixes
from spanwise.merging._examples import Batch, Loss, Losses, Tokens
from spanwise.merging._stats import (
    DIAG_FISHER,
    GRADIENT_GRAM,
    GRAM,
    Entry,
    Stats,
    mark_of,
    packed,
)  # fmt: skip

COLLECTED = ("gram", "kfac", "diag_fisher")


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
    float64 up to a width of 1536 and in float32 above. Where that is too much, collect a part of
    the modules at a time and add the results up.

    Args:
        model: The fine-tuned model; it runs in evaluation mode, and is left as it was.
        dataloader: Batches: mappings for `model(**batch)`, tensors, or pairs (inputs, labels).
            Where there is an `attention_mask`, padding does not count; in the decoder of an
            encoder-decoder, nor do labels of -100.
        kinds: `"gram"`: mean x x^T over tokens, x what enters a map. `"kfac"`: that and mean
            g g^T, g the gradient of an example's loss at the map's output. `"diag_fisher"`: mean
            squared gradient over examples.
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
    _check(kinds, fisher, loss_reduction, max_examples)
    collector = _Collector(model, kinds, modules, exclude, others=others, device=device)
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    losses = Losses(
        fisher=fisher, reduction=loss_reduction, shift=_shifts(model), loss=loss,
        generator=torch.Generator(place).manual_seed(seed),
    )  # fmt: skip
    if loss is not None and fisher == "true":
        raise ValueError("fisher='true' draws labels from logits, which loss hides: give one.")
    seen = 0
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        # Compiled code would trace the hooks instead of running them.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(requiring_grad(collector.parameters))
        collector.install(stack)
        for held in check_batches(dataloader):
            batch = Batch.of(held, place)
            if max_examples is not None:
                batch = batch.part(0, max_examples - seen)
            step = 1 if collector.singly else len(batch)
            for start in range(0, len(batch), step):
                collector.see(batch.part(start, start + step), losses)
            seen += len(batch)
            if progress is not None:
                progress(seen)
            if seen == max_examples:
                break
    if not seen:
        raise ValueError("dataloader yielded no batch: statistics need data.")
    options = {"fisher": fisher, "loss_reduction": loss_reduction}
    return collector.result(options if collector.needs_loss else {})


class _Collector:
    """Hooks on linear maps, and the sums."""

    def __init__(
        self,
        model: nn.Module,
        kinds: Sequence[str],
        modules: Sequence[str] | None,
        exclude: Sequence[str],
        *,
        others: bool,
        device: torch.device | str | None,
    ) -> None:
        self.model = model
        self.device = None if device is None else torch.device(device)
        self.gram, self.kfac = bool({"gram", "kfac"} & set(kinds)), "kfac" in kinds
        self.diagonal = DIAG_FISHER in kinds
        self.needs_loss = self.kfac or self.diagonal
        self.singly = self.diagonal and others
        self.skipped: dict[str, str] = {}
        self.reads, self.outputs = Reads(), dict[str, Moments]()
        self.squares: dict[str, Tensor] = {}
        self.examples = 0
        self.tokens = Tokens()
        self.calls: list[tuple[LinearMap, Tensor, Tensor]] = []
        self.tensors = _tensors(model, modules, exclude)
        self.maps = [m for m in linear_maps(model) if m.name in self.tensors]
        self.layouts = {m.name: m.layout for m in linear_maps(model, embeddings=True)}
        for found in list(self.maps):
            if found.kind not in ("linear", "conv1d"):
                self.maps.remove(found)
                self.skipped[found.name] = f"Gram matrices of a {found.kind} layer are not summed"
            elif side_dim(found.shape, found.layout, "input") > MAX_DIM:
                self.maps.remove(found)
                self.skipped[found.name] = f"its input is wider than {MAX_DIM}"
        if not self.maps and not (self.singly and self.tensors):
            raise ValueError(
                f"no linear map is left with modules = {modules}, exclude = {tuple(exclude)}: "
                f"the model's tensors are {', '.join(list(self.tensors)[:4]) or 'others'}."
            )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What must be part of the graph while data is seen."""
        if not self.needs_loss:
            return []
        return list(self.tensors.values()) if self.singly else [m.parameter for m in self.maps]

    def install(self, stack: ExitStack) -> None:
        """Watch every map's calls until the stack unwinds."""
        for found in self.maps:
            tied = [m for m in found.others if type(m) is type(found.module)]
            for module in (found.module, *tied):
                handle = module.register_forward_hook(self._hook(found), with_kwargs=True)
                stack.callback(handle.remove)

    def see(self, batch: Batch, losses: Losses) -> None:
        """Add some examples to the sums."""
        self.tokens = Tokens.of(self.model, batch)
        self.calls.clear()
        with torch.set_grad_enabled(self.needs_loss):
            output = batch.run(self.model)
            self.reads.flush()
            if not self.needs_loss:
                return
            each, labelled = losses(output, batch)
        self.examples += labelled
        wanted_here = list(self.tensors.values()) if self.singly else []
        targets = [y for _, _, y in self.calls] + wanted_here
        if not targets:
            raise ValueError("no chosen module was called: its loss says nothing of the others.")
        if not bool(torch.isfinite(each).all()):
            raise ValueError(
                "the loss is not finite: run the model in float32, and check labels and padding."
            )
        # Examples do not meet in the sum: no gradient shrinks with the size of the batch.
        gradients = torch.autograd.grad(each.sum(), targets, allow_unused=True)
        count = len(self.calls)
        self._at_outputs(gradients[:count], len(batch))
        names = list(self.tensors) if self.singly else []
        for name, gradient in zip(names, gradients[count:], strict=True):
            if gradient is None:
                self.skipped.setdefault(name, "the loss does not depend on it")
            else:
                self._square(name, gradient)

    def result(self, options: Mapping[str, str]) -> Stats:
        """The sums as a value."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, dict[str, int]] = {}
        for found in self.maps:
            _, inputs = self.reads.moments(found.name)
            if self.gram and inputs is None:
                self.skipped.setdefault(found.name, "its module was never called")
            for kind, moments in ((GRAM, inputs), (GRADIENT_GRAM, self.outputs.get(found.name))):
                if moments is not None:
                    sums[f"{found.name}::{kind}"] = packed(moments.total)
                    counts.setdefault(found.name, {})[kind] = int(moments.count)
        for name, total in self.squares.items():
            sums[f"{name}::{DIAG_FISHER}"] = total
            counts.setdefault(name, {})[DIAG_FISHER] = self.examples
        self._check(sums)
        marks = not any(".lora_" in name for name, _ in self.model.named_parameters())
        entries = {
            name: Entry(
                self.layouts.get(name, "linear"),
                held,
                mark_of(self.tensors[name]) if marks else None,
            )
            for name, held in counts.items()
        }
        return Stats(sums, entries, options, self.skipped)

    def _hook(self, found: LinearMap) -> Callable[..., Tensor | None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor | None:
            x = args[0] if args else next(iter(kwargs.values()))
            if self.gram:
                self._input(found, x.detach())
            if not self.needs_loss or not output.requires_grad:
                return None
            self.calls.append((found, x.detach(), output))
            # Whoever works in place does so on a copy: this tensor keeps its own gradient.
            return output.clone()

        return hook

    def _input(self, found: LinearMap, x: Tensor) -> None:
        mask = self.tokens.of_map(found.name)
        # q, k and v read one tensor, whose products are formed once.
        if self.reads.same(x, mask is self.tokens.decoder, found.name):
            return
        dim = side_dim(found.shape, found.layout, "input")
        moments = Moments.zeros(dim, like=x, device=self.device)
        moments.add_rows(_rows(found, x, mask))
        self.reads.new(x, mask is self.tokens.decoder, found.name, moments)

    def _at_outputs(self, gradients: Sequence[Tensor | None], size: int) -> None:
        """What the gradients at the maps' outputs, one for each call, add."""
        weights: dict[str, list[Tensor]] = {}
        biases: dict[str, list[Tensor]] = {}
        for (found, x, _), g in zip(self.calls, gradients, strict=True):
            if g is None:
                continue
            if self.kfac and self._squarish(found):
                dim = side_dim(found.shape, found.layout, "output")
                if found.name not in self.outputs:
                    self.outputs[found.name] = Moments.zeros(dim, like=g, device=self.device)
                rows = _rows(found, g, self.tokens.of_map(found.name))
                self.outputs[found.name].add_rows(rows)
            if self.diagonal and not self.singly:
                xs, gs = (list(_examples(found, v, size)) for v in (x, g))
                products = [b.mT @ a for a, b in zip(xs, gs, strict=True)]
                _gather(weights, found.name, products)
                if found.bias is not None and found.bias in self.tensors:
                    _gather(biases, found.bias, [b.sum(0) for b in gs])
        layouts = {m.name: m.layout for m in self.maps}
        for name, each in weights.items():
            for g in each:  # the whole gradient of one example first, then its square
                self._square(name, matrix_view(g, layouts[name]))
        for name, each in biases.items():
            for g in each:
                self._square(name, g)

    def _squarish(self, found: LinearMap) -> bool:
        dim = side_dim(found.shape, found.layout, "output")
        if "lm_head" not in found.name and dim <= MAX_DIM:
            return True
        self.skipped.setdefault(f"{found.name}::{GRADIENT_GRAM}", "vocabulary by vocabulary")
        return False

    def _square(self, name: str, gradient: Tensor) -> None:
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        if name not in self.squares:
            self.squares[name] = torch.zeros_like(gradient, device=self.device)
        gradient = gradient.to(self.squares[name].device)
        self.squares[name].addcmul_(gradient, gradient)

    def _check(self, sums: Mapping[str, Tensor]) -> None:
        if not sums:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            raise ValueError(f"nothing could be collected. {why}.")
        for key, total in sums.items():
            if not bool(torch.isfinite(total).all()):
                raise ValueError(
                    f"{key} is not finite: the activations or gradients are not. Run the model in "
                    "float32."
                )
        for kind in (GRADIENT_GRAM, DIAG_FISHER):
            held = [total for key, total in sums.items() if key.endswith(f"::{kind}")]
            if held and not any(bool(total.any()) for total in held):
                raise ValueError(
                    f"every gradient is zero ({kind}): are all labels {-100}, or is the loss flat?"
                )


def _tensors(
    model: nn.Module, modules: Sequence[str] | None, exclude: Sequence[str]
) -> dict[str, nn.Parameter]:
    """Parameters by canonical name, without a LoRA's factors and the copies PEFT keeps."""
    found: dict[str, nn.Parameter] = {}
    for full, parameter in model.named_parameters():
        name = strip_prefixes(full)
        if ".lora_" in name or ".original_module." in name or not wanted(name, modules, exclude):
            continue
        if not parameter.is_floating_point() or hasattr(parameter, "quant_state"):
            raise ValueError(
                f"{name!r} is quantised ({parameter.dtype}): load the model in floating point, "
                "because what is merged are its weights."
            )
        found[name] = parameter
    return found


def _rows(found: LinearMap, x: Tensor, mask: Tensor | None) -> Tensor:
    rows = valid_rows(x, mask)
    if isinstance(rows, str):
        raise ValueError(f"{found.name}: {rows}.")
    return rows


def _examples(found: LinearMap, x: Tensor, size: int) -> Iterator[Tensor]:
    """The rows of each example."""
    if x.shape[0] % size:
        raise ValueError(
            f"{found.name} sees {x.shape[0]} rows for {size} examples, which cannot be told "
            "apart: use others=True, which looks at one at a time."
        )
    x = x.reshape(size, -1, x.shape[-1])
    yield from x.to(torch.promote_types(x.dtype, torch.float32))


def _gather(into: dict[str, list[Tensor]], name: str, parts: list[Tensor]) -> None:
    """Add up what several calls of one module give each example."""
    held = into.get(name)
    into[name] = parts if held is None else [a + b for a, b in zip(held, parts, strict=True)]


def _shifts(model: nn.Module) -> bool:
    """Whether the model predicts the next token, by the name of its class."""
    names = {type(module).__name__ for module in model.modules()}
    return any("CausalLM" in name or "LMHeadModel" in name for name in names)


def _check(
    kinds: Sequence[str], fisher: str, loss_reduction: str, max_examples: int | None
) -> None:
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(COLLECTED):
        raise ValueError(f"kinds must be some of {', '.join(COLLECTED)}, got {kinds!r}.")
    for key, value, known in (
        ("fisher", fisher, ("empirical", "true")),
        ("loss_reduction", loss_reduction, ("mean", "sum")),
    ):
        if value not in known:
            raise ValueError(f"{key} must be {known[0]!r} or {known[1]!r}, got {value!r}.")
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"max_examples must be at least 1, got {max_examples}.")

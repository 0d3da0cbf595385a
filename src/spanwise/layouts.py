"""How a parameter tensor stores a linear map W (m outputs x n inputs).

Every subspace of a model belongs to one side of such a map, so this table is what lets
one `Atlas` speak about `nn.Linear`, transformers' `Conv1D`, convolutions, embeddings and
stacked experts alike. Parameter names are the keys everywhere.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Layout = Literal["linear", "transposed", "conv", "experts", "experts_transposed"]
"""`linear` (m, n); `transposed` (n, m), as Conv1D and Embedding store it; `conv`
(m, channels, *kernel) with n = channels * kernel elements; `experts` (E, m, n);
`experts_transposed` (E, n, m)."""

Side = Literal["output", "input"]

LAYOUTS: tuple[str, ...] = get_args(Layout)
_TRANSPOSED = ("transposed", "experts_transposed")
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")

_PEFT = re.compile(r"\.(base_layer|modules_to_save\.[^.]+)\.")


def strip_prefixes(name: str) -> str:
    """The name a parameter has without DDP, `torch.compile`, FSDP and PEFT around it.

    Example:
        >>> strip_prefixes("module._orig_mod.base_model.model.lm_head.weight")
        'lm_head.weight'
    """
    name = _WRAPPERS.sub("", name).lstrip(".")
    while name.startswith(("module.", "base_model.model.")):
        name = name.removeprefix("module.").removeprefix("base_model.model.")
    return _PEFT.sub(".", name)


def is_transposed(layout: Layout) -> bool:
    """Whether the rows of the stored matrix are the map's inputs."""
    return layout in _TRANSPOSED


def stored_matrix(tensor: Tensor, layout: Layout) -> Tensor:
    """A view of `tensor` as stored, with convolution kernels flattened: `(*experts, rows, cols)`.

    Raises:
        ValueError: If the tensor's number of dimensions does not fit the layout.
    """
    _check_layout(tensor.shape, layout)
    return tensor.flatten(1) if layout == "conv" else tensor


def matrix_view(tensor: Tensor, layout: Layout) -> Tensor:
    """A view of `tensor` as the linear map it stores, `(*experts, m outputs, n inputs)`.

    Writing into the view writes into the tensor (for a convolution, if it is contiguous).

    Raises:
        ValueError: If the tensor's number of dimensions does not fit the layout.
    """
    stored = stored_matrix(tensor, layout)
    return stored.mT if is_transposed(layout) else stored


def map_dims(shape: Sequence[int], layout: Layout) -> tuple[tuple[int, ...], int, int]:
    """What a stored shape means: the expert axes (at most one), m outputs and n inputs.

    Raises:
        ValueError: If the number of dimensions does not fit the layout.

    Example:
        >>> map_dims((8, 3, 5, 5), "conv")
        ((), 8, 75)
    """
    _check_layout(shape, layout)
    if layout == "conv":
        return (), shape[0], math.prod(shape[1:])
    *batch, rows, cols = shape
    m, n = (cols, rows) if is_transposed(layout) else (rows, cols)
    return tuple(batch), m, n


def _check_layout(shape: Sequence[int], layout: Layout) -> None:
    expected = {"linear": (2,), "transposed": (2,), "conv": (3, 4, 5)}.get(layout, (3,))
    if layout not in LAYOUTS or len(shape) not in expected:
        raise ValueError(
            f"layout {layout!r} does not fit a tensor of shape {tuple(shape)}; "
            f"layouts are {', '.join(LAYOUTS)}."
        )


def side_dim(shape: Sequence[int], layout: Layout, side: Side) -> int:
    """The dimension of the space that one side of the map lives in."""
    _, m, n = map_dims(shape, layout)
    return m if side == "output" else n


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """One linear map of a model and the parameter that stores it."""

    name: str
    """The parameter's canonical name, as `model.named_parameters()` gives it, prefixes stripped."""
    parameter: nn.Parameter
    module: nn.Module
    layout: Layout
    kind: Literal["linear", "conv1d", "conv", "embedding", "experts"]
    bias: str | None = None
    """Name of the bias that is added to this map's output, if any."""
    aliases: tuple[str, ...] = ()
    """Other names of the same tensor (tied weights)."""
    others: tuple[nn.Module, ...] = ()
    """Other modules that hold the same tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return tuple(self.parameter.shape)

    @property
    def outputs(self) -> int:
        """m, the width of the map's output."""
        return map_dims(self.shape, self.layout)[1]

    @property
    def inputs(self) -> int:
        """n, the width of the map's input."""
        return map_dims(self.shape, self.layout)[2]


def linear_maps(model: nn.Module, *, embeddings: bool = False) -> Iterator[LinearMap]:
    """Every linear map of `model`, in the order of its modules, each tensor once.

    Args:
        model: Any module. Linear, transformers' Conv1D, Conv1d/2d/3d without groups and 3-D
            expert weights are found; transposed convolutions are not.
        embeddings: Also yield `nn.Embedding` tables (their output side is the width). A table
            that is tied to an output head counts as an embedding.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(strip_prefixes(name))
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    seen: set[int] = set()
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(module)
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            found = _kind_of(module, attribute, parameter)
            if found is None or id(parameter) in seen:
                continue
            kind, layout = found
            if id(parameter) in tables:
                kind, layout = "embedding", "transposed"
            if kind == "embedding" and not embeddings:
                continue
            seen.add(id(parameter))
            canonical, *aliases = names[id(parameter)]
            bias = getattr(module, _bias_of(attribute), None)
            yield LinearMap(
                name=canonical,
                parameter=parameter,
                module=module,
                layout=layout,
                kind=kind,
                bias=names[id(bias)][0] if id(bias) in names else None,
                aliases=tuple(aliases),
                others=tuple(m for m in holders[id(parameter)] if m is not module),
            )


def _bias_of(attribute: str) -> str:
    return "bias" if attribute == "weight" else f"{attribute}_bias"


def _kind_of(
    module: nn.Module, attribute: str, parameter: Tensor
) -> tuple[Literal["linear", "conv1d", "conv", "embedding", "experts"], Layout] | None:
    if attribute == "weight":
        if isinstance(module, nn.Linear):
            return "linear", "linear"
        if isinstance(module, nn.Embedding):
            return "embedding", "transposed"
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return ("conv", "conv") if module.groups == 1 else None
        # transformers' Conv1D, recognised without importing transformers.
        if type(module).__name__ == "Conv1D" and hasattr(module, "nf") and parameter.ndim == 2:
            return "conv1d", "transposed"
    if parameter.ndim == 3 and "expert" in type(module).__name__.lower():
        transposed = bool(getattr(module, "is_transposed", False))
        return "experts", "experts_transposed" if transposed else "experts"
    return None


def layout_of(tensor: Tensor) -> Layout | None:
    """The layout a bare tensor is taken for when its module is unknown, by its dimensions."""
    if isinstance(tensor, torch.Tensor) and tensor.ndim in (2, 3, 4, 5):
        return {2: "linear", 3: "experts"}.get(tensor.ndim, "conv")  # pyrefly: ignore
    return None


_EMBEDDING = re.compile(r"(^|[._])(embed\w*|embeddings?|wte|wpe|tok_embeddings)(\.|$)")


def guess_layout(name: str, shape: Sequence[int]) -> Layout | None:
    """The layout of a checkpoint's tensor when no model tells; None for what is no linear map.

    Right for Linear, convolutions and stacked experts. A transposed matrix (transformers'
    Conv1D) looks like any other: give the model where there are some.
    """
    if _EMBEDDING.search(name) or (name.rsplit(".", 1)[-1] != "weight" and "expert" not in name):
        return None
    if len(shape) == 3 and "expert" in name:
        return "experts"
    return {2: "linear", 3: "conv", 4: "conv", 5: "conv"}.get(len(shape))  # pyrefly: ignore

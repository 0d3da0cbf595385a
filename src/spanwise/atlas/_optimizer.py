"""Atlas of an optimizer's state: the subspaces that a projected optimizer works in."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spanwise.atlas._atlas import Atlas
from spanwise.atlas._entry import Entry
from spanwise.layouts import Layout, Side, is_transposed, linear_maps, strip_prefixes
from spanwise.subspace import Subspace


def optimizer_atlas(
    optimizer: torch.optim.Optimizer | Mapping[str, Any], model: nn.Module | None = None
) -> Atlas:
    """The bases that an optimizer of `spanwise.optim` holds now.

    Args:
        optimizer: The optimizer or its `state_dict()`.
        model: Names and shapes, where the parameter groups do not tell them: an optimizer built
            without names, or a state dict with convolutions. Parameters are matched to a state
            dict by name, so its groups must have names then.

    Raises:
        ValueError: If no parameter has a basis, or the names or shapes are unknown.
    """
    entries = []
    for name, state, layout, shape in _rows(optimizer, model):
        for stored_side in ("left", "right"):
            basis = state.get(f"basis_{stored_side}")
            if basis is None:
                continue
            if hasattr(basis, "placements"):  # spread over processes: gathered on each
                basis = basis.full_tensor()
            if not basis.any():
                continue
            output = (stored_side == "left") != is_transposed(layout)
            side: Side = "output" if output else "input"
            subspace = Subspace(basis.detach().clone())
            entries.append(
                Entry(name=name, side=side, subspace=subspace, layout=layout, shape=shape)
            )
    if not entries:
        raise ValueError(
            "no parameter of this optimizer has a basis: it is no projected optimizer of "
            "spanwise.optim, or has not taken a step."
        )
    return Atlas(entries, {"source": "optimizer"})


def _rows(
    optimizer: torch.optim.Optimizer | Mapping[str, Any], model: nn.Module | None
) -> Iterator[tuple[str, Mapping[str, Any], Layout, tuple[int, ...]]]:
    maps = {found.name: found for found in (linear_maps(model) if model is not None else ())}
    by_id = {id(found.parameter): found.name for found in maps.values()}
    live = isinstance(optimizer, torch.optim.Optimizer)
    groups = optimizer.param_groups if live else optimizer["param_groups"]
    parameters = [p for group in groups for p in group["params"]]
    states = optimizer.state if live else optimizer["state"]
    if live and any(hasattr(p, "placements") for p in parameters):
        saved = optimizer.state_dict()["state"]  # the state itself holds the rows of one process
        states = {p: saved.get(i, {}) for i, p in enumerate(parameters)}
    for group in groups:
        names = group.get("param_names") or [None] * len(group["params"])
        layouts = group.get("layouts") or ["linear"] * len(group["params"])
        for p, name, layout in zip(group["params"], names, layouts, strict=True):
            state = states.get(p, {})
            if not any(key.startswith("basis_") for key in state):
                continue
            name = name if name is not None else by_id.get(id(p))
            if name is None:
                raise ValueError(
                    "the optimizer's parameters have no names: build it from "
                    "spanwise.optim.param_groups(model), or pass model=."
                )
            name = strip_prefixes(name)
            if live:
                yield name, state, layout, tuple(p.shape)
            elif name in maps:
                yield name, state, maps[name].layout, maps[name].shape
            else:
                yield name, state, layout, _shape(name, state, layout)


def _shape(name: str, state: Mapping[str, Tensor], layout: Layout) -> tuple[int, ...]:
    """The shape of a stored matrix from its bases and the moments between them."""
    if layout == "conv":
        raise ValueError(f"{name}: a state dict does not tell a convolution's kernel; pass model=.")
    left, right, moments = (state.get(k) for k in ("basis_left", "basis_right", "exp_avg"))
    known = left if left is not None else right
    if known is None or moments is None:
        raise ValueError(f"{name}: the state has no moments to tell the shape from; pass model=.")
    rows = left.shape[-2] if left is not None else moments.shape[-2]
    cols = right.shape[-2] if right is not None else moments.shape[-1]
    return (*known.shape[:-2], rows, cols)

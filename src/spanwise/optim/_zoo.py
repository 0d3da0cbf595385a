"""Optimizers by name: ours and the rivals that the command line and the benchmarks compare."""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from spanwise.atlas import Atlas
from spanwise.layouts import strip_prefixes
from spanwise.optim._engine.groups import param_groups
from spanwise.optim._guard.guard import guard
from spanwise.optim.galore import GaLore
from spanwise.optim.grass import Grass
from spanwise.optim.grasswalk import GrassJump, GrassWalk
from spanwise.optim.osd import OnlineSubspaceDescent
from spanwise.optim.snsm import SNSM, AdamSN


class MuonWithAdamW(Optimizer):
    """Muon for the matrices of linear maps and AdamW for everything else, as one optimizer.

    `torch.optim.Muon` refuses anything but matrices, so a whole model needs two optimizers; this
    keeps them behind one list of groups for schedulers and checkpoints.

    Args:
        params: Groups of `param_groups`; those with a `rank` (its value is unused) go to Muon.
        lr: Learning rate of the plain groups, and of Muon under its `match_rms_adamw` scaling.
        weight_decay: Decoupled decay of both.
    """

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        self._parts: list[Optimizer] | None = None
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._divide()

    def _divide(self) -> None:
        lr, weight_decay = self.defaults["lr"], self.defaults["weight_decay"]
        matrices = [g for g in self.param_groups if g.get("rank")]
        plain = [g for g in self.param_groups if not g.get("rank")]
        self._parts = []
        if matrices:
            muon = torch.optim.Muon(
                [p for g in matrices for p in g["params"]],
                lr=lr,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._parts.append(_share(muon, matrices, self))
        if plain:
            adamw = torch.optim.AdamW(
                [p for g in plain for p in g["params"]], lr=lr, weight_decay=weight_decay
            )
            self._parts.append(_share(adamw, plain, self))

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with each part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts or ():
            part.step()
        return loss

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; with a `rank` it goes to Muon."""
        super().add_param_group(param_group)
        if self._parts is not None:
            self._divide()

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        # Loading, copying and unpickling replace the groups and the state that the parts share.
        super().__setstate__(state)
        self._divide()


def _share(part: Optimizer, groups: list[dict[str, Any]], whole: Optimizer) -> Optimizer:
    # One dict per group and one state for all: schedulers and checkpoints see every change.
    for group in groups:
        for key, value in part.param_groups[0].items():
            if key != "params":
                group.setdefault(key, value)
    part.param_groups = groups
    part.state = whole.state
    return part


def muon_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Groups for `MuonWithAdamW`: matrices of linear maps, whatever their size, and the rest.

    Stacked experts and convolutions go to the rest: torch's Muon takes matrices only.
    """
    projected, *plain = param_groups(model, rank=1, min_dim=1)
    named = list(projected["params"])
    rest = [pair for group in plain for pair in group["params"]]
    rest += [(n, p) for n, p in named if p.ndim != 2]
    groups = [{"params": [(n, p) for n, p in named if p.ndim == 2], "rank": 1}, {"params": rest}]
    return [group for group in groups if group["params"]]


def _muon(model: nn.Module, lr: float, rank: int | None, **options: Any) -> Optimizer:
    return MuonWithAdamW(muon_groups(model), lr=lr, **options)


def _named(model: nn.Module) -> list[Any]:
    return [(strip_prefixes(n), p) for n, p in model.named_parameters() if p.requires_grad]


def _adamw(model: nn.Module, lr: float, rank: int | None, **options: Any) -> Optimizer:
    return torch.optim.AdamW(_named(model), lr=lr, fused=True, **options)


def _sgd(model: nn.Module, lr: float, rank: int | None, **options: Any) -> Optimizer:
    return torch.optim.SGD(_named(model), lr=lr, **options)


def _ours(method: Any) -> Callable[..., Optimizer]:
    def build(model: nn.Module, lr: float, rank: int | None, **options: Any) -> Optimizer:
        groups = method.groups_of(
            model, 128 if rank is None else rank, plain=options.pop("plain", None)
        )
        return method(groups, lr=lr, **options)

    return build


OURS: dict[str, Any] = {
    "galore": GaLore,
    "grass": Grass,
    "grasswalk": GrassWalk,
    "grassjump": GrassJump,
    "osd": OnlineSubspaceDescent,
    "snsm": SNSM,
    "adamsn": AdamSN,
}
"""The optimizers of this library by the name that the command line uses."""

METHODS: dict[str, Callable[..., Optimizer]] = {
    **{name: _ours(method) for name, method in OURS.items()},
    "adamw": _adamw,
    "muon": _muon,
    "sgd": _sgd,
}
"""Factories `(model, lr, rank, **options) -> Optimizer` by the name the command line uses."""


def build_optimizer(
    method: str,
    model: nn.Module,
    *,
    lr: float,
    rank: int | None = None,
    avoid: Atlas | None = None,
    within: Atlas | None = None,
    **options: Any,
) -> Optimizer:
    """An optimizer for all trainable parameters of `model`, guarded if an atlas is given.

    Args:
        method: A key of `METHODS`.
        model: The model to train.
        lr: Learning rate.
        rank: Subspace dimension, for methods that have one.
        avoid: Directions that updates must keep out of.
        within: Directions that updates must stay in.
        **options: Passed to the optimizer, such as `weight_decay`.

    Raises:
        ValueError: If `method` is unknown.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.{hint}")
    if method in OURS:
        return METHODS[method](model, lr, rank, avoid=avoid, within=within, **options)
    optimizer = METHODS[method](model, lr, rank, **options)
    if avoid is None and within is None:
        return optimizer
    return guard(optimizer, avoid=avoid, within=within)

"""The guard for optimizers that are not ours: AdamW, SGD, Muon, any `torch.optim.Optimizer`."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spanwise.atlas import Atlas
from spanwise.optim._guard.constraint import BiasRule, Constraint
from spanwise.optim._guard.constraints import Constraints, merge_names
from spanwise.optim._sharding.shard import own_part


class Guard:
    """Two hooks around `optimizer.step`: project the gradient before, the step itself after.

    Projecting the gradient alone does not hold: Adam divides elementwise, Muon orthogonalises
    and weight decay pulls, each of which leads back into the forbidden directions.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        avoid: Atlas | None,
        within: Atlas | None,
        model: nn.Module | None,
        bias: BiasRule,
    ) -> None:
        self._optimizer, self._atlases, self._model, self._bias = (
            optimizer, (avoid, within), model, bias
        )  # fmt: skip
        self._match()
        self._before: dict[str, Tensor] = {}
        self._handles = [
            optimizer.register_step_pre_hook(self._pre),
            optimizer.register_step_post_hook(self._post),
        ]

    def _match(self) -> None:
        named = merge_names(self._optimizer, self._model)
        self.constraints = Constraints.resolve(named, *self._atlases, bias=self._bias)
        self._guarded = [(n, p) for n, p in named if self.constraints.get(n, p) is not None]
        self._size = _count(self._optimizer)

    @property
    def names(self) -> list[str]:
        """The guarded parameters."""
        return [name for name, _ in self._guarded]

    def remove(self) -> None:
        """Take the guard off again."""
        for handle in self._handles:
            handle.remove()
        del self._optimizer.spanwise_guard  # pyrefly: ignore[missing-attribute]

    def _constraint(self, name: str, p: Tensor) -> Constraint:
        constraint = self.constraints.get(name, p)
        assert constraint is not None
        return constraint

    @torch.no_grad()
    def _pre(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _count(optimizer) != self._size:  # add_param_group came after the guard
            self._match()
        has_closure = bool(args and args[0] is not None) or kwargs.get("closure") is not None
        for name, p in self._guarded:
            # A closure makes its gradients inside the step; then only the step is projected.
            if p.grad is None and not has_closure:
                continue
            if p.grad is not None:
                g = own_part(p.grad)
                g.copy_(self._constraint(name, p).apply(g))
            self._before[name] = own_part(p.detach()).clone()

    @torch.no_grad()
    def _post(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name, p in self._guarded:
            before = self._before.pop(name, None)
            if before is not None:
                w = own_part(p)
                update = self._constraint(name, p).apply(w - before)
                w.copy_(before + update)


def _count(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def guard(
    optimizer: Optimizer,
    avoid: Atlas | None = None,
    within: Atlas | None = None,
    model: nn.Module | None = None,
    *,
    bias: BiasRule = "freeze",
) -> Optimizer:
    """Hold every step of `optimizer` to `avoid` and `within`, exactly.

    With output directions U (m x p) and input directions V (n x q) of a map W,
    `avoid` gives U^T (W_t - W_s) = 0 and (W_t - W_s) V = 0 for every t: outputs along U, and
    responses to inputs in V, do not change. `within` gives the same for the complement.

    The step costs a copy of the guarded weights and two thin products for each; optimizers of
    `spanwise.optim` take `avoid` and `within` themselves and need neither.

    Args:
        optimizer: Changed in place by two hooks; schedulers, closures and checkpoints go on as
            before. `optimizer.spanwise_guard.remove()` takes it off.
        avoid: Directions that updates must keep out of.
        within: Directions that updates must stay in.
        model: Gives the parameters' names when the optimizer was not built from named ones.
        bias: Whether an input entry freezes its map's bias (`freeze`) or lets outputs shift
            (`allow`).

    Returns:
        The same optimizer.

    Raises:
        ValueError: If neither atlas is given, one matches nothing, an entry does not fit its
            parameter, or the optimizer is already guarded.

    Example:
        >>> opt = guard(torch.optim.AdamW(model.named_parameters()), avoid=atlas)
        ... # doctest: +SKIP
    """
    # accelerate's wrapper calls itself an Optimizer, but its step runs no hooks.
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; guard "
            "the optimizer before an accelerator wraps it."
        )
    if avoid is None and within is None:
        raise ValueError("guard needs avoid=, within=, or both; got neither.")
    if hasattr(optimizer, "spanwise_guard"):
        raise ValueError(
            "the optimizer is guarded already; call optimizer.spanwise_guard.remove()."
        )
    optimizer.spanwise_guard = Guard(optimizer, avoid, within, model, bias)  # pyrefly: ignore[missing-attribute]
    return optimizer

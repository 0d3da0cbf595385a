"""Adam, AdaGrad, RMSprop and SGD with momentum as one rule on whole tensors."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.optim._engine.groups import Member
from spanwise.optim._engine.rules import adam_
from spanwise.optim._engine.subspace import SubspaceOptimizer, _by_dtype
from spanwise.optim._sharding.shard import own_part


def correction(
    step: float, betas: tuple[float, float], *, momentum: bool, second_moment: bool
) -> float:
    """sqrt(1 - b2^t) / (1 - b1^t), each factor only for a moment that there is."""
    first = 1 - betas[0] ** step if momentum else 1.0
    return (math.sqrt(1 - betas[1] ** step) if second_moment else 1.0) / first


def generic_(
    targets: list[Tensor],
    grads: list[Tensor],
    states: list[Mapping[str, Any]],
    *,
    step: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    bias_correction: bool,
) -> None:
    """W <- W - lr c u / (sqrt(v) + eps), in place, with the moments that the states hold.

    u <- b1 u + (1 - b1) G, or G without momentum; v <- b2 v + (1 - b2) G^2, for b2 = 1 the plain
    sum v + G^2 (AdaGrad), or no division without one. c is the bias correction of what there is.
    Epsilon is outside the correction, unlike torch's.

    Args:
        targets: Written in place.
        grads: Gradients, of the same shapes and dtypes.
        states: For each, `exp_avg` and `exp_avg_sq` where the rule has them; all alike.
        step: 0-dim float32 tensor on the CPU, t counted from 1 for this update. One for all.
        lr: Learning rate.
        betas: b1 in [0, 1) and b2 in [0, 1].
        eps: Added to the square root of the second moment.
        bias_correction: Whether c differs from 1.

    Sources:
        Kingma and Ba, "Adam: A method for stochastic optimization", 2015, section 2, last
        paragraph, for the order of correction and epsilon.
    """
    if not targets:
        return
    t, (b1, b2) = float(step), betas
    has_u, has_v = ("exp_avg" in states[0]), ("exp_avg_sq" in states[0])
    c = correction(t, betas, momentum=has_u, second_moment=has_v) if bias_correction else 1.0
    if has_u and has_v and b2 < 1:
        # torch's kernel divides by sqrt(v / (1 - b2^t)) + eps': with these two it is ours.
        root = math.sqrt(1 - b2**t)
        adam_(
            targets,
            grads,
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            step=step,
            lr=lr * c * (1 - b1**t) / root,
            betas=betas,
            eps=eps / root,
        )
        return
    for w, g, state in zip(targets, grads, states, strict=True):
        u = state["exp_avg"].lerp_(g, 1 - b1) if has_u else g
        if not has_v:
            w.add_(u, alpha=-lr * c)
            continue
        v = state["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=1 - b2 if b2 < 1 else 1.0)
        denominator = v.sqrt().add_(eps)
        if eps == 0:  # 0 / 0 where no gradient ever was
            denominator.clamp_(min=torch.finfo(v.dtype).tiny)
        w.addcdiv_(u, denominator, value=-lr * c)


def has_momentum(group: Mapping[str, Any]) -> bool:
    """Whether the group averages gradients at all."""
    return group.get("momentum", "sm") != "none" and group["betas"][0] > 0


def has_second_moment(group: Mapping[str, Any]) -> bool:
    """Whether the group divides by a second moment at all."""
    return group.get("second_moment", "sn") != "none" and group["betas"][1] > 0


class WholeMoments(SubspaceOptimizer):
    """Plain groups follow `generic_`, with the moments that the group's options ask for.

    `momentum`: none, or any other for an average of gradients; `second_moment` likewise.
    """

    @classmethod
    @override
    def plain_numbers(cls, numel: int, options: Mapping[str, Any]) -> int:
        """Numbers of state kept for a tensor of a plain group."""
        return numel * (has_momentum(options) + has_second_moment(options))

    @override
    def _plain_step(self, group: dict[str, Any], members: list[Member]) -> None:
        batches: dict[float, list[Member]] = {}
        for member in members:
            p, state = member.parameter, self.state[member.parameter]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                kept = {"exp_avg": has_momentum, "exp_avg_sq": has_second_moment}
                for key, has in kept.items():
                    if has(group):
                        zeros = torch.zeros_like(own_part(p), memory_format=torch.preserve_format)
                        state[key] = zeros
            state["step"] += 1
            batches.setdefault(float(state["step"]), []).append(member)
        for batch in batches.values():
            self._generic_step(group, batch)

    def _generic_step(self, group: dict[str, Any], members: list[Member]) -> None:
        lr = float(group["lr"])
        decay = lr * group["weight_decay"]
        parameters = [m.parameter for m in members]
        weights = [own_part(p) for p in parameters]
        targets, grads = list(weights), [_gradient_of(p) for p in parameters]
        constraints = [self._constraints.get(m.name, m.parameter) for m in members]
        for i, (p, constraint) in enumerate(zip(parameters, constraints, strict=True)):
            if constraint is not None:
                grads[i] = constraint.apply(grads[i]).to(p.dtype)
                targets[i] = torch.zeros_like(weights[i])
        for kind in _by_dtype(targets):
            generic_(
                [targets[i] for i in kind],
                [grads[i] for i in kind],
                [self.state[parameters[i]] for i in kind],
                step=self.state[parameters[0]]["step"],
                lr=lr,
                betas=group["betas"],
                eps=group["eps"],
                bias_correction=group["bias_correction"],
            )
        for w, target, constraint in zip(weights, targets, constraints, strict=True):
            if constraint is None:
                if decay:
                    w.mul_(1 - decay)
                continue
            if decay:
                target.mul_(1 - decay).add_(w, alpha=-decay)
            w.add_(constraint.apply(target))


def _gradient_of(p: Tensor) -> Tensor:
    assert p.grad is not None
    return own_part(p.grad)

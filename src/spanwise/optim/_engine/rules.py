"""Update rules as plain functions on lists of tensors."""

import torch
from torch import Tensor

# torch's fused kernels read the step from a tensor on the parameter's device.
_FUSED_DEVICES = ("cpu", "cuda")


def fused_available(tensors: list[Tensor]) -> bool:
    """Whether torch's fused Adam kernel may run on these tensors, here and now."""
    return not torch.compiler.is_compiling() and all(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.device.type in _FUSED_DEVICES
        and t.is_floating_point()
        for t in tensors
    )


def adam_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: Tensor,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
) -> None:
    """AdamW in place: `p <- (1 - lr wd) p - lr m_hat / (sqrt(v_hat) + eps)`.

    Called with `params` of zeros it yields the direction `-lr m_hat / (sqrt(v_hat) + eps)`,
    which is how a projected step uses torch's fused kernel on its r x n states.

    Args:
        params: Written in place.
        grads: Gradients, of the same shapes and dtypes.
        exp_avgs: First moments m, updated.
        exp_avg_sqs: Second moments v, updated.
        step: 0-dim float32 tensor on the CPU, t counted from 1 for this update. One for all.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the square root of the corrected second moment.
        weight_decay: Decoupled decay, applied before the update.

    Raises:
        ValueError: If shapes differ: the fused kernel would write beyond the smaller tensor.

    Sources:
        Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.
    """
    if not params:
        return
    for p, g, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if not p.shape == g.shape == m.shape == v.shape:
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)} has a gradient of {tuple(g.shape)} and "
                f"moments of {tuple(m.shape)} and {tuple(v.shape)}; all must be equal. Start "
                "without the state, or give the optimizer back what its state was made for."
            )
    beta1, beta2 = betas
    if fused_available(params):
        # The kernel walks raw memory: a gradient in another order would update wrong entries.
        grads = [
            g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
            for p, g in zip(params, grads, strict=True)
        ]
        steps = [step.to(params[0].device)] * len(params)
        torch._fused_adamw_(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            amsgrad=False,
            lr=float(lr),
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            maximize=False,
            grad_scale=None,
            found_inf=None,
        )
        return
    correction1 = 1 - beta1**step
    correction2 = (1 - beta2**step).sqrt()
    if weight_decay:
        torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1 - beta2)
    for p, m, v in zip(params, exp_avgs, exp_avg_sqs, strict=True):
        denominator = v.sqrt().div_(correction2.to(v.device)).add_(eps)
        p.sub_((m / denominator).mul_((lr / correction1).to(v.device)))

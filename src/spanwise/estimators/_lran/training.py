"""Minibatch training of a linearly recurrent autoencoder."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spanwise.errors import ConvergenceError
from spanwise.estimators._lran.adam import FlatAdam
from spanwise.estimators._lran.fast import HandGradient, is_plain
from spanwise.estimators._lran.loss import LossParts, lran_loss
from spanwise.estimators._lran.module import LRANModule

Optimizer = torch.optim.Optimizer | FlatAdam
Step = Callable[[Tensor, float], Tensor]
"""Train on windows that begin at these rows, at this rate: their loss."""
Watch = Callable[[int, float], None]
"""Told the step and the last loss."""

WARM_UP = 0.1
"""Share of the steps in which the rate climbs."""
EXACT = 1e-14
"""A loss that is rounding: relative errors of 1e-7."""
JUDGES = 2048
"""Windows that the held-out loss is taken over, at most."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train."""

    horizon: int
    """States of a window, T."""
    delta: float
    beta: float
    eps: float
    """Share of the mean squared norm that is added to each norm in the loss."""
    lr: float
    one_cycle: bool
    """Climb to `lr` and anneal to 0, or stay at `lr`."""
    steps: int
    batch_size: int
    weight_decay: float
    clip: float
    """Norm to which gradients are cut."""
    patience: int
    """Looks at the held-out loss without a better one after which training ends."""
    looks: int = 50
    """How often the held-out loss is taken."""


@dataclass
class History:
    """What happened."""

    losses: Tensor
    """J of every batch, `(steps,)`."""
    held_out: list[list[float]] = field(default_factory=list)
    """Step and held-out J of every look."""
    reconstruction: float = math.nan
    """Reconstruction part of J at the end, held out where something was."""
    stopped: bool = False
    """Whether training ended early."""
    diverged: bool = False
    """Whether the loss at the last look was no number."""


@dataclass
class Windows:
    """States and the windows that training and judging draw from, gathered by index."""

    states: Float[Tensor, "N n"]
    """Scaled."""
    elapsed: Float[Tensor, " N"] | None
    """Time of each state in steps, where sampling is irregular."""
    train: Int[Tensor, " a"]
    held_out: Int[Tensor, " b"]

    def gather(self, rows: Int[Tensor, " B"], steps: int) -> tuple[Tensor, Tensor | None]:
        """Windows `(B, T, n)` and the time since their first states."""
        index = rows[:, None] + torch.arange(steps, device=rows.device)
        x = self.states[index.view(-1)].view(len(rows), steps, -1)
        if self.elapsed is None:
            return x, None
        times = self.elapsed[index]
        return x, times - times[:, :1]


def make_optimizer(module: LRANModule, plan: Plan) -> Optimizer:
    """Adam with decoupled decay on the weights of encoder and decoder; K is never shrunk."""
    if is_plain(module):
        return FlatAdam(decay=plan.weight_decay, clip=plan.clip)
    decayed = _decayed(module)
    known = {id(p) for p in decayed}
    rest = [p for p in module.parameters() if id(p) not in known and p.requires_grad]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": rest}]
    return torch.optim.AdamW(groups, lr=plan.lr, weight_decay=0.0, fused=True)


def set_options(optimizer: Optimizer, plan: Plan) -> None:
    """Go on with what the plan says now, and with the moments so far."""
    if isinstance(optimizer, FlatAdam):
        optimizer.decay, optimizer.clip = plan.weight_decay, plan.clip
    else:
        optimizer.param_groups[0]["weight_decay"] = plan.weight_decay


def _decayed(module: LRANModule) -> list[nn.Parameter]:
    return [
        p
        for net in (module.encoder, module.decoder)
        for p in net.parameters()
        if p.ndim > 1 and p.requires_grad
    ]


def stepping(
    module: LRANModule, windows: "Windows", plan: Plan, optimizer: Optimizer, state_eps: float
) -> tuple[Step, Callable[[], None]]:
    """What trains on a batch, and what then brings the module up to date.

    By hand where the module allows it, else by autograd.
    """
    if isinstance(optimizer, FlatAdam):
        optimizer.take(module, {id(p) for p in _decayed(module)})
        gradient = HandGradient(module, optimizer.parts, optimizer.slopes, plan, state_eps)
        later = torch.arange(plan.horizon, device=windows.states.device)[:, None]

        def by_hand(rows: Tensor, rate: float) -> Tensor:
            loss = gradient(windows.states[later + rows])
            optimizer.step(rate)
            return loss

        return by_hand, lambda: optimizer.give(module)

    parameters = [p for p in module.parameters() if p.requires_grad]

    def usual(rows: Tensor, rate: float) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, elapsed = windows.gather(rows, plan.horizon)
        loss = batch_loss(module, x, elapsed, plan, state_eps).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, plan.clip)
        optimizer.step()
        return loss.detach()

    return usual, lambda: None


def batch_loss(
    module: LRANModule, x: Tensor, elapsed: Tensor | None, plan: Plan, state_eps: float
) -> LossParts:
    """J of a batch; the latent denominator scales with z, so that shrinking z gains nothing."""
    found = module(x, elapsed)
    latent_eps = plan.eps * found.z.square().sum(-1).mean()
    # Of a collapsed encoder the mean is 0, and 0 / 0 has no gradient.
    return lran_loss(
        x, *_ordered(found), delta=plan.delta, beta=plan.beta, state_eps=state_eps,
        latent_eps=latent_eps + torch.finfo(x.dtype).tiny, elapsed=elapsed,
    )  # fmt: skip


def train(
    module: LRANModule,
    windows: Windows,
    plan: Plan,
    generator: torch.Generator,
    optimizer: Optimizer | None = None,
    watch: Watch | None = None,
) -> History:
    """Train in place; with held-out windows the best weights seen are those kept.

    Training ends early without a better loss for `patience` looks, at a loss that is rounding, and
    where the loss is no number; the weights are then those of an earlier look.

    Raises:
        ConvergenceError: If the loss is not finite and no earlier weights are; the weights are
            then those before.
    """
    optimizer = optimizer or make_optimizer(module, plan)
    state_eps = plan.eps * float(windows.states.square().sum(1).mean())
    history = History(torch.zeros(plan.steps, dtype=torch.float64, device=windows.states.device))
    judges = _spread(windows.held_out, JUDGES)
    best, kept, waited = math.inf, None, 0
    start = {name: held.clone() for name, held in module.state_dict().items()}
    advance, update = stepping(module, windows, plan, optimizer, state_eps)
    for step, rows in enumerate(batches(windows.train, plan, generator)):
        factor = one_cycle(step / plan.steps) if plan.one_cycle else 1.0
        loss = advance(rows, plan.lr * factor)
        history.losses[step] = loss
        last = step + 1 == plan.steps
        if (step + 1) % max(1, plan.steps // plan.looks) and not last:
            continue
        update()
        value = _judged(module, windows, judges, plan, state_eps) if len(judges) else None
        seen = float(loss) if value is None else float(value.total)
        if watch is not None:
            watch(step + 1, seen)
        if value is not None:
            history.held_out.append([float(step + 1), seen])
        history.diverged = not math.isfinite(seen)
        history.stopped = history.diverged or seen < EXACT
        if not history.diverged and (value is None or seen < best):
            best, waited = seen, 0
            # Without held-out windows only as a way back from divergence.
            kept = {name: held.clone() for name, held in module.state_dict().items()}
        elif not history.diverged:
            waited += 1
            history.stopped = waited >= plan.patience and not last
        if history.stopped:
            history.losses = history.losses[: step + 1]
            break
    if kept is None:
        module.load_state_dict(start)
        raise ConvergenceError(
            f"training diverged: the loss is not finite. Lower lr = {plan.lr}, or clip",
            steps=len(history.losses), residual=math.nan,
        )  # fmt: skip
    module.load_state_dict(kept)
    final = judges if len(judges) else _spread(windows.train, JUDGES)
    history.reconstruction = float(_judged(module, windows, final, plan, state_eps).reconstruction)
    return history


def batches(
    rows: Int[Tensor, " a"], plan: Plan, generator: torch.Generator
) -> Iterator[Int[Tensor, " B"]]:
    """A batch of windows for every step, each window once a pass."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(plan.steps):
        if len(order) < min(plan.batch_size, len(rows)):
            order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
        chosen, order = order[: plan.batch_size], order[plan.batch_size :]
        yield rows[chosen.to(rows.device)]


def one_cycle(share: float) -> float:
    """Factor of the rate: a linear climb over `WARM_UP`, then a cosine down to 0."""
    if share < WARM_UP:
        return (share + 0.02) / (WARM_UP + 0.02)
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


@torch.no_grad()
def _judged(
    module: LRANModule, windows: Windows, rows: Tensor, plan: Plan, state_eps: float
) -> LossParts:
    x, elapsed = windows.gather(rows, plan.horizon)
    return batch_loss(module, x, elapsed, plan, state_eps)


def _ordered(found: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return found[0], found[1], found[2]


def _spread(rows: Int[Tensor, " b"], most: int) -> Int[Tensor, " c"]:
    """At most so many rows, evenly from all."""
    if len(rows) <= most:
        return rows
    index = torch.linspace(0, len(rows) - 1, most, device=rows.device).round().long()
    return rows[index]

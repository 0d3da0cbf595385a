"""MaTS: models matched in the subspaces that matter to their tasks, by conjugate gradient."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.io import open_tensors
from spanwise.layouts import matrix_view
from spanwise.linalg.krylov import conjugate_gradient
from spanwise.merging._chosen import is_vector
from spanwise.merging._methods._method import Method
from spanwise.merging._methods._quadratic import (
    Differences,
    average,
    check_share,
    check_weights,
    complete,
    task_weights,
)
from spanwise.merging._methods._systems import SYSTEMS, System
from spanwise.merging._stats import (
    BLOCK_FISHER,
    DIAG_FISHER,
    GRADIENT_GRAM,
    GRAM,
    TensorStats,
)  # fmt: skip
from spanwise.merging._work import Work

Objective = Literal["identity", "diag_fisher", "regmean", "kfac", "block_fisher"]
Solver = Literal["auto", "cg", "closed"]
Precond = Literal["jacobi", "kronecker"]
_KINDS: dict[str, tuple[str, ...]] = {
    "identity": (),
    "diag_fisher": (DIAG_FISHER,),
    "regmean": (GRAM,),
    "kfac": (GRAM, GRADIENT_GRAM),
    "block_fisher": (BLOCK_FISHER,),
}
STARTS = ("average", "zeros", "pretrained", "task_arithmetic")


@dataclass(frozen=True, kw_only=True)
class Mats(Method):
    """`(sum w_t A_t) theta = sum w_t A_t theta_t`, a few steps of conjugate gradient.

    Tam, Bansal and Raffel, "Merging by Matching Models in Task Parameter Subspaces", arXiv
    2312.04339. A_t says which directions of a tensor matter to task t; stopping early keeps the
    rest near where it began. Tensors without statistics are averaged. `Merged.log` has the steps
    and the residual, relative to the right side, at the start and the end.

    Args:
        objective: A_t: `identity` (the average), `diag_fisher` (mean squared gradients),
            `regmean` (C_t, mean x x^T of inputs), `kfac` (C_t on the inputs' side and B_t, mean
            g g^T of gradients, on the outputs'), or `block_fisher` (mean g g^T of a vector's own
            gradient; for IA3, whose every tensor is a vector).
        init: Where it begins: `average`, `zeros`, `pretrained` (the base), `task_arithmetic`, or
            another merged model, as a mapping, a file or a folder.
        init_alpha: The scale of `task_arithmetic`, base + init_alpha sum_t D_t.
        iterations: Steps at most. More fit the statistics better, noise included.
        lam: Entries off the diagonal of every C_t and B_t are multiplied by it, in [0, 1].
        rtol: Stops once the residual is this share of the right side's norm.
        normalize: Whether each A_t is divided by its mean diagonal, so that tasks weigh alike.
        precond: Nothing, `jacobi` (A's diagonal) or `kronecker` (inverses of sum C_t and sum
            B_t): nearer to the limit, but other iterates than the paper's.
        solver: `cg` applies A in every step; `auto` has the same iterates in the eigenvectors of
            sum C_t, where that is cheaper (`regmean`); `closed` gives the limit itself (`kfac`:
            of two models).
    """

    needs_base: ClassVar[bool] = False
    per_model: ClassVar[Mapping[str, float]] = {"weight": 1.0}
    reference: ClassVar[str] = "https://arxiv.org/abs/2312.04339"

    objective: Objective = "kfac"
    init: Any = "average"
    init_alpha: float = 0.3
    iterations: int = 100
    lam: float = 1.0
    rtol: float = 1e-5
    normalize: bool = False
    precond: Precond | None = None
    solver: Solver = "auto"

    def __post_init__(self) -> None:
        for key, value, known in (
            ("objective", self.objective, get_args(Objective)),
            ("solver", self.solver, get_args(Solver)),
            ("precond", self.precond, (None, *get_args(Precond))),
        ):
            if value not in known:
                raise ValueError(f"{key} must be one of {known}, got {value!r}.")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}.")
        if not self.rtol >= 0:
            raise ValueError(f"rtol must not be negative, got {self.rtol}.")
        check_share("lam", self.lam)
        if self.precond == "kronecker" and self.objective not in ("regmean", "kfac"):
            raise ValueError(f"precond='kronecker' needs Gram matrices, not {self.objective!r}.")
        text = isinstance(self.init, (str, Path))
        if text and str(self.init) not in STARTS and not Path(self.init).exists():
            raise ValueError(
                f"init must be one of {', '.join(STARTS)}, or a merged model; there is no "
                f"{str(self.init)!r}."
            )

    @override
    def kinds(self) -> tuple[str, ...]:
        return _KINDS[self.objective]

    @override
    def reads(self) -> Sequence[Path]:
        named = isinstance(self.init, (str, Path)) and str(self.init) not in STARTS
        return [Path(self.init)] if named else []

    @override
    def check(self, values: Mapping[str, list[float]]) -> None:
        check_weights(values)

    @override
    def check_models(self, count: int, based: bool) -> None:
        if not based and self.init in ("pretrained", "task_arithmetic"):
            raise ValueError(f"init={self.init!r} begins at the base: give the model as base.")
        if self.solver == "closed" and self.objective == "kfac" and count > 2:
            raise ValueError(
                f"solver='closed' solves kfac for two models at most, got {count}: use 'cg'."
            )

    @override
    def begin(self, names: Sequence[str], work_of: Callable[[str], Work]) -> "Mats":
        start = self._start
        for name in names if start is not None else ():
            shape = work_of(name).shape
            found = tuple(start[name].shape) if start is not None and name in start else None
            if found != shape:
                raise ValueError(
                    f"init has {'no tensor' if found is None else found} at {name!r}, where the "
                    f"models have {shape}: it is no merge of them."
                )
        return self

    @override
    def copies(self, work: Work) -> float:
        if self.objective == "block_fisher" and is_vector(work.shape):
            return 8.0 + 3.0 * max(work.shape)
        if len(work.shape) != 2 or self.objective not in ("regmean", "kfac"):
            return 8.0
        n, m = work.shape
        stacks = 2 * work.count if self.objective == "kfac" else 3
        return 8.0 + stacks * (n / m + m / n) + work.count

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        weights, stats = task_weights(work), self._stats(work)
        if stats is None:
            return average(work, weights)
        differences = Differences(work, self._anchor(work))
        first = stats[0]
        gram = self.objective in ("regmean", "kfac")
        layout = first.layout if gram and first is not None else None

        def seen(tensor: Tensor) -> Tensor:
            """(n inputs, m outputs), which Gram matrices act on from the left; else as it is."""
            if self.objective == "block_fisher":
                return tensor.reshape(-1, 1)
            if layout is None:
                return torch.atleast_1d(tensor)
            return matrix_view(tensor, layout).mT.contiguous()

        system = SYSTEMS[self.objective](work, lam=self.lam, normalize=self.normalize)
        right = total = None
        zero = True
        for difference, weight, held in zip(differences, weights, stats, strict=True):
            zero = zero and not bool((difference + differences.anchor).any())
            term = system.add(weight, held, seen(difference))
            right = term if right is None else right.add_(term)
            total = difference if total is None else total.add_(difference)
        assert right is not None
        assert total is not None
        start = seen(self._begin(work, total))
        # The right side as the weights have it, whose norm the papers' tolerance is a share of.
        whole = right + system.apply(seen(differences.anchor))
        scale = 0.0 if zero else float(torch.linalg.vector_norm(whole, dtype=torch.float64))
        if self.solver == "closed":
            found = system.closed(right, start)
        else:
            found = self._iterate(work, system, right, start, scale)
        if layout is None:
            return differences.finished(found.reshape(work.shape))
        out = torch.empty_like(differences.anchor)
        matrix_view(out, layout).copy_(found.mT)
        return differences.finished(out)

    def _stats(self, work: Work) -> Sequence[TensorStats | None] | None:
        """What the objective takes of every model; None where the average has to do."""
        if not self.kinds():
            return [None] * work.count
        return complete(work, self.kinds())

    def _iterate(
        self, work: Work, system: System, right: Tensor, start: Tensor, scale: float
    ) -> Tensor:
        if not scale:  # all weights are zero: no residual has a meaning
            work.note(iterations=0, initial_residual=0.0, final_residual=0.0)
            return start
        precond = None if self.precond is None else system.precond(self.precond)
        turn = None
        if self.solver == "auto" and precond is None:
            turn = system.turned(self.iterations, right.shape[-1])
        operator = system.apply
        if turn is not None:
            operator, right, start = turn.apply, turn.into(right), turn.into(start)
        found = conjugate_gradient(
            operator, right, start, axes=right.ndim, iterations=self.iterations,
            rtol=0.0, atol=self.rtol * scale, precond=precond,
        )  # fmt: skip
        work.note(
            iterations=int(found.iterations),
            initial_residual=float(found.residuals[0]) / scale,
            final_residual=float(found.residuals[-1]) / scale,
        )
        return found.x if turn is None else turn.back(found.x)

    def _anchor(self, work: Work) -> Tensor | None:
        """The start where it is known beforehand: the first residual then loses no digits."""
        if self._start is not None:
            return self._start[work.name].to(work.device, work.dtype)
        if self.init == "zeros":
            return torch.zeros(work.shape, dtype=work.dtype, device=work.device)
        return None

    def _begin(self, work: Work, total: Tensor) -> Tensor:
        """The start as a difference from the anchor; `total` is the sum of the models'."""
        scales = {"average": 1 / work.count, "task_arithmetic": self.init_alpha}
        return total.mul_(scales.get(self.init, 0.0) if isinstance(self.init, str) else 0.0)

    @cached_property
    def _start(self) -> Mapping[str, Tensor] | None:
        """The tensors of a given start."""
        named = isinstance(self.init, str) and self.init in STARTS
        return None if named else open_tensors(self.init)

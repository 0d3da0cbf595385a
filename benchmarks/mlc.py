"""MLC's loss and whole steps beside the authors' follow-up code, in one run: seconds and error.

    python benchmarks/mlc.py --official CHECKOUT_OF_LeslieTrue/CPP

A step is: |C C'|, the membership, both rates, and gradients down to Z and C. The follow-up code
takes five half-steps of Sinkhorn and a truncated gradient; ours are the converged membership and
its exact gradient. Contenders take turns; times are the processor's.
"""

import argparse
import contextlib
import functools
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _timing import environment, interleave, set_threads, summarize, write_results
from torch import Tensor
from torch.nn.functional import normalize

from spanwise.estimators import MLCLoss, SinkhornProjection

SIZES = [(256, 32), (512, 64), (1024, 128)]
CLUSTERS, ETA, EPS_SQUARED = 10, 0.175, 0.1

Function = Callable[[Tensor, Tensor], Tensor]


def samples(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Unit rows about ten centres, and codes near them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLUSTERS, d, generator=generator)
    own = centres[torch.randint(CLUSTERS, (n,), generator=generator)]
    Z = normalize(own + 0.5 * torch.randn(n, d, generator=generator), dim=1)
    return Z, normalize(Z + 0.1 * torch.randn(n, d, generator=generator), dim=1)


def ours(**options: Any) -> tuple[Function, Function]:
    """Loss of a membership, and of codes."""
    loss, layer = MLCLoss(EPS_SQUARED**0.5, **options), SinkhornProjection(ETA)
    return loss, lambda Z, C: loss(Z, layer((C @ C.mT).abs()))


def official(checkout: Path) -> tuple[Function, Function]:
    """The same by the follow-up code's own classes."""
    sys.path.insert(0, str(checkout))
    from loss.loss_fn import MLCLoss as TheirLoss  # pyrefly: ignore[missing-import]
    from model.sink_distance import SinkhornDistance  # pyrefly: ignore[missing-import]

    with contextlib.redirect_stdout(io.StringIO()):
        loss, layer = TheirLoss(eps=EPS_SQUARED), SinkhornDistance(ETA, max_iter=5)

    def step(Z: Tensor, C: Tensor) -> Tensor:
        plan = layer((C @ C.mT).abs().unsqueeze(0))[0]
        return loss(Z, (plan * plan.shape[-1])[0])[0]

    return lambda Z, G: loss(Z, G)[0], step


def run(function: Function, *inputs: Tensor) -> tuple[float, list[Tensor]]:
    """The value and its gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    value.backward()
    return float(value.detach()), [leaf.grad for leaf in leaves if leaf.grad is not None]


def gap(a: list[Tensor], b: list[Tensor]) -> list[float]:
    return [float((x - y).norm() / y.norm()) for x, y in zip(a, b, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, help="a checkout of LeslieTrue/CPP")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    set_threads(1)
    contenders = {"spanwise": ours(), "spanwise, a quarter of the columns": ours()}
    if options.official:
        contenders["follow-up code"] = official(options.official)
    rows = []
    for n, d in SIZES:
        Z, C = samples(n, d)
        contenders["spanwise, a quarter of the columns"] = ours(columns=n // 4)
        G = SinkhornProjection(ETA)((C @ C.mT).abs())
        row: dict[str, Any] = {"n": n, "d": d}
        baseline = "follow-up code" if options.official else "spanwise"
        for part, second, index in (("loss", G, 0), ("step", C, 1)):
            times = interleave(
                {
                    name: functools.partial(run, pair[index], Z, second)
                    for name, pair in contenders.items()
                },
                rounds=options.rounds if n < 1024 else min(3, options.rounds),
                clock=time.process_time,
            )
            row[part] = summarize(times, baseline)
        if options.official:
            mine, theirs = (contenders[name][0] for name in ("spanwise", "follow-up code"))
            value, slopes = run(mine, Z, G)
            expected, truth = run(theirs, Z, G)
            row["loss_relative_difference"] = abs(value - expected) / abs(expected)
            row["gradient_relative_difference"] = gap(slopes, truth)
            # In float64 the difference that is left is that of their 1e-8 in the column sums.
            double = [x.double() for x in (Z, G)]
            value, slopes = run(mine, *double)
            expected, truth = run(theirs, *double)
            row["loss_relative_difference_float64"] = abs(value - expected) / abs(expected)
            row["gradient_relative_difference_float64"] = gap(slopes, truth)
        if options.official and n == 512:
            row["defects"] = defects(Z, C, G)
        print(row, flush=True)
        rows.append(row)
    write_results("mlc", {"environment": environment(), "rows": rows})


def defects(Z: Tensor, C: Tensor, G: Tensor) -> dict[str, Any]:
    """What five half-steps and constant column potentials do to membership and gradient."""
    K = (C @ C.mT).abs()
    five = SinkhornProjection(ETA, n_iter=5, grad="truncated")(K)
    loss = MLCLoss(EPS_SQUARED**0.5)

    def through(layer: SinkhornProjection) -> list[Tensor]:
        return run(lambda codes: loss(Z, layer((codes @ codes.mT).abs())), C)[1]

    exact = through(SinkhornProjection(ETA))
    found = {}
    for steps in (5, 201):
        for grad in ("unrolled", "truncated"):
            layer = SinkhornProjection(ETA, n_iter=steps, tol=0.0, grad=grad)
            slope = through(layer)
            cosine = torch.nn.functional.cosine_similarity(
                slope[0].flatten(), exact[0].flatten(), dim=0
            )
            found[f"{grad}, {steps} half-steps"] = {
                "relative_difference": gap(slope, exact)[0], "cosine": float(cosine),
            }  # fmt: skip
    return {
        "column_sums_after_five": [float(five.sum(0).min()), float(five.sum(0).max())],
        "column_sums_converged": [float(G.sum(0).min()), float(G.sum(0).max())],
        "gradient_of_codes": found,
    }


if __name__ == "__main__":
    main()

"""Three systems, and every way of forecasting them with one knob to tune."""

import hashlib
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from spanwise.datasets import dynamics
from spanwise.estimators import DMD, EDMD, LRAN, BalancedReduction, KernelDMD

SYSTEMS = {
    "duffing": "Duffing",
    "ks": "Kuramoto-Sivashinsky",
    "wake": "cylinder wake",
}
METHODS = {
    "dmd": "DMD",
    "edmd": "EDMD",
    "kdmd": "kernel DMD",
    "kdmd_cut": "kernel DMD, first d",
    "balanced": "balanced to d",
    "lran": "LRAN, d",
}
"""All but the first three forecast with the d coordinates of LRAN."""
MOST_SPLINES = 1200
"""What EDMD may use; it gains by more on Duffing, at a cost that grows with their square."""


@dataclass(frozen=True)
class Data:
    """One draw of a system, float64, `(trajectories, T, n)`."""

    train: np.ndarray
    validation: np.ndarray
    """For tuning."""
    test: np.ndarray


@dataclass(frozen=True)
class System:
    """What the methods are told about a system."""

    dt: float
    latent: int
    """d."""
    horizon: int
    """Steps that are judged."""
    center: bool
    knobs: Mapping[str, float]
    """Method -> what a knob of 1 stands for; methods without one are not tuned."""
    lran: Mapping[str, Any]
    """Options of LRAN."""


def numbers(system: str, size: float) -> System:
    """The system's settings, at a share of the usual size."""
    whole = {
        "duffing": System(
            dt=0.25, latent=3, horizon=20, center=False,
            knobs={"edmd": 600, "kdmd": 2.0, "balanced": 16, "lran": 8e-3},
            lran={"hidden": (64, 64, 64), "horizon": 11, "max_steps": 4000, "batch_size": 64},
        ),
        "ks": System(
            dt=1.0, latent=16, horizon=12, center=False,
            knobs={"dmd": 24, "edmd": 1200, "kdmd": 2.0, "balanced": 12, "lran": 8e-3},
            lran={"hidden": (128, 64), "horizon": 8, "max_steps": 3000, "batch_size": 64},
        ),
        "wake": System(
            dt=4 / 9, latent=8, horizon=26, center=True,
            knobs={"dmd": 96, "edmd": 200, "kdmd": 0.125, "balanced": 24, "lran": 1.6e-2},
            lran={"hidden": (64, 32), "horizon": 14, "max_steps": 1500, "batch_size": 32},
        ),
    }[system]  # fmt: skip
    if size == 1:
        return whole
    steps = max(20, round(size * whole.lran["max_steps"]))
    return replace(whole, lran={**whole.lran, "max_steps": steps})


@cache
def draw(system: str, seed: int, size: float) -> Data:
    """Training, validation and test trajectories of one seed.

    There are five wakes. Seeds below 100 tune on the first two; the others judge on the last
    three, of which one is forecast and two train.
    """
    if system == "duffing":
        count = max(50, round(600 * size))
        train = dynamics.duffing(count, 10, seed=3 * seed)
        rest = [dynamics.duffing(200, 20, seed=3 * seed + k) for k in (1, 2)]
        return Data(train, *rest)
    if system == "ks":
        length = max(30, round(500 * size))
        runs = dynamics.kuramoto_sivashinsky(8, length, n_points=64, seed=seed)
        return Data(runs[:6], runs[6:7], runs[7:])
    if size < 1:
        wakes = dynamics.cylinder_wake(5, 30, diameter=6, reynolds=40, settle=4.0, cache=False)
    else:
        wakes = dynamics.cylinder_wake(5, 200)
    flat = wakes.reshape(*wakes.shape[:2], -1).astype(np.float64)
    if seed < 100:
        return Data(flat[:1], flat[1:2], flat[1:2])
    test = 2 + seed % 3
    return Data(flat[[k for k in (2, 3, 4) if k != test]], flat[1:2], flat[test : test + 1])


def digest(size: float) -> str:
    """Of the first states that seed 0 draws; the generators are our own code."""
    found = hashlib.sha256()
    for system in SYSTEMS:
        data = draw(system, 0, size)
        found.update(np.round(data.train[:, :2].astype(np.float32), 4).tobytes())
    return found.hexdigest()


def fitted(
    method: str, system: System, train: np.ndarray, knobs: Mapping[str, float], seed: int
) -> Any:
    """A fitted method with its knob set, in multiples of what is usual.

    Args:
        method: One of `METHODS`.
        system: The system's settings.
        train: Trajectories.
        knobs: Its own knob; the cut and the balanced model are of the kernel DMD with `kdmd`'s.
        seed: Of whatever is random in it.
    """
    common = {"center": system.center, "dt": system.dt}
    value = system.knobs.get(method, 1.0) * knobs.get(method, 1.0)
    if method == "dmd":
        rank = max(1, round(value)) if "dmd" in system.knobs else None
        return DMD(rank, **common).fit(train)
    if method == "edmd":
        splines = min(MOST_SPLINES, round(value))
        model = EDMD("thin_plate", n_centers=splines, rank_tol=1e-8, random_state=seed, **common)
        with warnings.catch_warnings():
            # Of one wake there are fewer states than splines; the errors on another one judge.
            warnings.simplefilter("ignore", UserWarning)
            return model.fit(train)
    if method == "lran":
        model = LRAN(system.latent, lr=value, dt=system.dt, random_state=seed, **system.lran)
        with warnings.catch_warnings():
            # A bad rate is a bad candidate; its score says so.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", UserWarning)
            return model.fit(train.astype(np.float32))
    width = 1 / (train.shape[-1] * train.var())
    kernel = KernelDMD(
        gamma=system.knobs["kdmd"] * knobs["kdmd"] * width, rank_tol=1e-8, max_landmarks=600,
        n_components=system.latent if method == "kdmd_cut" else None, **common,
    )  # fmt: skip
    if method == "balanced":
        steps = max(1, round(value))
        return BalancedReduction(kernel, system.latent, horizon=steps).fit(train)
    return kernel.fit(train)


def judged(
    method: str, name: str, knobs: Mapping[str, float], seed: int, size: float, *, tuning: bool
) -> dict[str, Any]:
    """Fit on the training trajectories and forecast others: errors by horizon, and their mean."""
    system, data = numbers(name, size), draw(name, seed, size)
    train, other = data.train, data.validation if tuning else data.test
    begun = time.process_time()
    model = fitted(method, system, train, knobs, seed)
    seconds = time.process_time() - begun
    if method == "lran":
        other = other.astype(np.float32)
    errors = [float(e) for e in model.errors_by_horizon(other, system.horizon)]
    finite = bool(np.isfinite(errors).all())
    row: dict[str, Any] = {
        "error": statistics.fmean(errors[1:]) if finite else None,
        "errors": errors if finite else None,
        "rank": len(model.eigenvalues_),
        "spectral_radius": model.spectral_radius_,
        "fit_seconds": seconds,
    }
    if name == "duffing" and method == "lran" and finite:
        row.update(duffing_facts(model, data))
    return row


def duffing_facts(model: LRAN, data: Data) -> dict[str, float]:
    """What the eigenfunctions of a Duffing model say.

    Its eigenfunction of the rate nearest to 0 is split midway between its 10 and 90 % quantiles
    over the training states, without labels; either side is called one attractor.
    """
    rates = np.asarray(model.continuous_eigenvalues_)
    slow = int(np.abs(rates).argmin())
    starts = dynamics.duffing(1000, 1, seed=round(1e6 * abs(data.test[0, 0, 0])))[:, 0]
    phi = [
        np.asarray(model.eigenfunctions(part.astype(np.float32)))[..., slow].real
        for part in (data.train, starts)
    ]
    low, high = np.quantile(phi[0], [0.1, 0.9])
    guess = np.where(phi[1] > (low + high) / 2, 1, -1)
    share = float((guess == dynamics.duffing_attractor(starts)).mean())
    pair = complex(-0.25, 1.3919)
    return {
        "slow_rate": float(np.abs(rates[slow])),
        "basin_accuracy": 100 * max(share, 1 - share),
        "pair_distance": float(np.abs(rates - pair).min()),
    }

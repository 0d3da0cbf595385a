"""Simulated dynamics to learn from: every generator takes a seed and repeats bit for bit.

States in rows: `(trajectories, T, n)`. Noise is drawn by torch, from a generator of its own.
"""

import hashlib
import json
import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spanwise.datasets._wake import Wake
from spanwise.datasets.resolve import cache_folder

F64 = torch.float64


def koopman_invariant(
    n_trajectories: int = 100, n_steps: int = 20, *, seed: int = 0
) -> Float[np.ndarray, "trajectories T 2"]:
    """x1' = 0.9 x1, x2' = 0.5 x2 + 0.7 x1^2, which is linear in (x1, x2, x1^2).

    Its Koopman eigenvalues on those three are 0.9, 0.81 and 0.5.

    Args:
        n_trajectories: Starts, uniform in [-1, 1]^2.
        n_steps: Steps of each; `n_steps + 1` states.
        seed: Of the starts.
    """
    _at_least_one(n_trajectories=n_trajectories, n_steps=n_steps)
    x = 2 * torch.rand(n_trajectories, 2, generator=_seeded(seed), dtype=F64) - 1
    path = [x]
    for _ in range(n_steps):
        a, b = path[-1].unbind(1)
        path.append(torch.stack([0.9 * a, 0.5 * b + 0.7 * a**2], dim=1))
    return torch.stack(path, dim=1).numpy()


def duffing(
    n_trajectories: int = 1000,
    n_steps: int = 10,
    *,
    dt: float = 0.25,
    span: float = 2.0,
    seed: int = 0,
) -> Float[np.ndarray, "trajectories T 2"]:
    """The unforced, damped Duffing oscillator x'' = -x' / 2 - x (x^2 - 1).

    Two attractors, at (1, 0) and (-1, 0), with rates -1/4 +- 1.3919i, and a saddle at 0.

    Args:
        n_trajectories: Starts, uniform in [-span, span]^2.
        n_steps: Steps of each; `n_steps + 1` states.
        dt: Time between two states.
        span: Of the starts.
        seed: Of the starts.
    """
    _at_least_one(n_trajectories=n_trajectories, n_steps=n_steps)
    _positive(dt=dt, span=span)
    x = span * (2 * torch.rand(n_trajectories, 2, generator=_seeded(seed), dtype=F64) - 1)
    path = [x]
    for _ in range(n_steps):
        path.append(_duffing_flow(path[-1], dt))
    return torch.stack(path, dim=1).numpy()


def duffing_attractor(states: Float[np.ndarray, "N 2"]) -> Int[np.ndarray, " N"]:
    """Which attractor of `duffing` a state ends at: 1 or -1."""
    x = torch.as_tensor(states, dtype=F64)
    return torch.where(_duffing_flow(x, 60.0)[:, 0] > 0, 1, -1).numpy()


def kuramoto_sivashinsky(
    n_trajectories: int = 1,
    n_steps: int = 600,
    *,
    length: float = 22.0,
    n_points: int = 128,
    dt: float = 1.0,
    step: float = 0.1,
    burn_in: float = 100.0,
    seed: int = 0,
) -> Float[np.ndarray, "trajectories T points"]:
    """u_t = -u u_x - u_xx - u_xxxx on a circle: chaos in space and time.

    By fourth-order exponential time differencing on real Fourier coefficients: complex ones
    lose their symmetry to rounding, and blow up after some hundred time units.

    Args:
        n_trajectories: Independent ones, integrated as one batch.
        n_steps: States kept of each, less one.
        length: Of the circle. 22 is chaotic for good; at 8 pi runs settle into steady cells.
        n_points: Of the grid, even.
        dt: Time between two states, a multiple of `step`.
        step: Of the integration.
        burn_in: Time before the first state.
        seed: Of the starts.

    Raises:
        ValueError: If `dt` is no multiple of `step`, an argument is out of range, or `step` is too
            long for the integration to stay finite.

    Sources:
        Kassam and Trefethen, "Fourth-order time-stepping for stiff PDEs", 2005.
    """
    _at_least_one(n_trajectories=n_trajectories, n_steps=n_steps)
    _positive(length=length, dt=dt, step=step)
    if not 0 <= burn_in < math.inf:
        raise ValueError(f"burn_in must be finite and not negative, got {burn_in}.")
    if n_points < 4 or n_points % 2:
        raise ValueError(f"n_points must be even and at least 4, got {n_points}.")
    inner = round(dt / step)
    if inner < 1 or abs(inner * step - dt) > 1e-9 * dt:
        raise ValueError(f"dt must be a multiple of step, got {dt} and {step}.")
    k = 2 * math.pi / length * torch.arange(n_points // 2 + 1, dtype=F64)
    linear = k**2 - k**4
    # Means over a circle around each point: the formulas cancel near 0.
    circle = torch.exp(1j * math.pi * (torch.arange(32, dtype=F64) + 0.5) / 32)
    r = step * linear[:, None] + circle
    e, half = torch.exp(step * linear), torch.exp(step * linear / 2)
    q = step * ((torch.exp(r / 2) - 1) / r).mean(1).real
    f1 = step * ((-4 - r + torch.exp(r) * (4 - 3 * r + r**2)) / r**3).mean(1).real
    f2 = step * ((2 + r + torch.exp(r) * (r - 2)) / r**3).mean(1).real
    f3 = step * ((-4 - 3 * r - r**2 + torch.exp(r) * (4 - r)) / r**3).mean(1).real
    slope = -0.5j * k

    def nonlinear(v: Tensor) -> Tensor:
        return slope * torch.fft.rfft(torch.fft.irfft(v, n=n_points).square())

    def advance(v: Tensor) -> Tensor:
        nv = nonlinear(v)
        a = half * v + q * nv
        na = nonlinear(a)
        b = half * v + q * na
        nb = nonlinear(b)
        c = half * a + q * (2 * nb - nv)
        return e * v + f1 * nv + 2 * f2 * (na + nb) + f3 * nonlinear(c)

    rough = torch.randn(n_trajectories, n_points, generator=_seeded(seed), dtype=F64)
    v = torch.fft.rfft(rough) * torch.exp(-((k / k[min(6, len(k) - 1)]) ** 2))
    v[:, 0] = 0  # the mean is conserved
    for _ in range(round(burn_in / step)):
        v = advance(v)
    path = [torch.fft.irfft(v, n=n_points)]
    for _ in range(n_steps):
        for _ in range(inner):
            v = advance(v)
        path.append(torch.fft.irfft(v, n=n_points))
    found = torch.stack(path, dim=1)
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"the integration blew up with step = {step}. Lower it.")
    return found.numpy()


def cylinder_wake(
    n_trajectories: int = 3,
    n_steps: int = 200,
    *,
    reynolds: float = 100.0,
    diameter: int = 12,
    dt: float = 4.0 / 9.0,
    settle: float = 60.0,
    disturbance: float = 0.02,
    seed: int = 0,
    cache: bool = True,
) -> Float[np.ndarray, "trajectories T rows columns"]:
    """Vorticity behind a cylinder while its steady wake turns into a street of vortices.

    Lattice Boltzmann, two dimensions: the flow settles with its upper half mirrored below, which
    holds it at the unstable steady wake; a random disturbance then begins each trajectory. Coarse,
    with cylinders repeated every 8 diameters: a system to model, not a reference for drag.

    Args:
        n_trajectories: Disturbances.
        n_steps: States kept of each, less one.
        reynolds: Of the diameter and the free stream.
        diameter: In cells; cost grows with its third power.
        dt: Between two states, in diameters over the free stream; a thirteenth of a period.
        settle: Time before the disturbance, in the same units.
        disturbance: Its size, as a share of the free stream.
        seed: Of the disturbances.
        cache: Keep the result below the user's cache folder.

    Returns:
        Vorticity in units of free stream over diameter, float32, `(trajectories, T, 20, 36)` at
        the default diameter: every third cell from one diameter before the cylinder's center to
        eight behind it and 2.5 to either side.

    Raises:
        ValueError: If a count is out of range, or the lattice is too coarse for `reynolds`.
    """
    _at_least_one(n_trajectories=n_trajectories, n_steps=n_steps)
    _positive(dt=dt, disturbance=disturbance)
    if not 0 <= settle < math.inf:
        raise ValueError(f"settle must be finite and not negative, got {settle}.")
    wake = Wake(reynolds=reynolds, diameter=diameter)
    inner = max(1, round(dt * wake.time_unit))
    asked = {
        "n_trajectories": n_trajectories, "n_steps": n_steps, "reynolds": reynolds,
        "diameter": diameter, "inner": inner, "settle": settle, "disturbance": disturbance,
        "seed": seed, "version": 1,
    }  # fmt: skip
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "dynamics" / f"cylinder-wake-{name}.safetensors"
    from spanwise.io import open_tensors, save_tensors

    if cache and path.is_file():
        return open_tensors(path)["vorticity"].numpy()
    steady = wake.settled(round(settle * wake.time_unit))
    found = []
    for index in range(n_trajectories):
        f = wake.disturbed(steady, disturbance, _seeded(seed * 1000 + index))
        snapshots = [wake.vorticity(f)]
        for _ in range(n_steps):
            f = wake.run(f, inner)
            snapshots.append(wake.vorticity(f))
        found.append(torch.stack(snapshots))
    vorticity = torch.stack(found)
    if not bool(torch.isfinite(vorticity).all()):
        raise ValueError(
            f"the flow blew up: {diameter} cells are too few for reynolds = {reynolds}. Raise "
            "diameter."
        )
    if cache:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, {"vorticity": vorticity}, {"asked": json.dumps(asked)})
    return vorticity.numpy()


def _duffing_flow(x: Float[Tensor, "N 2"], time: float) -> Float[Tensor, "N 2"]:
    """Runge-Kutta of order four, steps of at most 1/40, or 1/20 over long times."""
    count = max(1, math.ceil(time * (40 if time < 5 else 20) - 1e-9))
    h = time / count

    def slope(s: Tensor) -> Tensor:
        a, b = s.unbind(1)
        return torch.stack([b, -0.5 * b - a * (a**2 - 1)], dim=1)

    for _ in range(count):
        k1 = slope(x)
        k2 = slope(x + h / 2 * k1)
        k3 = slope(x + h / 2 * k2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3))
    return x


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _at_least_one(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be finite and above 0, got {value}.")

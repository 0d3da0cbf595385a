"""`compat="galore_torch"` follows that package's trajectory, refreshes included."""

import importlib.util
import sys
import types

import pytest
import torch

from spanwise.optim import GaLore

SIDES = ["std", "reverse_std", "left", "right", "full"]
SHAPES = [(24, 16), (16, 24), (20, 20)]


def problem(shape, steps=14, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(shape, generator=generator)
    return start, [torch.randn(shape, generator=generator) for _ in range(steps)]


def reference(start, grads, *, side, rank, gap, scale, lr, wd, betas=(0.9, 0.999), eps=1e-6):
    """The released algorithm as the method's card states it, in float32."""
    w, m, v = start.clone(), None, None
    rows, cols = w.shape
    left = side in ("left", "full") or (side == "std" and rows < cols)
    left = left or (side == "reverse_std" and rows >= cols)
    right = side in ("right", "full") or not left
    for k, g in enumerate(grads):
        if k % gap == 0:
            u, _, vh = torch.linalg.svd(g, full_matrices=False)
            p, b = u[:, :rank], vh[:rank]
        r = p.T @ g if left else g
        r = r @ b.T if right else r
        m = torch.zeros_like(r) if m is None else m
        v = torch.zeros_like(r) if v is None else v
        m = betas[0] * m + (1 - betas[0]) * r
        v = betas[1] * v + (1 - betas[1]) * r * r
        n = m / (v.sqrt() + eps)
        n = p @ n if left else n
        n = n @ b if right else n
        step = lr * (1 - betas[1] ** (k + 1)) ** 0.5 / (1 - betas[0] ** (k + 1))
        w = w - step * scale * n
        w = w - lr * wd * w
    return w


def ours(start, grads, *, side, rank, gap, scale, lr, wd, betas=(0.9, 0.999), eps=1e-6):
    w = torch.nn.Parameter(start.clone())
    group = {"params": [w], "rank": rank, "update_proj_gap": gap, "scale": scale, "proj_type": side}
    optimizer = GaLore([group], lr=lr, weight_decay=wd, compat="galore_torch")
    for g in grads:
        w.grad = g.clone()
        optimizer.step()
    return w.detach()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wd", [0.0, 0.1])
def test_compat_follows_the_released_algorithm_over_three_refreshes(side, shape, wd):
    start, grads = problem(shape)
    options = {"side": side, "rank": 6, "gap": 4, "scale": 0.25, "lr": 1e-2, "wd": wd}
    difference = (ours(start, grads, **options) - reference(start, grads, **options)).abs().max()
    assert difference < (7e-6 if side == "full" else 3e-6)


def official_adamw():
    """galore_torch's AdamW without its package import, which wants a CUDA library."""
    spec = importlib.util.find_spec("galore_torch")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("galore_torch is not installed")
    pytest.importorskip("transformers")
    folder = spec.submodule_search_locations[0]
    package = types.ModuleType("galore_official")
    package.__path__ = [folder]
    sys.modules["galore_official"] = package
    return importlib.import_module("galore_official.adamw").AdamW


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_compat_follows_the_released_package_when_it_is_installed(side, shape):
    adamw = official_adamw()
    start, grads = problem(shape)
    w = torch.nn.Parameter(start.clone())
    group = {"params": [w], "rank": 6, "update_proj_gap": 4, "scale": 0.25, "proj_type": side}
    official = adamw([group], lr=1e-2, weight_decay=0.1, no_deprecation_warning=True)
    for g in grads:
        w.grad = g.clone()
        official.step()
    mine = ours(start, grads, side=side, rank=6, gap=4, scale=0.25, lr=1e-2, wd=0.1)
    assert (mine - w.detach()).abs().max() < (7e-6 if side == "full" else 3e-6)

"""First bases, refreshes and resumes, of every optimizer: what the gradient may look like then."""

import io
import itertools

import pytest
import torch
from torch import nn

from spanwise.optim import OURS

METHODS = pytest.mark.parametrize("method", sorted(OURS))
SUBSPACE = pytest.mark.parametrize("method", sorted(set(OURS) - {"adamsn"}))
SHAPE = (8, 6)


def make(method, *shapes, seed=0, options=None, **group):
    """An optimizer of matrices of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    params = [
        (f"w{i}", nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)))
        for i, shape in enumerate(shapes or (SHAPE,))
    ]
    keys = {"rank": 2} if OURS[method].needs_rank else {"subset_size": "heuristics"}
    if len(params[0][1].shape) == 3:
        keys["layouts"] = ["experts"] * len(params)
    return OURS[method]([{"params": params, **keys, **group}], lr=1e-2, **(options or {}))


def weight(optimizer):
    return optimizer.param_groups[0]["params"][0]


def gradients(count, shape=SHAPE, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def go(optimizer, grads):
    """The weight after each step."""
    found = []
    for g in grads:
        weight(optimizer).grad = g.clone()
        optimizer.step()
        found.append(weight(optimizer).detach().clone())
    return found


def basis_of(optimizer):
    """What the state holds as basis or selection."""
    state = optimizer.state[weight(optimizer)]
    (key,) = [k for k in state if k.startswith(("basis_", "rows_"))]
    return state[key]


def resumed(method, optimizer, *shapes, options=None, **group):
    """A new optimizer with the saved weights and state of another."""
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    fresh = make(method, *shapes, seed=9, options=options, **group)
    weight(fresh).data.copy_(weight(optimizer).detach())
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return fresh


@SUBSPACE
@pytest.mark.parametrize("refresh_every", [3, None])
def test_a_layer_without_gradient_at_first_takes_its_basis_from_the_first_it_gets(
    method, refresh_every
):
    zero, *grads = torch.zeros(SHAPE, dtype=torch.float64), *gradients(3)
    late, prompt = (make(method, refresh_every=refresh_every) for _ in range(2))
    start = weight(late).detach().clone()
    for moved in go(late, [zero, zero]):
        assert torch.equal(moved, start)
    assert int(late.state[weight(late)]["refreshed"]) == -1
    go(late, grads[:1])
    go(prompt, grads[:1])
    # Seeds know the step: spans agree, columns need not. A random move keeps its own first basis.
    a, b = basis_of(late), basis_of(prompt)
    if a.is_floating_point():
        a, b = a @ a.mT, b @ b.mT
    assert torch.allclose(a, b, atol=1e-10 if a.is_floating_point() else 0, rtol=0)
    assert torch.isfinite(go(late, grads[1:])[-1]).all()


@SUBSPACE
def test_a_first_basis_that_comes_late_is_not_warmed_up(method):
    zero, *grads = torch.zeros(SHAPE, dtype=torch.float64), *gradients(2)
    runs = []
    for warmup in (0, 4):
        optimizer = make(method, refresh_every=50, refresh_warmup=warmup)
        runs.append(go(optimizer, [zero, zero, *grads]))
    assert not torch.equal(runs[0][1], runs[0][2])
    assert all(map(torch.equal, *runs))


@SUBSPACE
def test_a_basis_after_the_first_is_warmed_up_also_where_the_first_came_late(method):
    zero, *grads = torch.zeros(SHAPE, dtype=torch.float64), *gradients(5)
    moved = []
    for warmup in (0, 4):
        optimizer = make(method, refresh_every=4, refresh_warmup=warmup)
        path = [weight(optimizer).detach().clone(), *go(optimizer, [zero, *grads])]
        moved.append([b - a for a, b in itertools.pairwise(path)])
    refreshed = 3 if method == "snsm" else 4  # its steps are counted from 1
    for k, (plain, warm) in enumerate(zip(*moved, strict=True)):
        if k < refreshed:
            assert torch.equal(plain, warm)
        elif k == refreshed:
            assert torch.allclose(warm, plain / 4, atol=1e-12, rtol=0)


@METHODS
def test_resume_in_the_middle_of_a_warm_up_is_bitwise(method):
    grads, group = gradients(9), {"refresh_every": 4, "refresh_warmup": 3}
    whole, half = make(method, **group), make(method, **group)
    end = go(whole, grads)[-1]
    go(half, grads[:5])  # the basis of step 4 is one step old
    if method != "adamsn":
        assert int(half.state[weight(half)]["refreshed"]) in (3, 4)
    assert torch.equal(go(resumed(method, half, **group), grads[5:])[-1], end)


@SUBSPACE
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_keeps_basis_and_moments_and_the_next_one_refreshes(
    method, bad
):
    optimizer = make(method, refresh_every=3)
    go(optimizer, gradients(3 - (method == "snsm")))
    held = {k: v.clone() for k, v in optimizer.state[weight(optimizer)].items()}
    before = weight(optimizer).detach().clone()
    spoilt, good = gradients(2, seed=2)
    spoilt[2, 3] = bad
    with pytest.warns(UserWarning, match="w0 at a basis refresh is not finite; its basis and mom"):
        assert torch.equal(go(optimizer, [spoilt])[0], before)
    state = optimizer.state[weight(optimizer)]
    assert all(torch.equal(state[k], v) for k, v in held.items())
    assert torch.isfinite(go(optimizer, [good])[0]).all()
    assert int(state["refreshed"]) > int(held["refreshed"])


@METHODS
def test_nan_in_one_expert_spoils_that_expert_alone_and_no_basis(method):
    shape = (3, *SHAPE)
    grads = gradients(5, shape)
    clean, spoilt = (make(method, shape, refresh_every=3) for _ in range(2))
    go(clean, grads[:2])
    grads[1][1, 2, 3] = torch.nan
    go(spoilt, grads[:2])
    a, b = weight(clean).detach(), weight(spoilt).detach()
    assert torch.equal(a[[0, 2]], b[[0, 2]])
    assert torch.isnan(b[1]).any()
    if method == "adamsn":
        return
    # A refresh sees its gradients too; the whole tensor then waits, with the bases it has.
    before = b.clone()
    for g in grads:
        g[1] = torch.nan
    if method != "snsm":  # whose refreshes come one step earlier
        go(spoilt, grads[2:3])
        before = weight(spoilt).detach().clone()
    with pytest.warns(UserWarning, match="not finite"):
        go(spoilt, grads[3:])
    assert torch.equal(weight(spoilt).nan_to_num(), before.nan_to_num())
    assert torch.isfinite(basis_of(spoilt)).all()


# Bases that the gradient alone decides. Draws differ: their seeds know the side.
_EXACT = {
    "galore": {"svd": "exact"}, "grass": {"select": "topr"}, "osd": {"svd": "exact"},
    "grasswalk": {"basis": "svd", "svd": "exact"}, "grassjump": {"basis": "svd", "svd": "exact"},
    "snsm": {"svd": "exact"}, "adamsn": {},
}  # fmt: skip


def both_ways(method, **group):
    """Weights after each step of a tall problem, and of its transpose, turned back."""
    grads = gradients(7)
    tall, wide = make(method, **group), make(method, (SHAPE[1], SHAPE[0]), **group)
    weight(wide).data.copy_(weight(tall).detach().mT)
    return go(tall, grads), [w.mT for w in go(wide, [g.mT for g in grads])]


@METHODS
def test_a_tall_weight_is_the_transposed_wide_one_across_refreshes(method):
    tall, wide = both_ways(method, refresh_every=3, **_EXACT[method])
    for a, b in zip(tall, wide, strict=True):
        assert torch.allclose(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", ["grasswalk", "grassjump"])
def test_a_tall_weight_draws_other_bases_than_the_transposed_wide_one(method):
    tall, wide = both_ways(method, refresh_every=3, svd="exact")
    assert torch.allclose(tall[2], wide[2], atol=1e-10, rtol=0)
    assert not torch.allclose(tall[3], wide[3], atol=1e-5, rtol=0)

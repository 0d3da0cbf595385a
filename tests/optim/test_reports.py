"""What users of the released packages reported or asked for: none of it happens here.

Each test names the report. Reports that other tests cover where they belong: the rank equal to
the shorter side under `reverse_std` (`test_galore.py`), a projected embedding (`test_galore.py`),
the scheduler's rate (`tests/conformance`).
"""

import pytest
import torch
from torch import nn

from spanwise.optim import OURS, SNSM, GaLore, OnlineSubspaceDescent, param_groups

METHODS = pytest.mark.parametrize("method", sorted(OURS))


def make(method, shape=(8, 6), count=1, **options):
    generator = torch.Generator().manual_seed(0)
    params = [
        (f"w{i}", nn.Parameter(torch.randn(shape, generator=generator))) for i in range(count)
    ]
    keys = {"rank": 2} if OURS[method].needs_rank else {"subset_size": "heuristics"}
    return OURS[method]([{"params": params, **keys}], lr=1e-2, **options)


def step(optimizer, seed=1, fill=None):
    generator = torch.Generator().manual_seed(seed)
    for p in optimizer.param_groups[0]["params"]:
        g = torch.randn(p.shape, generator=generator)
        p.grad = g if fill is None else g.fill_(fill)
    optimizer.step()
    return [p.detach().clone() for p in optimizer.param_groups[0]["params"]]


def test_no_refresh_decomposes_a_whole_gradient(monkeypatch):
    """jiaweizhao/GaLore#4: out of memory in the SVD of a large layer's gradient."""
    seen = []
    for name in ("svd", "eigh", "qr"):
        real = getattr(torch.linalg, name)

        def watched(a, *args, real=real, **kwargs):
            seen.append(min(a.shape[-2:]))
            return real(a, *args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, watched)
    for method in sorted(OURS):
        optimizer = make(method, (64, 80), refresh_every=2) if method != "adamsn" else make(method)
        for seed in range(3):
            step(optimizer, seed)
    assert seen
    assert max(seen) <= 2 + 8  # the rank and the sketch's columns beyond it


@pytest.mark.parametrize("method", sorted(set(OURS) - {"adamsn", "osd"}))
def test_refreshes_can_take_turns(method):
    """jiaweizhao/GaLore#14: all layers refresh on one step, and training stalls on it."""
    optimizer = make(method, count=4, refresh_every=4, stagger=True)
    last = [-1] * 4
    moved = []
    for seed in range(13):
        step(optimizer, seed)
        now = [int(optimizer.state[p]["refreshed"]) for p in optimizer.param_groups[0]["params"]]
        moved.append(sum(a != b for a, b in zip(now, last, strict=True)))
        last = now
    assert moved[0] == 4  # each layer's first
    assert set(moved[1:5]) <= {0, 1}
    assert moved[5:] == [1] * 8


@METHODS
@pytest.mark.parametrize("first", [0.0, torch.nan])
def test_a_first_gradient_of_zeros_or_nan_is_survived(method, first):
    """jiaweizhao/GaLore#26 and #58: the SVD does not converge, or its basis means nothing."""
    optimizer = make(method)
    (before,) = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    if first == 0:
        (after,) = step(optimizer, fill=first)
        assert torch.equal(after, before)
    elif method == "adamsn":
        return  # no basis: NaN enters the moments, as under AdamW
    else:
        with pytest.warns(UserWarning, match="not finite"):
            (after,) = step(optimizer, fill=first)
        assert torch.equal(after, before)
    (after,) = step(optimizer)
    assert torch.isfinite(after).all()
    assert not torch.equal(after, before)


@METHODS
def test_a_flat_parameter_is_refused_with_advice(method):
    """jiaweizhao/GaLore#47: an IndexError under FSDP1, whose parameters are flat."""
    keys = {"rank": 2} if OURS[method].needs_rank else {"subset_size": "heuristics"}
    flat = nn.Parameter(torch.randn(48))
    with pytest.raises(ValueError, match=r"flat of shape \(48,\) is in a projected group.*fully_s"):
        OURS[method]([{"params": [("flat", flat)], **keys}])


@METHODS
def test_a_checkpoint_holds_tensors_and_nothing_to_unpickle(method, tmp_path):
    """modelscope/ms-swift#10161: the projector is an object, which weights_only refuses."""
    optimizer = make(method)
    step(optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(
        isinstance(v, torch.Tensor) for held in state["state"].values() for v in held.values()
    )
    fresh = make(method)
    fresh.load_state_dict(state)
    for p, q in zip(*(o.param_groups[0]["params"] for o in (fresh, optimizer)), strict=True):
        p.data.copy_(q.detach())
    assert torch.equal(*step(fresh, 2), *step(optimizer, 2))


def test_a_target_that_matches_nothing_does_not_train_with_adamw():
    """modelscope/ms-swift#10143: the run silently went on with plain AdamW."""
    model = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 8))
    with pytest.raises(ValueError, match="matches no trainable one"):
        param_groups(model, rank=4, target=["attn", "mlp"])
    with pytest.raises(ValueError, match="nothing to project: no parameter group has a rank"):
        GaLore(model.parameters(), lr=1e-2)


@METHODS
def test_the_rate_that_is_shown_is_the_rate_that_is_used(method):
    """huggingface/transformers#31707: a wrong rate displayed, and the scheduler ignored."""
    runs = []
    for lr in (1e-2, 1.0):
        optimizer = make(method)
        optimizer.param_groups[0].update(lr=lr, **({"alpha": 0.0} if method == "osd" else {}))
        (start,) = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
        runs.append(step(optimizer)[0] - start)
    assert torch.allclose(runs[1], 100 * runs[0], rtol=1e-3, atol=1e-5)


def test_gradients_are_left_for_whoever_measures_their_norm():
    """jiaweizhao/GaLore#66: the gradient norm was logged as 0, because the step cleared it."""
    for method in sorted(OURS):
        optimizer = make(method)
        step(optimizer)
        (p,) = optimizer.param_groups[0]["params"]
        expected = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(p.grad, expected)


def test_odd_sizes_have_subsets_and_a_hadamard_basis():
    """timmytonga/sn-sm: tiny tensors divide by zero, and SRHT wants powers of two and CUDA."""
    optimizer = SNSM([{"params": [nn.Parameter(torch.randn(7, 5))], "rank": 2}], basis="srht",
                     subset_size=-64, ragged=True)  # fmt: skip
    (after,) = step(optimizer)
    assert torch.isfinite(after).all()


def test_a_zero_gradient_does_not_spoil_a_learning_basis():
    """kyleliang919/Online-Subspace-Descent: a gradient of exactly 0 makes P NaN for ever."""
    optimizer = make("osd")
    assert isinstance(optimizer, OnlineSubspaceDescent)
    step(optimizer)
    step(optimizer, fill=0.0)
    (after,) = step(optimizer, 2)
    assert torch.isfinite(after).all()

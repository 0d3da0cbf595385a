"""The update rule: fused, foreach and compiled are one formula."""

import pytest
import torch

from spanwise.optim._engine.rules import adam_


def tensors(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).to(dtype) for s in ((5, 3), (7,), (2, 3, 4))]


def run(function, *, wd, steps=4):
    params, m, v = tensors(0), *[[torch.zeros_like(t) for t in tensors(0)] for _ in range(2)]
    for k in range(1, steps + 1):
        function(
            params, tensors(k), m, v, step=torch.tensor(float(k)), lr=1e-2, betas=(0.9, 0.999),
            eps=1e-6, weight_decay=wd,
        )  # fmt: skip
    return params


@pytest.mark.parametrize("wd", [0.0, 0.1])
def test_fused_equals_torch_adamw_bitwise(wd):
    params = [torch.nn.Parameter(t) for t in tensors(0)]
    theirs = torch.optim.AdamW(params, lr=1e-2, eps=1e-6, weight_decay=wd, fused=True)
    for k in range(1, 5):
        for p, g in zip(params, tensors(k), strict=True):
            p.grad = g
        theirs.step()
    for a, b in zip(run(adam_, wd=wd), params, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow  # the typed run would compile every check as well
@pytest.mark.parametrize("wd", [0.0, 0.1])
def test_compiled_foreach_equals_fused(wd):
    compiled = torch.compile(adam_, backend="eager")
    for a, b in zip(run(compiled, wd=wd), run(adam_, wd=wd), strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=0)


def test_no_tensors_is_no_work():
    adam_([], [], [], [], step=torch.tensor(1.0), lr=1.0, betas=(0.9, 0.9), eps=1e-8)


def test_moments_of_another_shape_are_refused_before_the_kernel_writes_beyond_them():
    small, large = torch.zeros(2, 2), torch.zeros(50, 6)
    for shapes in ((large, large, large, small), (large, large, small, large), (large, small) * 2):
        with pytest.raises(ValueError, match=r"parameter of shape \(50, 6\).*\(2, 2\)"):
            adam_(*([t.clone()] for t in shapes), step=torch.tensor(1.0), lr=1.0,
                  betas=(0.9, 0.9), eps=1e-8)  # fmt: skip
        assert not large.any()

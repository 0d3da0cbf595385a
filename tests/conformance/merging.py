"""What every way of merging must do, whatever it merges."""

import pytest
import torch

from spanwise.merging import METHODS, merge


def models(count=3, *, dtype=torch.float64, seed=0, size=0.1):
    """A base with every kind of tensor, and `count` fine-tunes of it."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    base = {
        "embed.weight": draw(12, 6),
        "layers.0.up.weight": draw(10, 6),
        "layers.0.up.bias": draw(10),
        "layers.1.down.weight": draw(6, 10),
        "layers.1.square.weight": draw(6, 6),
        "conv.weight": draw(4, 3, 2, 2),
        "scale": draw(1)[0],
        "steps": torch.tensor(7),
    }
    base["layers.1.square.weight"][0, 0] = -0.0
    tuned = [
        {
            name: t + (size * draw(*t.shape)).to(t.dtype) if t.is_floating_point() else t.clone()
            for name, t in base.items()
        }
        for _ in range(count)
    ]
    return base, tuned


def same_bits(a, b):
    """Whether two tensors are equal bit for bit, signs of zero included."""
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )


class MergeSuite:
    """Inherit and set `method`; more keywords of `merge` go into `options`."""

    method = ""
    options: dict = {}  # noqa: RUF012
    count = 3
    permutes = True
    """Whether the order of the models does not matter."""

    def run(self, base, tuned, **more):
        return merge(base, tuned, self.method, **{**self.options, **more})

    def test_its_class_is_in_the_registry(self):
        assert METHODS[self.method].__doc__

    @pytest.mark.filterwarnings("ignore:.*equal the base")
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_copies_of_the_base_merge_into_the_base_bit_for_bit(self, dtype):
        base, _ = models(1, dtype=dtype)
        merged = self.run(base, [dict(base) for _ in range(self.count)])
        assert all(same_bits(merged[name], base[name]) for name in base)

    def test_alpha_zero_gives_the_base_bit_for_bit(self):
        base, tuned = models(self.count, dtype=torch.float32)
        merged = self.run(base, tuned, alpha=0.0)
        assert all(same_bits(merged[name], base[name]) for name in base)

    def test_tensors_that_are_no_floats_are_the_base_s(self):
        base, tuned = models(self.count)
        tuned[0]["steps"] = torch.tensor(9)
        assert self.run(base, tuned)["steps"] == 7

    def test_names_shapes_and_dtypes_are_the_base_s(self):
        base, tuned = models(self.count, dtype=torch.bfloat16)
        merged = self.run(base, tuned)
        assert list(merged) == list(base)
        assert all(merged[n].shape == base[n].shape for n in base)
        assert all(merged[n].dtype == base[n].dtype for n in base)

    def test_the_order_of_models_does_not_matter(self):
        if not self.permutes:
            pytest.skip("the models have roles of their own")
        base, tuned = models(self.count)
        there = self.run(base, tuned, work_dtype=torch.float64)
        back = self.run(base, tuned[::-1], work_dtype=torch.float64)
        for name in base:
            assert torch.allclose(there[name].double(), back[name].double(), atol=1e-9, rtol=0)

    def test_one_tensor_s_result_does_not_depend_on_the_others(self):
        if METHODS[self.method].begin is not METHODS["linear"].begin:
            pytest.skip("looks at all tensors")
        base, tuned = models(self.count)
        whole = self.run(base, tuned)
        keys = list(base)[::-1]
        apart = self.run({k: base[k] for k in keys}, [{k: t[k] for k in keys} for t in tuned])
        assert all(same_bits(whole[name], apart[name]) for name in base)

    def test_several_at_once_give_the_same_bits(self):
        base, tuned = models(self.count)
        one, three = self.run(base, tuned), self.run(base, tuned, workers=3)
        assert all(same_bits(one[name], three[name]) for name in base)

    def test_the_inputs_stay_as_they_were(self):
        base, tuned = models(self.count)
        before = [{k: v.clone() for k, v in held.items()} for held in (base, *tuned)]
        self.run(base, tuned)
        for held, old in zip((base, *tuned), before, strict=True):
            assert all(same_bits(held[name], old[name]) for name in held)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_tensor_that_is_not_finite_is_named(self, bad):
        base, tuned = models(self.count)
        tuned[1]["layers.0.up.weight"][2, 3] = bad
        with pytest.raises(ValueError, match=r"layers\.0\.up\.weight.* of model 2 holds NaN"):
            self.run(base, tuned)

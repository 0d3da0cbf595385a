"""Subsets of a matrix: the partition, its sums and the division, against their definition."""

import pytest
import torch

from spanwise.optim._snsm.subset_norm import largest_divisor, subsets_of

F64 = torch.float64
SHAPES = [(7, 5), (5, 7), (6, 6), (300, 4), (3, 300)]
SIZES = ["heuristics", 1, 5, 10, -1, -3]


def numbers_of(subsets):
    """The subset of every entry, as a matrix of indices."""
    rows, cols = torch.meshgrid(
        torch.arange(subsets.rows), torch.arange(subsets.cols), indexing="ij"
    )
    if subsets.kind == "rows":
        return rows
    return cols if subsets.kind == "columns" else (rows * subsets.cols + cols) // subsets.size


def random(*shape, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ragged", [False, True])
def test_sums_and_means_are_those_of_the_definition(shape, size, ragged):
    subsets = subsets_of(*shape, size, ragged=ragged)
    number, g = numbers_of(subsets).flatten(), random(*shape)
    sums = torch.zeros(subsets.count, dtype=F64).index_add_(0, number, g.flatten() ** 2)
    assert torch.allclose(subsets.sums_of_squares(g, F64), sums, atol=1e-12)
    means = sums / number.bincount(minlength=subsets.count)
    assert torch.allclose(subsets.means_of_squares(g, F64), means, atol=1e-12)
    assert int(number.bincount()[-1]) == subsets.last


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("strided", [False, True])
def test_every_entry_is_divided_by_its_own_subset(shape, size, ragged, strided):
    subsets = subsets_of(*shape, size, ragged=ragged)
    w, x = random(*shape), random(*shape, seed=1)
    denominator = 1 + random(subsets.count, seed=2) ** 2
    expected = w - 0.3 * x / denominator[numbers_of(subsets)]
    if strided:
        w, x = (t.mT.contiguous().mT for t in (w, x))
    subsets.add_quotient_(w, x, denominator, -0.3)
    assert torch.allclose(w, expected, atol=1e-14)


@pytest.mark.parametrize("size", ["heuristics", 5, 10])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_stacked_matrices_are_partitioned_one_by_one(size, ragged, shape):
    subsets = subsets_of(*shape, size, ragged=ragged)
    g, w = random(3, *shape), random(3, *shape, seed=1)
    sums = subsets.sums_of_squares(g, F64)
    singles = torch.stack([subsets.sums_of_squares(x, F64) for x in g])
    assert torch.allclose(sums, singles, atol=1e-13)
    means = torch.stack([subsets.means_of_squares(x, F64) for x in g])
    assert torch.allclose(subsets.means_of_squares(g, F64), means, atol=1e-13)
    expected = w.clone()
    for one, x, d in zip(expected, g, sums, strict=True):
        subsets.add_quotient_(one, x, d, 0.5)
    subsets.add_quotient_(w, g, sums, 0.5)
    assert torch.allclose(w, expected, atol=1e-13)


def test_heuristics_keep_the_longer_dimension_and_a_square_keeps_rows():
    for shape, kind, count in [((7, 5), "rows", 7), ((5, 7), "columns", 7), ((6, 6), "rows", 6)]:
        subsets = subsets_of(*shape, "heuristics")
        assert (subsets.kind, subsets.count) == (kind, count)
        assert subsets.count * subsets.size == shape[0] * shape[1]


@pytest.mark.parametrize(("shape", "size"), [((3, 1024), 1024), ((1024, 9), "heuristics"),
                                              ((9, 1024), "heuristics")])  # fmt: skip
def test_sums_of_half_precision_are_taken_in_float32(shape, size):
    # bfloat16 has 8 bits: a sum of a thousand ones stops growing at 256.
    subsets = subsets_of(*shape, size)
    sums = subsets.sums_of_squares(torch.ones(shape, dtype=torch.bfloat16), torch.float32)
    assert torch.equal(sums, torch.full((subsets.count,), float(subsets.size)))


def test_size_one_is_the_square_itself_bitwise():
    g = random(5, 7, dtype=torch.float32)
    sums = subsets_of(5, 7, 1).sums_of_squares(g, torch.float32)
    assert torch.equal(sums, (g * g).flatten())


@pytest.mark.parametrize(
    ("n", "k", "expected"),
    [(35, 10, 7), (36, 10, 9), (37, 36, 1), (64, 64, 64), (1, 1, 1), (704512, 1000, 688)],
)
def test_largest_divisor(n, k, expected):
    assert largest_divisor(n, k) == expected
    assert expected == max(d for d in range(1, k + 1) if n % d == 0)


def test_negative_sizes_are_fractions_of_the_root_and_never_zero():
    assert subsets_of(16, 16, -2).size == 8
    assert subsets_of(8, 32, -1).size == 16
    # sqrt(6) / 5 is below 1; the released code divides by zero here.
    assert subsets_of(2, 3, -5).size == 1


def test_ragged_keeps_the_size_that_was_asked_for():
    subsets = subsets_of(37, 1, 10, ragged=True)
    assert (subsets.size, subsets.count, subsets.last) == (10, 4, 7)


class TestBadInput:
    def test_a_size_that_only_one_divides_warns_and_names_the_way_out(self):
        with pytest.warns(UserWarning, match=r"w has 37 entries.*subset_size = 10.*ragged=True"):
            assert subsets_of(37, 1, 10, name="w").size == 1

    def test_zero(self):
        with pytest.raises(ValueError, match="subset_size must not be 0"):
            subsets_of(4, 4, 0)

    def test_more_than_there_is(self):
        with pytest.raises(ValueError, match=r"subset_size = 17 exceeds the 16 entries of w"):
            subsets_of(4, 4, 17, name="w")

    def test_an_unknown_word(self):
        with pytest.raises(ValueError, match="or \"heuristics\", got 'heuristic'"):
            subsets_of(4, 4, "heuristic")

    @pytest.mark.bad_input
    @pytest.mark.parametrize("bad", [2.0, True, None])
    def test_something_that_is_no_size(self, bad):
        with pytest.raises(TypeError, match="must be an int or"):
            subsets_of(4, 4, bad)

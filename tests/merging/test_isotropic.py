"""Iso-C and Iso-CTS beside the paper's steps written out, at full rank and below."""

import itertools

import pytest
import torch

from conformance.merging import MergeSuite, models, same_bits
from spanwise.atlas import Atlas
from spanwise.lora import Adapter
from spanwise.merging import merge
from spanwise.merging._methods.isotropic import IsoC, split

F64 = torch.float64
W = "w.weight"


class TestIsoC(MergeSuite):
    method = "iso_c"


class TestIsoCTS(MergeSuite):
    method = "iso_cts"


class TestIsoCTSWithRoomForTasks(MergeSuite):
    method = "iso_cts"
    options = {"common_fraction": 0.3}  # noqa: RUF012


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def updates(m, n, tasks, seed=0):
    """T updates with a common part."""
    common = draw(m, n, seed=seed)
    return [common + draw(m, n, seed=100 * seed + t + 1) for t in range(tasks)]


def merged(deltas, method="iso_c", base=None, **options):
    """The merged update, whatever the method does with it."""
    base = torch.zeros_like(deltas[0]) if base is None else base
    tuned = [{W: base + d} for d in deltas]
    return merge({W: base}, tuned, method, work_dtype=F64, **options).delta[W]


def far(a, b):
    return float((a - b).abs().max())


# -- the paper's steps, nothing short-cut ---------------------------------------------------------


def naive_iso_c(deltas):
    u, s, vh = torch.linalg.svd(sum(deltas), full_matrices=False)
    return s.mean() * u @ vh


def naive_iso_cts(deltas, f, order=None):
    m, n = deltas[0].shape
    r = min(m, n)
    k, q = split(r, len(deltas), f)
    u, s, vh = torch.linalg.svd(sum(deltas), full_matrices=False)
    u, vh = u[:, :k], vh[:k]
    left, values, right = [], [], []
    for delta in deltas:
        ut, st, vt = torch.linalg.svd(delta - u @ u.mT @ delta, full_matrices=False)
        left.append(ut[:, :q])
        values.append(st[:q])
        right.append(vt[:q])
    x, y = torch.cat([*left, u], dim=1), torch.cat([*right, vh])
    values = torch.cat([*values, s[:k]])
    if order is not None:
        x, y = x[:, order], y[order]
    a, _, b = torch.linalg.svd(x, full_matrices=False)
    c, _, d = torch.linalg.svd(y, full_matrices=False)
    return values.mean() * (a @ b) @ (c @ d)


SHAPES = [(12, 12), (30, 8), (8, 30), (11, 9), (9, 11)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_iso_c_is_the_flattened_svd_of_the_sum(shape, tasks):
    deltas = updates(*shape, tasks)
    assert far(merged(deltas), naive_iso_c(deltas)) < 1e-10
    assert far(merged(deltas, null="official"), naive_iso_c(deltas)) < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tasks", [1, 2, 3, 7])
@pytest.mark.parametrize("f", [0.0, 0.3, 0.8, 1.0])
def test_iso_cts_is_the_paper_s_steps(shape, tasks, f):
    deltas = updates(*shape, tasks)
    expected = naive_iso_cts(deltas, f)
    # Gram matrices in float64 lose the square of conditions of about 100.
    assert far(merged(deltas, "iso_cts", common_fraction=f), expected) < 1e-9
    assert far(merged(deltas, "iso_cts", common_fraction=f, null="official"), expected) < 1e-9


# -- what must be true ----------------------------------------------------------------------------


def test_the_spectrum_of_iso_c_is_r_copies_of_the_mean():
    deltas = updates(14, 9, 3)
    nuclear = torch.linalg.svdvals(sum(deltas)).sum()
    s = torch.linalg.svdvals(merged(deltas))
    assert torch.allclose(s, (nuclear / 9).expand(9), rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("f", [0.0, 0.5, 0.8])
def test_the_spectrum_of_iso_cts_is_flat(shape, f):
    s = torch.linalg.svdvals(merged(updates(*shape, 3), "iso_cts", common_fraction=f))
    assert torch.allclose(s, s[0].expand_as(s), rtol=1e-9)


def test_sizes_always_add_up():
    fractions = (0.0, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0)
    for r, tasks, f in itertools.product(range(40), range(1, 25), fractions):
        k, q = split(r, tasks, f)
        assert k >= 0
        assert q >= 0
        assert k + q * tasks == r


def test_sizes_are_rounded_as_in_the_authors_code():
    assert split(768, 8, 0.8) == (768 - 19 * 8, 19)
    assert split(576, 8, 0.8) == (464, 14)  # 14.5 rounds to even, not up
    assert split(10, 1, 0.8) == (8, 2)
    # round(5 / 8) * 8 = 8 > 7, where their code fails.
    assert split(7, 8, 0.3) == (7, 0)


def test_more_tasks_than_directions_merge_too():
    deltas = updates(7, 9, 8)
    assert far(merged(deltas, "iso_cts", common_fraction=0.3), naive_iso_c(deltas)) < 1e-10


@pytest.mark.parametrize(("tasks", "f"), [(3, 1.0), (1, 0.0), (1, 0.5)])
def test_iso_cts_is_iso_c_with_one_task_or_all_in_common(tasks, f):
    deltas = updates(10, 7, tasks)
    assert far(merged(deltas, "iso_cts", common_fraction=f), merged(deltas)) < 1e-10
    assert far(naive_iso_cts(deltas, f), merged(deltas)) < 1e-9


def test_equal_fine_tunes_count_once_each():
    delta = draw(10, 7)
    assert far(merged([delta] * 4), 4 * merged([delta])) < 1e-10


def test_iso_c_is_covariant_in_scale():
    deltas = updates(10, 7, 3)
    assert far(merged([-3e3 * d for d in deltas]), -3e3 * merged(deltas)) < 1e-8


def test_without_common_directions_only_the_spectrum_differs_from_tsv():
    deltas = updates(12, 9, 3)
    flat = merged(deltas, "iso_cts", common_fraction=0.0)
    s = torch.linalg.svdvals(flat)
    tops = [torch.linalg.svd(d, full_matrices=False) for d in deltas]
    x = torch.cat([t.U[:, :3] for t in tops], dim=1)
    y = torch.cat([t.Vh[:3] for t in tops])
    values = torch.cat([t.S[:3] for t in tops])
    polar_x, polar_y = (
        a.U @ a.Vh for a in (torch.linalg.svd(z, full_matrices=False) for z in (x, y))
    )
    assert far(merged(deltas, "tsv"), (polar_x * values) @ polar_y) < 1e-10
    assert far(flat, values.mean() * polar_x @ polar_y) < 1e-10
    assert torch.allclose(s, values.mean().expand_as(s))


@pytest.mark.parametrize("method", ["iso_c", "iso_cts"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rotating_both_sides_rotates_the_result(method, shape):
    deltas = updates(*shape, 3)
    left = torch.linalg.qr(draw(shape[0], shape[0], seed=5))[0]
    right = torch.linalg.qr(draw(shape[1], shape[1], seed=6))[0]
    options = {"common_fraction": 0.5} if method == "iso_cts" else {}
    there = merged([left @ d @ right for d in deltas], method, **options)
    assert far(there, left @ merged(deltas, method, **options) @ right) < 1e-9


def test_iso_c_commutes_with_transposing_and_iso_cts_does_not():
    deltas = updates(10, 8, 3)
    turned = [d.mT.contiguous() for d in deltas]
    assert far(merged(turned), merged(deltas).mT) < 1e-10
    there = merged(turned, "iso_cts", common_fraction=0.4)
    back = merged(deltas, "iso_cts", common_fraction=0.4).mT
    assert far(there, back) > 1e-2


def test_the_order_of_columns_before_orthogonalising_does_not_matter():
    deltas = updates(12, 10, 3)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    assert (
        far(naive_iso_cts(deltas, 0.5, order), merged(deltas, "iso_cts", common_fraction=0.5))
        < 1e-9
    )


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv"])
def test_everything_but_matrices_is_averaged_and_scaled_alike(method):
    base, tuned = models(3)
    found = merge(base, tuned, method, alpha=0.7, work_dtype=F64, exclude=("embed",))
    for name in ("embed.weight", "layers.0.up.bias", "conv.weight", "scale"):
        mean = sum(t[name] - base[name] for t in tuned) / 3
        assert far(found[name], base[name] + 0.7 * mean) < 1e-12


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv", "knots"])
@pytest.mark.parametrize("null", ["true", "official"])
def test_a_frozen_layer_comes_out_bit_for_bit(method, null):
    base, tuned = models(3, dtype=torch.float32)
    for held in tuned:
        held["layers.0.up.weight"] = base["layers.0.up.weight"].clone()
    options = {} if method == "knots" else {"null": null}
    found = merge(base, tuned, method, **options)
    assert same_bits(found["layers.0.up.weight"], base["layers.0.up.weight"])


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv"])
def test_stacked_experts_merge_one_by_one(method):
    name = "mlp.experts.up"
    base = draw(4, 8, 6)
    tuned = [base + draw(4, 8, 6, seed=t + 1) for t in range(3)]
    tuned[1][2] = base[2]
    found = merge({name: base}, [{name: t} for t in tuned], method, work_dtype=F64).delta[name]
    for e in range(4):
        alone = merged([t[e] - base[e] for t in tuned], method)
        assert far(found[e], alone) < 1e-10


def test_a_sum_read_by_rows_has_the_same_bits(monkeypatch):
    base, tuned = models(3, dtype=torch.float32)
    whole = merge(base, tuned, "iso_c")
    monkeypatch.setattr("spanwise.merging._work.BLOCK", 7)
    parts = merge(base, tuned, "iso_c")
    assert all(same_bits(whole[n], parts[n]) for n in base)


def test_half_precision_is_summed_in_float32():
    base, tuned = models(8, dtype=torch.bfloat16)
    name = "layers.0.up.weight"
    deltas = [t[name].double() - base[name].double() for t in tuned]
    found = merge(base, tuned, "iso_c").delta[name]
    assert far(found.double(), naive_iso_c(deltas)) < 1e-6


# -- below full rank ------------------------------------------------------------------------------


def low_rank(m, n, rank, seed):
    return draw(m, rank, seed=seed) @ draw(rank, n, seed=seed + 1)


@pytest.mark.parametrize("shape", [(12, 12), (30, 10), (10, 30)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_iso_c_flattens_only_what_the_sum_spans(shape, dtype):
    deltas = [low_rank(*shape, 2, seed) for seed in (1, 3)]
    base = {W: torch.zeros(shape, dtype=dtype)}
    found = merge(base, [{W: d.to(dtype)} for d in deltas], "iso_c", work_dtype=dtype).delta[W]
    u, s, vh = torch.linalg.svd(sum(deltas))
    expected = s[:4].mean() * u[:, :4] @ vh[:4]
    assert far(found.double(), expected) < (1e-10 if dtype == F64 else 1e-4)


def test_official_null_spreads_the_mean_over_arbitrary_vectors():
    deltas = [low_rank(12, 10, 2, seed) for seed in (1, 3)]
    assert far(merged(deltas, null="official"), naive_iso_c(deltas)) < 1e-10
    s = torch.linalg.svdvals(merged(deltas, null="official"))
    assert torch.allclose(s, s[0].expand(10))


@pytest.mark.parametrize("f", [0.0, 0.5, 0.8])
def test_iso_cts_divides_the_rank_that_there_is(f):
    deltas = [low_rank(14, 12, 3, seed) for seed in (1, 3)]
    found = merged(deltas, "iso_cts", common_fraction=f)
    s = torch.linalg.svdvals(found)
    assert torch.allclose(s[:6], s[0].expand(6), rtol=1e-9)
    assert float(s[6]) < 1e-10
    # Nothing outside what the updates span.
    span = torch.linalg.svd(torch.cat(deltas, dim=1), full_matrices=False).U[:, :6]
    assert far(span @ (span.mT @ found), found) < 1e-9


@pytest.mark.parametrize("method", ["iso_c", "iso_cts"])
def test_the_rank_deficient_result_turns_with_its_input(method):
    deltas = [low_rank(14, 12, 3, seed) for seed in (1, 3)]
    left = torch.linalg.qr(draw(14, 14, seed=5))[0]
    there = merged([left @ d for d in deltas], method)
    assert far(there, left @ merged(deltas, method)) < 1e-9


def test_updates_that_cancel_leave_nothing():
    delta = draw(8, 6)
    for method in ("iso_c", "iso_cts"):
        assert not merged([delta, -delta], method).any()


def adapters(tasks=3, rank=2, *, transposed=False):
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "fan_in_fan_out": transposed}
    prefix = "base_model.model.w"
    return [
        Adapter(
            {
                f"{prefix}.lora_A.weight": draw(rank, 15, seed=2 * t),
                f"{prefix}.lora_B.weight": draw(20, rank, seed=2 * t + 1),
            },
            config,
        )
        for t in range(tasks)
    ]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("iso_c", {}),
        ("iso_cts", {}),
        ("iso_cts", {"common_fraction": 0.3}),
        ("tsv", {}),
        ("knots", {"inner": "mean"}),
        ("knots", {"inner": "ties"}),
    ],
)
def test_adapters_merge_by_their_factors_as_whole_updates_do(
    monkeypatch, method, options, transposed
):
    base = {W: draw(15, 20) if transposed else draw(20, 15), "other.weight": draw(5, 5)}
    low = adapters(transposed=transposed)
    dense = [{**base, W: base[W] + a.update(W, F64)} for a in low]
    expected = merge(base, dense, method, work_dtype=F64, **options)

    def refuse(*args):
        raise AssertionError("the update was formed")

    monkeypatch.setattr(Adapter, "update", refuse)
    found = merge(base, low, method, work_dtype=F64, **options)
    assert far(found[W], expected[W]) < 1e-9
    assert same_bits(found["other.weight"], base["other.weight"])


def test_adapters_whose_ranks_fill_the_matrix_are_merged_whole():
    base = {W: draw(20, 15)}
    low = adapters(tasks=8)
    expected = naive_iso_c([a.update(W, F64) for a in low])
    assert far(merge(base, low, "iso_c", work_dtype=F64).delta[W], expected) < 1e-9


def test_an_adapter_that_is_not_finite_is_named():
    low = adapters()
    low[1].pair(W)[0][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'w\.weight' of model 2 holds NaN"):
        merge({W: draw(20, 15)}, low, "iso_c")


# -- avoid ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv"])
def test_what_an_atlas_avoids_stays_still(method):
    base, tuned = {W: draw(12, 9)}, [{W: draw(12, 9, seed=t)} for t in (1, 2, 3)]
    atlas = Atlas.from_delta({W: torch.zeros(12, 9)}, {W: draw(12, 9, seed=9).float()}, rank=2)
    found = merge(base, tuned, method, avoid=atlas, work_dtype=F64).delta[W]
    u = atlas.get(W)["output"].subspace.basis.double()
    assert float((u.mT @ found).abs().max()) < 1e-6  # the atlas is float32
    assert float(found.abs().max()) > 1e-2
    with pytest.raises(ValueError, match="null='official'"):
        merge(base, tuned, method, avoid=atlas, null="official")


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(bad):
    base, tuned = models(2)
    with pytest.raises(ValueError, match=r"common_fraction must be in \[0, 1\]"):
        merge(base, tuned, "iso_cts", common_fraction=bad)


@pytest.mark.bad_input
def test_an_unknown_null_is_refused():
    with pytest.raises(ValueError, match="null must be 'true' or 'official'"):
        IsoC(null="none")  # type: ignore[arg-type]

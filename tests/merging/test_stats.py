"""The value and the file of statistics, and how a merge takes them."""

import warnings

import pytest
import torch
from tests.merging.quadratic import DOWN, F64, LINEAR, UP, case, draw, means_of

from spanwise.io import save_tensors
from spanwise.merging import Stats, merge
from spanwise.merging._stats import packed, unpacked


def close(a, b, atol=1e-12):
    return torch.allclose(a, b, atol=atol, rtol=0)


def test_packing_is_undone():
    for n in (1, 2, 7):
        a = draw(n, n)
        a = a + a.mT
        assert packed(a).shape == (n * (n + 1) // 2,)
        assert torch.equal(unpacked(packed(a)), a)


def test_means_come_back_from_memory_and_from_a_file(tmp_path):
    base, _, _ = case()
    means = means_of(base, 1)
    stats = Stats.from_means(means, count=7)
    for held in (stats, Stats.load(stats.save(tmp_path / "s.safetensors", dtype=None))):
        assert list(held) == list(means)
        for name in means:
            assert set(held[name]) == set(means[name])
            assert held[name].entry.counts == dict.fromkeys(means[name], 7)
            assert all(close(held[name][kind], means[name][kind]) for kind in means[name])


def test_a_file_is_float32_unless_told_otherwise(tmp_path):
    _, _, stats = case()
    single = Stats.load(stats[0].save(tmp_path / "s.safetensors"))
    assert single[UP]["gram"].dtype == torch.float32
    assert close(single[UP]["gram"].double(), stats[0][UP]["gram"], 1e-6)


def test_sums_of_more_data_are_means_weighted_by_counts():
    base, _, _ = case()
    a, b = means_of(base, 1), means_of(base, 2)
    both = Stats.from_means(a, count=3) + Stats.from_means(b, count=5)
    for name in LINEAR:
        for kind in a[name]:
            assert close(both[name][kind], (3 * a[name][kind] + 5 * b[name][kind]) / 8)


def test_parts_of_a_model_add_up_to_the_whole():
    base, _, _ = case()
    means = means_of(base, 1)
    parts = [Stats.from_means({n: means[n]}) for n in LINEAR]
    whole = parts[0] + parts[1] + parts[2]
    assert set(whole) == set(LINEAR)
    assert close(whole[DOWN]["gram"], means[DOWN]["gram"])


def test_statistics_of_different_models_do_not_add_up():
    a = Stats.from_means({UP: {"gram": torch.eye(3)}})
    with pytest.raises(ValueError, match="another size in each"):
        a + Stats.from_means({UP: {"gram": torch.eye(4)}})
    with pytest.raises(ValueError, match="another tensor in each"):
        a + Stats.from_means({UP: {"gram": torch.eye(3)}}, layouts={UP: "transposed"})
    true, empirical = (Stats({}, {}, {"fisher": kind}) for kind in ("true", "empirical"))
    with pytest.raises(ValueError, match="differ in fisher"):
        true + empirical


@pytest.mark.parametrize(
    ("means", "message"),
    [
        ({"hessian": torch.eye(3)}, "unknown kind 'hessian'"),
        ({"gram": torch.zeros(3, 4)}, "must be square"),
        ({"diag_fisher": torch.zeros(3, 4)}, "the diag_fisher of '.*' is zero everywhere"),
        ({"gradient_gram": torch.zeros(4, 4)}, "the gradient_gram of '.*' is zero everywhere"),
        ({"gram": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "must be symmetric"),
        ({"gram": torch.tensor([[torch.nan]])}, "holds NaN"),
        ({"gram": -torch.eye(2)}, "negative entries on its diagonal"),
        ({"diag_fisher": -torch.ones(2)}, "negative, but squares are not"),
    ],
)
def test_matrices_that_are_no_means_of_products_are_refused(means, message):
    with pytest.raises(ValueError, match=message):
        Stats.from_means({UP: means})


def test_asymmetry_at_rounding_is_averaged_away():
    a = torch.eye(2) + torch.tensor([[0.0, 1e-5], [0.0, 0.0]])
    assert torch.equal(*(lambda m: (m, m.mT))(Stats.from_means({UP: {"gram": a}})[UP]["gram"]))


def test_no_data_and_files_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="count must be at least 1"):
        Stats.from_means({}, count=0)
    _, _, stats = case()
    stats[0].entries[UP].counts["gram"] = 0
    with pytest.raises(ValueError, match=r"gram of 'layers\.0\.up\.weight' counts no data"):
        stats[0][UP]["gram"]
    path = save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="holds no statistics for merging"):
        Stats.load(path)


def test_sums_that_are_not_finite_are_named(tmp_path):
    base, tuned, stats = case()
    stats[1]._sums[f"{UP}::gram"][0] = torch.inf
    with pytest.raises(ValueError, match=r"gram of 'layers\.0\.up\.weight' holds NaN"):
        merge(base, tuned, "regmean", stats=stats, include=LINEAR)


def test_one_warning_counts_what_is_averaged():
    base, tuned, stats = case()
    with pytest.warns(UserWarning, match="lack statistics") as caught:
        merged = merge(base, tuned, "regmean", stats=stats, work_dtype=F64)
    assert len(caught) == 1
    assert "4 of 7 tensors lack statistics" in str(caught[0].message)
    assert "'embed.weight' first" in str(caught[0].message)
    for name in ("embed.weight", "layers.0.up.bias", "conv.weight", "scale"):
        assert close(merged[name], sum(t[name] for t in tuned) / 3)


@pytest.mark.bad_input  # a checked call is one frame deeper
def test_the_warning_points_at_the_caller():
    base, tuned, stats = case()
    with pytest.warns(UserWarning, match="lack statistics") as caught:
        merge(base, tuned, "regmean", stats=stats)
    assert caught[0].filename == __file__


@pytest.mark.bad_input
def test_a_single_one_is_not_taken_for_several():
    base, tuned, stats = case()
    with pytest.raises(ValueError, match="must be a sequence with one for each"):
        merge(base, tuned, "regmean", stats=stats[0])


def test_no_warning_where_every_tensor_has_its_own():
    base, tuned, stats = case()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge(base, tuned, "fisher", stats=stats)


def test_statistics_of_no_tensor_are_named():
    base, tuned, _ = case()
    means = [means_of(base, seed) for seed in (1, 2, 3)]
    means[2]["lm_head.weight"] = {"diag_fisher": torch.ones(3, 3)}
    with pytest.warns(UserWarning, match=r"1 statistics belong to no tensor, 'lm_head.weight'"):
        merge(base, tuned, "fisher", stats=[Stats.from_means(m) for m in means])


def test_files_and_names_are_taken_like_values(tmp_path):
    base, tuned, stats = case()
    paths = [s.save(tmp_path / f"{k}.safetensors", dtype=None) for k, s in enumerate(stats)]
    named = dict(zip("abc", tuned, strict=True))
    there = merge(base, tuned, "fisher", stats=stats, work_dtype=F64)
    files = merge(base, tuned, "fisher", stats=paths, work_dtype=F64)
    by_name = merge(
        base, named, "fisher", stats=dict(zip("cba", stats[::-1], strict=True)), work_dtype=F64
    )
    assert all(close(there[n], files[n]) for n in LINEAR)
    assert all(torch.equal(there[n], by_name[n]) for n in LINEAR)


def test_a_digest_tells_statistics_apart(tmp_path):
    base, _, stats = case()
    path = stats[0].save(tmp_path / "s.safetensors", dtype=None)
    assert Stats.load(path).digest() == stats[0].digest() != stats[1].digest()
    assert Stats.from_means(means_of(base, 1), count=2).digest() != stats[0].digest()


def test_what_does_not_fit_the_models_is_refused_before_anything_is_merged():
    base, tuned, stats = case()

    def refused(message, given, method="regmean", **more):
        with pytest.raises(ValueError, match=message):
            merge(base, tuned, method, stats=given, **more)

    refused("needs statistics of each model's data", None)
    refused("3 models need as many stats, got 2", stats[:2])
    refused("this method uses no statistics", stats, "task_arithmetic")
    refused("stats are for a, but the models are called", {"a": stats[0]})
    other = Stats.from_means({"encoder.up.weight": {"gram": torch.eye(6)}})
    refused("name none of its tensors: theirs begin with 'encoder.up", [*stats[:2], other])
    small = Stats.from_means({UP: {"gram": torch.eye(5)}})
    refused(r"is for 5, but the tensor of shape \(10, 6\) \(linear\) needs 6", [small, *stats[1:]])
    turned = Stats.from_means({UP: {"gram": torch.eye(6)}}, layouts={UP: "transposed"})
    refused("needs 10: it belongs to another model", [turned, *stats[1:]])
    only = Stats.from_means({UP: {"gram": torch.eye(6)}})
    refused("hold no gradient_gram, which", [only, *stats[1:]], "mats", objective="kfac")
    shape = Stats.from_means({UP: {"diag_fisher": torch.ones(6, 10)}})
    refused("diag_fisher of", [shape, *stats[1:]], "fisher")

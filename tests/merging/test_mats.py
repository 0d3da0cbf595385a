"""MaTS against dense Kronecker systems and a textbook's conjugate gradient."""

import pytest
import torch
from tests.conformance.merging import MergeSuite, models
from tests.merging.quadratic import (
    DOWN,
    F64,
    LINEAR,
    SQUARE,
    UP,
    case,
    draw,
    gram,
    means_of,
    naive_cg,
    rows,
    stats_of,
    system,
)

from spanwise.merging import Stats, merge

OBJECTIVES = ("identity", "diag_fisher", "regmean", "kfac")
pytestmark = pytest.mark.filterwarnings("ignore:.*lack statistics")


def run(base, tuned, stats, objective="kfac", **more):
    options = {"work_dtype": F64, "stats": None if objective == "identity" else stats}
    return merge(base, tuned, "mats", objective=objective, **{**options, **more})


class TestMats(MergeSuite):
    method = "mats"
    permutes = False  # statistics belong to their models; see the test below

    def run(self, base, tuned, **more):
        return super().run(base, tuned, stats=stats_of(models(1)[0]), **more)


class TestMatsOfAllTensors(TestMats):
    options = {"objective": "diag_fisher", "solver": "closed"}  # noqa: RUF012


START = {
    "average": lambda base, tuned: sum(tuned) / len(tuned),
    "zeros": lambda base, tuned: torch.zeros_like(base),
    "pretrained": lambda base, tuned: base,
    "task_arithmetic": lambda base, tuned: base + 0.3 * sum(t - base for t in tuned),
}


@pytest.mark.parametrize("solver", ["cg", "auto"])
@pytest.mark.parametrize("init", list(START))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_iterates_are_those_of_a_dense_system_flattened(objective, init, solver):
    base, tuned, stats = case()
    for steps in (1, 5, 20):
        merged = run(base, tuned, stats, objective, init=init, iterations=steps, solver=solver)
        for name in LINEAR:
            a, b = system(objective, tuned, stats, name)
            x0 = START[init](base[name], [t[name] for t in tuned])
            expected = naive_cg(a, b, rows(x0), steps)
            # Conjugate gradient amplifies rounding as it goes.
            atol = 1e-10 if steps <= 5 else 1e-7
            assert torch.allclose(rows(merged[name]), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_lam_shrinks_what_is_off_the_diagonals(lam):
    base, tuned, stats = case()
    merged = run(base, tuned, stats, lam=lam, iterations=4)
    for name in LINEAR:
        a, b = system("kfac", tuned, stats, name, lam=lam)
        x0 = START["average"](base[name], [t[name] for t in tuned])
        assert torch.allclose(rows(merged[name]), naive_cg(a, b, rows(x0), 4), atol=1e-10, rtol=0)


def test_weights_scale_tasks_and_only_their_ratio_counts():
    base, tuned, stats = case()
    merged = run(base, tuned, stats, weight=[1, 2, 0.5], iterations=4)
    again = run(base, tuned, stats, weight=[10, 20, 5], iterations=4)
    a, b = system("kfac", tuned, stats, UP, weights=[1, 2, 0.5])
    x0 = START["average"](base[UP], [t[UP] for t in tuned])
    assert torch.allclose(rows(merged[UP]), naive_cg(a, b, rows(x0), 4), atol=1e-10, rtol=0)
    assert torch.allclose(merged[UP], again[UP], atol=1e-12, rtol=0)


@pytest.mark.parametrize("init", list(START))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_model_is_returned_at_convergence(objective, init):
    base, tuned, stats = case(1)
    merged = run(base, tuned, stats, objective, init=init, rtol=1e-12, iterations=2000)
    for name in LINEAR:
        assert torch.allclose(merged[name], tuned[0][name], atol=1e-7, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_models_come_back_without_a_step(objective):
    base, tuned, stats = case()
    merged = run(base, [tuned[0]] * 3, stats, objective, work_dtype=torch.float32)
    for name in LINEAR:
        assert torch.allclose(merged[name], tuned[0][name], atol=1e-6, rtol=0)
        assert merged.log[name]["iterations"] == 0


@pytest.mark.parametrize("init", list(START))
def test_identity_reaches_the_mean_in_one_step(init):
    base, tuned, stats = case()
    merged = run(base, tuned, stats, "identity", init=init, iterations=1)
    for name in (*LINEAR, "layers.0.up.bias", "scale", "conv.weight"):
        mean = sum(t[name] for t in tuned) / 3
        assert torch.allclose(merged[name], mean, atol=1e-12, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_closed_form_is_the_dense_solution_and_the_limit(objective):
    base, tuned, stats = case(2)
    closed = run(base, tuned, stats, objective, solver="closed")
    limit = run(base, tuned, stats, objective, rtol=1e-12, iterations=3000)
    for name in LINEAR:
        a, b = system(objective, tuned, stats, name)
        solved = torch.linalg.solve(a, b)
        assert torch.allclose(rows(closed[name]), solved, atol=1e-10, rtol=0)
        assert torch.allclose(rows(limit[name]), solved, atol=1e-8, rtol=0)


@pytest.mark.parametrize("objective", ["regmean", "kfac"])
def test_eigenvectors_give_the_iterates_of_plain_products(objective):
    base, tuned, stats = case()
    for steps, atol in ((2, 1e-9), (5, 1e-7), (20, 1e-5)):
        plain = run(base, tuned, stats, objective, iterations=steps, solver="cg", rtol=0)
        turned = run(base, tuned, stats, objective, iterations=steps, rtol=0)
        for name in LINEAR:
            assert torch.allclose(plain[name], turned[name], atol=atol, rtol=0)


def test_eigenvectors_are_taken_where_they_are_cheaper(monkeypatch):
    base, tuned, stats = case()
    seen = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: seen.append(len(a)) or eigh(a))
    run(base, tuned, stats, "regmean", iterations=1)
    assert seen == []
    run(base, tuned, stats, "regmean", iterations=100)
    assert sorted(seen) == [6, 6, 10]


def test_kfac_of_two_models_keeps_what_lies_outside_the_data():
    base, tuned, _ = case(2)
    means = [means_of(base, seed) for seed in (1, 2)]
    for held in means:  # no data has the first input, no gradient the first output
        held[UP]["gram"][0], held[UP]["gram"][:, 0] = 0, 0
        held[UP]["gradient_gram"][0], held[UP]["gradient_gram"][:, 0] = 0, 0
    stats = [Stats.from_means(held) for held in means]
    closed = run(base, tuned, stats, solver="closed")[UP]
    limit = run(base, tuned, stats, rtol=1e-12, iterations=3000)[UP]
    assert torch.allclose(closed, limit, atol=1e-7, rtol=0)
    mean = (tuned[0][UP] + tuned[1][UP]) / 2
    assert torch.allclose(closed[:, 0], mean[:, 0], atol=1e-10, rtol=0)
    assert torch.allclose(closed[0], mean[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("side", ["gram", "gradient_gram"])
def test_kfac_with_one_side_alike_is_regmean_on_the_other(side):
    base, tuned, _ = case()
    means = [means_of(base, seed) for seed in (1, 2, 3)]
    for held in means[1:]:
        held[UP][side] = means[0][UP][side]
    stats = [Stats.from_means(held) for held in means]
    merged = run(base, tuned, stats, rtol=1e-13, iterations=3000)[UP]
    other = "gradient_gram" if side == "gram" else "gram"
    sums = [held[UP][other] for held in means]
    if other == "gram":
        right = sum(c @ t[UP].mT for c, t in zip(sums, tuned, strict=True))
        expected = torch.linalg.solve(sum(sums), right).mT
    else:
        right = sum(b @ t[UP] for b, t in zip(sums, tuned, strict=True))
        expected = torch.linalg.solve(sum(sums), right)
    assert torch.allclose(merged, expected, atol=1e-8, rtol=0)


def test_the_error_in_a_s_norm_decreases_with_every_step():
    base, tuned, stats = case()
    a, b = system("kfac", tuned, stats, UP)
    limit = torch.linalg.solve(a, b)
    errors = []
    for steps in range(1, 15):
        e = rows(run(base, tuned, stats, iterations=steps, rtol=0)[UP]) - limit
        errors.append(float(e @ a @ e))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("solver", ["cg", "auto", "closed"])
@pytest.mark.parametrize("init", ["average", "pretrained"])
def test_what_no_data_sees_stays_where_it_began(init, solver):
    base, tuned, _ = case()
    means = [means_of(base, seed, rank=2) for seed in (1, 2)]
    means.append(means[0])
    stats = [Stats.from_means(held) for held in means]
    options = {"rtol": 1e-11, "iterations": 500, "solver": solver}
    merged = run(base, tuned, stats, "regmean", init=init, **options)[DOWN]
    total = sum(held[DOWN]["gram"] for held in means)  # rank 4 of 10
    values, vectors = torch.linalg.eigh(total)
    null = vectors[:, values < 1e-10]
    assert null.shape[1] == 6
    start = START[init](base[DOWN], [t[DOWN] for t in tuned])
    assert torch.allclose(merged @ null, start @ null, atol=1e-8, rtol=0)
    right = sum(h[DOWN]["gram"] @ t[DOWN].mT for h, t in zip(means, tuned, strict=True))
    assert torch.allclose(total @ merged.mT, right, atol=1e-8, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_order_of_tasks_does_not_matter(objective):
    base, tuned, stats = case()
    there = run(base, tuned, stats, objective, iterations=5)
    back = run(base, tuned[::-1], stats[::-1], objective, iterations=5)
    for name in LINEAR:
        assert torch.allclose(there[name], back[name], atol=1e-10, rtol=0)


@pytest.mark.parametrize("objective", ["diag_fisher", "regmean", "kfac"])
def test_a_common_scale_of_all_statistics_changes_no_iterate(objective):
    base, tuned, stats = case()
    means = [means_of(base, seed) for seed in (1, 2, 3)]
    scaled = [
        Stats.from_means({n: {k: 1e-3 * v for k, v in h.items()} for n, h in held.items()})
        for held in means
    ]
    one = run(base, tuned, stats, objective, iterations=5)
    other = run(base, tuned, scaled, objective, iterations=5)
    assert all(torch.allclose(one[n], other[n], atol=1e-9, rtol=0) for n in LINEAR)


def test_normalised_traces_make_a_task_s_scale_irrelevant():
    base, tuned, stats = case()
    means = means_of(base, 3)
    scaled = Stats.from_means({n: {k: 1e-4 * v for k, v in h.items()} for n, h in means.items()})
    plain = run(base, tuned, [*stats[:2], scaled], iterations=5)
    one = run(base, tuned, stats, iterations=5, normalize=True)
    other = run(base, tuned, [*stats[:2], scaled], iterations=5, normalize=True)
    assert torch.allclose(one[UP], other[UP], atol=1e-10, rtol=0)
    assert not torch.allclose(plain[UP], other[UP], atol=1e-3, rtol=0)


@pytest.mark.parametrize("precond", ["jacobi", "kronecker"])
@pytest.mark.parametrize("objective", ["regmean", "kfac"])
def test_preconditioning_keeps_the_limit_and_changes_the_iterates(objective, precond):
    base, tuned, stats = case()
    options = {"rtol": 1e-12, "iterations": 2000}
    plain = run(base, tuned, stats, objective, **options)
    other = run(base, tuned, stats, objective, precond=precond, **options)
    assert torch.allclose(plain[DOWN], other[DOWN], atol=1e-8, rtol=0)
    assert other.log[DOWN]["iterations"] <= plain.log[DOWN]["iterations"]
    one = run(base, tuned, stats, objective, iterations=2, solver="cg")
    two = run(base, tuned, stats, objective, iterations=2, precond=precond)
    assert not torch.allclose(one[DOWN], two[DOWN], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 5)])
def test_vectors_are_merged_by_the_whole_fisher_matrix_of_their_entries(shape):
    base = {"ia3": draw(5).reshape(shape)}
    tuned = [{"ia3": base["ia3"] + draw(5, seed=t).reshape(shape)} for t in (1, 2, 3)]
    blocks = [gram(5, seed) for seed in (4, 5, 6)]
    stats = [Stats.from_means({"ia3": {"block_fisher": f}}) for f in blocks]
    right = sum(f @ t["ia3"].flatten() for f, t in zip(blocks, tuned, strict=True))
    expected = torch.linalg.solve(sum(blocks), right).reshape(shape)
    for solver, init in (("closed", "average"), ("cg", "zeros"), ("cg", "pretrained")):
        options = {"solver": solver, "init": init, "iterations": 50, "rtol": 1e-14}
        merged = run(base, tuned, stats, "block_fisher", **options)["ia3"]
        assert torch.allclose(merged, expected, atol=1e-9, rtol=0)
    few = run(base, tuned, stats, "block_fisher", init="zeros", iterations=2)["ia3"]
    start = torch.zeros(5, dtype=F64)
    assert torch.allclose(few.flatten(), naive_cg(sum(blocks), right, start, 2), atol=1e-10)
    wrong = Stats.from_means({"ia3": {"block_fisher": gram(4, 1)}})
    with pytest.raises(ValueError, match=r"block_fisher of 'ia3' is for 4"):
        run(base, tuned, [wrong, *stats[1:]], "block_fisher")


def test_one_step_length_serves_all_columns():
    base, tuned, stats = case()
    merged = run(base, tuned, stats, "regmean", iterations=2, rtol=0)[UP]
    held = [s[UP]["gram"] for s in stats]
    b = sum(c @ t[UP].mT for c, t in zip(held, tuned, strict=True))
    mean = START["average"](base[UP], [t[UP] for t in tuned]).mT
    columns = [naive_cg(sum(held), b[:, j], mean[:, j], 2) for j in range(b.shape[1])]
    assert not torch.allclose(merged, torch.stack(columns), atol=1e-4, rtol=0)


def test_official_defect_the_base_as_start_is_transposed_like_everything_else():
    base, tuned, stats = case()
    merged = run(base, tuned, stats, init="pretrained", iterations=1)[SQUARE]
    a, b = system("kfac", tuned, stats, SQUARE)
    right = naive_cg(a, b, rows(base[SQUARE]), 1)
    wrong = naive_cg(a, b, base[SQUARE].flatten(), 1)
    assert torch.allclose(rows(merged), right, atol=1e-10, rtol=0)
    assert not torch.allclose(rows(merged), wrong, atol=1e-3, rtol=0)


def test_official_defect_a_head_without_gradients_is_averaged_and_does_not_vanish():
    base, tuned, _ = case()
    means = [means_of(base, seed) for seed in (1, 2, 3)]
    for held in means:
        del held[DOWN]["gradient_gram"]
    merged = run(base, tuned, [Stats.from_means(held) for held in means])
    mean = sum(t[DOWN] for t in tuned) / 3
    assert torch.allclose(merged[DOWN], mean, atol=1e-14, rtol=0)


def test_official_defect_tensors_are_matched_by_name_not_by_position():
    base, tuned, stats = case()
    there = run(base, tuned, stats, iterations=3)
    mixed = [dict(reversed(tuned[0].items())), *tuned[1:]]
    turned = [Stats.from_means(dict(reversed(means_of(base, 1).items()))), *stats[1:]]
    back = run(base, mixed, turned, iterations=3)
    assert all(torch.equal(there[name], back[name]) for name in base)


@pytest.mark.parametrize("method", ["mats", "fisher"])
def test_official_defect_two_models_weigh_alike(method):
    base, tuned, stats = case(2)
    options = {"objective": "diag_fisher"} if method == "mats" else {}
    there = merge(base, tuned, method, stats=stats, work_dtype=F64, **options)[UP]
    back = merge(base, tuned[::-1], method, stats=stats[::-1], work_dtype=F64, **options)[UP]
    assert torch.allclose(there, back, atol=1e-12, rtol=0)
    assert not torch.allclose(there, tuned[0][UP], atol=1e-2, rtol=0)


def test_transposed_storage_gives_the_transposed_result():
    base, tuned, _ = case()
    means = [means_of(base, seed) for seed in (1, 2, 3)]
    flipped = [{**t, UP: t[UP].mT.contiguous()} for t in (base, *tuned)]
    for held in means:
        del held[UP]["diag_fisher"]
    plain = run(base, tuned, [Stats.from_means(held) for held in means], iterations=4)
    stored = [Stats.from_means(held, layouts={UP: "transposed"}) for held in means]
    other = run(flipped[0], flipped[1:], stored, iterations=4)
    assert torch.allclose(plain[UP], other[UP].mT, atol=1e-12, rtol=0)


def test_it_begins_at_another_merged_model(tmp_path):
    base, tuned, stats = case()
    start = {name: draw(*t.shape, seed=5) for name, t in base.items()}
    a, b = system("kfac", tuned, stats, UP)
    expected = naive_cg(a, b, rows(start[UP]), 3)
    merged = run(base, tuned, stats, init=start, iterations=3)
    assert torch.allclose(rows(merged[UP]), expected, atol=1e-10, rtol=0)
    path = merge(base, tuned, "linear", work_dtype=F64).save(tmp_path / "m.safetensors")
    filed = run(base, tuned, stats, init=str(path), iterations=3)
    assert torch.allclose(filed[UP], run(base, tuned, stats, iterations=3)[UP], atol=1e-12, rtol=0)


@pytest.mark.parametrize("init", ["average", "zeros"])
def test_no_base_is_needed(init):
    base, tuned, stats = case()
    there = run(base, tuned, stats, init=init, iterations=4)
    alone = run(None, tuned, stats, init=init, iterations=4)
    for name in LINEAR:
        assert torch.allclose(there[name], alone[name], atol=1e-10, rtol=0)


def test_alpha_scales_the_update():
    base, tuned, stats = case()
    one, half = (run(base, tuned, stats, iterations=4, alpha=a) for a in (1.0, 0.5))
    assert torch.allclose(half[UP], (base[UP] + one[UP]) / 2, atol=1e-12, rtol=0)


def test_a_layer_of_zeros_stays_at_its_start():
    base, tuned, stats = case()
    zeros = [{**t, UP: torch.zeros_like(t[UP])} for t in tuned]
    merged = run(None, zeros, stats, init={**base}, iterations=4)
    assert torch.equal(merged[UP], base[UP])
    assert merged.log[UP]["iterations"] == 0


def test_the_log_holds_steps_and_relative_residuals():
    base, tuned, stats = case()
    merged = run(base, tuned, stats, init="zeros", iterations=7, rtol=0)
    assert set(merged.log) == set(LINEAR)
    held = merged.log[UP]
    a, b = system("kfac", tuned, stats, UP)
    left = (b - a @ rows(merged[UP])).norm() / b.norm()
    assert held["iterations"] == 7
    assert held["initial_residual"] == pytest.approx(1.0, rel=1e-9)
    assert held["final_residual"] == pytest.approx(float(left), rel=1e-6)
    early = run(base, tuned, stats, init="zeros", rtol=0.1).log[UP]
    assert early["final_residual"] <= 0.1
    assert early["iterations"] < 7


def test_float32_follows_float64():
    base, tuned, stats = case()
    wide = run(base, tuned, stats, iterations=5)
    single = run(base, tuned, stats, iterations=5, work_dtype=torch.float32)
    assert torch.allclose(single[UP], wide[UP], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"objective": "gram"}, "objective must be", marks=pytest.mark.bad_input),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"lam": 1.5}, "lam must be between 0 and 1"),
        ({"lam": -0.1}, "lam must be between 0 and 1"),
        ({"rtol": -1.0}, "rtol must not be negative"),
        ({"init": "tips"}, "init must be one of average, zeros"),
        pytest.param({"solver": "lu"}, "solver must be one of", marks=pytest.mark.bad_input),
        ({"precond": "kronecker", "objective": "diag_fisher"}, "needs Gram matrices"),
        ({"solver": "closed"}, "two models at most, got 3"),
        ({"weight": [1, -1, 1]}, "weight must not be negative"),
        ({"init": {UP: torch.zeros(2, 2)}}, "init has no tensor at 'embed.weight'"),
    ],
)
def test_parameters_out_of_range_are_named(options, message):
    base, tuned, stats = case()
    with pytest.raises(ValueError, match=message):
        merge(base, tuned, "mats", stats=stats, **options)


@pytest.mark.parametrize("init", ["pretrained", "task_arithmetic"])
def test_a_start_at_the_base_needs_one(init):
    _, tuned, stats = case()
    with pytest.raises(ValueError, match="give the model as base"):
        run(None, tuned, stats, init=init)


def test_a_gram_with_a_negative_eigenvalue_is_refused():
    base, tuned, stats = case()
    means = means_of(base, 1)
    q = torch.linalg.qr(draw(6, 6))[0]
    values = torch.tensor([-1e-3, 1, 1, 1, 1, 2], dtype=F64)
    means[UP]["gram"] = q @ torch.diag(values) @ q.mT
    means[UP]["gram"] = (means[UP]["gram"] + means[UP]["gram"].mT) / 2
    bad = [Stats.from_means(means), *stats[1:]]
    with pytest.raises(ValueError, match=r"gram of 'layers\.0\.up\.weight'.*not positive semi"):
        run(base, tuned, bad)


def test_rounding_below_zero_is_allowed():
    base, tuned, stats = case()
    means = means_of(base, 1)
    means[UP]["gram"] = gram(6, 3, rank=2) - 1e-7 * torch.eye(6, dtype=F64)
    run(base, tuned, [Stats.from_means(means), *stats[1:]], work_dtype=torch.float32)

"""mergekit's configurations: what they mean here, and what is refused by name."""

import pytest

from spanwise.merging import METHODS
from spanwise.merging._mergekit import REFUSED, SHARED, read_recipe
from spanwise.merging._recipe import Reference
from spanwise.merging._schedule import Schedule

# Every name of mergekit 0.1.5's registry.
WORKS = {
    "linear": {},
    "task_arithmetic": {},
    "ties": {"density": 0.3},
    "dare_linear": {"density": 0.3},
    "dare_ties": {"density": 0.3},
    "della": {"density": 0.5},
    "della_linear": {"density": 0.5},
    "breadcrumbs": {"density": 0.5},
    "breadcrumbs_ties": {"density": 0.5},
    "slerp": {"t": 0.5},
    "nuslerp": {},
    "model_stock": {},
    "passthrough": {},
}
NOT_HERE = ("multislerp", "karcher", "nearswap", "arcee_fusion", "sce", "ram", "ramplus_tl")


def config(method="ties", *, weights=(0.5, 0.7), top=None, models=None, **parameters):
    if models is None:
        models = [
            {"model": name, "parameters": {"weight": weight}}
            for name, weight in zip(("A", "B"), weights, strict=True)
        ]
    return {
        "merge_method": method, "base_model": "base", "models": models,
        "parameters": parameters, **(top or {}),
    }  # fmt: skip


def minimal(method):
    whole = dict(WORKS[method])
    if method in ("slerp", "passthrough", "model_stock"):
        count = {"slerp": 1, "passthrough": 1, "model_stock": 2}[method]
        held = config(method, models=[{"model": n} for n in "AB"[:count]], **whole)
        return {k: v for k, v in held.items() if (method, k) != ("passthrough", "base_model")}
    held = config(method, **whole)
    return {k: v for k, v in held.items() if (method, k) != ("linear", "base_model")}


@pytest.mark.parametrize("method", WORKS)
def test_every_method_of_mergekit_s_that_is_here_is_understood(method):
    recipe = read_recipe(minimal(method))
    assert recipe.name == method
    assert recipe.slices[0].method in METHODS


@pytest.mark.parametrize("method", NOT_HERE)
def test_every_other_one_is_refused_with_the_nearest(method):
    with pytest.raises(ValueError, match=f"method '{method}' is not offered") as caught:
        read_recipe(config(method))
    assert repr(REFUSED[method]) in str(caught.value)
    assert REFUSED[method] in METHODS


def test_the_two_lists_are_all_there_is():
    assert set(WORKS) == set(SHARED)
    assert set(NOT_HERE) == set(REFUSED)


def test_methods_of_ours_take_the_same_file():
    recipe = read_recipe(config("iso_c", models=[{"model": "A"}, {"model": "B"}], alpha=[1, 2]))
    assert recipe.slices[0].method == "iso_c"
    assert recipe.slices[0].alpha == [1, 2]
    with pytest.raises(ValueError, match=r"iso_c has no parameter 'wieght'"):
        read_recipe(config("iso_c", models=[{"model": "A", "parameters": {"wieght": 1}}]))


# -- what parameters mean ----------------------------------------------------------------------


def test_mergekit_s_own_meanings_are_kept():
    ties = read_recipe(config("ties", density=0.3)).slices[0].parameters
    assert ties["trim_scope"] == "tensor"
    assert ties["keep"] == "count"
    assert ties["undecided"] == "plus"
    assert read_recipe(config("dare_ties")).slices[0].parameters["rescale"] == "l1"
    assert read_recipe(config("dare_ties")).slices[0].parameters["normalize"] is False
    assert read_recipe(config("breadcrumbs")).slices[0].parameters["scope"] == "tensor"
    off = read_recipe(config("dare_linear", rescale=False)).slices[0].parameters
    assert off["rescale"] is False


def test_lambda_is_the_scale_and_int8_mask_a_note():
    recipe = read_recipe(config("ties", int8_mask=True, **{"lambda": 0.4}))
    assert recipe.slices[0].alpha == 0.4
    assert any("int8_mask" in note for note in recipe.notes)


def test_a_model_s_filters_come_first_then_the_merge_s_then_the_default():
    held = config(
        "ties",
        models=[
            {"model": "A", "parameters": {"density": {"filter": "mlp", "value": "1e-1"}}},
            {"model": "B", "parameters": {"density": [0.2, 0.4]}},
        ],
        weight=1.0,
        density=[{"filter": "attn", "value": [0.5, 0.7]}],
    )
    first, second = read_recipe(held).slices[0].parameters["density"]
    value = Schedule("density", first)
    assert [value(n, 1.0) for n in ("x.mlp", "x.attn", "norm")] == [0.1, 0.7, 1.0]
    assert second == [0.2, 0.4]


def test_the_base_among_the_models_is_not_merged_but_averaged():
    models = [{"model": "base"}, {"model": "A"}, {"model": "B"}]
    assert len(read_recipe(config("ties", models=models, weight=1.0)).slices[0].models) == 2
    linear = read_recipe(config("linear", models=models, weight=1.0)).slices[0]
    assert len(linear.models) == 3
    assert linear.base is None


def test_slerp_goes_from_the_base():
    for order in (["base", "A"], ["A", "base"], ["A"]):
        held = config("slerp", models=[{"model": m} for m in order], t=0.1)
        assert [str(p.model) for p in read_recipe(held).slices[0].models] == ["base", "A"]


def test_models_are_written_as_mergekit_writes_them():
    held = config(
        models=[
            {"model": "own/name@main+own/lora", "parameters": {"weight": 1}},
            {"model": {"model": {"path": "B", "revision": "x"}}, "parameters": {"weight": 1}},
        ]
    )
    found = [p.model for p in read_recipe(held).slices[0].models]
    assert found == [Reference("own/name", "main", "own/lora"), Reference("B", "x")]


# -- what is refused ---------------------------------------------------------------------------


SLICE = {"sources": [{"model": "A", "layer_range": [0, 2]}]}


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (config("tise"), "unknown merge_method 'tise': did you mean 'ties'"),
        (config(top={"dtpye": "float16"}), "unknown key 'dtpye': did you mean 'dtype'"),
        (config(top={"dtype": "int8"}), "dtype must be one of"),
        (config(top={"modules": {}}), "modules .* is not supported"),
        (config(top={"slices": [SLICE]}), "either models or slices"),
        ({"merge_method": "ties"}, "either models or slices"),
        ({"models": [{"model": "A"}]}, "merge_method is missing"),
        (config(densty=0.5), "ties has no parameter 'densty': did you mean 'density'"),
        (config(gamma=0.5), "ties has no parameter 'gamma'"),
        (config("ties", rescale=True), "rescale: true is not supported with ties"),
        (config("task_arithmetic", density=0.5), "density has no effect on task_arithmetic"),
        (config("nuslerp", nuslerp_row_wise=True), "nuslerp_row_wise: true"),
        (config(normalize="often"), "normalize must be true or false"),
        (config("ties", models=[{"model": "A"}]), "needs a weight for every model"),
        (config("ties", models=[{"model": "A", "parameters": {"normalize": True}}]),
         "normalize belongs to the whole merge"),
        (config("ties", models=[{"modle": "A"}]), "unknown key 'modle': did you mean 'model'"),
        (config("ties", models="A"), "must be a list"),
        (config("ties", density=1.5), r"density must be in \(0, 1\]"),
        (config("slerp", models=[{"model": "A"}]), "slerp needs t"),
        (config("slerp", models=[{"model": "A"}, {"model": "B"}], t=0.5), "slerp takes two models"),
        (config("passthrough", models=[{"model": "A"}, {"model": "B"}], top={"base_model": None}),
         "passthrough takes one model"),
        (config("task_arithmetic", top={"base_model": None}), "needs base_model"),
        (config(top={"chat_template": "chatml"}), "chat_template 'chatml' is no template"),
        (config(top={"tokenizer": {}, "tokenizer_source": "base"}), "not both"),
        (config(top={"tokenizer": {"pad_to_multiple": 8}}), "did you mean 'pad_to_multiple_of'"),
        (config(top={"tokenizer": {"tokens": {"x": {"source": {"kind": "random"}}}}}),
         "must be zero or model_token"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_an_error_that_names_it(held, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(held)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"sources": [{"model": "A", "layer_range": [2, 1]}]}, "layer_range must be"),
        ({"sources": [{"model": "A"}]}, "layer_range must be"),
        ({**SLICE, "residual_weight": 0.5}, "residual_weight is not supported"),
        ({**SLICE, "sorces": 1}, "did you mean 'sources'"),
    ],
)
def test_wrong_slices_are_named(part, message):
    with pytest.raises(ValueError, match=message):
        read_recipe({"merge_method": "passthrough", "slices": [part]})


def test_slices_must_agree_and_hold_the_base_of_what_they_add():
    uneven = {"sources": [*SLICE["sources"], {"model": "B", "layer_range": [0, 1]}]}
    with pytest.raises(ValueError, match="different numbers of layers"):
        read_recipe({"merge_method": "linear", "slices": [uneven], "parameters": {"weight": 1}})
    with pytest.raises(ValueError, match="list base_model"):
        read_recipe(
            {"merge_method": "task_arithmetic", "base_model": "base", "slices": [SLICE],
             "parameters": {"weight": 1}}
        )  # fmt: skip

"""The options of a run."""

import math

import pytest

from spanwise.io.configs import from_plain, read_yaml, to_plain, to_yaml
from spanwise.training import TrainConfig


def test_flat_keywords_find_their_group():
    config = TrainConfig.flat("60m", data="a.txt", watch={"old": "b.txt"}, out="r", rank=8, steps=5)
    assert config.texts.data == ("a.txt",)
    assert config.texts.watched == {"old": "b.txt"}
    assert (config.optimizer.rank, config.schedule.steps) == (8, 5)


def test_a_config_survives_yaml(tmp_path):
    config = TrainConfig.flat(
        "60m", data=["a", "b"], out="r", avoid="k.safetensors", alpha="sweep", lr=1e-3, svd="warm"
    )
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert from_plain(TrainConfig, read_yaml(tmp_path / "c.yaml")) == config


def test_an_unknown_key_in_yaml_names_the_nearest():
    plain = to_plain(TrainConfig.flat("60m", data="a", out="r"))
    plain["optimizer"]["rnk"] = 3
    with pytest.raises(ValueError, match="did you mean 'rank'"):
        from_plain(TrainConfig, plain)


def test_intervals_follow_the_steps_until_they_are_given():
    config = TrainConfig.flat("60m", data="a", out="r", steps=1000)
    assert (config.log_every, config.eval_every, config.save_every) == (40, 100, 250)
    config = TrainConfig.flat("60m", data="a", out="r", steps=3, save_every=0)
    assert (config.log_every, config.eval_every, config.save_every) == (1, 1, 3)


def test_pretrained_weights_get_a_tenth_of_the_rate():
    options = TrainConfig.flat("60m", data="a", out="r").optimizer
    assert options.rate(pretrained=False) == 10 * options.rate(pretrained=True) == 1e-2


def test_a_plan_needs_neither_data_nor_a_folder():
    assert TrainConfig(model="7b", plan=True).out is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rnk", 3, "did you mean 'rank'"),
        ("rank", 0, "rank must be at least 1, got 0"),
        ("method", "galor", "Did you mean 'galore'"),
        ("lr", 0.0, "lr must be above 0"),
        ("lr", -1e-3, "lr must be above 0"),
        ("scale", 0.0, "scale must be above 0"),
        ("plain_lr", 0.0, "plain_lr must be above 0"),
        ("lr", math.inf, "lr must be above 0 and finite"),
        ("weight_decay", -1.0, "weight_decay must be at least 0"),
        ("clip", -1.0, "clip must be at least 0"),
        ("refresh_every", 0, "refresh_every must be at least 1"),
        ("steps", 0, "steps must be at least 1"),
        ("batch", 0, "batch must be at least 1"),
        ("accumulate", 0, "accumulate must be at least 1"),
        ("warmup", 1.0, "warmup must be in"),
        ("floor", 1.5, "floor must be in"),
        ("sequence", 1, "sequence must be at least 2"),
        ("held_out", 0.0, "held_out must be in"),
        ("held_out", 0.6, "held_out must be in"),
        ("watch", ("old.txt",), "NAME=PATH"),
        ("watch", ("a=b", "a=c"), "is taken"),
        ("watch", ("held_out=b",), "is taken"),
        ("alpha", 1.5, "alpha must be in"),
        pytest.param("alpha", "swep", "alpha must be a number", marks=pytest.mark.bad_input),
        ("keep", 0, "keep must be at least 1"),
        ("eval_every", 0, "eval_every must be at least 1"),
        ("save_every", -1, "save_every must be"),
        ("eval_sequences", 0, "eval_sequences must be"),
        ("seed", -1, "seed must be at least 0"),
    ],
)
def test_an_option_out_of_range_is_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.flat("60m", data="a", out="r", **{key: value})


def test_data_and_folder_are_asked_for():
    with pytest.raises(ValueError, match="data is missing"):
        TrainConfig.flat("60m", out="r")
    with pytest.raises(ValueError, match="out is missing"):
        TrainConfig.flat("60m", data="a")


@pytest.mark.parametrize("option", [{"scale": 0.3}, {"stagger": True}, {"plain_lr": 1e-3}])
def test_an_option_of_a_subspace_method_is_none_of_a_rival(option):
    with pytest.raises(ValueError, match="is an option of subspace methods"):
        TrainConfig.flat("60m", data="a", out="r", method="adamw", **option)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("1e-3", 1e-3), ("-2E5", -2e5), ("None", None), ("null", None), ("topr", "topr"),
     ("true", True), ("[0.9, 0.95]", (0.9, 0.95)), ("7", 7)],
)  # fmt: skip
def test_an_option_by_name_is_read_as_what_it_looks_like(text, value):
    # YAML takes 1e-3 and None for words; one would fail amid a step, the other by a riddle.
    config = TrainConfig.flat("60m", data="a", out="r", option=(f"walk_angle={text}",))
    read = config.optimizer.own_options["walk_angle"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"option": ("walk_angle",)}, "option must read NAME=VALUE"),
        ({"option": ("=1",)}, "option must read NAME=VALUE"),
        ({"option": ("scale=1", "scale=2")}, "scale is given twice"),
        ({"option": ("scale=1",), "scale": 2.0}, "scale is given twice"),
        ({"option": ("betas=[0.9",)}, r"'betas=\[0.9': its value is neither"),
    ],
)
def test_an_option_by_name_that_cannot_be_read(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.flat("60m", data="a", out="r", **options)

"""Layouts: every stored parameter is seen as the m x n map that its module computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from spanwise.layouts import (
    guess_layout,
    linear_maps,
    map_dims,
    matrix_view,
    side_dim,
    strip_prefixes,
)

transformers = pytest.importorskip("transformers")


def tiny_llama(**options):
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=31,
            **options,
        )
    )


@pytest.mark.parametrize(
    "name",
    [
        "model.up.weight",
        "module.model.up.weight",
        "_orig_mod.model.up.weight",
        "module._orig_mod.model.up.weight",
        "base_model.model.model.up.base_layer.weight",
        "_fsdp_wrapped_module.model._fsdp_wrapped_module.up.weight",
        "model._checkpoint_wrapped_module.up.weight",
    ],
)
def test_wrappers_leave_no_trace_in_names(name):
    assert strip_prefixes(name) == "model.up.weight"


def test_a_name_that_only_resembles_a_wrapper_is_kept():
    assert strip_prefixes("encoder.module_list.weight") == "encoder.module_list.weight"


def test_linear_and_conv1d_views_compute_their_modules():
    x = torch.randn(5, 4)
    linear = nn.Linear(4, 3)
    torch.testing.assert_close(x @ matrix_view(linear.weight, "linear").T + linear.bias, linear(x))
    conv1d = transformers.pytorch_utils.Conv1D(3, 4)
    view = matrix_view(conv1d.weight, "transposed")
    assert view.shape == (3, 4)
    torch.testing.assert_close(x @ view.T + conv1d.bias, conv1d(x))


def test_a_convolution_is_a_map_on_unfolded_patches():
    conv, x = nn.Conv2d(2, 3, 3, stride=2, padding=1), torch.randn(4, 2, 7, 6)
    columns = functional.unfold(x, 3, stride=2, padding=1)
    view = matrix_view(conv.weight, "conv")
    assert view.shape == (3, 18)
    dense = (view @ columns + conv.bias[:, None]).unflatten(2, (4, 3))
    torch.testing.assert_close(dense, conv(x))


def test_expert_views_are_batched_and_write_through():
    stacked = torch.zeros(2, 5, 3)
    view = matrix_view(stacked, "experts_transposed")
    assert view.shape == (2, 3, 5)
    view[1, 2, 4] = 7.0
    assert stacked[1, 4, 2] == 7.0


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((3, 4), "linear", ((), 3, 4)),
        ((3, 4), "transposed", ((), 4, 3)),
        ((3, 4, 5), "conv", ((), 3, 20)),
        ((3, 4, 5, 6), "conv", ((), 3, 120)),
        ((2, 3, 4), "experts", ((2,), 3, 4)),
        ((2, 3, 4), "experts_transposed", ((2,), 4, 3)),
    ],
)
def test_dims_agree_with_the_view(shape, layout, expected):
    assert map_dims(shape, layout) == expected
    batch, m, n = expected
    assert matrix_view(torch.empty(shape), layout).shape == (*batch, m, n)
    assert (side_dim(shape, layout, "output"), side_dim(shape, layout, "input")) == (m, n)


@pytest.mark.bad_input
def test_a_layout_that_does_not_fit_names_the_shape():
    with pytest.raises(ValueError, match=r"'conv' does not fit a tensor of shape \(3, 4\)"):
        matrix_view(torch.empty(3, 4), "conv")
    with pytest.raises(ValueError, match="layouts are linear, transposed"):
        map_dims((3, 4), "diagonal")


def test_every_map_of_a_llama_is_found_once_and_the_table_is_not():
    model = tiny_llama()
    maps = {found.name: found for found in linear_maps(model)}
    assert len(maps) == 2 * 7 + 1
    assert "model.embed_tokens.weight" not in maps
    up = maps["model.layers.0.mlp.up_proj.weight"]
    assert (up.layout, up.kind, up.outputs, up.inputs, up.bias) == (
        "linear",
        "linear",
        24,
        16,
        None,
    )


def test_a_head_tied_to_the_table_counts_as_the_table():
    model = tiny_llama(tie_word_embeddings=True)
    assert "lm_head.weight" not in {found.name for found in linear_maps(model)}
    tied = {found.name: found for found in linear_maps(model, embeddings=True)}
    table = tied["model.embed_tokens.weight"]
    assert table.aliases == ("lm_head.weight",)
    assert (table.kind, table.layout, table.outputs, table.inputs) == (
        "embedding",
        "transposed",
        16,
        31,
    )


def test_gpt2_maps_are_transposed_and_know_their_biases():
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=16)
    maps = {f.name: f for f in linear_maps(transformers.GPT2LMHeadModel(config))}
    attention = maps["transformer.h.0.attn.c_attn.weight"]
    assert (attention.layout, attention.outputs, attention.inputs) == ("transposed", 24, 8)
    assert attention.bias == "transformer.h.0.attn.c_attn.bias"


def test_grouped_convolutions_are_left_out():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.Conv1d(2, 3, 2))
    assert [found.name for found in linear_maps(model)] == ["1.weight", "2.weight"]


def test_stacked_experts_are_found_in_both_orders():
    small = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": 20}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3}
    mixtral = transformers.MixtralForCausalLM(transformers.MixtralConfig(**small, **heads))
    maps = {f.name.split(".")[-1]: f for f in linear_maps(mixtral) if f.kind == "experts"}
    assert (maps["gate_up_proj"].layout, maps["gate_up_proj"].shape) == ("experts", (3, 24, 8))
    assert (maps["down_proj"].outputs, maps["down_proj"].inputs) == (8, 12)
    oss = transformers.models.gpt_oss.modeling_gpt_oss.GptOssExperts(
        transformers.GptOssConfig(**small, **heads, head_dim=4)
    )
    maps = {f.name: f for f in linear_maps(oss)}
    assert maps["gate_up_proj"].layout == "experts_transposed"
    assert (maps["gate_up_proj"].outputs, maps["gate_up_proj"].inputs) == (24, 8)
    assert maps["gate_up_proj"].bias == "gate_up_proj_bias"


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.up_proj.weight", (4, 3), "linear"),
        ("stem.weight", (4, 3, 3, 3), "conv"),
        ("stem.weight", (4, 3, 3), "conv"),
        ("layers.0.mlp.experts.down_proj", (2, 4, 3), "experts"),
        ("model.embed_tokens.weight", (9, 4), None),
        ("transformer.wte.weight", (9, 4), None),
        ("norm.weight", (4,), None),
        ("up_proj.bias", (4,), None),
    ],
)
def test_bare_tensors_are_guessed_by_name_and_dimensions(name, shape, expected):
    assert guess_layout(name, shape) == expected

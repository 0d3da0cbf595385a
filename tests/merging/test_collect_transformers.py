"""Statistics of transformers models: layouts, heads, padding, adapters, two kinds of tokens."""

import pytest
import torch

from spanwise.layouts import matrix_view
from spanwise.merging import collect_stats, merge

transformers = pytest.importorskip("transformers")
F64 = torch.float64


def close(a, b, atol=1e-10):
    return torch.allclose(a, b, atol=atol, rtol=0)


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).to(F64).eval()


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(F64).eval()


def texts(batch=3, length=5, seed=0):
    ids = torch.randint(1, 17, (batch, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize("others", [True, False])
def test_causal_models_shift_labels_and_padding_changes_nothing(build, others):
    net, batch = build(), texts()
    plain = collect_stats(net, [batch], others=others)
    pad = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    longer = {k: torch.nn.functional.pad(v, (0, 3), value=pad[k]) for k, v in batch.items()}
    more = collect_stats(net, [longer], others=others)
    for name in plain:
        assert plain[name].entry.counts == more[name].entry.counts
        assert all(close(plain[name][kind], more[name][kind]) for kind in plain[name])
    name = next(n for n in plain if "mlp" in n and n.endswith("weight"))
    squares = 0
    for k in range(3):
        loss = net(**{key: value[k : k + 1] for key, value in batch.items()}).loss
        gradient = torch.autograd.grad(loss, dict(net.named_parameters())[name])[0]
        squares = squares + gradient**2
    assert close(plain[name]["diag_fisher"], squares / 3)


def test_conv1d_is_transposed_and_merges_like_the_linear_it_is():
    net = gpt2()
    stats = collect_stats(net, [texts()], others=False)
    held = stats["transformer.h.0.attn.c_attn.weight"]
    assert held.layout == "transposed"
    assert held["gram"].shape == (8, 8)
    assert held["gradient_gram"].shape == (24, 24)
    assert held["diag_fisher"].shape == (8, 24)
    other = gpt2()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.01 * torch.randn_like(p))
    both = [stats, collect_stats(other, [texts(seed=1)], others=False)]
    name = "transformer.h.0.mlp.c_proj.weight"
    with pytest.warns(UserWarning, match="lack statistics"):
        merged = merge(None, [net, other], "regmean", stats=both, lam=1.0, work_dtype=F64)[name]
    grams = [s[name]["gram"] for s in both]
    maps = [matrix_view(m.state_dict()[name], "transposed").mT for m in (net, other)]
    right = sum(c @ w for c, w in zip(grams, maps, strict=True))
    mean = sum(maps) / 2
    anchored = mean + torch.linalg.pinv(sum(grams), hermitian=True, rtol=1e-10) @ (
        right - sum(grams) @ mean
    )
    assert close(merged, anchored, 1e-8)


def test_a_head_has_no_gradient_gram():
    stats = collect_stats(llama(), [texts()])
    assert set(stats["lm_head.weight"]) == {"gram", "diag_fisher"}
    assert "vocabulary" in stats.skipped["lm_head.weight::gradient_gram"]


def test_q_k_and_v_read_one_tensor_and_have_one_gram():
    stats = collect_stats(llama(), [texts()], ("gram",))
    q, k = (stats[f"model.layers.0.self_attn.{n}_proj.weight"]["gram"] for n in "qk")
    assert torch.equal(q, k)


def test_an_adapter_s_maps_go_by_the_names_of_the_base():
    peft = pytest.importorskip("peft")
    net, batch = llama(), texts()
    plain = collect_stats(net, [batch])
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=True)
    wrapped = peft.get_peft_model(net, config).to(F64)
    stats = collect_stats(wrapped, [batch])
    assert set(stats) == set(plain)
    for name in plain:  # a fresh adapter adds nothing
        assert all(close(plain[name][kind], stats[name][kind]) for kind in plain[name])
    assert stats["lm_head.weight"].entry.mark is None


def test_an_encoder_decoder_counts_each_side_s_tokens():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=17, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    net = transformers.T5ForConditionalGeneration(config).to(F64).eval()
    batch = texts(3, 5)
    batch["attention_mask"][0, 3:] = 0
    batch["labels"] = batch["labels"][:, :5].clone()
    batch["labels"][1, 2:] = -100
    stats = collect_stats(net, [batch], others=False)
    encoder, decoder = 13, 12
    counts = {name: stats[name].entry.counts for name in stats}
    assert counts["encoder.block.0.layer.0.SelfAttention.q.weight"]["gram"] == encoder
    assert counts["decoder.block.0.layer.0.SelfAttention.q.weight"]["gram"] == decoder
    assert counts["decoder.block.0.layer.1.EncDecAttention.q.weight"]["gram"] == decoder
    for kind in ("gram", "gradient_gram"):
        assert counts["decoder.block.0.layer.1.EncDecAttention.k.weight"][kind] == encoder
    name = "decoder.block.0.layer.2.DenseReluDense.wi.weight"
    squares = 0
    for k in range(3):
        loss = net(**{key: value[k : k + 1] for key, value in batch.items()}).loss
        squares = squares + torch.autograd.grad(loss, net.get_parameter(name))[0] ** 2
    assert close(stats[name]["diag_fisher"], squares / 3)

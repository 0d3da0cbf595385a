"""LoRA folders as PEFT loads them: logits are those of base + B A, on real architectures."""

import json
import warnings

import pytest
import torch
from tests.merging.llamas import llama, tokenizer

from spanwise.io import open_tensors
from spanwise.lora import CONFIG, open_adapter
from spanwise.merging import check_model, export_lora, export_merged, plan_lora

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

IDS = torch.arange(3, 27).reshape(2, 12) % 60


def perturbed(model, folder, *, scale=0.05, names=lambda name: True):
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            if names(name):
                g = torch.Generator().manual_seed(index)
                parameter.add_(scale * torch.randn(parameter.shape, generator=g))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def gpt2(folder):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def pair(kind, root):
    """A base and a fine-tune on disk."""
    tied = kind == "tied"
    base = gpt2(root / "base") if kind == "gpt2" else llama(root / "base", 0, tied=tied)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    return base, perturbed(model, root / "tuned")


def mamba(folder):
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=8, state_size=4, num_hidden_layers=2, expand=2,
        time_step_rank=2, bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = transformers.MambaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_what_peft_cannot_adapt_is_left_out_by_name(tmp_path):
    base = mamba(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tuned = perturbed(model, tmp_path / "tuned")
    plan = plan_lora(base, tuned, rank=2)
    left = {name: found.reason for name, found in plan.left.items()}
    name = "backbone.layers.0.mixer.out_proj.weight"
    assert "reads its weight without calling it" in left[name]
    assert "backbone.layers.0.mixer.conv1d.weight" in left
    assert any("in_proj" in target.name for target, _ in plan.chosen)
    plan.write(tmp_path / "lora")
    expected = logits(summed(base, tuned, tmp_path / "lora"))
    assert torch.allclose(logits(adapted(base, tmp_path / "lora")), expected, atol=1e-5)
    with pytest.raises(ValueError, match="incompatible with Mamba"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["out_proj"]))


def test_attention_of_torch_keeps_its_output_map(tmp_path):
    """Its kernel reads the map's weight; factors beside it would change nothing."""
    attention = torch.nn.ModuleDict({
        "attention": torch.nn.MultiheadAttention(8, 2), "up": torch.nn.Linear(8, 12),
    })  # fmt: skip
    base = {n: t.clone() for n, t in attention.state_dict().items()}
    tuned = {n: t + 0.1 * torch.randn_like(t) for n, t in base.items()}
    plan = plan_lora(base, tuned, rank=2, model=attention)
    assert [target.name for target, _ in plan.chosen] == ["up.weight"]
    assert "without calling it" in plan.left["attention.out_proj.weight"].reason


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def adapted(base, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    return peft.PeftModel.from_pretrained(model, folder)


def summed(base, tuned, folder, *, whole=False):
    """The base with every B A added to its weights by hand."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    other = transformers.AutoModelForCausalLM.from_pretrained(tuned)
    found, there = open_adapter(folder), dict(other.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in found:
                parameter.add_(found.update(name))
            elif whole and parameter.ndim < 2:
                parameter.copy_(there[name])
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt2", "tied"])
@pytest.mark.parametrize(
    "options",
    [{"rank": 4}, {"budget_rank": 3}, {"energy": 0.6}, {"budget_rank": 3, "svd": "randomized"}],
)
def test_logits_are_those_of_the_base_and_its_factors(kind, options, tmp_path):
    base, tuned = pair(kind, tmp_path)
    written = export_lora(base, tuned, tmp_path / "lora", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # so are missing and superfluous keys told
        # GPT-2's tied head is no Conv1D: PEFT corrects the flag there, module by module.
        warnings.filterwarnings("ignore", "fan_in_fan_out")
        model = adapted(base, tmp_path / "lora")
    expected = logits(summed(base, tuned, tmp_path / "lora"))
    assert torch.allclose(logits(model), expected, rtol=0, atol=1e-5)
    assert (logits(model) - logits(model.get_base_model())).abs().max() < 1e-6
    with model.disable_adapter():
        plain = transformers.AutoModelForCausalLM.from_pretrained(base)
        assert torch.allclose(logits(model), logits(plain), rtol=0, atol=1e-6)
        assert (logits(plain) - expected).abs().max() > 1e-3
    ranks = {r for r in written.ranks.values() if r}
    assert len(ranks) > 1 or "rank" in options
    by_peft = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    for name, rank in written.ranks.items():
        if rank:
            assert by_peft[name.removesuffix(".weight")] == (rank, 1.0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "tied"])
def test_with_every_rank_and_vector_it_is_the_tuned_model(kind, tmp_path):
    base, tuned = pair(kind, tmp_path)
    written = export_lora(base, tuned, tmp_path / "lora", energy=1.0, full_vectors=True)
    assert written.energy == pytest.approx(1, abs=1e-9)
    model = adapted(base, tmp_path / "lora")
    whole = transformers.AutoModelForCausalLM.from_pretrained(tuned)
    assert torch.allclose(logits(model), logits(whole), rtol=0, atol=1e-5)
    checked = export_merged(tmp_path / "lora", tmp_path / "merged")
    assert checked.problems == ()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(again), logits(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "tied"])
def test_an_adapter_merges_into_what_peft_merges(kind, tmp_path):
    base, tuned = pair(kind, tmp_path)
    export_lora(base, tuned, tmp_path / "lora", budget_rank=3)
    export_merged(tmp_path / "lora", tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = logits(adapted(base, tmp_path / "lora"))
    assert torch.allclose(logits(again), expected, rtol=0, atol=1e-5)


def test_a_lora_that_peft_trained_is_found_again(tmp_path):
    base = llama(tmp_path / "base", 0)
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), config
    ).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "trained")
    merged = model.merge_and_unload()
    base64 = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    written = export_lora(base64, merged, tmp_path / "found", rank=3)
    assert set(written.ranks.values()) == {3}
    theirs, ours = open_adapter(tmp_path / "trained"), open_adapter(tmp_path / "found")
    assert set(theirs) == set(ours)
    for name in theirs:
        expected = theirs.update(name, torch.float64)
        error = torch.linalg.norm(ours.update(name, torch.float64) - expected)
        assert error < 1e-6 * torch.linalg.norm(expected)


def test_names_that_end_alike_are_not_confused(tmp_path):
    """PEFT looks at the ends of names: `up` is also the end of `inner.up`, `1.up` of `11.up`."""

    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Linear(6, 6, bias=False)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Linear(6, 6, bias=False)
            self.inner = Inner()
            self.layers = torch.nn.ModuleList([Inner() for _ in range(12)])

        def forward(self, x):
            x = self.inner.up(self.up(x).tanh()).tanh()
            for layer in self.layers:
                x = x + layer.up(x)
            return x

    base = Model()
    changed = {n: t.clone() for n, t in base.state_dict().items()}
    g = torch.Generator().manual_seed(1)
    for index, name in enumerate(("up.weight", "layers.1.up.weight", "layers.11.up.weight")):
        low = torch.randn(6, index + 1, generator=g) @ torch.randn(index + 1, 6, generator=g)
        changed[name] += 0.1 * low
    export_lora(base, changed, tmp_path / "lora", energy=1.0)
    tuned = Model()
    tuned.load_state_dict(changed)
    x = torch.randn(5, 6, generator=g)
    expected = tuned(x)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "lora")
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-5)
    wrapped = [n for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert wrapped == [f"base_model.model.{n}" for n in ("up", "layers.1.up", "layers.11.up")]


def test_without_transformers_gpt2s_maps_are_told_by_their_shapes(tmp_path):
    base, tuned = pair("gpt2", tmp_path)
    known = plan_lora(base, tuned, rank=2)
    guessed = plan_lora(dict(open_tensors(base)), dict(open_tensors(tuned)), rank=2)
    kinds = [{m.target.name: m.target.kind for m in p.matrices} for p in (known, guessed)]
    assert kinds[0] == kinds[1]
    assert set(kinds[0].values()) == {"conv1d", "embedding"}
    assert guessed.energy == pytest.approx(known.energy, rel=1e-9)


def test_a_tied_table_gets_factors_once_and_says_who_follows(tmp_path):
    base, tuned = pair("tied", tmp_path)
    plan = plan_lora(base, tuned, rank=4)
    assert [m.target.name for m in plan.matrices if m.target.head] == ["model.embed_tokens.weight"]
    assert any("ensure_weight_tying" in note for note in plan.notes)
    plan.write(tmp_path / "lora")
    assert json.loads((tmp_path / "lora" / CONFIG).read_text())["ensure_weight_tying"] is True
    without = plan_lora(base, tuned, rank=4, exclude=["embed_tokens"])
    assert not any("ensure_weight_tying" in note for note in without.notes)
    without.write(tmp_path / "without")
    assert "ensure_weight_tying" not in json.loads((tmp_path / "without" / CONFIG).read_text())


def test_a_grown_vocabulary_is_refused_by_name(tmp_path):
    base = llama(tmp_path / "base", 0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(70)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(ValueError, match=r"shape \(70, 16\) in tuned.*resize_token_embeddings"):
        plan_lora(base, tmp_path / "tuned", rank=2)


def test_the_merged_result_is_checked(tmp_path):
    base, tuned = pair("llama", tmp_path)
    export_lora(base, tuned, tmp_path / "lora", rank=2)
    checked = export_merged(tmp_path / "lora", tmp_path / "merged", dtype=torch.bfloat16)
    assert (checked.problems, checked.dtype) == ((), "bfloat16")
    assert check_model(tmp_path / "merged").problems == ()

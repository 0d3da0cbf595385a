import pytest
import torch


@pytest.fixture
def llama():
    """A Llama with tied embeddings, in float64."""
    return make_llama(tie_word_embeddings=True)


@pytest.fixture
def ids():
    return torch.randint(0, 31, (4, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tiny():
    """Builds a small transformers model in float64 by class name."""
    return make


def make(kind, **options):
    transformers = pytest.importorskip("transformers")
    small = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 31,
    }
    if kind == "GPT2":
        small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 31, "n_positions": 16}
    name = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**small, **options})
    return getattr(transformers, name)(config).double()


def make_llama(**options):
    return make("Llama", **options)

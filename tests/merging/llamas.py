"""Tiny Llamas on disk, as transformers saves them."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = tuple(f"w{index}" for index in range(61))


def tokenizer(words=WORDS):
    """Whole words; ids 0 to 2 are special."""
    ids = {word: index for index, word in enumerate(("<s>", "</s>", "<unk>", *words))}
    held = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    held.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=held, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def llama(folder, seed, *, base=None, words=WORDS, shard="5GB", tied=False, layers=2, **config):
    """Save a model, `base` and a small random change if there is one; returns the folder."""
    rows = 3 + len(words)
    config = transformers.LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, bos_token_id=0,
        eos_token_id=1, tie_word_embeddings=tied, **config,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    if base is not None:
        held = transformers.LlamaForCausalLM.from_pretrained(base).state_dict()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                old = held[name]
                parameter[: len(old)] = old
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer(words).save_pretrained(folder)
    return folder


def loaded(folder):
    """The model in a folder, and the names of weights that its file lacks or has too many."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    return model, {*told["missing_keys"], *told["unexpected_keys"]}


def changed(folder, **values):
    """Write values into a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

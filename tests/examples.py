"""What the examples of README and docs work on: a reader's own models, data and folders."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]


def blocks(text, language):
    """The fenced blocks of one language, in the order of the page."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for _, block in found]


def commands(text):
    """The words of every `spanwise VERB ...` in the console blocks of a page, in order."""
    lines = (line for block in blocks(text, "console") for line in _joined(block))
    return [shlex.split(line, comments=True)[1:] for line in lines if _is_ours(line)]


def mentions(text):
    """The same in running text, where a command may be only named or cut short."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = (line.removeprefix("python -m ") for line in re.findall(r"`([^`\n]+)`", prose))
    return [shlex.split(line)[1:] for line in lines if _is_ours(line)]


def _joined(block):
    for line in block.replace("\\\n", " ").splitlines():
        yield line.strip().removeprefix("$ ").removeprefix("python -m ")


def _is_ours(line):
    return line.startswith("spanwise ") and "VERB" not in line and "..." not in line


def run(block, names, page):
    """Execute a block as if it were pasted, with the names that the page has given so far."""
    exec(compile(block, f"<{page}>", "exec"), names)


def mlp():
    model = nn.Sequential(
        nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 5)
    )
    old = [torch.randn(32, 4) @ torch.randn(4, 24) for _ in range(4)]
    new = [torch.randn(32, 24) for _ in range(6)]
    return model, old, new, lambda m, x: F.cross_entropy(m(x), x[:, :5].argmax(1))


def conv_net():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    old = [torch.randn(4, 3, 1, 1).expand(4, 3, 10, 10) for _ in range(4)]
    new = [torch.randn(4, 3, 10, 10) for _ in range(6)]
    return model, old, new, lambda m, x: F.cross_entropy(m(x), x.mean((2, 3)).argmax(1))


def language_model(model):
    """The model, batches of an old and of a new text, and its loss."""

    def batches(low, high):
        found = []
        for _ in range(4):
            ids = torch.randint(low, high, (3, 16))
            found.append({"input_ids": ids, "labels": ids})
        return found

    return model, batches(0, 12), batches(40, 90), lambda m, batch: m(**batch).loss


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=48, n_layer=2, n_head=2)
    return language_model(transformers.GPT2LMHeadModel(config))


def llama(*, width=48, vocabulary=96, context=32, tied=True):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
    )
    model = transformers.LlamaForCausalLM(config)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    return language_model(model)


def save_family(folder, base, *tuned):
    """A byte-level base and fine-tunes of it, as transformers folders; returns the base."""
    from spanwise.datasets import ByteTokenizer

    tokenizer = ByteTokenizer()
    model = llama(width=144, vocabulary=len(tokenizer), context=256, tied=False)[0]
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in (base, *tuned):
        if name != base:
            moved = {key: t + 0.02 * torch.randn_like(t) for key, t in start.items()}
            model.load_state_dict(moved)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    model.load_state_dict(start)
    return model

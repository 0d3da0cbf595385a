"""A model that trains in seconds, and text for it."""

import pytest
import torch

from spanwise.datasets import ByteTokenizer

OLD = "the quick brown fox jumps over the lazy dog. "
NEW = "0123456789 + 9876543210 = 9999999999\n"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A Llama of width 32 on bytes, with dropout so that random numbers matter."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=259,
        max_position_embeddings=64,
        attention_dropout=0.1,
        bos_token_id=None,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    ByteTokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """Two small texts that have nothing in common."""
    path = tmp_path_factory.mktemp("texts")
    (path / "old.txt").write_text(OLD * 60)
    (path / "new.txt").write_text(NEW * 60)
    return path


@pytest.fixture
def options(tmp_path, flat_options):
    """Flat options of a run of nine steps in a folder of its own."""
    return flat_options(tmp_path / "run")


@pytest.fixture(scope="session")
def flat_options(tiny, texts):
    """Out folder -> flat options of a run of nine steps."""

    def make(out):
        return {
            "model": tiny,
            "data": str(texts / "new.txt"),
            "watch": {"old": texts / "old.txt"},
            "out": out,
            "rank": 4,
            "steps": 9,
            "batch": 2,
            "sequence": 32,
            "lr": 1e-2,
            "refresh_every": 4,
            "log_every": 2,
            "eval_every": 4,
            "eval_sequences": 4,
            "save_every": 3,
            "device": "cpu",
        }

    return make

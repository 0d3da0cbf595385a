import math

import pytest
import torch

pytest.importorskip("transformers")

from spanwise.reproductions import _byte_lm as lm

TINY = lm.ByteLM(width=16, depth=1, heads=2, hidden=24, length=12, batch=2, steps=4,
                 validation_windows=8)  # fmt: skip


@pytest.fixture(scope="module")
def text():
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(97, 123, (4000,), generator=generator, dtype=torch.uint8)
    return lm.Text(stream[:3000], stream[3000:], "letters", "00" * 32, 2)


def adamw(rate):
    def make(parts):
        matrices, rest = parts
        return torch.optim.AdamW([{"params": matrices, "lr": rate}, {"params": rest, "lr": 1e-3}])

    return make


def test_the_card_s_model_keeps_the_card_s_bytes_of_state():
    # 3 layers x (4 x 96 x 96 + 3 x 96 x 256) numbers, two moments, four bytes.
    model = lm.build(lm.ByteLM(), seed=0)
    matrices, rest = lm.split(model)
    assert sum(p.numel() for p in matrices) * 2 * 4 == 2_654_208
    assert len(matrices) == 21
    assert sum(p.numel() for p in rest) == 2 * 256 * 96 + 7 * 96
    assert sum(p.numel() for p in matrices) + sum(p.numel() for p in rest) == sum(
        p.numel() for p in model.parameters()
    )


def test_equal_seeds_give_bitwise_equal_runs_and_others_differ(text):
    first, again, other = (lm.train(TINY, s, adamw(1e-3), text) for s in (5, 5, 6))
    assert first["loss"] == again["loss"] != other["loss"]


def test_a_run_leaves_the_global_generator_alone(text):
    before = torch.get_rng_state()
    lm.train(TINY, 0, adamw(1e-3), text)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_diverged_run_has_no_loss(text):
    record = lm.train(TINY, 0, adamw(math.inf), text)
    assert record["loss"] is None
    assert record["train_loss"] is None
    assert record["diverged"]
    assert "diverged" not in lm.train(TINY, 0, adamw(1e-3), text)


def test_state_bytes_count_tensors_and_no_step_counters(text):
    record = lm.train(TINY, 0, adamw(1e-3), text)
    matrices, rest = lm.split(lm.build(TINY, 0))
    assert record["matrix_state_bytes"] == 8 * sum(p.numel() for p in matrices)
    assert record["state_bytes"] == 8 * sum(p.numel() for p in [*matrices, *rest])


def test_windows_are_runs_of_the_text():
    text = torch.arange(50, dtype=torch.uint8)
    found = lm.windows(text, 100, 7, torch.Generator().manual_seed(1))
    assert found.shape == (100, 7)
    assert torch.equal(found - found[:, :1], torch.arange(7).expand(100, 7))
    assert found.min() == 0
    assert found.max() == 49


def test_the_text_is_split_by_whole_files():
    text = lm.load_text()
    assert 0.02 < len(text.validation) / len(text.train) < 0.1
    described = text.describe()
    assert described["train_bytes"] == len(text.train) > 1_000_000
    assert len(described["digest"]) == 64


def test_the_rate_falls_along_half_a_cosine_after_its_warmup():
    plain, warm = lm.ByteLM(steps=300), lm.ByteLM(steps=300, warmup=30)
    assert [lm.rate_at(s, plain) for s in (0, 150, 300)] == pytest.approx([1, 0.5, 0])
    assert lm.rate_at(0, warm) == pytest.approx(1 / 31)
    assert all(lm.rate_at(s, warm) == lm.rate_at(s, plain) for s in (30, 150, 299))

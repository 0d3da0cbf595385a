"""The loss of a text, against the definition."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spanwise.training.data import Blocks
from spanwise.training.evaluation import loss_on
from spanwise.zoo import load_model


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny, dtype=torch.float64).model


@pytest.fixture
def blocks():
    generator = np.random.default_rng(0)
    ids = generator.integers(3, 259, (7, 12)).astype(np.int32)
    learned = generator.random((7, 12)) < 0.6
    return Blocks(ids, learned)


def test_the_loss_is_the_mean_over_learned_tokens(model, blocks):
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for i in range(len(blocks)):
            row = blocks[i]
            logits = model(input_ids=row["input_ids"][None]).logits[0, :-1]
            labels = row["labels"][1:]
            total += F.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
    # The model's own loss function sums in float32.
    assert loss_on(model, blocks, batch=7) == pytest.approx(total / count, rel=1e-6)


def test_the_batch_size_does_not_matter(model, blocks):
    losses = [loss_on(model, blocks, batch=b) for b in (1, 3, 7)]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)


def test_the_mode_of_the_model_and_the_random_numbers_are_left_alone(model, blocks):
    model.train()
    before = torch.get_rng_state()
    loss_on(model, blocks, batch=4)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_to_evaluate_is_an_error(model, blocks):
    with pytest.raises(ValueError, match="no sequence"):
        loss_on(model, blocks.take(slice(0, 0)), batch=4)

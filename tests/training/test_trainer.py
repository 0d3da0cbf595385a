"""Our optimizers in a plain transformers.Trainer, by both of its doors."""

import pytest
import torch
from torch import nn

from spanwise.datasets import ByteTokenizer, TextData
from spanwise.optim import GaLore, param_groups
from spanwise.training.data import pack
from spanwise.training.trainer import is_sharded
from spanwise.zoo import load_model

transformers = pytest.importorskip("transformers")


@pytest.fixture
def fit(tiny, tmp_path):
    blocks, _ = pack(TextData.from_strings(["abc " * 200]), ByteTokenizer(), 16)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no",
    )  # fmt: skip

    def fit(**doors):
        model = load_model(tiny).model
        given = {key: make(model) for key, make in doors.items()}
        trainer = transformers.Trainer(model, arguments, train_dataset=blocks, **given)
        trainer.train()
        return trainer

    return fit


def test_class_and_keywords_or_a_ready_optimizer_train_alike(fit):
    kwargs = {"lr": 1e-2, "refresh_every": 2}
    by_class = fit(
        optimizer_cls_and_kwargs=lambda m: (GaLore, {"params": param_groups(m, 4), **kwargs})
    )
    ready = fit(optimizers=lambda m: (GaLore(param_groups(m, 4), **kwargs), None))
    optimizer = by_class.optimizer.optimizer
    assert isinstance(optimizer, GaLore)
    assert optimizer.param_groups[0]["param_names"][0].endswith("self_attn.q_proj.weight")
    for a, b in zip(by_class.model.parameters(), ready.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_ordinary_model_is_not_sharded():
    assert not is_sharded(nn.Linear(2, 2))

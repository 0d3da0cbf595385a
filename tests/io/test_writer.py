"""Files and shards that other readers of the format can open."""

import json

import pytest
import safetensors.torch
import torch

from spanwise.errors import CorruptFileError
from spanwise.io import ShardedWriter, open_tensors, save_tensors


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def weights(count=5, rows=4):
    generator = torch.Generator().manual_seed(2)
    return {f"layer.{i}.weight": torch.randn(rows, 8, generator=generator) for i in range(count)}


def test_strided_and_shared_tensors_are_written_by_value(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    held = {"t": whole.mT, "columns": whole[:, 1:3], "expanded": whole[:1].expand(5, 4)}
    held["none"] = torch.zeros(1).expand(5)[:0]  # a stride of 0 has no view as bytes
    read = safetensors.torch.load_file(save_tensors(tmp_path / "x.safetensors", held))
    assert all(torch.equal(read[name], tensor) for name, tensor in held.items())


def test_every_tensor_is_aligned_to_its_dtype(tmp_path):
    held = {"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(3), "c": torch.ones(1).double()}
    path = save_tensors(tmp_path / "x.safetensors", held)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, tensor in held.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.element_size() == 0


def test_equal_tensors_give_equal_files(tmp_path):
    held = weights()
    one = save_tensors(tmp_path / "1.safetensors", held, {"a": "1"})
    two = save_tensors(tmp_path / "2.safetensors", dict(reversed(held.items())), {"a": "1"})
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("held", "metadata", "error", "message"),
    [
        ({}, None, ValueError, "no tensor to write"),
        ({"__metadata__": torch.ones(1)}, None, ValueError, "'__metadata__'"),
        ({"": torch.ones(1)}, None, ValueError, "name"),
        ({"x": [1.0]}, None, TypeError, "'x' must be a torch.Tensor, got list"),
        ({"x": torch.ones(2, 2).to_sparse()}, None, TypeError, "to_dense"),
        ({"x": torch.ones(2, device="meta")}, None, TypeError, "meta"),
        ({"x": torch.ones(2, dtype=torch.complex128)}, None, TypeError, "complex128"),
        ({"x": torch.ones(1)}, {"rank": 3}, TypeError, "text to text, got 'rank': 3"),
        ({"x": torch.ones(1)}, {"spanwise.header": ""}, ValueError, "reserved"),
    ],
)
def test_what_the_format_cannot_hold_leaves_the_old_file(tmp_path, held, metadata, error, message):
    path = save_tensors(tmp_path / "x.safetensors", {"old": torch.ones(1)})
    with pytest.raises(error, match=message):
        save_tensors(path, held, metadata)
    assert set(open_tensors(path)) == {"old"}
    assert names(tmp_path) == ["x.safetensors"]


def test_an_error_half_way_leaves_the_old_file(tmp_path):
    class Failing(dict):
        asked = 0

        def __getitem__(self, name):
            self.asked += 1
            if self.asked > len(self) + 2:
                raise RuntimeError("no more")
            return super().__getitem__(name)

    path = save_tensors(tmp_path / "x.safetensors", {"old": torch.ones(1)})
    with pytest.raises(RuntimeError, match="no more"):
        save_tensors(path, Failing(weights()))
    assert set(open_tensors(path)) == {"old"}
    assert names(tmp_path) == ["x.safetensors"]


def test_shards_read_back_and_stay_below_their_limit(tmp_path):
    held = weights()
    limit = 2 * held["layer.0.weight"].nbytes
    with ShardedWriter(tmp_path / "model", limit) as out:
        for name, tensor in held.items():
            out.add(name, tensor)
        assert not (tmp_path / "model").exists()
    assert names(tmp_path / "model") == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    reader = open_tensors(tmp_path / "model")
    assert all(torch.equal(reader[name], tensor) for name, tensor in held.items())
    assert torch.equal(reader.rows("layer.3.weight", 1, 3), held["layer.3.weight"][1:3])
    assert reader.metadata == {"format": "pt"}
    assert reader.digest() == open_tensors(held).digest()
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in held.values())
    for shard in sorted((tmp_path / "model").glob("*.safetensors")):
        assert sum(t.nbytes for t in safetensors.torch.load_file(shard).values()) <= limit


def test_a_tensor_above_the_limit_gets_its_own_shard(tmp_path):
    with ShardedWriter(tmp_path / "model", 100) as out:
        out.add("small", torch.ones(4))
        out.add("large", torch.ones(400))
        out.add("tail", torch.ones(4))
    sizes = [len(safetensors.torch.load_file(p)) for p in tmp_path.glob("model/*.safetensors")]
    assert sizes == [1, 1, 1]


def test_one_shard_needs_no_index(tmp_path):
    with ShardedWriter(tmp_path / "model", metadata={"from": "here"}) as out:
        out.add("x", torch.ones(2, 2).bfloat16())
    assert names(tmp_path / "model") == ["model.safetensors"]
    reader = open_tensors(tmp_path / "model")
    assert reader.dtype("x") == torch.bfloat16
    assert reader.metadata == {"format": "pt", "from": "here"}


def test_transformers_loads_the_shards(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with ShardedWriter(tmp_path / "model", 4000) as out:
        for name, tensor in model.state_dict().items():
            out.add(name, tensor)
        config.save_pretrained(out.staging)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_shards_of_transformers_can_be_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "model", max_shard_size="4KB")
    reader = open_tensors(tmp_path / "model")
    state = model.state_dict()
    assert "transformer.wte.weight" in reader
    assert all(torch.equal(reader[name], state[name]) for name in reader)


def write(folder, items, limit=5e9, error=None, **options):
    with ShardedWriter(folder, limit, **options) as out:
        for name, tensor in items:
            out.add(name, tensor)
        if error:
            raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_body_leaves_no_folder(tmp_path, error):
    with pytest.raises(error):
        write(tmp_path / "model", weights().items(), 64, error=error)
    assert names(tmp_path) == []


def test_nothing_added_is_an_error_and_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no tensor was added"):
        write(tmp_path / "model", [])
    assert names(tmp_path) == []


def test_a_name_can_be_added_once(tmp_path):
    with pytest.raises(ValueError, match="'x' was added before"):
        write(tmp_path / "model", 2 * [("x", torch.ones(1))])
    assert names(tmp_path) == []


def test_tensors_are_added_within_the_body_only(tmp_path):
    with pytest.raises(ValueError, match="inside"):
        ShardedWriter(tmp_path / "model").add("x", torch.ones(1))


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_that_fits_nothing_is_refused(tmp_path, limit):
    with pytest.raises(ValueError, match="max_shard_bytes must be positive"):
        ShardedWriter(tmp_path / "model", limit)


def test_an_existing_folder_is_kept_unless_it_may_be_replaced(tmp_path):
    write(tmp_path / "model", [("x", torch.tensor([1]))])
    with pytest.raises(FileExistsError, match="already exists"):
        write(tmp_path / "model", [("x", torch.tensor([2]))])
    assert open_tensors(tmp_path / "model")["x"].item() == 1
    write(tmp_path / "model", [("x", torch.tensor([3]))], overwrite=True)
    assert open_tensors(tmp_path / "model")["x"].item() == 3
    assert names(tmp_path) == ["model"]


@pytest.fixture
def sharded(tmp_path):
    write(tmp_path / "model", weights(3).items(), 128)
    return tmp_path / "model"


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00003"):
        open_tensors(sharded)


def test_a_truncated_shard_is_named(sharded):
    shard = sharded / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match="model-00003-of-00003"):
        open_tensors(sharded)


def test_swapped_shards_are_found(sharded):
    one, two = (sharded / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    held = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(held)
    with pytest.raises(CorruptFileError, match=r"lacks 'layer\.0.weight'"):
        open_tensors(sharded)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"x": 3}}'])
def test_a_damaged_index_is_an_error(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises((CorruptFileError, FileNotFoundError), match=r"index.json|model/3"):
        open_tensors(sharded)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd"])
def test_an_index_reaches_no_other_folder(sharded, file):
    index = {"weight_map": {"x": file}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFileError, match="outside its folder"):
        open_tensors(sharded)

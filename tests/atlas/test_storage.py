"""The atlas file: complete round trips, and no damage that goes unnoticed."""

import json

import pytest
import torch
from torch import nn

from spanwise.atlas import Atlas, Entry, _storage
from spanwise.errors import CorruptFileError
from spanwise.io import open_tensors, save_tensors
from spanwise.subspace import Subspace


def tiny_atlas():
    held = Subspace(torch.eye(3)[:, :2], torch.tensor([2.0, 1.0]), torch.ones(3))
    return Atlas(
        [
            Entry(name="q.weight", side="input", subspace=held, layout="linear", shape=(4, 3)),
            Entry(
                name="k.weight",
                side="input",
                subspace=held,
                layout="transposed",
                shape=(3, 2),
                aliases=("tied.weight",),
                bias="k.bias",
            ),
            Entry(
                name="e",
                side="output",
                subspace=Subspace.random(4, 1, batch=(2,), dtype=torch.float64),
                layout="experts",
                shape=(2, 4, 3),
            ),
        ],
        {"source": "activations", "energy": "0.8"},
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "know.atlas.safetensors"


def test_everything_comes_back(path):
    atlas = tiny_atlas()
    atlas.save(path)
    loaded = Atlas.load(path)
    assert loaded.metadata == atlas.metadata
    assert [e.key for e in loaded] == [e.key for e in atlas]
    for e in atlas:
        other = loaded.entries[e.key]
        for field in ("layout", "shape", "aliases", "bias"):
            assert getattr(other, field) == getattr(e, field)
        for field in ("basis", "values", "mean"):
            a, b = getattr(e.subspace, field), getattr(other.subspace, field)
            assert (a is None and b is None) or (torch.equal(a, b) and a.dtype == b.dtype)
    assert loaded.get("tied.weight") == loaded.get("k.weight")


def test_a_shared_basis_is_stored_and_loaded_once(path):
    tiny_atlas().save(path)
    assert sorted(open_tensors(path)) == [
        "e::output::basis",
        "q.weight::input::basis",
        "q.weight::input::mean",
        "q.weight::input::values",
    ]
    loaded = Atlas.load(path)
    assert loaded.get("q.weight")["input"].subspace is loaded.get("k.weight")["input"].subspace


def test_the_size_is_known_before_writing(path):
    atlas = tiny_atlas()
    for dtype in (None, torch.bfloat16):
        atlas.save(path, dtype)
        tensors = open_tensors(path)
        assert _storage.file_bytes(atlas, dtype) == sum(tensors[n].nbytes for n in tensors)


def test_bfloat16_files_give_orthonormal_float32_bases(path, llama, ids):
    atlas = Atlas.from_activations(llama, [{"input_ids": ids}]).to(dtype=torch.float32)
    atlas.save(path)
    whole = path.stat().st_size
    atlas.save(path, torch.bfloat16)
    assert path.stat().st_size < whole
    loaded = Atlas.load(path)
    for e in loaded:
        basis = e.subspace.basis
        assert basis.dtype == torch.float32
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]), rtol=0, atol=2e-6)
        # bfloat16 keeps 8 bits of each number: about 2^-9 of error in each direction.
        assert float(atlas.entries[e.key].subspace.angles(e.subspace).max()) < 1e-2


def test_saving_twice_gives_the_same_bytes(path, tmp_path):
    tiny_atlas().save(path)
    tiny_atlas().save(tmp_path / "other")
    assert path.read_bytes() == (tmp_path / "other").read_bytes()


def test_every_flipped_bit_is_noticed(path):
    tiny_atlas().save(path)
    good = path.read_bytes()
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(CorruptFileError, match=path.name):
            Atlas.load(path)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_truncated_file_is_named(path, cut):
    tiny_atlas().save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptFileError, match=path.name):
        Atlas.load(path)


def test_tensors_exchanged_under_an_intact_header_are_noticed(path):
    tiny_atlas().save(path)
    reader = open_tensors(path)
    tensors = {name: reader[name] for name in reader}
    tensors["q.weight::input::values"] = torch.tensor([9.0, 1.0])
    save_tensors(path, tensors, reader.metadata)
    with pytest.raises(CorruptFileError, match="does not match the sha256"):
        Atlas.load(path)


def test_another_version_or_format_is_a_clear_error(path):
    tiny_atlas().save(path)
    reader = open_tensors(path)
    tensors = {name: reader[name] for name in reader}
    save_tensors(path, tensors, {**reader.metadata, "version": "2", "spanwise": "9.1"})
    with pytest.raises(
        ValueError, match=r"format version 2; this spanwise .* reads version 1.*9\.1"
    ):
        Atlas.load(path)
    save_tensors(path, tensors, {"format": "pt"})
    with pytest.raises(ValueError, match="is a safetensors file, but no atlas"):
        Atlas.load(path)
    with pytest.raises(FileNotFoundError):
        Atlas.load(path.with_name("missing"))


def test_metadata_tells_the_format_without_spanwise(path):
    tiny_atlas().save(path)
    metadata = open_tensors(path).metadata
    assert (metadata["format"], metadata["version"]) == ("spanwise-atlas", "1")
    rows = json.loads(metadata["entries"])
    assert rows[1] == {
        "name": "k.weight",
        "side": "input",
        "layout": "transposed",
        "shape": [3, 2],
        "aliases": ["tied.weight"],
        "bias": "k.bias",
        "basis": "q.weight::input",
    }


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.fixture
def recorded(model, path):
    return Atlas.from_activations(model, [torch.randn(9, 3)]).save(path)


def test_the_base_is_recognised_in_every_form(model, recorded, tmp_path):
    assert len(Atlas.load(recorded, base=model)) == 2
    digest = Atlas.load(recorded).metadata["base"]
    assert len(Atlas.load(recorded, base=digest)) == 2
    wrapped = {f"module.{k}": v for k, v in model.state_dict().items()}
    assert len(Atlas.load(recorded, base=wrapped)) == 2
    save_tensors(tmp_path / "m" / "model.safetensors", dict(model.state_dict()))
    assert len(Atlas.load(recorded, base=tmp_path / "m")) == 2
    assert len(Atlas.load(recorded, base=str(tmp_path / "m" / "model.safetensors"))) == 2


def test_a_bfloat16_checkpoint_and_its_float32_copy_are_one_base(model, path):
    model = model.bfloat16()
    Atlas.from_activations(model.float(), [torch.randn(9, 3)]).save(path)
    assert len(Atlas.load(path, base=model.bfloat16())) == 2


def test_another_base_is_a_clear_error(model, recorded):
    with torch.no_grad():
        model[0].weight[0, 0] += 0.1
    with pytest.raises(ValueError, match=r"the atlas belongs to another base.*load without base"):
        Atlas.load(recorded, base=model)
    with pytest.raises(ValueError, match=r"0\.weight is not among these weights"):
        Atlas.load(recorded, base=nn.Module())
    with pytest.raises(ValueError, match="another base"):
        Atlas.load(recorded, base="0" * 64)


def test_an_atlas_without_a_base_cannot_be_checked(path, model):
    tiny_atlas().save(path)
    with pytest.raises(ValueError, match=r"does not record the model it belongs to"):
        Atlas.load(path, base=model)


def test_tied_weights_are_found_under_their_other_name(llama, ids, path):
    atlas = Atlas.from_activations(
        llama, [{"input_ids": ids}], sides=("output",), embeddings=True, exclude=()
    )
    state = dict(llama.state_dict())
    del state["model.embed_tokens.weight"]
    atlas.check_base(state)


@pytest.mark.bad_input
def test_what_cannot_be_saved_is_refused_and_leaves_no_file(path):
    with pytest.raises(ValueError, match="the atlas is empty"):
        Atlas().save(path)
    with pytest.raises(ValueError, match="dtype must be one of"):
        tiny_atlas().save(path, torch.int8)
    assert not path.exists()


def test_a_file_size_limit_leaves_the_old_file_and_no_rubbish(path):
    resource = pytest.importorskip("resource")
    tiny_atlas().save(path)
    before = path.read_bytes()
    held = Subspace.random(300, 40)
    big = Atlas([Entry(name="w", side="input", subspace=held, layout="linear", shape=(4, 300))])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            big.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]

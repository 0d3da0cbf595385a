"""Tensors are read by offset; damage is found before anything is used."""

import json
import struct

import pytest
import safetensors.torch
import torch

from spanwise.errors import CorruptFileError
from spanwise.io import TensorReader, open_tensors, save_tensors

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
]  # fmt: skip


def tensors():
    generator = torch.Generator().manual_seed(1)
    return {
        "a.weight": torch.randn(5, 3, generator=generator),
        "b.half": torch.randn(4, generator=generator).bfloat16(),
        "c.steps": torch.tensor(7),
        "d.empty": torch.zeros(0, 3),
    }


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.fixture
def file(tmp_path):
    return save_tensors(tmp_path / "x.safetensors", tensors(), {"note": "ä"})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_reads_back_bit_for_bit(tmp_path, dtype):
    held = torch.arange(24).reshape(2, 3, 4).to(dtype)
    path = save_tensors(tmp_path / "x.safetensors", {"x": held})
    read = open_tensors(path)["x"]
    assert read.dtype == dtype
    assert torch.equal(read.view(torch.uint8), held.view(torch.uint8))
    reference = safetensors.torch.load_file(path)["x"]
    assert torch.equal(reference.view(torch.uint8), held.view(torch.uint8))


def test_the_reader_is_a_mapping_with_shapes_dtypes_and_metadata(file):
    reader = open_tensors(file)
    held = tensors()
    assert isinstance(reader, TensorReader)
    assert set(reader) == set(held)
    assert len(reader) == 4
    assert "a.weight" in reader
    assert "z" not in reader
    for name, tensor in held.items():
        assert reader.shape(name) == tuple(tensor.shape)
        assert reader.dtype(name) == tensor.dtype
        assert same(reader[name], tensor)
    assert reader.metadata == {"note": "ä"}
    assert reader.nbytes == sum(t.numel() * t.element_size() for t in held.values())
    with pytest.raises(KeyError):
        reader["z"]


def test_files_of_the_reference_writer_can_be_read(tmp_path):
    safetensors.torch.save_file(tensors(), tmp_path / "x.safetensors", {"format": "pt"})
    reader = open_tensors(tmp_path / "x.safetensors")
    assert all(same(reader[name], tensor) for name, tensor in tensors().items())
    assert reader.metadata == {"format": "pt"}


def test_a_tensor_that_was_read_may_be_written_to(file):
    reader = open_tensors(file)
    reader["a.weight"].zero_()
    assert same(reader["a.weight"], tensors()["a.weight"])


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (1, 3), (4, 5), (2, 2), (5, 5)])
def test_rows_are_the_slice(file, start, stop):
    held = tensors()["a.weight"]
    for source in (file, tensors()):
        assert same(open_tensors(source).rows("a.weight", start, stop), held[start:stop])


def test_rows_are_put_into_memory_that_is_lent(file):
    held, lent = tensors()["a.weight"], torch.full((100,), 7, dtype=torch.uint8)
    read = open_tensors(file).rows("a.weight", 1, 3, lent)
    assert same(read, held[1:3])
    assert read.data_ptr() == lent.data_ptr()
    assert bool((lent[2 * 3 * 4 :] == 7).all())


def test_rows_that_are_in_memory_need_none():
    held, lent = tensors()["a.weight"], torch.zeros(100, dtype=torch.uint8)
    assert open_tensors({"x": held}).rows("x", 1, 3, lent).data_ptr() == held[1:].data_ptr()


def test_rows_read_their_own_bytes_only(tmp_path):
    held = torch.arange(64.0).reshape(8, 8)
    path = save_tensors(tmp_path / "x.safetensors", {"x": held})
    reader = open_tensors(path)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 4 * 32)
    assert torch.equal(reader.rows("x", 1, 4), held[1:4])
    with pytest.raises(CorruptFileError, match="truncated after it was opened"):
        reader.rows("x", 3, 5)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6)])
def test_rows_out_of_range_are_refused(file, start, stop):
    for source in (file, tensors()):
        with pytest.raises(ValueError, match=r"out of range: its shape is \(5, 3\)"):
            open_tensors(source).rows("a.weight", start, stop)


def test_a_scalar_has_no_rows(file):
    with pytest.raises(ValueError, match=r"'c\.steps' are out of range"):
        open_tensors(file).rows("c.steps", 0, 1)


def test_the_digest_depends_on_tensors_alone(file, tmp_path):
    held = tensors()
    digest = open_tensors(file).digest()
    safetensors.torch.save_file(held, tmp_path / "y.safetensors", {"format": "pt"})
    assert open_tensors(tmp_path / "y.safetensors").digest() == digest
    assert open_tensors(dict(reversed(held.items()))).digest() == digest
    changed = {**held, "a.weight": held["a.weight"].clone()}
    changed["a.weight"][4, 2] += 1
    renamed = {**held}
    renamed["a.bias"] = renamed.pop("a.weight")
    reshaped = {**held, "a.weight": held["a.weight"].reshape(3, 5)}
    recast = {**held, "a.weight": held["a.weight"].view(torch.int32)}
    others = {open_tensors(x).digest() for x in (changed, renamed, reshaped, recast)}
    assert len(others | {digest}) == 5


def test_the_digest_reads_strided_tensors_by_value():
    held = torch.arange(6.0).reshape(2, 3)
    assert (
        open_tensors({"x": held.mT.contiguous().mT}).digest() == open_tensors({"x": held}).digest()
    )


def test_a_file_cut_anywhere_is_truncated(file):
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match=f"x.safetensors.*found {length}"):
            open_tensors(file)


def test_bytes_after_the_last_tensor_are_damage(file):
    size = file.stat().st_size
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(CorruptFileError, match=f"expected {size} bytes, found {size + 1}"):
        open_tensors(file)


def test_any_flipped_bit_of_a_header_is_found(file):
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors().items()}
    for bit in range(8 * header):
        at, old = bit // 8, whole[bit // 8]
        with file.open("r+b", buffering=0) as stream:
            stream.seek(at)
            stream.write(bytes([old ^ 1 << bit % 8]))
            try:
                reader = open_tensors(file)
            except CorruptFileError:
                pass
            else:  # the spacing of the JSON may differ, nothing else
                assert reader.metadata == {"note": "ä"}, f"bit {bit}"
                assert {n: reader.shape(n) for n in reader} == shapes, f"bit {bit}"
                assert all(same(reader[n], t) for n, t in tensors().items()), f"bit {bit}"
            stream.seek(at)
            stream.write(bytes([old]))


def test_a_flipped_bit_in_a_tensor_changes_the_digest(file):
    digest = open_tensors(file).digest()
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    assert open_tensors(file).digest() != digest


def test_a_file_cut_after_it_was_opened_is_an_error(file):
    reader = open_tensors(file)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 40)
    with pytest.raises(CorruptFileError, match="truncated after it was opened"):
        dict(reader.items())


def write_raw(path, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}, "unknown dtype 'F31'"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "expected 8 bytes"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "no counts"),
        ({"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}, "no counts"),
        ({"dtype": "F32", "shape": [1]}, "data_offsets"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "begins at byte"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}, "unknown keys"),
        ([], "damaged header"),
    ],
)
def test_a_header_that_makes_no_sense_is_damage(tmp_path, entry, message):
    path = write_raw(tmp_path / "x.safetensors", {"x": entry}, b"\0" * 8)
    with pytest.raises(CorruptFileError, match=message):
        open_tensors(path)


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b'{"x": 1}', b"\xff\xff", b'{"__metadata__": {"a": 1}}', b"[" * 10_000]
)
def test_a_header_that_is_no_header_is_damage(tmp_path, text):
    with pytest.raises(CorruptFileError, match="damaged"):
        open_tensors(write_raw(tmp_path / "x.safetensors", text))


def test_a_name_that_appears_twice_is_damage(tmp_path):
    entry = '{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}'
    text = '{"x":' + entry % (0, 1) + ',"x":' + entry % (1, 2) + "}"
    with pytest.raises(CorruptFileError, match="twice"):
        open_tensors(write_raw(tmp_path / "x.safetensors", text.encode(), b"ab"))


def test_a_promise_of_a_huge_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x80\x02ctorch\n" + b"\0" * 64)
    with pytest.raises(CorruptFileError, match="no safetensors file"):
        open_tensors(path)


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        open_tensors(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_files_are_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="pickled"):
        open_tensors(tmp_path / name)
    with pytest.raises(ValueError, match=f"holds no safetensors file. {name} is pickled"):
        open_tensors(tmp_path)


def test_a_folder_with_one_file_of_any_name_is_that_file(tmp_path):
    save_tensors(tmp_path / "atlas.safetensors", tensors())
    assert set(open_tensors(tmp_path)) == set(tensors())
    save_tensors(tmp_path / "other.safetensors", tensors())
    with pytest.raises(ValueError, match=r"several safetensors files \(atlas.safetensors, other"):
        open_tensors(str(tmp_path))


def test_an_adapter_folder_is_read(tmp_path):
    save_tensors(tmp_path / "adapter_model.safetensors", {"lora_A": torch.ones(2, 3)})
    assert open_tensors(tmp_path).shape("lora_A") == (2, 3)


@pytest.mark.bad_input
def test_tensors_come_from_paths_and_mappings_only():
    with pytest.raises(TypeError, match="got list"):
        open_tensors([torch.ones(1)])


def test_a_reader_is_its_own_reader(file):
    reader = open_tensors(file)
    assert open_tensors(reader) is reader


def test_a_mapping_gives_tensors_without_their_graph():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    read = open_tensors({"w": weight})["w"]
    assert not read.requires_grad
    assert read.data_ptr() == weight.data_ptr()

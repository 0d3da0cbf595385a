"""Pictures with classes, and the files they lie in."""

import gzip
import struct

import numpy as np
import pytest

from spanwise.datasets import fashion_mnist, images, read_idx


def idx(values):
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return head + values.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with three pictures of 4 x 5, one file gzipped and one not."""
    monkeypatch.setenv("SPANWISE_DATA", str(tmp_path))
    held = tmp_path / "fashion-mnist"
    held.mkdir()
    pixels = np.arange(60).reshape(3, 4, 5)
    (held / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
    (held / "train-labels-idx1-ubyte").write_bytes(idx(np.array([9, 0, 3])))
    return held


def test_pictures_are_found_below_the_data_folder_or_in_a_named_one(folder, monkeypatch):
    found = fashion_mnist()
    np.testing.assert_array_equal(found.pixels, np.arange(60).reshape(3, 4, 5))
    assert found.pixels.dtype == np.uint8
    assert [found.classes[i] for i in found.labels] == ["ankle boot", "t-shirt or top", "dress"]
    assert len(found) == 3
    monkeypatch.delenv("SPANWISE_DATA")
    assert fashion_mnist(folder).labels.tolist() == [9, 0, 3]


def test_missing_pictures_say_how_to_get_them(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no t10k-images.*SPANWISE_DATA/fashion-mnist"):
        fashion_mnist(folder, part="test")


@pytest.mark.bad_input
def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="part must be 'train' or 'test', got 'valid'"):
        fashion_mnist(part="valid")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x89PNG....", r"no IDX file of unsigned bytes; it begins with '89 50 4e 47'"),
        (b"\0\0\x0d\x01" + b"\0" * 8, "no IDX file of unsigned bytes"),  # float32
        (b"\0\0\x08\x00", "the number of axes, 1 to 4"),
        (b"", "no IDX file"),
        (b"\0\0\x08\x03\0\0", "ends within its header"),
        (b"\0\0\x08\x02" + b"\xff" * 8, "above 1073741824 bytes"),
        (idx(np.zeros(5))[:-1], r"shape \(5,\) takes 5 bytes, the file holds only 4"),
        (idx(np.zeros(5)) + b"1", "the file holds more"),
    ],
)
def test_damaged_files_are_refused_by_what_is_wrong(tmp_path, data, words):
    path = tmp_path / "x-idx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read_idx(path)


def test_broken_compression_is_refused(tmp_path):
    path = tmp_path / "x-idx.gz"
    whole = gzip.compress(idx(np.arange(200) % 7))
    checksum, block = whole[:-8] + bytes(8), whole[:10] + b"\xff" * 20
    for data in (whole[:-9], b"no gzip at all", checksum, block):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x-idx\.gz: not a whole gzip file"):
            read_idx(path)


def test_labels_belong_to_pictures(folder):
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.array([9, 0])))
    with pytest.raises(ValueError, match=r"one label each, got shapes \(3, 4, 5\) and \(2,\)"):
        fashion_mnist()
    path.write_bytes(idx(np.array([9, 0, 10])))
    with pytest.raises(ValueError, match="labels must lie below 10, got 10"):
        fashion_mnist()


def test_debians_package_has_a_thousand_of_each_kind_to_test():
    if not images.SYSTEM.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    found = read_idx(images.SYSTEM / "t10k-labels-idx1-ubyte.gz")
    assert np.bincount(found).tolist() == [1000] * 10

import gzip

import numpy as np
import pytest
import torch

from spanwise.datasets.tables import load_array, load_table, write_arrays, write_table
from spanwise.io import save_tensors


def write(path, text):
    path.write_text(text)
    return path


def test_a_header_names_the_columns(tmp_path):
    table = load_table(write(tmp_path / "a.csv", "a,b\n1,2\n3,4\n"))
    assert table.columns == ("a", "b")
    assert table.values.tolist() == [[1, 2], [3, 4]]
    assert len(table) == 2


def test_without_a_header_columns_are_numbered(tmp_path):
    table = load_table(write(tmp_path / "a.csv", "1,2\n3,4\n"))
    assert table.columns == ("x0", "x1")
    assert len(table) == 2


@pytest.mark.parametrize("mark", [",", ";", "\t", " ", ", "])
def test_separators_are_found(tmp_path, mark):
    table = load_table(write(tmp_path / "a.txt", f"a{mark}b\n1{mark}-2.5e3\n"))
    assert table.columns == ("a", "b")
    assert table.values.tolist() == [[1, -2500]]


def test_one_column_needs_no_separator(tmp_path):
    assert load_table(write(tmp_path / "a.csv", "1\n2\n")).values.tolist() == [[1], [2]]


def test_columns_are_kept_apart_as_text_or_dropped(tmp_path):
    path = write(tmp_path / "a.csv", "id,x,y,class\na,1,2,red\nb,3,4,blue\n")
    table = load_table(path, apart=["id", "class"], drop=["y"])
    assert table.columns == ("x",)
    assert table.apart == {"id": ("a", "b"), "class": ("red", "blue")}


def test_an_index_without_a_name_is_left_out_or_kept(tmp_path):
    path = write(tmp_path / "a.csv", ",a,b\n7,1,2\n8,3,4\n")
    dropped, kept = load_table(path, drop=[""]), load_table(path, apart=[""])
    assert dropped.columns == kept.columns == ("a", "b")
    assert dropped.values.tolist() == kept.values.tolist() == [[1, 2], [3, 4]]
    assert kept.apart == {"": ("7", "8")}


def test_quoted_cells_blank_lines_a_mark_of_utf8_and_gzip(tmp_path):
    text = '\ufeff"a, the first",b\r\n\r\n1,"2"\r\n'
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    table = load_table(tmp_path / "a.csv.gz")
    assert table.columns == ("a, the first", "b")
    assert table.values.tolist() == [[1, 2]]


def test_written_numbers_are_read_back_exactly(tmp_path):
    values = np.random.default_rng(0).standard_normal((5, 2))
    write_table(tmp_path / "a.csv", {"a": values[:, 0], "b": values[:, 1], "name": list("vwxyz")})
    table = load_table(tmp_path / "a.csv", apart=["name"])
    assert np.array_equal(table.values, values)
    assert table.apart["name"] == tuple("vwxyz")


def test_arrays_come_from_every_file_of_arrays(tmp_path):
    x = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "x.npy", x)
    write_arrays(tmp_path / "x.npz", {"X": x, "label": np.array([0, 1, 1])})
    save_tensors(tmp_path / "x.safetensors", {"half": torch.from_numpy(x).bfloat16()})
    for name in ("x.npy", "x.npz", "x.safetensors"):
        assert np.array_equal(load_array(tmp_path / name), x)
        assert np.array_equal(load_table(tmp_path / name).values, x)
    assert load_table(tmp_path / "x.npz", apart=["label"]).apart == {"label": ("0", "1", "1")}
    assert load_table(tmp_path / "x.npy", drop=["x0"]).columns == ("x1",)


def test_single_precision_stays(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.float32))
    np.save(tmp_path / "i.npy", np.ones((2, 2), np.int8))
    assert load_table(tmp_path / "x.npy").values.dtype == np.float32
    assert load_table(tmp_path / "i.npy").values.dtype == np.float64


def test_a_tensor_may_have_any_shape_but_no_table_has(tmp_path):
    np.save(tmp_path / "t.npy", np.ones((2, 2, 2)))
    assert load_array(tmp_path / "t.npy").shape == (2, 2, 2)
    with pytest.raises(ValueError, match=r"samples in rows and features in columns"):
        load_table(tmp_path / "t.npy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,x\n",
            r"line 2: column 'b' is 'x', which is no number; leave the column out .*--keep",
        ),
        ("a,b\n1,2\n3,\n", r"line 3: column 'b' is empty; fill it in"),
        ("a,b\n1,inf\n", r"line 2: column 'b' is 'inf'; fill it in"),
        ("a,b\n1,NA\n", r"line 2: column 'b' is 'NA'; fill it in"),
        ("a,b\n1,2,3\n", r"line 2: 3 cells, expected 2 as in the header"),
        ("a,a\n1,2\n", r"two columns are called 'a'"),
        (",a\n0,1\n", r"has no name for column 1. If it is an index, leave it out .*--drop ''"),
        ("a,b\n", r"holds no numbers: 0 rows"),
        ("\n \n", r"blank lines only"),
        ("", r"is empty"),
    ],
)
def test_bad_input_names_the_line_and_the_way_out(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_table(write(tmp_path / "a.csv", text))


def test_bad_input_of_other_kinds(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"is a folder"):
        load_table(tmp_path)
    with pytest.raises(ValueError, match=r"expected one of \.csv"):
        load_table(write(tmp_path / "a.xlsx", "a"))
    with pytest.raises(ValueError, match=r"has no column 'heightt'\. Did you mean 'height'\?"):
        load_table(write(tmp_path / "a.csv", "height\n1\n"), drop=["heightt"])
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"Python objects, which are never loaded"):
        load_table(tmp_path / "o.npy")
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"damaged or no \.npy file"):
        load_table(tmp_path / "x.npy")
    write_arrays(tmp_path / "x.npz", {"a": np.ones(2), "b": np.ones(2)})
    with pytest.raises(ValueError, match=r"holds 2 arrays \(a, b\): name the one that is meant"):
        load_table(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"holds no array 'c'"):
        load_table(tmp_path / "x.npz", key="c")
    np.save(tmp_path / "n.npy", np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match=r"NaN or infinity, first at index \(0, 1\)"):
        load_table(tmp_path / "n.npy")
    (tmp_path / "a.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"no whole gzip file"):
        load_table(tmp_path / "a.csv.gz")


def test_of_two_files_one_may_lack_a_column_that_is_left_out(tmp_path):
    path = write(tmp_path / "a.csv", "a,b,c\n1,2,3\n")
    table = load_table(path, apart=["a", "none"], drop=["b", "neither"], lenient=True)
    assert (table.columns, list(table.apart), table.dropped) == (("c",), ["a"], ("b",))

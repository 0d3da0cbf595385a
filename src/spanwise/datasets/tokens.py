"""A tokenizer that needs no file: one id per byte."""

from collections.abc import Iterable, Sequence
from pathlib import Path


class ByteTokenizer:
    """UTF-8 bytes as token ids, numbered as ByT5 numbers them.

    Ids 0, 1, 2 are padding, end of text and unknown; byte b is id b + 3; 259 ids in all. A
    saved one is a ByT5 tokenizer, so `AutoTokenizer.from_pretrained` opens it anywhere.

    Sources:
        Xue et al., "ByT5: Towards a token-free future with pre-trained byte-to-byte models",
        2022, section 3.1.
    """

    pad_token_id = 0
    eos_token_id = 1
    unk_token_id = 2
    bos_token_id: int | None = None
    eos_token = "</s>"
    pad_token = "<pad>"
    chat_template: str | None = None
    vocab_size = 259
    name_or_path = "bytes"
    padding_side = "right"

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The bytes of `text`, shifted by 3; no special tokens unless asked, then end of text."""
        ids = [byte + 3 for byte in text.encode("utf-8", "replace")]
        return [*ids, self.eos_token_id] if add_special_tokens else ids

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = False, **_: object
    ) -> dict[str, list[int] | list[list[int]]]:
        """As `encode`, for one text or several, under the key `input_ids`."""
        if isinstance(text, str):
            return {"input_ids": self.encode(text, add_special_tokens)}
        return {"input_ids": [self.encode(t, add_special_tokens) for t in text]}

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become the replacement character.

        Ids above the last byte, which a model with a larger vocabulary may emit, are dropped,
        and special tokens always are.
        """
        return bytes(int(i) - 3 for i in ids if 3 <= int(i) < 259).decode("utf-8", "replace")

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a ByT5 tokenizer with these ids (needs transformers)."""
        from transformers import ByT5Tokenizer

        ByT5Tokenizer(extra_ids=0).save_pretrained(folder)

"""The options of an export: one typed dataclass, which is also the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

_LORA = (
    "rank", "budget_rank", "parameters", "megabytes", "energy", "max_rank", "full_vectors", "svd",
    "exclude",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Turn a model into what others load: a small LoRA, or a whole checked folder.

    What training added to a base, as a LoRA that PEFT, vLLM and llama.cpp load. Every matrix gets
    the rank that its difference deserves; --plan tells what would be kept, and writes nothing:

      spanwise export llama-code --as lora --base llama --budget-rank 16 --plan
      spanwise export llama-code --as lora --base llama --budget-rank 16 --out code-lora
      spanwise export llama-code --as lora --base llama --energy 0.95 --out code-lora

    A LoRA added to its base:

      spanwise export code-lora --as merged --base llama --out llama-code

    A merged folder, looked over before a server does; it is read and nothing is written:

      spanwise export merged --as merged

    All print the exact lines for vLLM and llama.cpp.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The model: a transformers folder, a safetensors file, or a PEFT LoRA folder."""
    as_: Annotated[Literal["merged", "lora"], tyro.conf.arg(name="as")]
    """What to make of it."""
    base: str | None = None
    """What it was trained from: a folder or a packaged name (smollm2-135m). An adapter and a
    merged folder know theirs."""
    out: Path | None = None
    """The folder to create; it appears when it is whole."""
    rank: int | None = None
    """LoRA: the same rank for every matrix."""
    budget_rank: int | None = None
    """LoRA: the bytes of this rank everywhere, spent where they hold most (16 if no budget is
    given)."""
    parameters: int | None = None
    """LoRA: so many parameters, spent likewise."""
    megabytes: float | None = None
    """LoRA: so many 10^6 bytes, spent likewise."""
    energy: float | None = None
    """LoRA: the smallest that holds this share of the difference's squared norm, such as 0.95."""
    max_rank: int | None = None
    """LoRA: no matrix gets more; servers reserve room for the largest."""
    exclude: tuple[str, ...] = ()
    """LoRA: nothing for tensors whose name contains one of these parts, such as embed_tokens."""
    full_vectors: bool = False
    """LoRA: keep changed norms and biases whole; PEFT loads them, vLLM and llama.cpp do not."""
    svd: Literal["exact", "randomized"] = "exact"
    """LoRA: how matrices are decomposed; sketches are faster where matrices are large."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What is stored in; by default the base's dtype."""
    plan: bool = False
    """Tell what would be written and kept, and stop."""
    quick: bool = False
    """Merged: do not read every number of a finished folder to see whether it is finite."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    max_shard_bytes: float = 2e9
    """Merged: bytes in one file at most."""
    device: str = "cpu"
    """Where to compute."""
    seed: int = 0
    """Of the sketches."""

    def __post_init__(self) -> None:
        if not self.max_shard_bytes > 0:
            raise ValueError(f"max_shard_bytes must be positive, got {self.max_shard_bytes}.")
        if self.as_ == "merged":
            for name in _LORA:
                if getattr(self, name) != getattr(type(self), name):
                    flag = name.replace("_", "-")
                    raise ValueError(f"--{flag} is for --as lora; a merged model keeps everything.")
        elif self.out is None and not self.plan:
            raise ValueError(
                "out is missing: name the folder of the LoRA, --out my-lora, or --plan."
            )
        if self.quick and self.as_ == "lora":
            raise ValueError("--quick is for --as merged.")

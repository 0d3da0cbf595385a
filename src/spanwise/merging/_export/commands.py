"""The exact lines that serve what was exported."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for `--max-lora-rank`."""


@dataclass(frozen=True)
class Command:
    """One line for a shell, or a reason why there is none.

    Attributes:
        program: `"vLLM"`, `"llama.cpp"` or `"PEFT"`.
        line: The line; empty if there is none.
        note: What it does or needs, or why it is missing.
    """

    program: str
    line: str
    note: str = ""


def serve_model(folder: str | Path) -> list[Command]:
    """Lines for a whole model: vLLM reads the folder, llama.cpp converts it."""
    path = Path(folder).absolute()
    gguf, small = (path.with_name(f"{path.name}{end}.gguf") for end in ("", "-Q4_K_M"))
    return [
        Command("vLLM", _line("vllm", "serve", path), "an OpenAI server on port 8000"),
        Command(
            "llama.cpp",
            _line("python", "convert_hf_to_gguf.py", path, "--outfile", gguf, "--outtype", "bf16"),
            "in a checkout of llama.cpp",
        ),
        Command("llama.cpp", _line("llama-quantize", gguf, small, "Q4_K_M"), "a third as large"),
        Command("llama.cpp", _line("llama-server", "-m", small), "an OpenAI server on port 8080"),
    ]


def serve_lora(
    folder: str | Path,
    base: str | Path | None,
    ranks: Sequence[int],
    *,
    whole: bool = False,
    transposed: bool = False,
    tied: bool = False,
) -> list[Command]:
    """Lines for a LoRA folder.

    vLLM scales every layer by `lora_alpha / r` of the configuration, which is 1. llama.cpp divides
    the configuration's alpha by each layer's own rank unless alpha is 0: where ranks differ, its
    alpha is set to 0, which it reads as scale 1.

    Args:
        folder: The LoRA.
        base: The model it changes; None if that is not in a folder.
        ranks: Of its matrices.
        whole: Whether it holds vectors beside its factors.
        transposed: Whether it changes maps of GPT-2's kind.
        tied: Whether it changes a table that is the output head too.
    """
    path = Path(folder).absolute()
    model = Path("BASE") if base is None else Path(base).absolute()
    merge = _line("spanwise", "export", path, "--as", "merged", "--base", model, "--out", "MERGED")
    barred = (
        "reads no vectors beside factors" if whole
        else "would change the embeddings and not the head they are tied to" if tied
        else ""
    )  # fmt: skip
    found = [_vllm(path, model, max(ranks), merge, barred)]
    if barred or transposed:
        reason = barred or "reads factors of GPT-2's transposed maps the wrong way round"
        return [*found, Command("llama.cpp", merge, f"it {reason}: merge instead")]
    gguf, whole_model = path.with_name(f"{path.name}.gguf"), model.with_name(f"{model.name}.gguf")
    found += [
        Command(
            "llama.cpp",
            _line("python", "convert_lora_to_gguf.py", path, "--base", model, "--outfile", gguf),
            "in a checkout of llama.cpp",
        )
    ]
    if len(set(ranks)) > 1:
        found.append(
            Command(
                "llama.cpp",
                _line("gguf-set-metadata", "--force", gguf, "adapter.lora.alpha", "0"),
                "ranks differ: without it every layer gets another scale (pip install gguf)",
            )
        )
    found.append(
        Command(
            "llama.cpp", _line("llama-server", "-m", whole_model, "--lora", gguf), "base converted"
        )
    )
    return found


def _vllm(path: Path, model: Path, rank: int, merge: str, barred: str) -> Command:
    room = next((r for r in VLLM_RANKS if r >= rank), None)
    if barred or room is None:
        reason = barred or f"takes ranks up to {VLLM_RANKS[-1]}, this has {rank}: --max-rank, or"
        return Command(
            "vLLM", merge, f"it {reason}: merge instead" if barred else f"it {reason} merge"
        )
    line = _line(
        "vllm", "serve", model, "--enable-lora", "--max-lora-rank", room, "--lora-modules",
        f"{path.name}={path}",
    )  # fmt: skip
    return Command("vLLM", line, f'ask for "model": "{path.name}"')


def _line(*words: object) -> str:
    return shlex.join(str(word) for word in words)

"""How PEFT stores a LoRA: names, configuration, and tensors that are kept whole."""

from collections.abc import Iterable, Sequence
from typing import Any

from spanwise.merging._export.difference import Difference
from spanwise.merging._export.targets import PREFIX, Target, anchored, confused
from spanwise.merging._open import read_config

_TASKS = {
    "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM", "ForSeq2SeqLM": "SEQ_2_SEQ_LM",
}  # fmt: skip
"""Endings of classes -> PEFT's name of the task. Classifiers get none: PEFT would then ask for a
head in every adapter."""


def adapter_config(
    difference: Difference, chosen: Sequence[tuple[Target, int]], saved: Iterable[str]
) -> dict[str, Any]:
    """PEFT's `adapter_config.json`.

    Everywhere alpha is the rank, so that the scale alpha / r is 1. r is the largest rank there is,
    which servers reserve room for; vLLM, which reads no patterns, scales by alpha / r of the whole
    configuration and so by 1 too.

    Args:
        difference: What the LoRA is of.
        chosen: Its matrices and their ranks, above 0.
        saved: Vectors that are written whole.
    """
    modules, saved = [name for target, _ in chosen for name in target.modules], list(saved)
    most = max(rank for _, rank in chosen)
    ranks = {anchored(m): rank for t, rank in chosen for m in t.modules if rank != most}
    wanted: list[str] | str = modules
    if confused(difference.structure.modules, modules):
        wanted = f"(?:{'|'.join(anchored(name)[1:] for name in modules)})"
    place = difference.base.place
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": _task(difference),
        "base_model_name_or_path": None if place is None else str(place.resolve()),
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": ranks,
        "alpha_pattern": dict(ranks),
        "target_modules": wanted,
        "modules_to_save": saved_modules(difference, saved) or None,
        "bias": "all" if any(_is_bias(difference, name) for name in saved) else "none",
        "fan_in_fan_out": any(target.kind == "conv1d" for target, _ in chosen),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    if any(target.head for target, _ in chosen):
        config["ensure_weight_tying"] = True  # younger PEFT only: others need not see the key
    return config


def whole_tensors(
    difference: Difference, wrapped: Iterable[str], names: Iterable[str]
) -> dict[str, str]:
    """Vectors that PEFT can keep whole -> its names of them.

    Norms are modules, which `modules_to_save` replaces with all of their vectors; biases of other
    modules are put in the base's place, as PEFT does for `bias="all"`.

    Args:
        difference: What the LoRA is of.
        wrapped: Modules that get factors.
        names: The vectors that shall be kept.
    """
    wrapped, found = set(wrapped), dict[str, str]()
    for name in names:
        module, _, own = name.rpartition(".")
        if _is_bias(difference, name):
            inner = f"{module}.base_layer.{own}" if module in wrapped else name
            found[name] = PREFIX + inner
        elif _plain(difference, module) and not _mistaken(difference, module):
            found |= {n: PREFIX + n for n in _siblings(difference, module)}
    return found


def saved_modules(difference: Difference, names: Iterable[str]) -> list[str]:
    """The modules that are replaced whole."""
    modules = (n.rpartition(".")[0] for n in names if not _is_bias(difference, n))
    return list(dict.fromkeys(modules))


def _is_bias(difference: Difference, name: str) -> bool:
    module, _, own = name.rpartition(".")
    return own == "bias" and not _plain(difference, module)


def _plain(difference: Difference, module: str) -> bool:
    """Whether a module holds vectors only."""
    held = _siblings(difference, module)
    return bool(module) and all(len(difference.shape(name)) < 2 for name in held)


def _siblings(difference: Difference, module: str) -> list[str]:
    return [name for name in difference.stored if name.rpartition(".")[0] == module]


def _mistaken(difference: Difference, module: str) -> bool:
    """Whether PEFT, which looks at the ends of names, would replace another module too."""
    return any(n != module and n.endswith(module) for n in difference.structure.modules)


def _task(difference: Difference) -> str | None:
    architectures = read_config(difference.base.folder).get("architectures") or [""]
    return next((task for end, task in _TASKS.items() if str(architectures[0]).endswith(end)), None)

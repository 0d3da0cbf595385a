"""What a mergekit configuration says of models, slices, tokens and templates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

Setting = Any
"""What mergekit calls a parameter's setting: a value, a gradient, or filters."""

_SHIPPED = ("alpaca", "chatml", "exaone", "llama3", "mistral")


@dataclass(frozen=True)
class Reference:
    """A model as a configuration names it."""

    path: str
    revision: str | None = None
    lora: str | None = None
    """A LoRA adapter that is added to it."""

    def __str__(self) -> str:
        text = self.path if self.revision is None else f"{self.path}@{self.revision}"
        return text if self.lora is None else f"{text}+{self.lora}"


@dataclass(frozen=True)
class Portion:
    """A model's share of one output slice."""

    model: Reference
    layers: tuple[int, int] | None
    """First layer and the one after the last; None for all."""
    stats: str | None = None
    """The file of its statistics."""


@dataclass(frozen=True)
class Slice:
    """Layers of the result and how they come about."""

    base: Portion | None
    models: tuple[Portion, ...]
    method: str
    """A name of `METHODS`."""
    parameters: Mapping[str, Any]
    alpha: Setting = 1.0


@dataclass(frozen=True)
class TokenRule:
    """Where the row of one token comes from, in models that lack it or in all."""

    model: Reference | None = None
    """None for zeros."""
    token: str | int | None = None
    """Another token of that model's, or its number."""
    force: bool = False
    """Whether models that have the token get this row too."""
    derived: bool = False
    """Whether nothing was said of its source."""


@dataclass(frozen=True)
class Tokens:
    """The vocabulary of the result."""

    source: str | Reference
    """`base`, `union`, or a model."""
    rules: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A mergekit configuration, understood."""

    name: str
    """mergekit's name of the method."""
    base: Reference | None
    slices: tuple[Slice, ...]
    sliced: bool
    dtype: str | None
    out_dtype: str | None
    tokens: Tokens | None
    chat_template: str | None
    notes: tuple[str, ...]

    @property
    def references(self) -> list[Reference]:
        """Every model, the base first, each once."""
        found = [self.base] if self.base else []
        for part in self.slices:
            found += [p.model for p in (*([part.base] if part.base else []), *part.models)]
        return list(dict.fromkeys(found))


def reference(value: Any, where: str) -> Reference:
    """A model from `path`, `path@revision`, `path+lora`, or mergekit's mapping of these."""
    if isinstance(value, Mapping):
        known(where, value, ("model", "lora", "path", "revision"))
        if "model" not in value:
            path = words(value.get("path"), f"{where}.path")
            return Reference(path, value.get("revision"))
        whole = reference(value["model"], f"{where}.model")
        if value.get("lora") is None:
            return whole
        lora = reference(value["lora"], f"{where}.lora")
        return Reference(whole.path, whole.revision, lora.path)
    text = words(value, where)
    whole, plus, lora = text.partition("+") if not Path(text).exists() else (text, "", "")
    path, _, revision = whole.partition("@") if not Path(whole).exists() else (whole, "", "")
    if not path or (plus and not lora):
        raise ValueError(f"{where}: {text!r} names no model; write PATH or PATH+LORA.")
    return Reference(path, revision or None, lora or None)


def tokens(held: Mapping[str, Any]) -> Tokens | None:
    """The vocabulary that a configuration asks for; None if it says nothing."""
    if held.get("tokenizer_source") is not None and held.get("tokenizer") is not None:
        raise ValueError("give tokenizer or tokenizer_source, not both.")
    if held.get("tokenizer_source") is not None:
        return Tokens(_token_source(held["tokenizer_source"], "tokenizer_source"))
    if held.get("tokenizer") is None:
        return None
    inner = mapping(held["tokenizer"], "tokenizer")
    known("tokenizer", inner, ("source", "tokens", "pad_to_multiple_of"))
    pad = inner.get("pad_to_multiple_of")
    if pad is not None and (type(pad) is not int or pad < 1):
        raise ValueError(f"tokenizer.pad_to_multiple_of must be a number above 0, got {pad!r}.")
    rules = {
        str(token): _rule(rule, f"tokenizer.tokens[{token!r}]")
        for token, rule in mapping(inner.get("tokens"), "tokenizer.tokens").items()
    }
    return Tokens(_token_source(inner.get("source", "union"), "tokenizer.source"), rules, pad)


def _token_source(value: Any, where: str) -> str | Reference:
    return value if value in ("base", "union") else reference(value, where)


def _rule(held: Any, where: str) -> TokenRule:
    held = mapping(held, where)
    known(where, held, ("source", "force"))
    force = held.get("force", False)
    if not isinstance(force, bool):
        raise ValueError(f"{where}.force must be true or false, got {force!r}.")
    source = held.get("source")
    if source is None:
        if force:
            raise ValueError(f"{where}: force needs a source.")
        return TokenRule(derived=True)
    if not (isinstance(source, Mapping) and "kind" in source):
        return TokenRule(reference(source, f"{where}.source"), force=force)
    known(f"{where}.source", source, ("kind", "model", "token", "token_id"))
    if source["kind"] == "zero":
        return TokenRule(force=force)
    if source["kind"] != "model_token":
        raise ValueError(
            f"{where}.source.kind must be zero or model_token, got {source['kind']!r}."
        )
    ids = [source[key] for key in ("token", "token_id") if source.get(key) is not None]
    if len(ids) != 1:
        raise ValueError(f"{where}.source: give either token or token_id.")
    return TokenRule(reference(source.get("model"), f"{where}.source.model"), ids[0], force)


def template(value: Any) -> str | None:
    """A chat template, or `auto`."""
    if value is None or value == "auto":
        return value
    text = words(value, "chat_template")
    if text in _SHIPPED or "{" not in text:
        raise ValueError(
            f"chat_template {text!r} is no template: give its Jinja text, or auto for the one that "
            "most of the models have. mergekit's own are not part of this library."
        )
    return text


def known(where: str, held: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise `ValueError` at a key that is not known, with the nearest one."""
    for key in held:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}."
            raise ValueError(f"{where and where + ': '}unknown key {key!r}: {hint}")


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """A mapping; nothing counts as an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must hold `key: value` lines, got {value!r}.")
    return value


def entries(value: Any, where: str) -> list[Any]:
    """A list with something in it."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} must be a list with at least one entry, got {value!r}.")
    return value


def words(value: Any, where: str) -> str:
    """Text without blanks around it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} must be text, got {value!r}.")
    return value.strip()

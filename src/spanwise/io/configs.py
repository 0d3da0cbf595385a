"""Dataclasses to YAML and back, with an error that names the key and what was expected."""

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")

_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path",
}  # fmt: skip
"""Kinds of values as people call them."""


def to_plain(value: Any) -> Any:
    """`value` as YAML and JSON can hold it: dataclasses become dicts, tuples lists, paths text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [to_plain(item) for item in items]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # numpy and torch scalars
        return value.item()
    return str(value)


def to_yaml(value: Any) -> str:
    """`value` as YAML text, keys in the order of the dataclass."""
    return yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: If the file is not YAML or does not hold `key: value` lines.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise ValueError(f"{path} is not a readable YAML file: {detail}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        kind = {list: "a list", str: "text"}.get(type(data), "a single value")
        raise ValueError(f"{path} must hold `key: value` lines, got {kind}.")
    return {str(key): value for key, value in data.items()}


def from_plain(cls: type[T], data: Mapping[str, Any], *, missing: Any = dataclasses.MISSING) -> T:
    """Build a dataclass from plain values.

    Args:
        cls: The dataclass.
        data: Field name -> value; `-` and `_` are the same in a key.
        missing: What to set for required fields that `data` lacks, without running
            `__post_init__`; by default they are an error.

    Raises:
        ValueError: If a key is unknown (the nearest name is given), a value has the wrong kind or
            a required field is missing.
    """
    keys = {str(key).replace("-", "_"): value for key, value in data.items()}
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # pyrefly: ignore
    hints = get_type_hints(cls, include_extras=True)
    for key in keys:
        if key not in fields:
            near = get_close_matches(key, list(fields), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}."
            for name in fields:
                if key in _keys_within(hints[name]):
                    hint = f"it belongs one level down, under {name!r}."
            raise ValueError(f"unknown key {key!r}: {hint}")
    values = {key: _convert(hints[key], value, key) for key, value in keys.items()}
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    absent = [name for name in required if name not in values]
    if not absent:
        return cls(**values)
    if missing is dataclasses.MISSING:
        raise ValueError(f"missing key {absent[0]!r}: it has no default.")
    # Only a template for the command line, which fills the gaps and then builds the real one.
    template = object.__new__(cls)
    for name, f in fields.items():
        if name in values:
            value = values[name]
        elif name in absent:
            value = missing
        else:
            value = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        object.__setattr__(template, name, value)
    return template


def named_values(entries: Sequence[str], example: str) -> dict[str, Any]:
    """Options given as `NAME=VALUE`; a value is read as in YAML, and `None` as in Python.

    Args:
        entries: What was given.
        example: What an entry looks like, for errors.

    Raises:
        ValueError: If an entry reads otherwise, or a name comes twice.
    """
    found: dict[str, Any] = {}
    for entry in entries:
        name, sign, value = entry.partition("=")
        name = name.strip()
        if not sign or not name:
            raise ValueError(f"option must read NAME=VALUE, such as {example}; got {entry!r}.")
        if name in found:
            raise ValueError(f"{name} is given twice, the second time by {entry!r}; keep one.")
        found[name] = _read(value.strip(), entry)
    return found


def _read(text: str, entry: str) -> Any:
    if text == "None":
        return None
    try:
        return float(text) if re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(
            f"option {entry!r}: its value is neither a number, a word nor a [list]."
        ) from error


def _keys_within(hint: Any) -> set[str]:
    """Keys of the dataclass that a field holds; none for other fields."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return set()
    return {f.name for f in dataclasses.fields(hint) if f.init}


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as the type that `hint` asks for."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _convert(args[0], value, key)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in sorted((a for a in args if a is not type(None)), key=lambda a: a is str):
            try:
                return _convert(option, value, key)
            except ValueError as error:
                errors.append(error)
        raise errors[0]
    if origin is Literal:
        if value in args:
            return value
        near = get_close_matches(str(value), [str(a) for a in args], n=1)
        hint_text = f"; did you mean {near[0]!r}?" if near else "."
        options = ", ".join(repr(a) for a in args)
        raise ValueError(f"{key} must be one of {options}, got {value!r}{hint_text}")
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_plain(hint, value)
    container = origin or hint
    if container in (list, tuple, set, frozenset):
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{key} must be a list, got {value!r}.")
        item = args[0] if args else Any
        if container is tuple and args and args[-1] is not Ellipsis:
            if len(args) != len(value):
                raise ValueError(f"{key} must have {len(args)} values, got {len(value)}.")
            return tuple(_convert(a, v, key) for a, v in zip(args, value, strict=True))
        return container(_convert(item, v, f"{key}[{i}]") for i, v in enumerate(value))
    if isinstance(container, type) and issubclass(container, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} must be a mapping, got {value!r}.")
        return value
    return _scalar(hint, value, key)


def _scalar(hint: Any, value: Any, key: str) -> Any:
    fits = isinstance(hint, type) and isinstance(value, hint)
    if fits and not (isinstance(value, bool) and hint is not bool):
        return value
    if hint is float and not isinstance(value, bool):
        # YAML 1.1 reads 1e-3 as text, because it lacks a dot.
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    if isinstance(hint, type) and issubclass(hint, Path) and isinstance(value, str):
        return hint(value)
    if not isinstance(hint, type):
        return value
    raise ValueError(f"{key} must be {_WORDS.get(hint, hint.__name__)}, got {value!r}.")

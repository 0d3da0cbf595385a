"""Numbers on the command line, looked at before the parser, which would speak of Python types."""

import dataclasses
import types
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

_KINDS: dict[Any, str] = {int: "a whole number", float: "a number"}


@dataclasses.dataclass(frozen=True)
class Number:
    """What a flag takes.

    Attributes:
        kind: `int` or `float`.
        words: What else it takes, such as `sweep`.
        several: Whether any count of values may follow.
    """

    kind: type[int] | type[float]
    words: tuple[str, ...] = ()
    several: bool = False

    def fits(self, text: str) -> bool:
        """Whether a value can be read."""
        if text in self.words:
            return True
        try:
            self.kind(text)
        except ValueError:
            return False
        return True


def check_numbers(config_class: type[Any], argv: Sequence[str]) -> None:
    """Raise `ValueError` for a flag's value that should be a number and is none.

    Args:
        config_class: The dataclass of options; those inside it are flags as well.
        argv: The command line.
    """
    flags = {f"--{name.replace('_', '-')}": number for name, number in _numbers(config_class)}
    for flag, values in _given(argv):
        number = flags.get(flag)
        if number is None:
            continue
        for text in values if number.several else values[:1]:
            if number.fits(text):
                continue
            own = [word for word in number.words if word != "None"]
            expected = " or ".join([_KINDS[number.kind], *own])
            near = get_close_matches(text, own, n=1)
            hint = f": did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"{flag} must be {expected}, got {text!r}{hint}")


def _given(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Every flag, and the words up to the next one."""
    flag, values = "", list[str]()
    for word in argv:
        if word == "--":
            break
        if not word.startswith("--"):
            values.append(word)
            continue
        if flag:
            yield flag, values
        name, sign, value = word.partition("=")
        flag, values = name.replace("_", "-"), [value] if sign else []
    if flag:
        yield flag, values


def _numbers(config_class: type[Any]) -> Iterator[tuple[str, Number]]:
    """The fields that take numbers, by name."""
    hints = get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):
        hint = _bare(hints[field.name])
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _numbers(hint)
            continue
        found = _number(hint)
        if found is not None:
            yield field.name, found


def _number(hint: Any) -> Number | None:
    """What a type takes, if it takes numbers and no free text."""
    hint = _bare(hint)
    if hint in _KINDS:
        return Number(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        inner = _number(args[0])
        return None if inner is None else dataclasses.replace(inner, several=True)
    if origin not in (Union, types.UnionType):
        return None
    words: list[str] = []
    found: Number | None = None
    for option in map(_bare, args):
        if option is type(None):
            words.append("None")
        elif get_origin(option) is Literal:
            words += map(str, get_args(option))
        elif (inner := _number(option)) is not None and (found is None or inner.kind is float):
            found = inner
        elif inner is None:
            return None
    return found and dataclasses.replace(found, words=(*found.words, *words))


def _bare(hint: Any) -> Any:
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return hint

"""mergekit's YAML, read into what this library merges; nothing is opened here.

Where mergekit means something else than the papers (thresholds by tensor, rescaling to the L1 norm,
models added up where they agree), its meaning is kept. What has no counterpart is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spanwise.io.configs import read_yaml
from spanwise.merging._merge import resolve
from spanwise.merging._recipe import (
    Portion,
    Recipe,
    Reference,
    Setting,
    Slice,
    entries,
    known,
    mapping,
    reference,
    template,
    tokens,
    words,
)
from spanwise.merging.methods import METHODS

REFUSED = {
    "multislerp": "nuslerp",
    "karcher": "nuslerp",
    "nearswap": "slerp",
    "arcee_fusion": "breadcrumbs",
    "sce": "ties",
    "ram": "ties",
    "ramplus_tl": "ties",
}
"""Methods of mergekit's that are not here -> the nearest one that is."""

SHARED: dict[str, dict[str, Any]] = {
    "linear": {"normalize": True},
    "task_arithmetic": {"normalize": False, "rescale": False},
    "ties": {"normalize": True, "rescale": False},
    "dare_linear": {"normalize": False, "rescale": True},
    "dare_ties": {"normalize": False, "rescale": True},
    "della": {"normalize": True, "rescale": True},
    "della_linear": {"normalize": False, "rescale": True},
    "breadcrumbs": {"normalize": False, "rescale": False},
    "breadcrumbs_ties": {"normalize": False, "rescale": False},
    "slerp": {"t": None},
    "nuslerp": {"nuslerp_row_wise": False, "nuslerp_flatten": True},
    "model_stock": {"filter_wise": False},
    "passthrough": {},
}
"""mergekit's methods and their parameters for the whole merge, with mergekit's defaults."""

_DELTAS = {"weight": None, "density": 1.0}
_OWN: dict[str, dict[str, float | None]] = {
    "linear": {"weight": None},
    "task_arithmetic": _DELTAS,
    "ties": _DELTAS,
    "dare_linear": _DELTAS,
    "dare_ties": _DELTAS,
    "della": {**_DELTAS, "epsilon": 0.15},
    "della_linear": {**_DELTAS, "epsilon": 0.15},
    "breadcrumbs": {**_DELTAS, "gamma": 0.01},
    "breadcrumbs_ties": {**_DELTAS, "gamma": 0.01},
    "slerp": {},
    "nuslerp": {"weight": None},
    "model_stock": {},
    "passthrough": {"scale": 1.0},
}
"""Parameters that each model has its own of; None must be given."""

_ALWAYS: dict[str, dict[str, Any]] = {
    "ties": {"trim_scope": "tensor", "keep": "count", "undecided": "plus"},
    "breadcrumbs": {"scope": "tensor"},
    "breadcrumbs_ties": {"scope": "tensor"},
}
"""What mergekit means without saying so."""

_TOP = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip
_PARAMETERS = {"lambda", *(key for own in (*SHARED.values(), *_OWN.values()) for key in own)}
_DTYPES = ("float32", "float16", "bfloat16", "float64")


def read_recipe(source: str | Path | Mapping[str, Any]) -> Recipe:
    """A configuration, checked as far as it can be without opening a model.

    Raises:
        ValueError: If a key, a parameter or a method is unknown, missing or unsupported; the
            message names the file.
    """
    if not isinstance(source, (str, Path)):
        return _recipe(source)
    held = read_yaml(source)
    try:
        return _recipe(held)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _recipe(held: Mapping[str, Any]) -> Recipe:
    if "modules" in held:
        raise ValueError("modules (models of several modules) is not supported: use models.")
    for key in held:
        if key not in _TOP and key in _PARAMETERS:
            raise ValueError(f"{key} belongs under parameters, not beside them.")
    known("", held, _TOP)
    name = held.get("merge_method")
    if not isinstance(name, str):
        raise ValueError("merge_method is missing: name one, such as merge_method: ties.")
    _check_method(name)
    given = [key for key in ("models", "slices") if held.get(key)]
    if len(given) != 1:
        raise ValueError("give either models or slices, one of them, as a list.")
    base = None if held.get("base_model") is None else reference(held["base_model"], "base_model")
    reader = _Reader(name, base, mapping(held.get("parameters"), "parameters"))
    if given == ["models"]:
        slices = (reader.slice({"sources": held["models"]}, "models", ranged=False),)
    else:
        listed = entries(held["slices"], "slices")
        slices = tuple(reader.slice(s, f"slices[{i}]", ranged=True) for i, s in enumerate(listed))
    return Recipe(
        name=name,
        base=base,
        slices=slices,
        sliced=given == ["slices"],
        dtype=_dtype(held, "dtype"),
        out_dtype=_dtype(held, "out_dtype"),
        tokens=tokens(held),
        chat_template=template(held.get("chat_template")),
        notes=tuple(dict.fromkeys(reader.notes)),
    )


class _Reader:
    """Slices and their parameters under one method."""

    def __init__(self, name: str, base: Reference | None, shared: Mapping[str, Any]) -> None:
        self.name, self.base, self.notes = name, base, list[str]()
        self.kind = METHODS["linear" if name == "passthrough" else name]
        self.foreign = name in SHARED
        """Whether the parameters are mergekit's."""
        self.whole, self.own = self._parameters()
        self.shared = shared
        self._check_keys(shared, "parameters", (*self.whole, *self.own))

    def _parameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters of the whole merge and of each model, with their defaults."""
        if not self.foreign:
            whole = {f.name: f.default for f in fields(self.kind)}
            return {"lambda": 1.0, "alpha": 1.0, **whole}, dict(self.kind.per_model)
        own, whole = _OWN[self.name], dict(SHARED[self.name])
        if "density" in own:
            whole |= {"lambda": 1.0, "int8_mask": False}
        return whole, dict(own)

    def slice(self, held: Any, where: str, *, ranged: bool) -> Slice:
        """One output slice; `models` count as a single one."""
        held = mapping(held, where)
        known(where, held, ("sources", "parameters", "base_model", "residual_weight"))
        if held.get("residual_weight") is not None:
            raise ValueError(f"{where}: residual_weight is not supported; leave it out.")
        base = self.base
        if held.get("base_model") is not None:
            base = reference(held["base_model"], f"{where}.base_model")
        own = mapping(held.get("parameters"), f"{where}.parameters")
        self._check_keys(own, f"{where}.parameters", (*self.whole, *self.own))
        key = "sources" if ranged else "models"
        portions: list[tuple[Portion, Mapping[str, Any]]] = []
        listed = f"{where}.sources" if ranged else where
        for index, entry in enumerate(entries(held.get("sources"), listed)):
            place = f"{where}.{key}[{index}]" if ranged else f"{where}[{index}]"
            portions.append(self._portion(entry, place, ranged=ranged))
        spans = {p.layers and p.layers[1] - p.layers[0] for p, _ in portions}
        if len(spans) > 1:
            raise ValueError(f"{where}: its sources have different numbers of layers.")
        return self._assemble(base, portions, [own, self.shared], where, ranged=ranged)

    def _portion(
        self, entry: Any, where: str, *, ranged: bool
    ) -> tuple[Portion, Mapping[str, Any]]:
        if isinstance(entry, str):
            raise ValueError(f"{where} must be a mapping: write `- model: {entry}`.")
        entry = mapping(entry, where)
        known(where, entry, ("model", "parameters", "layer_range" if ranged else "stats"))
        model = reference(entry.get("model"), f"{where}.model")
        own = mapping(entry.get("parameters"), f"{where}.parameters")
        for key in own:
            if key in self.whole and key not in self.own:
                raise ValueError(
                    f"{where}: {key} belongs to the whole merge, not to a model: move it to the "
                    "outer parameters."
                )
        self._check_keys(own, where, tuple(self.own))
        if not ranged:
            return Portion(model, None, self._stats(entry.get("stats"), where)), own
        span = entry.get("layer_range")
        good = isinstance(span, (list, tuple)) and len(span) == 2
        if not good or not all(type(n) is int for n in span) or not 0 <= span[0] < span[1]:
            raise ValueError(f"{where}: layer_range must be [first, after the last], got {span!r}.")
        return Portion(model, (span[0], span[1])), own

    def _stats(self, value: Any, where: str) -> str | None:
        """The file that a model's statistics lie in, for methods that take some."""
        if value is None:
            return None
        if self.foreign:
            raise ValueError(f"{where}: {self.name} takes no stats; leave them out.")
        return words(value, f"{where}.stats")

    def _assemble(
        self,
        base: Reference | None,
        portions: list[tuple[Portion, Mapping[str, Any]]],
        outer: list[Mapping[str, Any]],
        where: str,
        *,
        ranged: bool,
    ) -> Slice:
        """The base apart, parameters in the order in which mergekit looks for them."""
        root = next((p for p, _ in portions if p.model == base), None)
        if base is not None and root is None and not ranged:
            root = Portion(base, None)
            if self.name in ("linear", "slerp"):
                portions = [*portions, (root, {})]
        if self.name in ("linear", "slerp", "passthrough"):
            chosen, root = self._weighed(base, portions, where), None
        else:
            chosen = [(p, own) for p, own in portions if p.model != base]
            if self.kind.needs_base and base is None:
                raise ValueError(f"{self.name} needs base_model: the model that all began as.")
            if base is not None and root is None:
                raise ValueError(
                    f"{where}: list base_model ({base}) among the sources, with the layers that "
                    "the others are compared with."
                )
            if not chosen and root is not None:
                return Slice(None, (root,), "linear", {"weight": 1.0, "normalize": False})
        if self.name == "passthrough" and len(chosen) != 1:
            raise ValueError(f"{where}: passthrough takes one model, got {len(chosen)}.")
        parameters, alpha = self._values([own for _, own in chosen], outer, where)
        method = "linear" if self.name == "passthrough" else self.name
        portion = tuple(p for p, _ in chosen)
        resolve(method, parameters, len(portion))  # names and ranges
        return Slice(root, portion, method, parameters, alpha)

    def _weighed(
        self,
        base: Reference | None,
        portions: list[tuple[Portion, Mapping[str, Any]]],
        where: str,
    ) -> list[tuple[Portion, Mapping[str, Any]]]:
        """Models that are merged as they are: for slerp the base first."""
        if self.name != "slerp" or len(portions) == 1:
            return portions
        if len(portions) != 2 or base is None or base not in [p.model for p, _ in portions]:
            raise ValueError(f"{where}: slerp takes two models, of which base_model is one.")
        return sorted(portions, key=lambda pair: pair[0].model != base)

    def _values(
        self, models: list[Mapping[str, Any]], outer: list[Mapping[str, Any]], where: str
    ) -> tuple[dict[str, Any], Setting]:
        """The parameters that our method takes, and the scale."""
        whole = {k: _chain(k, outer, default) for k, default in self.whole.items()}
        own = {
            k: [_chain(k, [m, *outer], default) for m in models] for k, default in self.own.items()
        }
        for key, settings in own.items():
            if None in settings:
                raise ValueError(
                    f"{where}: {self.name} needs a {key} for every model; "
                    f"model {settings.index(None) + 1} has none."
                )
        if not self.foreign:
            alpha = whole.pop("alpha") if any("alpha" in m for m in outer) else whole["lambda"]
            given = {k for m in outer for k in m}
            parameters = {k: whole[k] for k in whole if k in given and k not in ("lambda", "alpha")}
            return {**parameters, **own}, alpha
        alpha = whole.pop("lambda", 1.0)
        return {**_ALWAYS.get(self.name, {}), **self._translated(whole, own)}, alpha

    def _translated(self, whole: dict[str, Any], own: dict[str, list[Any]]) -> dict[str, Any]:
        """What mergekit calls parameters, in our words."""
        for key, value in list(whole.items()):
            if key != "t" and value not in (True, False):
                raise ValueError(f"{key} must be true or false for the whole merge, got {value!r}.")
            whole[key] = value if key == "t" else bool(value)
        if whole.pop("int8_mask", False):
            self.notes.append("int8_mask: nothing to do, masks take no memory here")
        if "rescale" in whole:
            rescale = whole.pop("rescale")
            if "rescale" in {f.name for f in fields(self.kind)}:
                whole["rescale"] = "l1" if rescale else False
            elif rescale:
                raise ValueError(f"rescale: true is not supported with {self.name}.")
        if self.name == "slerp" and whole["t"] is None:
            raise ValueError("slerp needs t: 0 is base_model, 1 the other model.")
        if self.name == "nuslerp":
            if whole.pop("nuslerp_row_wise"):
                raise ValueError(
                    "nuslerp_row_wise: true (an arc for each column) is not supported; "
                    "nuslerp_flatten: false gives each row its own."
                )
            whole["scope"] = "tensor" if whole.pop("nuslerp_flatten") else "row"
        if self.name == "passthrough":
            return {"weight": own["scale"], "normalize": False}
        if "density" not in self.kind.per_model and any(d != 1 for d in own.pop("density", ())):
            raise ValueError(f"density has no effect on {self.name}: leave it out, or use ties.")
        if "gamma" in own:  # mergekit gives up outliers where the density would not be reached
            own["gamma"] = [
                min(g, 1 - d) if isinstance(g, (int, float)) and isinstance(d, (int, float)) else g
                for g, d in zip(own["gamma"], own["density"], strict=True)
            ]
        return {**whole, **own}

    def _check_keys(self, held: Mapping[str, Any], where: str, known: Sequence[str]) -> None:
        for key in held:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}."
                if not known:
                    hint = "it has none here."
                raise ValueError(f"{where}: {self.name} has no parameter {key!r}: {hint}")


def _chain(key: str, places: Sequence[Mapping[str, Any]], default: Any) -> Setting:
    """The settings of several places as one: the first whose filter fits counts."""
    entries: list[Mapping[str, Any]] = []
    for place in places:
        if key not in place or place[key] is None:
            continue
        value = _setting(key, place[key])
        if not (isinstance(value, list) and value and isinstance(value[0], Mapping)):
            value = [{"value": value}]
        entries += value
        if any(entry.get("filter") in (None, "*") for entry in value):
            break
    else:
        if not entries or default is not None:
            entries.append({"value": default})
    if "filter" not in entries[0] or entries[0]["filter"] in (None, "*"):
        return entries[0]["value"]
    return entries


def _setting(key: str, value: Any) -> Setting:
    """One setting; YAML reads 1e-3 as text, and a lone filter need not be in a list."""
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        return [
            {**v, "value": _setting(key, v["value"])}
            if isinstance(v, Mapping) and "value" in v
            else v
            if isinstance(v, Mapping)
            else _setting(key, v)
            for v in value
        ]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _dtype(held: Mapping[str, Any], key: str) -> str | None:
    value = held.get(key)
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"{key} must be one of {', '.join(_DTYPES)}, got {value!r}.")
    return name


def _check_method(name: str) -> None:
    if name in SHARED or name in METHODS:
        return
    if name in REFUSED:
        raise ValueError(
            f"mergekit's method {name!r} is not offered; {REFUSED[name]!r} is the nearest to it."
        )
    known = [*SHARED, *METHODS]
    near = get_close_matches(name, known, n=1)
    hint = (
        f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(dict.fromkeys(known))}."
    )
    raise ValueError(f"unknown merge_method {name!r}: {hint}")

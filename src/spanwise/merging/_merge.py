"""`merge`: several models become one."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from spanwise.atlas import Atlas
from spanwise.merging._fits import check_included
from spanwise.merging._inputs import open_inputs
from spanwise.merging._job import Job
from spanwise.merging._keep import Keeper
from spanwise.merging._matched import Statistics, check_stats, opened_stats
from spanwise.merging._merged import Merged
from spanwise.merging._methods._method import Method
from spanwise.merging._parallel import side_by_side
from spanwise.merging._schedule import Depths, Schedule
from spanwise.merging._sources import Inputs, Model
from spanwise.merging._unchanged import told, unchanged
from spanwise.merging._warn import warn_caller
from spanwise.merging.methods import METHODS

Watch = Callable[[int, int], None]
"""Told how many tensors are done, and of how many."""

MEMORY = 2**30
"""Bytes that tensors in work may take together, unless another ceiling is given."""


def merge(
    base: Model | None,
    models: Sequence[Model] | Mapping[str, Model],
    method: str | Method = "iso_c",
    *,
    alpha: Any = 1.0,
    alpha_vectors: Any = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    avoid: Atlas | None = None,
    within: Atlas | None = None,
    stats: Statistics | None = None,
    work_dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    workers: int = 1,
    memory: float = MEMORY,
    watch: Watch | None = None,
    **parameters: Any,
) -> Merged:
    """Merge models that were trained from one base, tensor by tensor.

    Args:
        base: What the models were trained from: a module, a state dict, a safetensors file or a
            transformers folder; None for methods that need none.
        models: What to merge: any of those, or PEFT LoRA folders. A mapping gives them names.
        method: A name of `spanwise.merging.METHODS`, or one of its classes' instances.
        alpha: Scale of the merged update, theta_0 + alpha Delta. Papers choose it on validation
            data: see `Merged.sweep`. A list is interpolated over the layers; a list of
            `{"filter": text, "value": number}` goes by names.
        alpha_vectors: Another scale for everything that is no matrix.
        include: Only tensors whose name contains one of these are merged; others stay the base's.
        exclude: Tensors whose name contains one of these are averaged, not treated as matrices;
            `("embed_tokens", "lm_head", "wte")` is wise for language models and spectral methods.
        avoid: Directions of the base that must not change; every update is projected, and the
            merged one again.
        within: The only directions that may change.
        stats: For methods that ask for statistics, what `collect_stats` gave for each model, in
            the models' order or by their names: `Stats`, or files of them.
        work_dtype: What is computed in, at least float32.
        out_dtype: Dtype of merged tensors; by default each keeps the base's.
        device: Where to compute.
        seed: For methods that draw at random; equal seeds give equal results in any order.
        workers: Tensors at once, each on one core.
        memory: Bytes that tensors in work may take together.
        watch: Told how far it is.
        **parameters: The method's own: fields of its class, and those that each model has its own
            of (`weight`, `density`), as one value for all or a sequence of one value a model.

    Returns:
        A mapping from names to merged tensors, with `.delta`, `.at(alpha)` and `.sweep(...)`.

    Raises:
        ValueError: Before anything is merged, if the models do not fit together, a parameter is
            unknown or out of range, or the method needs a base, statistics or another number of
            models; while merging, if a tensor is not finite.
    """
    job = prepare(
        base, models, method,
        alpha=alpha, alpha_vectors=alpha_vectors, include=include, exclude=exclude, avoid=avoid,
        within=within, stats=stats, work_dtype=work_dtype, out_dtype=out_dtype, device=device,
        seed=seed,
        **parameters,
    )  # fmt: skip
    if idle := unchanged(job.inputs):
        warn_caller(f"{told(idle)}.")
    names = job.names
    job = job.begun()
    delta: dict[str, Tensor] = {}

    def update(name: str) -> Tensor:
        found = job.update(name)
        assert found is not None
        return found

    tasks = side_by_side(update, names, workers=workers, ceiling=memory, size=job.bytes_of)
    for name, found in tasks:
        delta[name] = found
        if watch:
            watch(len(delta), len(names))
    return Merged(job, {name: delta[name] for name in names})


def prepare(
    base: Model | None,
    models: Sequence[Model] | Mapping[str, Model],
    method: str | Method,
    *,
    alpha: Any = 1.0,
    alpha_vectors: Any = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    avoid: Atlas | None = None,
    within: Atlas | None = None,
    stats: Statistics | None = None,
    work_dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    **parameters: Any,
) -> Job:
    """Everything about a merge that can be checked before a tensor is read; see `merge`."""
    if not isinstance(models, (Mapping, Sequence)) or isinstance(models, str):
        raise TypeError(
            f"models must be a sequence or a mapping of models, got {type(models).__name__}."
        )
    for key, texts in (("include", include), ("exclude", exclude)):
        if isinstance(texts, str):
            raise TypeError(
                f"{key} must be a sequence of texts, got the text {texts!r}: ({texts!r},)"
            )
    if work_dtype not in (torch.float32, torch.float64):
        raise ValueError(f"work_dtype must be torch.float32 or torch.float64, got {work_dtype}.")
    named = models if isinstance(models, Mapping) else {
        f"model {index}": model for index, model in enumerate(models, start=1)
    }  # fmt: skip
    chosen, per_model = resolve(method, parameters, len(named))
    _check_count(chosen, base, len(named))
    scales = {"alpha": alpha, "alpha_vectors": alpha_vectors}
    if base is None:
        _check_baseless(scales, include)
    schedules = {key: Schedule(key, value) for key, value in scales.items()}
    for key, schedule in schedules.items():
        _check_finite(key, schedule)
    held = opened_stats(stats, list(named), chosen.kinds())
    inputs = open_inputs(base, named)
    keeper = None
    if avoid is not None or within is not None:
        chosen.check_kept()
        keeper = _keeper(inputs, avoid, within)
    job = Job(
        inputs=inputs,
        method=chosen,
        schedules=schedules,
        per_model=per_model,
        depths=Depths.of(inputs.names),
        alpha=schedules["alpha"],
        alpha_vectors=None if alpha_vectors is None else schedules["alpha_vectors"],
        include=None if include is None else tuple(include),
        exclude=tuple(exclude),
        dtype=work_dtype,
        out_dtype=out_dtype,
        device=torch.device(device),
        seed=seed,
        keeper=keeper,
        stats=held,
    )
    check_included(job)
    check_stats(held, inputs, job.names, chosen.kinds())
    return job


def resolve(
    method: str | Method, parameters: Mapping[str, Any], count: int
) -> tuple[Method, dict[str, list[Schedule]]]:
    """The method with its parameters, and each model's own.

    Raises:
        ValueError: If the method or a parameter is unknown, or a value is out of range.
    """
    kind = type(method) if isinstance(method, Method) else METHODS.get(str(method))
    if kind is None:
        raise ValueError(f"unknown method {method!r}: {_nearest(str(method), METHODS)}")
    fields = [f.name for f in dataclasses.fields(kind)]
    known = [*fields, *kind.per_model]
    for key in parameters:
        if key not in known:
            has = _nearest(key, known) if known else "it has none."
            raise ValueError(f"{_name(kind)} has no parameter {key!r}: {has}")
    own = {key: value for key, value in parameters.items() if key in fields}
    chosen = dataclasses.replace(method, **own) if isinstance(method, Method) else kind(**own)
    per_model: dict[str, list[Schedule]] = {}
    for key, default in kind.per_model.items():
        value = parameters.get(key, default)
        several = isinstance(value, Sequence) and not isinstance(value, str)
        values = list(value) if several else [value] * count
        if len(values) != count:
            raise ValueError(
                f"{key} must be one value for all models or one for each of the {count}, got "
                f"{len(values)}."
            )
        per_model[key] = [Schedule(key, v) for v in values]
        for schedule in per_model[key]:
            _check_finite(key, schedule)
    chosen.check(
        {
            key: [float(v) for schedule in held for v in schedule.values if v is not None]
            for key, held in per_model.items()
        }
    )
    return chosen, per_model


def _check_count(method: Method, base: Model | None, count: int) -> None:
    name = _name(type(method))
    if not count:
        raise ValueError("models is empty: give at least one model to merge.")
    if method.needs_base and base is None:
        raise ValueError(
            f"{name} merges what training added to a base: give the model that all of them were "
            "trained from as base."
        )
    if count < method.fewest or (method.most is not None and count > method.most):
        most = method.most
        wanted = f"exactly {most}" if most == method.fewest else f"at least {method.fewest}"
        raise ValueError(f"{name} merges {wanted} models, got {count}.")
    method.check_models(count, base is not None)


def _check_baseless(scales: Mapping[str, Any], include: Sequence[str] | None) -> None:
    """Raise for what only a base gives a meaning to, and would be ignored without one."""
    for key, value in scales.items():
        if value is not None and value != 1:
            raise ValueError(
                f"{key} = {value} scales what is added to a base: give one, or scale the models by "
                "weight."
            )
    if include is not None:
        raise ValueError("include leaves all other tensors as the base's: give one.")


def _keeper(inputs: Inputs, avoid: Atlas | None, within: Atlas | None) -> Keeper:
    if inputs.base is None:
        raise ValueError("avoid and within speak of what changes in a base: give one.")
    for word, atlas in (("avoid", avoid), ("within", within)):
        if atlas is not None and not any(atlas.get(name) for name in inputs.names):
            raise ValueError(
                f"{word} matches no tensor of these models: its first is "
                f"{next(iter(atlas)).name!r}, theirs {inputs.names[0]!r}. Was it made from "
                "another model?"
            )
    base = inputs.base
    return Keeper(avoid, within, lambda name: base.shape(name) if name in base else None)


def _check_finite(key: str, schedule: Schedule) -> None:
    for value in schedule.values:
        if isinstance(value, bool) or (value is not None and not isinstance(value, (int, float))):
            raise ValueError(f"{key} must be a number, got {value!r}.")
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{key} must be finite, got {value}.")


def _name(kind: type[Method]) -> str:
    return next((name for name, held in METHODS.items() if held is kind), kind.__name__)


def _nearest(word: str, known: Any) -> str:
    near = get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}."

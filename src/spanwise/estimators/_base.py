"""What estimators share: scikit-learn's contract, numpy or torch in, files without pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

import spanwise
from spanwise._lazy import require
from spanwise.errors import CorruptFileError
from spanwise.estimators._arrays import Back, to_numpy, to_torch

require("sklearn.base", "an estimator")  # before the import below, for the install line
from sklearn.base import BaseEstimator  # noqa: E402
from sklearn.utils.validation import (  # noqa: E402
    check_is_fitted,
    validate_data,  # pyrefly: ignore[missing-module-attribute]
)

E = TypeVar("E", bound="Estimator")

FORMAT = "spanwise-estimator"
VERSION = "2"


class Estimator(BaseEstimator):
    """scikit-learn's `BaseEstimator` that also takes tensors, and saves without pickle.

    `fit` sets attributes that end in an underscore; they are arrays of the kind that `fit` was
    given, numbers, text, or lists and dicts of those, such as a network's state dict.
    """

    _left_out: tuple[str, ...] = ()
    """Parameters that may be what no file can hold, such as a user's network: `load` then leaves
    None, unless they are given to it again."""

    def save(self, path: str | Path) -> Path:
        """Write parameters and fitted attributes to one safetensors file, whole or not at all.

        Arrays are its tensors, the rest is JSON in its metadata.

        Args:
            path: The file to create or replace.

        Raises:
            NotFittedError: If `fit` was not called.
            TypeError: If a parameter or attribute is neither an array nor JSON.
        """
        from spanwise.io import save_tensors

        check_is_fitted(self)
        tensors: dict[str, Tensor] = {}
        values = {
            name: _pack(name, value, tensors)
            for name, value in vars(self).items()
            if name.endswith("_") and not name.startswith("_")
        }
        # A search over parameters sets numpy's numbers.
        parameters = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params(deep=False).items()
        }
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "spanwise": spanwise.__version__,
            "estimator": type(self).__name__,
            "parameters": _json(
                self,
                "parameter",
                {k: v for k, v in parameters.items() if k not in self._left_out or _is_json(v)},
            ),
            "attributes": _json(self, "attribute", values),
        }
        return save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls: type[E], path: str | Path, **parameters: Any) -> E:
        """Read what `save` wrote. Nothing is unpickled; tuples come back as lists.

        Args:
            path: The file.
            **parameters: Parameters to set otherwise, and those that no file can hold.

        Raises:
            ValueError: If the file holds another estimator, another version of the format, or a
                parameter that this version does not know.
            CorruptFileError: If it is damaged.
        """
        from spanwise.io import open_tensors

        reader = open_tensors(path)
        metadata = dict(reader.metadata or {})
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            raise ValueError(
                f"{path} is no estimator that this spanwise ({spanwise.__version__}) reads: format "
                f"{metadata.get('format')!r}, version {metadata.get('version')!r}, expected "
                f"{FORMAT!r}, {VERSION!r}."
            )
        if metadata.get("estimator") != cls.__name__:
            raise ValueError(
                f"{path} holds a {metadata.get('estimator')}, not a {cls.__name__}. Load it with "
                f"{metadata.get('estimator')}.load."
            )
        try:
            held = json.loads(metadata["parameters"])
            fitted = {
                name: _unpack(value, reader)
                for name, value in json.loads(metadata["attributes"]).items()
                if name.endswith("_") and not name.startswith("_")  # as `save` chooses them
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(
                f"{path} is damaged: what it says of its {cls.__name__} cannot be read: {error!r}. "
                "Save it again."
            ) from error
        known = cls._get_param_names()  # pyrefly: ignore[missing-attribute]
        unknown = [name for name in (*held, *parameters) if name not in known]
        if unknown:
            raise ValueError(
                f"{path}: {cls.__name__} has no parameter {unknown[0]!r} here; the file is of "
                f"spanwise {metadata.get('spanwise')}, this is {spanwise.__version__}."
            )
        found = cls(**{**held, **parameters})
        vars(found).update(fitted)
        return found

    def _samples(self, X: Any, *, reset: bool, min_samples: int = 1) -> tuple[Tensor, Back]:
        """`X` as a finite float tensor, `(n, d)`, and the way back.

        Anything but a tensor is checked by scikit-learn, with its messages; a tensor stays on its
        device. float32 and float64 stay, all else becomes float64 (half precision float32).

        Args:
            X: Samples in rows.
            reset: True in `fit`, which remembers the number and names of features; False
                elsewhere, which compares them.
            min_samples: Rows needed.
        """
        if not isinstance(X, Tensor):
            dtypes = [np.float64, np.float32]
            array = validate_data(
                self, X, reset=reset, dtype=dtypes, ensure_min_samples=min_samples
            )
            # Of a read-only array torch would only warn.
            array = np.require(array, requirements=["C", "W"])
            return torch.from_numpy(array), to_numpy
        if X.is_complex() or X.layout != torch.strided:
            raise ValueError(f"X must be dense and real, got {X.dtype} ({X.layout}).")
        if X.ndim != 2:
            raise ValueError(
                f"X must have two axes, samples and features, got shape {tuple(X.shape)}. Reshape "
                "with X.reshape(-1, 1) for one feature, X.reshape(1, -1) for one sample."
            )
        n, d = X.shape
        if n < min_samples or d < 1:
            raise ValueError(
                f"X has {n} sample(s) and {d} feature(s), {type(self).__name__} needs at least "
                f"{min_samples} and 1."
            )
        if reset:
            self.n_features_in_ = d
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        elif d != self.n_features_in_:
            raise ValueError(
                f"X has {d} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input."
            )
        X = X.detach()
        if not X.is_floating_point():
            X = X.double()
        X = X.to(torch.promote_types(X.dtype, torch.float32))
        if not bool(torch.isfinite(X).all()):
            raise ValueError("X contains NaN or infinity. Drop or impute those samples.")
        return X, to_torch


_ARRAY, _NAMES = "array:", "names:"
"""The only key of a dict that stands for an array: of numbers, among the tensors; of names."""


def _pack(path: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` for JSON, its arrays moved to `tensors` under names that begin with `path`."""
    while path in tensors:  # "a.b" of one dict, and "b" of the dict "a" beside it
        path += "'"
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return {_NAMES: [str(item) for item in value]}
    if isinstance(value, np.ndarray):
        tensors[path] = torch.tensor(value)
        return {_ARRAY: [path, "numpy"]}
    if isinstance(value, Tensor):
        # Entries of a state dict may share memory, which the file does not.
        tensors[path] = value.detach()
        return {_ARRAY: [path, "torch"]}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):  # JSON would make it text
                raise TypeError(f"{path} has the key {key!r}, which is no text.")
        return {key: _pack(f"{path}.{key}", held, tensors) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(f"{path}.{i}", held, tensors) for i, held in enumerate(value)]
    return value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_pack`."""
    if isinstance(value, list):
        return [_unpack(held, tensors) for held in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_NAMES}:
        return np.array(value[_NAMES], dtype=object)
    if set(value) == {_ARRAY}:
        path, kind = value[_ARRAY]
        return tensors[path].numpy() if kind == "numpy" else tensors[path]
    return {key: _unpack(held, tensors) for key, held in value.items()}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _json(estimator: Estimator, what: str, values: dict[str, Any]) -> str:
    for name, value in values.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise TypeError(
                f"{what} {name} of {type(estimator).__name__} is a {type(value).__name__}, which "
                "JSON cannot hold. Set it to a number, text, list or dict before saving."
            ) from error
    return json.dumps(values)

"""Estimators: subspaces of data, in scikit-learn's way."""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
    from spanwise.estimators._spm.solve import SymmetricCPInfo as SymmetricCPInfo
    from spanwise.estimators._spm_estimator import SubspacePowerMethod as SubspacePowerMethod
    from spanwise.estimators._symmetric_cp import symmetric_cp as symmetric_cp
    from spanwise.estimators.gods import GODS as GODS

_HOMES: dict[str, str] = {
    "GODS": "gods",
    "SubspacePowerMethod": "_spm_estimator",
    "SymmetricCPInfo": "_spm.solve",
    "symmetric_cp": "_symmetric_cp",
}

__all__ = ["GODS", "SubspacePowerMethod", "SymmetricCPInfo", "symmetric_cp"]

__getattr__, __dir__ = lazy_attributes(
    "spanwise.estimators",
    {name: f"spanwise.estimators.{home}" for name, home in _HOMES.items()},
)

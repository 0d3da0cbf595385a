"""Estimators: subspaces of data, in scikit-learn's way."""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
    from spanwise.estimators._lran.loss import lran_loss as lran_loss
    from spanwise.estimators._lran.module import LRANModule as LRANModule
    from spanwise.estimators._spm.blocks import BlockTermInfo as BlockTermInfo
    from spanwise.estimators._spm.solve import SymmetricCPInfo as SymmetricCPInfo
    from spanwise.estimators._spm_estimator import SubspacePowerMethod as SubspacePowerMethod
    from spanwise.estimators._symmetric_btd import symmetric_btd as symmetric_btd
    from spanwise.estimators._symmetric_cp import symmetric_cp as symmetric_cp
    from spanwise.estimators.balanced_reduction import BalancedReduction as BalancedReduction
    from spanwise.estimators.gods import GODS as GODS
    from spanwise.estimators.gpca import GPCA as GPCA
    from spanwise.estimators.koopman import DMD as DMD
    from spanwise.estimators.koopman import EDMD as EDMD
    from spanwise.estimators.koopman import KernelDMD as KernelDMD
    from spanwise.estimators.lran import LRAN as LRAN
    from spanwise.estimators.multi_kernel import MultiKernelRegressor as MultiKernelRegressor

_HOMES: dict[str, str] = {
    "DMD": "koopman",
    "EDMD": "koopman",
    "GODS": "gods",
    "GPCA": "gpca",
    "LRAN": "lran",
    "BalancedReduction": "balanced_reduction",
    "BlockTermInfo": "_spm.blocks",
    "KernelDMD": "koopman",
    "LRANModule": "_lran.module",
    "MultiKernelRegressor": "multi_kernel",
    "SubspacePowerMethod": "_spm_estimator",
    "SymmetricCPInfo": "_spm.solve",
    "lran_loss": "_lran.loss",
    "symmetric_btd": "_symmetric_btd",
    "symmetric_cp": "_symmetric_cp",
}

__all__ = [
    "DMD",
    "EDMD",
    "GODS",
    "GPCA",
    "LRAN",
    "BalancedReduction",
    "BlockTermInfo",
    "KernelDMD",
    "LRANModule",
    "MultiKernelRegressor",
    "SubspacePowerMethod",
    "SymmetricCPInfo",
    "lran_loss",
    "symmetric_btd",
    "symmetric_cp",
]

__getattr__, __dir__ = lazy_attributes(
    "spanwise.estimators",
    {name: f"spanwise.estimators.{home}" for name, home in _HOMES.items()},
)

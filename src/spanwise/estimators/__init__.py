"""Estimators: subspaces of data, in scikit-learn's way."""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
    from spanwise.estimators._lran.loss import lran_loss as lran_loss
    from spanwise.estimators._lran.module import LRANModule as LRANModule
    from spanwise.estimators._mlc.loss import MLCLoss as MLCLoss
    from spanwise.estimators._mlc.loss import tcr_loss as tcr_loss
    from spanwise.estimators._mlc.metrics import clustering_accuracy as clustering_accuracy
    from spanwise.estimators._mlc.metrics import numerical_rank as numerical_rank
    from spanwise.estimators._mlc.metrics import subspace_affinity as subspace_affinity
    from spanwise.estimators._mlc.rates import coding_bits as coding_bits
    from spanwise.estimators._mlc.rates import coding_rate as coding_rate
    from spanwise.estimators._mlc.rates import rate_reduction as rate_reduction
    from spanwise.estimators._mlc.sinkhorn import SinkhornProjection as SinkhornProjection
    from spanwise.estimators._mlc.spectral import spectral_labels as spectral_labels
    from spanwise.estimators._mlc.views import image_shifts as image_shifts
    from spanwise.estimators._spm.blocks import BlockTermInfo as BlockTermInfo
    from spanwise.estimators._spm.solve import SymmetricCPInfo as SymmetricCPInfo
    from spanwise.estimators._spm_estimator import SubspacePowerMethod as SubspacePowerMethod
    from spanwise.estimators._spm_estimator import flattening_values as flattening_values
    from spanwise.estimators._symmetric_btd import symmetric_btd as symmetric_btd
    from spanwise.estimators._symmetric_cp import symmetric_cp as symmetric_cp
    from spanwise.estimators.balanced_reduction import BalancedReduction as BalancedReduction
    from spanwise.estimators.gods import GODS as GODS
    from spanwise.estimators.gpca import GPCA as GPCA
    from spanwise.estimators.koopman import DMD as DMD
    from spanwise.estimators.koopman import EDMD as EDMD
    from spanwise.estimators.koopman import KernelDMD as KernelDMD
    from spanwise.estimators.lran import LRAN as LRAN
    from spanwise.estimators.mlc import MLC as MLC
    from spanwise.estimators.multi_kernel import MultiKernelRegressor as MultiKernelRegressor

_HOMES: dict[str, str] = {
    "BalancedReduction": "balanced_reduction",
    "BlockTermInfo": "_spm.blocks",
    "DMD": "koopman",
    "EDMD": "koopman",
    "GODS": "gods",
    "GPCA": "gpca",
    "KernelDMD": "koopman",
    "LRAN": "lran",
    "LRANModule": "_lran.module",
    "MLC": "mlc",
    "MLCLoss": "_mlc.loss",
    "MultiKernelRegressor": "multi_kernel",
    "SinkhornProjection": "_mlc.sinkhorn",
    "SubspacePowerMethod": "_spm_estimator",
    "SymmetricCPInfo": "_spm.solve",
    "clustering_accuracy": "_mlc.metrics",
    "coding_bits": "_mlc.rates",
    "coding_rate": "_mlc.rates",
    "image_shifts": "_mlc.views",
    "flattening_values": "_spm_estimator",
    "lran_loss": "_lran.loss",
    "numerical_rank": "_mlc.metrics",
    "rate_reduction": "_mlc.rates",
    "spectral_labels": "_mlc.spectral",
    "subspace_affinity": "_mlc.metrics",
    "symmetric_btd": "_symmetric_btd",
    "symmetric_cp": "_symmetric_cp",
    "tcr_loss": "_mlc.loss",
}

__all__ = [
    "DMD",
    "EDMD",
    "GODS",
    "GPCA",
    "LRAN",
    "MLC",
    "BalancedReduction",
    "BlockTermInfo",
    "KernelDMD",
    "LRANModule",
    "MLCLoss",
    "MultiKernelRegressor",
    "SinkhornProjection",
    "SubspacePowerMethod",
    "SymmetricCPInfo",
    "clustering_accuracy",
    "coding_bits",
    "coding_rate",
    "flattening_values",
    "image_shifts",
    "lran_loss",
    "numerical_rank",
    "rate_reduction",
    "spectral_labels",
    "subspace_affinity",
    "symmetric_btd",
    "symmetric_cp",
    "tcr_loss",
]

__getattr__, __dir__ = lazy_attributes(
    "spanwise.estimators",
    {name: f"spanwise.estimators.{home}" for name, home in _HOMES.items()},
)

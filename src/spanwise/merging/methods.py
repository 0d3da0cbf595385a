"""The methods by name."""

from spanwise.merging._methods._method import Method
from spanwise.merging._methods.averages import Linear, TaskArithmetic
from spanwise.merging._methods.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from spanwise.merging._methods.dare import DareLinear, DareTies
from spanwise.merging._methods.della import Della, DellaLinear
from spanwise.merging._methods.fisher import Fisher
from spanwise.merging._methods.isotropic import IsoC, IsoCTS
from spanwise.merging._methods.knots import Knots
from spanwise.merging._methods.mats import Mats
from spanwise.merging._methods.model_stock import ModelStock
from spanwise.merging._methods.regmean import RegMean
from spanwise.merging._methods.slerp import NuSlerp, Slerp
from spanwise.merging._methods.ties import Ties
from spanwise.merging._methods.tsv import TSV

METHODS: dict[str, type[Method]] = {
    "iso_c": IsoC,
    "iso_cts": IsoCTS,
    "tsv": TSV,
    "knots": Knots,
    "linear": Linear,
    "task_arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare": DareLinear,
    "dare_linear": DareLinear,
    "dare_ties": DareTies,
    "della": Della,
    "della_linear": DellaLinear,
    "breadcrumbs": Breadcrumbs,
    "breadcrumbs_ties": BreadcrumbsTies,
    "slerp": Slerp,
    "nuslerp": NuSlerp,
    "model_stock": ModelStock,
    "fisher": Fisher,
    "regmean": RegMean,
    "mats": Mats,
}
"""Name -> class; each class's docstring is its help."""

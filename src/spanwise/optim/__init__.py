"""Optimizers that work in a subspace of the gradient, and the guard that any optimizer obeys."""

from spanwise.optim._constraints import project_lora_
from spanwise.optim._groups import ParamGroups, param_groups
from spanwise.optim._guard import Guard, guard
from spanwise.optim._options import CommonOptions
from spanwise.optim._plan import plan_state_bytes
from spanwise.optim._report import OptimizerReport, ReportRow, state_bytes
from spanwise.optim._zoo import METHODS, OURS, build_optimizer
from spanwise.optim.galore import GaLore
from spanwise.optim.grasswalk import GrassJump, GrassWalk

__all__ = [
    "METHODS",
    "OURS",
    "CommonOptions",
    "GaLore",
    "GrassJump",
    "GrassWalk",
    "Guard",
    "OptimizerReport",
    "ParamGroups",
    "ReportRow",
    "build_optimizer",
    "guard",
    "param_groups",
    "plan_state_bytes",
    "project_lora_",
    "state_bytes",
]

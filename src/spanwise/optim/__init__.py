"""Optimizers that work in a subspace of the gradient, and the guard that any optimizer obeys."""

from spanwise.optim._engine.groups import ParamGroups, param_groups
from spanwise.optim._engine.options import CommonOptions
from spanwise.optim._guard.constraints import project_lora_
from spanwise.optim._guard.guard import Guard, guard
from spanwise.optim._plan import plan_state_bytes
from spanwise.optim._report import OptimizerReport, ReportRow, state_bytes
from spanwise.optim._zoo import METHODS, OURS, build_optimizer
from spanwise.optim.galore import GaLore
from spanwise.optim.grass import Grass
from spanwise.optim.grass_linear import GrassLinears, clip_grad_norm_, grass_linear_
from spanwise.optim.grasswalk import GrassJump, GrassWalk
from spanwise.optim.osd import OnlineSubspaceDescent
from spanwise.optim.snsm import SNSM, AdamSN, AdamSNSM

__all__ = [
    "METHODS",
    "OURS",
    "SNSM",
    "AdamSN",
    "AdamSNSM",
    "CommonOptions",
    "GaLore",
    "Grass",
    "GrassJump",
    "GrassLinears",
    "GrassWalk",
    "Guard",
    "OnlineSubspaceDescent",
    "OptimizerReport",
    "ParamGroups",
    "ReportRow",
    "build_optimizer",
    "clip_grad_norm_",
    "grass_linear_",
    "guard",
    "param_groups",
    "plan_state_bytes",
    "project_lora_",
    "state_bytes",
]

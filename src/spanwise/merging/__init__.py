"""Merging: several fine-tunes of one model become one model."""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
    from spanwise.merging._collect import collect_stats as collect_stats
    from spanwise.merging._collect_file import StatsPlan as StatsPlan
    from spanwise.merging._collect_file import collect_stats_to_file as collect_stats_to_file
    from spanwise.merging._collect_file import plan_stats as plan_stats
    from spanwise.merging._diagnose import diagnose as diagnose
    from spanwise.merging._diagnosis import Diagnosis as Diagnosis
    from spanwise.merging._export.checks import Checked as Checked
    from spanwise.merging._export.checks import check_model as check_model
    from spanwise.merging._export.lora import LoraPlan as LoraPlan
    from spanwise.merging._export.lora import export_lora as export_lora
    from spanwise.merging._export.lora import plan_lora as plan_lora
    from spanwise.merging._export.merged import export_merged as export_merged
    from spanwise.merging._export.write import WrittenLora as WrittenLora
    from spanwise.merging._folder import Written as Written
    from spanwise.merging._merge import merge as merge
    from spanwise.merging._merged import Merged as Merged
    from spanwise.merging._methods._method import Method as Method
    from spanwise.merging._plan import MergePlan as MergePlan
    from spanwise.merging._plan import merge_config as merge_config
    from spanwise.merging._plan import merge_folders as merge_folders
    from spanwise.merging._plan import plan_config as plan_config
    from spanwise.merging._plan import plan_folders as plan_folders
    from spanwise.merging._stats import Stats as Stats
    from spanwise.merging._subspaces import Subspaces as Subspaces
    from spanwise.merging.config import MergeConfig as MergeConfig
    from spanwise.merging.methods import METHODS as METHODS

_HOMES = {
    "Checked": "_export.checks",
    "Diagnosis": "_diagnosis",
    "LoraPlan": "_export.lora",
    "METHODS": "methods",
    "MergeConfig": "config",
    "MergePlan": "_plan",
    "Merged": "_merged",
    "Method": "_methods._method",
    "Stats": "_stats",
    "StatsPlan": "_collect_file",
    "Subspaces": "_subspaces",
    "Written": "_folder",
    "WrittenLora": "_export.write",
    "check_model": "_export.checks",
    "collect_stats": "_collect",
    "collect_stats_to_file": "_collect_file",
    "diagnose": "_diagnose",
    "export_lora": "_export.lora",
    "export_merged": "_export.merged",
    "merge": "_merge",
    "merge_config": "_plan",
    "merge_folders": "_plan",
    "plan_config": "_plan",
    "plan_folders": "_plan",
    "plan_lora": "_export.lora",
    "plan_stats": "_collect_file",
}

__all__ = [
    "METHODS",
    "Checked",
    "Diagnosis",
    "LoraPlan",
    "MergeConfig",
    "MergePlan",
    "Merged",
    "Method",
    "Stats",
    "StatsPlan",
    "Subspaces",
    "Written",
    "WrittenLora",
    "check_model",
    "collect_stats",
    "collect_stats_to_file",
    "diagnose",
    "export_lora",
    "export_merged",
    "merge",
    "merge_config",
    "merge_folders",
    "plan_config",
    "plan_folders",
    "plan_lora",
    "plan_stats",
]

# The options alone must not load torch: `spanwise merge --help` needs nothing else.
__getattr__, __dir__ = lazy_attributes(
    __name__,
    {name: f"{__name__}.{module}" for name, module in _HOMES.items()},
    rooms=frozenset({"config", "methods"}),
)

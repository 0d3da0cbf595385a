"""Merging: several fine-tunes of one model become one model."""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
    from spanwise.merging._collect import collect_stats as collect_stats
    from spanwise.merging._diagnose import diagnose as diagnose
    from spanwise.merging._diagnosis import Diagnosis as Diagnosis
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
    from spanwise.merging.config import MergeConfig as MergeConfig
    from spanwise.merging.methods import METHODS as METHODS

_HOMES = {
    "Diagnosis": "_diagnosis",
    "METHODS": "methods",
    "MergeConfig": "config",
    "MergePlan": "_plan",
    "Merged": "_merged",
    "Method": "_methods._method",
    "Stats": "_stats",
    "Written": "_folder",
    "collect_stats": "_collect",
    "diagnose": "_diagnose",
    "merge": "_merge",
    "merge_config": "_plan",
    "merge_folders": "_plan",
    "plan_config": "_plan",
    "plan_folders": "_plan",
}

__all__ = [
    "METHODS",
    "Diagnosis",
    "MergeConfig",
    "MergePlan",
    "Merged",
    "Method",
    "Stats",
    "Written",
    "collect_stats",
    "diagnose",
    "merge",
    "merge_config",
    "merge_folders",
    "plan_config",
    "plan_folders",
]

# The options alone must not load torch: `spanwise merge --help` needs nothing else.
__getattr__, __dir__ = lazy_attributes(
    __name__,
    {name: f"{__name__}.{module}" for name, module in _HOMES.items()},
    rooms=frozenset({"config", "methods"}),
)

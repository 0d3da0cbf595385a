"""`spanwise train`: a transformers.Trainer around our optimizers.

from spanwise.training import TrainConfig, train

result = train(TrainConfig.flat("llama-1m", data="python-docs", out="runs/first", rank=16))
"""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
    from spanwise.training.config import TrainConfig
    from spanwise.training.planning import MemoryPlan, plan
    from spanwise.training.result import TrainResult
    from spanwise.training.run import TrainingInterrupted, train

__all__ = ["MemoryPlan", "TrainConfig", "TrainResult", "TrainingInterrupted", "plan", "train"]

# The options alone must not load transformers: `spanwise train --help` needs nothing else.
__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "MemoryPlan": "spanwise.training.planning",
        "TrainConfig": "spanwise.training.config",
        "TrainResult": "spanwise.training.result",
        "TrainingInterrupted": "spanwise.training.run",
        "plan": "spanwise.training.planning",
        "train": "spanwise.training.run",
    },
)

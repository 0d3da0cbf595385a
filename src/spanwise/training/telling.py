"""What a run says about itself before it starts."""

import torch
from torch.optim import Optimizer
from transformers import TrainingArguments

from spanwise.optim import OURS
from spanwise.training.config import TrainConfig
from spanwise.training.inputs import Texts, peak_rate
from spanwise.training.memory import available
from spanwise.training.planning import MemoryPlan, MemoryRow
from spanwise.training.reporting import Reporter, short, size
from spanwise.zoo import is_pretrained


def tell_inputs(
    config: TrainConfig, texts: Texts, arguments: TrainingArguments, report: Reporter
) -> None:
    """The model, the texts, and how far the steps go."""
    origin = "pretrained" if is_pretrained(config.model) else f"fresh weights, seed {config.seed}"
    report.say(f"model   {config.model} ({origin}), {config.precision} on {arguments.device}")
    learned, held = texts.learned, texts.looked_at["held_out"]
    data = texts.data["data"]
    report.say(
        f"learn   {data.name}: {len(data)} document{'s' * (len(data) != 1)}, {len(learned)} "
        f"sequences of {config.texts.sequence} tokens; {len(held)} held out for evaluation"
    )
    for name, blocks in texts.looked_at.items():
        if name != "held_out":
            report.say(f"watch   {name} = {texts.data[name].name}: {len(blocks)} sequences")
    schedule, processes = config.schedule, arguments.world_size
    together = schedule.batch * schedule.accumulate * processes
    tokens = schedule.steps * together * config.texts.sequence
    several = f" on {processes} processes" if processes > 1 else ""
    report.say(
        f"steps   {schedule.steps} of {together} sequences{several}: {short(tokens)} tokens, "
        f"{schedule.steps * together / len(learned):.2g} passes over the text; peak rate "
        f"{peak_rate(config):g}"
    )


def tell_memory(row: MemoryRow, device: torch.device, report: Reporter) -> None:
    """The predicted peak, and whether there is room for it."""
    free = available(device)
    room = "" if free is None else f"; {size(free)} free"
    atlas = f", atlas {size(row.atlas)}" if row.atlas else ""
    report.say(
        f"memory  predicted peak {size(row.peak)} (weights {size(row.weights)}, gradients "
        f"{size(row.gradients)}, states {size(row.states)}, activations "
        f"{size(row.activations)}{atlas}){room}"
    )
    if free is not None and row.peak > free:
        report.say("        that is more than is free: lower --batch, --sequence or --rank.")


def tell_optimizer(config: TrainConfig, optimizer: Optimizer | None, report: Reporter) -> None:
    """What is projected, guarded and left plain."""
    if optimizer is None:
        return
    if isinstance(optimizer, tuple(OURS.values())):
        report.say(f"{optimizer.report()}")
        return
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    guard = getattr(optimizer, "spanwise_guard", None)
    guarded = len(guard.names) if guard is not None else 0
    report.say(f"{config.optimizer.method}: {count} tensors, {guarded} guarded")


def plan_rows(plan: MemoryPlan, free: int | None) -> tuple[list[str], list[list[str]]]:
    """Headers and one row for each method: bytes by kind, the peak, and whether it fits."""
    atlas = any(row.atlas for row in plan.rows)
    columns = ["method", "weights", "gradients", "states", "activations"]
    columns += [*(["atlas"] if atlas else []), "peak"]
    columns += [] if free is None else [f"fits in {size(free)}"]
    columns.append("loss and time")
    rows = [
        [
            row.method,
            size(row.weights),
            size(row.gradients),
            size(row.states),
            size(row.activations),
            *([size(row.atlas)] if atlas else []),
            size(row.peak),
            *([] if free is None else ["yes" if row.peak < free else "no"]),
            row.page,
        ]
        for row in plan.rows
    ]
    return columns, rows

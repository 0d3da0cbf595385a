"""One training run, from checked inputs to a saved model."""

import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments, default_data_collator
from typing_extensions import override

from spanwise.io.runs import RunFolder
from spanwise.optim import state_bytes
from spanwise.training.callbacks import Progress, StopOnSignal
from spanwise.training.checkpoints import clear_staging
from spanwise.training.config import TrainConfig
from spanwise.training.finish import finish
from spanwise.training.inputs import (
    Atlases,
    Texts,
    check_atlases,
    check_shape,
    check_sharding_asked,
    open_model,
    open_optimizer,
    peak_rate,
)
from spanwise.training.memory import PeakMemory
from spanwise.training.planning import plan
from spanwise.training.reporting import Reporter, Silent
from spanwise.training.result import TrainResult
from spanwise.training.resume import Start, resume_line
from spanwise.training.telling import tell_inputs, tell_memory, tell_optimizer
from spanwise.training.trainer import (
    RunTrainer,
    is_sharded,
    stream_for,
    training_arguments,
)
from spanwise.zoo import quiet_transformers, source_folder


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the run after its state was saved.

    Attributes:
        resume: The command that continues it.
        signal: The number of the signal.
    """

    def __init__(self, resume: str, signal: int) -> None:
        super().__init__(resume)
        self.resume = resume
        self.signal = signal


def train(config: TrainConfig, report: Reporter | None = None) -> TrainResult:
    """Train a causal language model as `config` says.

    Everything is read and checked before the run's folder is made. The global random generators
    of torch, numpy and Python are seeded, as the Trainer does.

    Args:
        config: The options; `config.plan` is ignored here, see `plan`.
        report: Who hears about progress; nobody by default.

    Returns:
        Losses before and after, memory predicted and measured, and where the model is.

    Raises:
        ValueError: If an option, a text, an atlas or a folder does not fit.
        FileNotFoundError: If a text or an atlas is missing.
        OSError: If a checkpoint or the model cannot be written.
        TrainingInterrupted: After Ctrl-C or SIGTERM, when the state is saved.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    report = report if report is not None and first else Silent()
    sharding_asked = check_sharding_asked()
    start = Start.find(config, first=first)
    for note in start.notes:
        report.say(note)
    check_shape(config)
    check_atlases(config)
    texts = Texts.open(config)
    start.check_texts(texts.digests)
    predicted = plan(config)
    arguments = _arguments(config, start)
    tell_inputs(config, texts, arguments, report)
    tell_memory(predicted[config.optimizer.method], arguments.device, report)

    memory = PeakMemory(arguments.device)
    model = open_model(config)
    atlases = Atlases.open(config, model)
    model.to(arguments.device)  # pyrefly: ignore
    # Built before the folder exists, so that a rank or an atlas that does not fit leaves nothing
    # behind; only sharding needs the wrapped model first.
    prepared = None if sharding_asked else open_optimizer(config, model, atlases)

    with ExitStack() as stack:
        run = _open_run(config, start, texts, arguments, first=first)
        if first:
            stack.enter_context(run)
        stop = stack.enter_context(StopOnSignal().listening())
        progress = Progress(
            run,
            report,
            tokens=_tokens_in_a_step(config, arguments),
            state_bytes=lambda: state_bytes(_bare(trainer.optimizer)),
            outside=_outside(model, atlases),
            # Processes keep different time, but must log together.
            patience=10.0 if config.record.log_every is None and _alone(arguments) else math.inf,
            baseline=start.baseline,
            latest=start.latest,
        )
        callbacks: list[TrainerCallback] = [stop, progress]
        if sharding_asked:
            callbacks.append(_MustBeSharded())
        trainer = RunTrainer(
            model=model,
            args=arguments,
            train_dataset=stream_for(config, texts.learned, arguments.world_size),
            eval_dataset=texts.looked_at["held_out"],
            data_collator=default_data_collator,
            callbacks=callbacks,
            make_optimizer=lambda m: prepared or open_optimizer(config, m, atlases),
            texts=texts.looked_at,
            save_tokenizer=texts.tokenizer.save_pretrained,
            keep=config.record.keep,
        )
        progress.trainer = trainer
        tell_optimizer(config, prepared, report)
        memory.restart()
        checkpoint = str(start.checkpoint) if start.checkpoint else None
        try:
            with quiet_transformers():
                trainer.train(resume_from_checkpoint=checkpoint)
        except KeyboardInterrupt:
            raise TrainingInterrupted(resume_line(config), stop.number) from None
        measured = memory.read()
        if stop.asked and trainer.state.global_step < config.schedule.steps:
            raise TrainingInterrupted(resume_line(config), stop.number)
        return finish(
            config,
            run,
            trainer,
            model,
            texts,
            atlases,
            progress,
            report,
            predicted=predicted[config.optimizer.method].peak,
            measured=measured,
        )


def _arguments(config: TrainConfig, start: Start) -> TrainingArguments:
    assert config.out is not None  # TrainConfig has checked
    return training_arguments(
        config,
        config.out,
        rate=peak_rate(config),
        first_evaluation=start.checkpoint is None,
    )


def _open_run(
    config: TrainConfig, start: Start, texts: Texts, arguments: TrainingArguments, *, first: bool
) -> RunFolder:
    assert config.out is not None
    run = RunFolder(config.out, resume=config.resume or not first)
    if not first:
        return run
    clear_staging(run.path)
    if start.checkpoint is not None:
        run.event({"event": "resume", "step": start.step})
        return run
    if config.resume:
        run.event({"event": "resume", "step": 0})
    run.write_config(config)
    options = config.optimizer
    inputs: dict[str, str | Path] = {
        name: path
        for name in ("avoid", "within", "measure")
        if (path := getattr(options, name)) is not None
    }
    if (folder := source_folder(config.model)) is not None:
        inputs["model"] = folder
    run.write_manifest(
        inputs=inputs,
        texts={
            name: {"source": data.name, "sha256": data.digest, "documents": len(data)}
            for name, data in texts.data.items()
        },
        seed=config.seed,
        device=str(arguments.device),
        processes=arguments.world_size,
    )
    return run


def _tokens_in_a_step(config: TrainConfig, arguments: TrainingArguments) -> int:
    schedule = config.schedule
    sequences = schedule.batch * schedule.accumulate * arguments.world_size
    return sequences * config.texts.sequence


def _outside(model: PreTrainedModel, atlases: Atlases) -> Any:
    if atlases.shown is None:
        return None

    def outside() -> float | None:
        share = atlases.share(model)
        # The first step of a warm-up moves nothing: 0 of 0 lies nowhere.
        return share.outside if share is not None and share.inside + share.outside else None

    return outside


def _alone(arguments: TrainingArguments) -> bool:
    return arguments.world_size == 1


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


class _MustBeSharded(TrainerCallback):
    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not is_sharded(kwargs["model"]):
            raise ValueError(
                "FSDP was asked for, but no parameter is sharded: every process would hold the "
                "whole model. Check accelerate's configuration, or unset ACCELERATE_USE_FSDP."
            )

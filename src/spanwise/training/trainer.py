"""transformers' Trainer with whole-or-absent checkpoints and exact evaluations."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from typing_extensions import override

from spanwise.training.checkpoints import publish, rotate, staging_folder
from spanwise.training.config import TrainConfig
from spanwise.training.data import Blocks, Stream
from spanwise.training.evaluation import loss_on
from spanwise.zoo import quiet_transformers

MakeOptimizer = Callable[[Any], Optimizer]


class RunTrainer(Trainer):
    """The Trainer of `spanwise train`.

    It differs from its parent in five places: the optimizer is ours, evaluation weighs every
    token alike and takes several texts, the loss of every single step is kept, a checkpoint is
    whole or absent, and none of it is resumed without its mark.

    Args:
        make_optimizer: Called with the model once it lies on its device.
        texts: Name to sequences of every text to evaluate.
        save_tokenizer: Writes the tokenizer into a folder.
        keep: Complete checkpoints to keep.
        **parent: Arguments of `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        make_optimizer: MakeOptimizer,
        texts: Mapping[str, Blocks],
        save_tokenizer: Callable[[Path], None],
        keep: int,
        **parent: Any,
    ) -> None:
        with quiet_transformers():
            super().__init__(**parent)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self._make_optimizer = make_optimizer
        self.texts = dict(texts)
        self._save_tokenizer = save_tokenizer
        self._keep = keep
        self._staging: Path | None = None
        self.step_loss: Tensor | None = None
        """Sum over the passes of the step in progress; the progress callback collects it."""

    @override
    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Our optimizer on the model, with the parameters' names."""
        if self.optimizer is None:
            self.optimizer = self._make_optimizer(self.model if model is None else model)
        return self.optimizer

    @override
    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass."""
        loss = super().training_step(model, *args, **kwargs)
        self.step_loss = loss if self.step_loss is None else self.step_loss + loss
        return loss

    def losses(self) -> dict[str, float]:
        """The loss on every text as the model stands, in nats per token."""
        assert self.model is not None
        batch, autocast = self.args.per_device_eval_batch_size, bool(self.args.bf16)
        return {
            name: loss_on(self.model, blocks, batch=batch, autocast=autocast)
            for name, blocks in self.texts.items()
        }

    @override
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """`losses` under the Trainer's names, told to the callbacks."""
        metrics = {f"eval_{name}_loss": loss for name, loss in self.losses().items()}
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    @override
    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run, step = Path(str(self.args.output_dir)), self.state.global_step
        # The parent writes wherever `_get_output_dir` says: into the staging folder.
        self._staging = staging_folder(run, step)
        try:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
                self._staging.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                written = self._staging / f"checkpoint-{step}"
                # Pickled arguments: nothing reads them, and they need full trust to open.
                (written / TRAINING_ARGS_NAME).unlink(missing_ok=True)
                self._save_tokenizer(written)
                publish(written, run, step)
        except Exception as error:
            # torch and safetensors report a full disk each in their own way.
            detail = " ".join(str(error).split())
            raise OSError(
                f"the checkpoint of step {step} could not be written to {run}: {detail} (a full "
                "disk, or a limit on file sizes?). Nothing half-written counts; earlier "
                "checkpoints are as they were."
            ) from error
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        if self.args.should_save:
            rotate(run, self._keep)


def training_arguments(
    config: TrainConfig, run: Path, *, rate: float, first_evaluation: bool
) -> TrainingArguments:
    """What the Trainer needs to know, from our options.

    Args:
        config: The run's options.
        run: Where checkpoints go.
        rate: Peak learning rate.
        first_evaluation: Whether to evaluate before the first step.
    """
    schedule = config.schedule
    shapes = {"cosine": "cosine_with_min_lr", "constant": "constant_with_warmup"}
    cosine = schedule.schedule == "cosine"
    with quiet_transformers():
        arguments = TrainingArguments(
            output_dir=str(run),
            max_steps=schedule.steps,
            per_device_train_batch_size=schedule.batch,
            per_device_eval_batch_size=schedule.batch,
            gradient_accumulation_steps=schedule.accumulate,
            learning_rate=rate,
            max_grad_norm=config.optimizer.clip,
            lr_scheduler_type=shapes.get(schedule.schedule, schedule.schedule),
            lr_scheduler_kwargs={"min_lr_rate": schedule.floor} if cosine else {},
            warmup_steps=int(schedule.steps * schedule.warmup),
            logging_steps=config.log_every,
            # A loss that is not finite must be seen, not replaced by an average.
            logging_nan_inf_filter=False,
            eval_strategy="steps",
            eval_steps=config.eval_every,
            eval_on_start=first_evaluation,
            save_strategy="steps",
            save_steps=config.save_every,
            seed=config.seed,
            bf16=config.precision == "mixed",
            use_cpu=config.device == "cpu",
            train_sampling_strategy="sequential",  # the stream is shuffled already
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            disable_tqdm=True,
            report_to=[],
            dataloader_pin_memory=torch.cuda.is_available() and config.device != "cpu",
        )
    if arguments.n_gpu > 1:
        # Several GPUs in one process would mean nn.DataParallel; torchrun is the way to use all.
        arguments._n_gpu = 1
    return arguments


def stream_for(config: TrainConfig, blocks: Blocks, processes: int) -> Stream:
    """Every sequence that all processes read in the whole run, in order."""
    schedule = config.schedule
    length = schedule.steps * schedule.batch * schedule.accumulate * processes
    return Stream(blocks, length, config.seed)


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter of `model` is split over processes."""
    from torch.distributed.tensor import DTensor

    flat = any("FlatParameter" in type(p).__name__ for p in model.parameters())
    return flat or any(isinstance(p, DTensor) for p in model.parameters())

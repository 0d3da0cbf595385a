"""The end of a run: the written model, its proof, the sweep over alpha, the figures."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spanwise import plots
from spanwise.io import atomic_folder, write_json
from spanwise.io.configs import to_plain
from spanwise.io.runs import RunFolder
from spanwise.training import alpha as alphas
from spanwise.training.callbacks import Progress
from spanwise.training.config import TrainConfig
from spanwise.training.figures import alpha_figure, loss_figure
from spanwise.training.inputs import Atlases, Texts, open_model
from spanwise.training.reporting import Reporter, percent, short, size
from spanwise.training.result import TrainResult, history, loss_rows
from spanwise.training.trainer import RunTrainer
from spanwise.zoo import quiet_transformers


def finish(
    config: TrainConfig,
    run: RunFolder,
    trainer: RunTrainer,
    model: PreTrainedModel,
    texts: Texts,
    atlases: Atlases,
    progress: Progress,
    report: Reporter,
    *,
    predicted: int,
    measured: int,
) -> TrainResult:
    """Save the model, sweep alpha if asked, draw the figures and tell the outcome.

    Raises:
        OSError: If a file cannot be written; the checkpoints remain.
    """
    first = trainer.is_world_process_zero()
    after = progress.latest if progress.latest_step == config.schedule.steps else trainer.losses()
    points: list[alphas.AlphaPoint] = []
    fraction = config.record.alpha
    if fraction is not None:
        # Read again rather than kept: a copy of the start would cost the whole run its memory.
        start = alphas.weights(open_model(config))
        chosen = alphas.ALPHAS if fraction == "sweep" else (0.0, float(fraction), 1.0)
        points = alphas.sweep(model, start, trainer.losses, sorted(set(chosen)))
        if fraction != "sweep":
            alphas.keep_fraction(model, start, alphas.weights(model), float(fraction))
        del start
    folder = run.path / "model"
    if first:
        save_model(model, texts.tokenizer, folder)
    share = atlases.share(folder if first else model)
    result = TrainResult(
        out=run.path,
        method=config.optimizer.method,
        steps=trainer.state.global_step,
        before=progress.baseline,
        after=after,
        tokens_per_second=progress.tokens_per_second,
        state_bytes=progress.state_bytes(),
        predicted_bytes=predicted,
        measured_bytes=measured,
        inside=share.inside if share is not None else None,
        outside=share.outside if share is not None else None,
        alpha=float(fraction) if isinstance(fraction, float) else 1.0,
        alphas=points,
    )
    if first:
        write_json(run.path / "result.json", to_plain(result))
    _tell(result, report)
    if first:
        _draw(run, points, report)
    return result


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer as one transformers folder, whole or not at all.

    Raises:
        OSError: If it cannot be written; an earlier folder of that name then stays.
    """
    try:
        with atomic_folder(folder, overwrite=True) as staging, quiet_transformers():
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
    except Exception as error:  # a full disk reaches us as each library's own kind
        detail = " ".join(str(error).split())
        raise OSError(
            f"the model could not be written to {folder}: {detail}. The checkpoints are whole; "
            "free some space and run again with --resume."
        ) from error


def _draw(run: RunFolder, points: list[alphas.AlphaPoint], report: Reporter) -> None:
    try:
        plots.save(loss_figure(history(run)), run.path / "loss")
        if points:
            plots.save(alpha_figure(points), run.path / "alpha")
    except ModuleNotFoundError as error:
        # The figures are a comfort; the run and its numbers do not depend on them.
        report.say(f"no figures: {error}")
        return
    names = ["loss", *(["alpha"] if points else [])]
    report.say(f"figures {', '.join(str(run.path / f'{name}.svg') for name in names)}")


def _tell(result: TrainResult, report: Reporter) -> None:
    report.say()
    report.table(["text", "before", "after", "change"], loss_rows(result))
    if result.alphas:
        report.say()
        names = list(result.alphas[0].losses)
        report.table(["alpha", *names], alphas.rows(result.alphas))
    report.say()
    if result.tokens_per_second:  # a finished run that is only swept trains nothing
        report.say(f"speed   {short(result.tokens_per_second)} tokens/s")
        report.say(
            f"memory  predicted {size(result.predicted_bytes)}, measured "
            f"{size(result.measured_bytes)}; optimizer state {size(result.state_bytes)}"
        )
    if result.outside is not None:
        report.say(
            f"atlas   {percent(result.outside)} of the update lies outside, {result.inside:.1e} "
            "inside (read from the written file)"
        )
    report.say(f"saved   {result.model}")

"""The demo, screen by screen."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spanwise.datasets import ByteTokenizer
from spanwise.demo import page, screens
from spanwise.demo.options import DemoOptions
from spanwise.demo.screens import Screen, Shown
from spanwise.io import check_place
from spanwise.report import Result, format_value
from spanwise.reproductions import demo as experiment
from spanwise.reproductions._experiment import Run
from spanwise.reproductions._keeping import Losses, Taught, Watch, at_level
from spanwise.reproductions._lesson import Lesson, Settings, Texts, losses_of, new_model
from spanwise.reproductions.demo import ARMS, OURS
from spanwise.training import MemoryPlan, TrainConfig, alpha, plan

PROMPT = "    def __init__(self, name):\n        self.name = name\n\n    def "
"""The start of an old text."""
CONTINUED = 84
"""Bytes of a continuation."""
TEMPERATURE = 0.4
"""Of a continuation; the likeliest byte alone would soon repeat itself."""
SEVEN_BILLION = TrainConfig.flat(
    "llama-7b", plan=True, rank=1024, batch=1, sequence=2048, precision="bfloat16"
)
"""The 7B model of the GaLore papers, at their rank."""
SHORTER = {"pretrain_steps": 250, "held_out": 32}
"""Where a showing differs from the committed experiment, so that it ends within three minutes."""
SHRUNK = ("adamw", OURS)
"""Arms that the table also shows with a fraction of their update."""
TURN = """\
spanwise atlas extract MODEL --data old.txt --out know.atlas.safetensors
spanwise train MODEL --data new.txt --watch old=old.txt \\
    --avoid know.atlas.safetensors --alpha sweep --out runs/new"""


def show(options: DemoOptions, report: Screen, *, lively: bool = False) -> Result:
    """Run the demo and tell it to `report`.

    Args:
        options: What was asked for.
        report: Where the screens go.
        lively: Whether a line may be rewritten many times a second.

    Returns:
        This run as a result of one seed.
    """
    torch.set_flush_denormal(True)
    # More threads than this only get in each other's way at such sizes.
    torch.set_num_threads(min(torch.get_num_threads(), 4))
    start = time.perf_counter()
    check_place(options.out)
    settings = settings_of(options)
    report.say(told_settings(options))
    texts = Texts.load(settings)
    for role, text in (("knows ", texts.old), ("learns", texts.new)):
        length = format_value(len(text.train) + len(text.held_out), "B")
        report.say(f"{role}  {text.name}, {length} that Python ships; sha256 {text.digest[:16]}…")

    report.say(screens.heading(1, "What training takes"))
    report.live("tracing one step of either model, on tensors that have a size but no memory")
    plans = memory_plans(settings)
    report.table(*screens.plan_table(plans))

    report.say(screens.heading(2, "A small model that knows Python, and what it needs for it"))
    line = LiveLine(report, lively=lively)
    lesson = Lesson.prepare(
        settings,
        options.seed,
        line.watch("old text", settings.pretrain_steps),
        fresh=options.fresh,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    lesson.atlas.save(options.out / "old.atlas.safetensors")
    tell_lesson(lesson, report)

    report.say(screens.heading(3, f"The new text, five trainings of {settings.steps} steps"))
    rows, shown = teach_all(lesson, options.out, line)
    report.table(*screens.arms_table(shown))
    report.say("Nats per byte on held-out text; the share is measured on the written files.")

    report.say(
        screens.heading(4, f"One old prompt, continued with the same random numbers:\n\n{PROMPT}…")
    )
    base = continue_text(new_model(settings, lesson.file), PROMPT, CONTINUED)
    continued = [["before the lesson", screens.one_line(base)]]
    continued += [[row.label, screens.one_line(row.continuation)] for row in shown]
    report.table(["", "continuation"], continued, left=["continuation"])

    report.say(screens.heading(5, f"Forgotten, where each arm has learned {settings.level:g} nats"))
    values = {ARMS[row["arm"]]: row["forgot_at_level"] for row in rows}
    for bar in screens.bars(values):
        report.say(bar)
    report.say("Each by the better of stopping early and keeping a fraction of its update.")

    said = screens.verdict(values, ARMS[OURS], settings.level)
    result = one_seed_result(options, settings, texts, rows, start)
    written = page.write(
        options.out, result, shown, plans, prompt=PROMPT, said=said,
        settings_told=told_settings(options), turn=TURN,
    )  # fmt: skip
    report.say(f"\n{said}")
    report.say("That was one seed. Judged on three fresh ones by: spanwise reproduce demo")
    report.say(f"\npage       {written}\npicture    {options.out / 'demo.svg'}")
    report.say(f"\nYour turn, with your own model and texts:\n\n{TURN}")
    return result


def settings_of(options: DemoOptions) -> Settings:
    """The committed experiment's settings for this text, a shorter version, or a few steps."""
    presets = experiment.presets(options.new)
    if options.quick:
        return presets["quick"]
    return presets["default"] if options.full else replace(presets["default"], **SHORTER)


def told_settings(options: DemoOptions) -> str:
    """How this showing relates to the committed experiment."""
    if options.quick:
        return "A few steps, to see the screens: the numbers mean nothing."
    if options.full:
        return "One seed of the committed experiment, at its own settings."
    whole = experiment.presets(options.new)["default"]
    return (
        f"One seed of a shorter version of the committed experiment: {SHORTER['pretrain_steps']} "
        f"steps of pre-training, not {whole.pretrain_steps}, and {SHORTER['held_out']} held-out "
        f"sequences, not {whole.held_out}. All of it: --full."
    )


def memory_plans(settings: Settings) -> dict[str, MemoryPlan]:
    """What a step takes, for this model and for a 7B."""
    here = TrainConfig.flat(
        settings.model, plan=True, layers=settings.layers, rank=settings.rank,
        batch=settings.batch, sequence=settings.length,
    )  # fmt: skip
    found = {}
    for label, config in (("this one", here), ("LLaMA-7B, bfloat16", SEVEN_BILLION)):
        found[label] = plan(config)
    return found


def tell_lesson(lesson: Lesson, report: Screen) -> None:
    """What the model can do, and how much of its input spaces the old text uses."""
    ranks = [entry.subspace.rank / entry.subspace.dim for entry in lesson.atlas]
    report.say(
        f"held-out loss: old text {lesson.base.old:.3f}, new text {lesson.base.new:.3f} nats per "
        "byte"
    )
    report.say(
        f"atlas: {100 * lesson.settings.energy:g} % of the old activations' energy lies in "
        f"{100 * min(ranks):.0f} to {100 * max(ranks):.0f} % of the input directions of "
        f"{len(lesson.atlas)} matrices"
    )


def teach_all(
    lesson: Lesson, out: Path, line: "LiveLine"
) -> tuple[list[dict[str, Any]], list[Shown]]:
    """Every arm, one after the other: rows of a result, and rows of the table."""
    rows: list[dict[str, Any]] = []
    shown: list[Shown] = []
    for number, arm in enumerate(ARMS, start=1):
        label = f"{number}/{len(ARMS)} {ARMS[arm]}"
        rate = experiment.RATES[lesson.settings.new][arm]
        model, taught = lesson.teach(arm, rate, line.watch(label, lesson.settings.steps, lesson))
        share = lesson.inside(model, out / f"{arm}.safetensors")
        row = {"arm": arm, "rate": rate, "seed": lesson.seed, "inside": 100 * share}
        rows.append({**row, **at_level(taught.row(), lesson.settings.level)})
        losses = Losses(lesson.base.new - taught.learned, lesson.base.old + taught.forgot)
        shown.append(_shown(ARMS[arm], lesson, model, taught, losses, share))
        if arm in SHRUNK:
            shown.append(keep_a_fraction(lesson, arm, model, taught, out))
    return rows, shown


def keep_a_fraction(lesson: Lesson, arm: str, model: nn.Module, taught: Taught, out: Path) -> Shown:
    """The arm with the fraction of its update that learns as much as the level says."""
    fraction = taught.shrink.at_level(lesson.settings.level)
    fraction = 1.0 if fraction is None else fraction
    start = alpha.weights(new_model(lesson.settings, lesson.file))
    alpha.keep_fraction(model, start, alpha.weights(model), fraction)
    losses = losses_of(model, lesson.settings, lesson.texts)
    share = lesson.inside(model, out / f"{arm}-alpha.safetensors")
    return _shown(f"  with alpha = {fraction:.2f}", lesson, model, taught, losses, share)


def _shown(
    label: str, lesson: Lesson, model: nn.Module, taught: Taught, losses: Losses, share: float
) -> Shown:
    return Shown(
        label=label,
        learned=lesson.base.new - losses.new,
        forgot=losses.old - lesson.base.old,
        inside=share,
        state_bytes=taught.state_bytes,
        step_ms=taught.step_ms,
        continuation=continue_text(model, PROMPT, CONTINUED),
    )


@torch.no_grad()
def continue_text(model: nn.Module, prompt: str, count: int) -> str:
    """Draw `count` bytes; every model meets the same random numbers, so that only they differ."""
    tokenizer, generator = ByteTokenizer(), torch.Generator().manual_seed(0)
    ids = torch.tensor([tokenizer.encode(prompt)])
    model.eval()
    for _ in range(count):
        logits = model(input_ids=ids).logits[:, -1]
        below = torch.softmax(logits / TEMPERATURE, dim=-1).cumsum(dim=-1)
        threshold = torch.rand(1, 1, generator=generator) * below[:, -1:]
        following = (below < threshold).sum(dim=-1, keepdim=True)
        ids = torch.cat([ids, following], dim=1)
    model.train()
    return tokenizer.decode(ids[0, -count:].tolist())


class LiveLine:
    """Tells how a training goes: ten times a second to a terminal, else when losses are known."""

    def __init__(self, report: Screen, *, lively: bool) -> None:
        self.report = report
        self.lively = lively

    def watch(self, label: str, steps: int, lesson: Lesson | None = None) -> Watch:
        """A callback for one training; with a lesson it tells what was learned and forgotten."""
        known, last = "", 0.0
        describe: Callable[[Losses], str] = lambda losses: f"loss {losses.old:.3f}"  # noqa: E731
        if lesson is not None:
            base = lesson.base

            def describe(losses: Losses) -> str:
                learned, forgot = base.new - losses.new, losses.old - base.old
                return f"learned {learned:+.3f}  forgot {forgot:+.3f}"

        def tell(step: int, losses: Losses | None) -> None:
            nonlocal known, last
            if losses is not None:
                known = describe(losses)
            now = time.perf_counter()
            if losses is not None or (self.lively and now - last > 0.1):
                last = now
                self.report.live(f"{label}: step {step}/{steps}  {known}")

        return tell


def one_seed_result(
    options: DemoOptions,
    settings: Settings,
    texts: Texts,
    rows: list[Mapping[str, Any]] | list[dict[str, Any]],
    begun: float,
) -> Result:
    """This run in the form of the committed one; one seed gives no verdict."""
    return experiment.result_of(
        Run(
            settings=settings,
            preset="one seed" if options.full else "one seed, shorter",
            begun=begun,
        ),
        texts,
        tuple(rows),
        slug="demo",
    )

"""Folders that `spanwise train` wrote, as cards of the gallery."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanwise.io.configs import read_yaml
from spanwise.report._blocks import Block, Bullets, Figure, Grid, Section, Table, Text, format_value
from spanwise.report._result import differences, group_equal


@dataclass(frozen=True, kw_only=True)
class Training:
    """A finished training run."""

    path: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    outcome: Mapping[str, Any]
    """The run's own `result.json`: losses `before` and `after` by text, speed, bytes."""

    @classmethod
    def read(cls, folder: Path) -> "Training | None":
        """The run in a folder; None if there is none, or it has not finished."""
        try:
            outcome, manifest = (
                json.loads((folder / name).read_text(encoding="utf-8"))
                for name in ("result.json", "manifest.json")
            )
            config = read_yaml(folder / "config.yaml")
        except (OSError, ValueError):
            return None
        if not isinstance(outcome, dict) or not {"method", "before", "after"} <= outcome.keys():
            return None
        return cls(path=folder, config=config, manifest=manifest, outcome=outcome)

    @property
    def inputs(self) -> dict[str, Any]:
        """What must be equal before two runs may be compared: all but optimizer and seed."""
        texts = self.manifest.get("texts", {})
        model = self.manifest.get("inputs", {}).get("model", {})
        return {
            **{f"text {name}": str(text.get("sha256"))[:12] for name, text in texts.items()},
            "model": model.get("sha256") or self.config.get("model"),
            "layers": self.config.get("layers"),
            "precision": self.config.get("precision"),
            **{f"texts.{k}": v for k, v in self.config.get("texts", {}).items()},
            **{f"schedule.{k}": v for k, v in self.config.get("schedule", {}).items()},
            "eval_sequences": self.config.get("record", {}).get("eval_sequences"),
        }

    def unequal_inputs(self, other: "Training") -> list[str]:
        """Why two runs may not be compared; empty if they may."""
        found = differences(self.inputs, other.inputs).items()
        return [f"{key} differs ({a}, {b})" for key, (a, b) in found]


def find_trainings(folder: Path) -> list[Training]:
    """Every finished run under a folder, by path."""
    files = sorted(folder.rglob("result.json"))
    return [run for file in files if (run := Training.read(file.parent)) is not None]


def training_cards(runs: Sequence[Training], folder: Path) -> list[Section]:
    """One card for each set of runs with equal inputs, and why the sets stay apart."""
    groups = group_equal(runs)
    cards = [_card(group, folder, index) for index, group in enumerate(groups)]
    if len(groups) > 1:
        first = groups[0][0]
        reasons = [
            f"`{_name(first, folder)}` and `{_name(group[0], folder)}`: "
            f"{'; '.join(first.unequal_inputs(group[0]))}."
            for group in groups[1:]
        ]
        text = "Not compared, because their inputs are not equal:"
        cards.append(Section("Training runs that stay apart", [Text(text), Bullets(reasons)]))
    return cards


def _card(runs: Sequence[Training], folder: Path, index: int) -> Section:
    first = runs[0]
    texts = list(first.outcome["after"])
    columns = ["run", "method", *(f"{_text(name)}: change" for name in texts)]
    columns += ["state", "tokens/s", *(["outside the atlas"] if _any(runs, "outside") else [])]
    rows = []
    for run in runs:
        outcome = run.outcome
        change = [f"{outcome['after'][n] - outcome['before'][n]:+.3f}" for n in texts]
        row = [_name(run, folder), outcome["method"], *change]
        row += [format_value(outcome.get("state_bytes"), "B")]
        row += [f"{outcome.get('tokens_per_second') or 0:,.0f}"]
        if _any(runs, "outside"):
            share = outcome.get("outside")
            row.append("—" if share is None else f"{100 * share:.2f} %")
        rows.append(row)
    blocks: list[Block] = [
        Table(columns, rows, words=(0, 1), caption="Change of the loss in nats per token."),
    ]
    if len(runs) > 1:
        blocks.append(
            Text("One seed a run: another seed may move a loss by as much as another method.")
        )
    pictures = [(run, run.path / "loss.svg") for run in runs]
    figures = [
        Figure.from_file(picture, alt=f"Loss of {_name(run, folder)}", caption=_name(run, folder))
        for run, picture in pictures
        if picture.exists()
    ]
    if figures:
        blocks.append(Grid(figures))
    steps = first.outcome.get("steps")
    title = (
        "Training runs, side by side" if len(runs) > 1 else f"Training run {_name(first, folder)}"
    )
    return Section(
        title,
        blocks,
        anchor=f"training-{index + 1}",
        eyebrow=f"`{first.config.get('model')}` · {steps} steps",
    )


def _any(runs: Sequence[Training], key: str) -> bool:
    return any(run.outcome.get(key) is not None for run in runs)


def _text(name: str) -> str:
    return "held out" if name == "held_out" else name


def _name(run: Training, folder: Path) -> str:
    return run.path.relative_to(folder).as_posix()

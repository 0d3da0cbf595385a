"""The demo's page: the pictures, the table, the prompt, and what to run next."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from spanwise.demo.screens import Shown, arms_table, one_line, plan_table
from spanwise.report import (
    Code,
    Details,
    Facts,
    Grid,
    Heading,
    Result,
    Section,
    Table,
    Text,
    draw_panels,
    save_panels,
    write_page,
)
from spanwise.reproductions import demo as experiment
from spanwise.training.planning import MemoryPlan


def write(
    folder: Path,
    result: Result,
    rows: Sequence[Shown],
    plans: Mapping[str, MemoryPlan],
    *,
    prompt: str,
    said: str,
    settings_told: str,
    turn: str,
) -> Path:
    """Write `demo.json`, `demo.svg` and `demo.html` into `folder`; returns the page.

    Args:
        folder: Where.
        result: This run, one seed.
        rows: The table.
        plans: Model's name -> what its training takes.
        prompt: The start of an old text.
        said: The verdict on this run.
        settings_told: How this run relates to the committed experiment.
        turn: Commands for the reader's own model.
    """
    result.save(folder / "demo.json")
    save_panels(experiment.PANELS, result, folder / "demo.svg")
    columns, cells = arms_table(rows)
    plan_columns, plan_cells = plan_table(plans)
    blocks = [
        Section(
            "What it cost to learn the new text",
            [
                Text(said, lead=True),
                Grid(draw_panels(experiment.PANELS, result)),
                Table(
                    columns,
                    cells,
                    caption="Held-out losses in nats per byte. The share outside the atlas is "
                    "measured on the written safetensors files. Rows with an alpha keep that "
                    "fraction of the update above them.",
                ),
            ],
            eyebrow=f"{result.data['name']} · {result.preset}",
        ),
        Section(
            "The same old prompt, continued by each",
            [
                Code(prompt),
                Table(
                    ["", "continuation, drawn with the same random numbers"],
                    [[row.label, f"`{_quiet(row.continuation)}`"] for row in rows],
                    words=(0, 1),
                ),
            ],
        ),
        Section(
            "What training takes",
            [
                Table(plan_columns, plan_cells, words=(0, 1)),
                Text("Predicted by `spanwise train MODEL --plan`, before anything runs."),
            ],
        ),
        Section(
            "Your turn",
            [
                Code(turn),
                Text(settings_told),
                Text(
                    "One seed shows; three judge. The criterion that was fixed beforehand, its "
                    "run on three fresh seeds and the verdict: `spanwise reproduce demo`."
                ),
                Heading("Settings and data of this run"),
                Details("Settings", [Facts(result.settings)]),
                Details("Data", [Facts(result.data)]),
                Details("Machine", [Facts(result.environment)]),
            ],
        ),
    ]
    return write_page(folder / "demo.html", experiment.TITLE, blocks)


def _quiet(text: str) -> str:
    """A continuation as one line of code; a backtick would end it."""
    return one_line(text, 90).replace("`", "'") or " "

"""One page for a folder of results, which compares only what may be compared."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from spanwise.report._article import article, duration
from spanwise.report._blocks import (
    Block,
    Bullets,
    Figure,
    Index,
    Section,
    Table,
    Text,
    format_value,
)
from spanwise.report._page import write_page
from spanwise.report._result import FORMAT, Result, compare, group_equal
from spanwise.report._trainings import find_trainings, training_cards

Draw = Callable[[Result, Path], Sequence[Figure]]


def build_gallery(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    figures: Draw | None = None,
    title: str | None = None,
) -> Path:
    """Write one self-contained page about every result and training run under a folder.

    Runs of the same experiment are put side by side only if data and settings are equal;
    otherwise the page says what differs.

    Args:
        folder: Searched at any depth for result files, `*.json`, and for folders of
            `spanwise train`.
        out: The page; by default `index.html` in the folder.
        figures: Draws a result's figures; gets the result and its file. By default the .svg or
            .png of the same name beside the file.
        title: Headline; by default a question that the results answer.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it holds no result, or a damaged one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(2, "No such folder of results", str(folder))
    found, trainings = find_results(folder), find_trainings(folder)
    if not found and not trainings:
        raise ValueError(
            f"{folder} holds no results. Make one: spanwise reproduce galore2 --out {folder}"
        )
    draw = figures or saved_figure
    groups: dict[str, list[tuple[Path, Result]]] = defaultdict(list)
    for path, result in found:
        groups[result.slug].append((path, result))
    cards: list[Block] = []
    links = []
    for slug, members in groups.items():
        if len(members) > 1:
            cards.append(side_by_side([r for _, r in members], [p for p, _ in members], folder))
        for index, (path, result) in enumerate(members):
            anchor = slug if index == 0 else f"{slug}-{index + 1}"
            cards.append(article(result, draw(result, path), anchor=anchor))
            where = f"Another run: `{_name(path, folder)}`."
            links.append(
                (anchor, result.title, result.verdict.outcome, where if index else result.claim)
            )
    cards += training_cards(trainings, folder)
    lead = (
        "Each experiment fixed in advance what had to be true, tuned every arm alike, and was "
        "judged on seeds that had tuned nothing."
    )
    blocks: list[Block] = [Text(lead, lead=True)] if found else []
    if len(found) > 1:
        blocks.append(Index(links))
    count = len(found) + len(trainings)
    footer = (
        f"{count} result{'s' * (count != 1)}. Made by `spanwise report`; the JSON files beside "
        "this page hold every number."
    )
    title = title or ("Does it reproduce?" if found else "Training runs")
    return write_page(out or folder / "index.html", title, [*blocks, *cards], footer=footer)


def find_results(folder: Path) -> list[tuple[Path, Result]]:
    """Every result file under a folder, sorted by experiment and path.

    Raises:
        ValueError: If a file says that it is a result but is damaged.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        # The format is a result's first key; other files, some of them large, stay unread.
        with path.open("rb") as file:
            if f'"format": "{FORMAT}"'.encode() in file.read(100):
                found.append((path, Result.load(path)))
    order = {"default": 0, "full": 1, "quick": 2}
    return sorted(found, key=lambda f: (f[1].slug, order.get(f[1].preset, 3), str(f[0])))


def saved_figure(result: Result, path: Path) -> list[Figure]:
    """The figure that lies beside a result's file, if any."""
    for suffix in (".svg", ".png"):
        picture = path.with_suffix(suffix)
        if picture.exists():
            return [Figure.from_file(picture, alt=f"Figure of {result.title}")]
    return []


def side_by_side(results: Sequence[Result], paths: Sequence[Path], folder: Path) -> Section:
    """A card that compares runs of one experiment, and says which it refuses to compare."""
    slug = results[0].slug
    names = {id(r): _name(path, folder) for r, path in zip(results, paths, strict=True)}
    groups = group_equal(results)
    blocks: list[Block] = []
    for group in groups:
        if len(group) > 1:
            blocks += _comparison(group, [names[id(result)] for result in group])
    if len(groups) > 1:
        first = groups[0][0]
        reasons = [
            f"`{names[id(first)]}` and `{names[id(group[0])]}`: "
            f"{'; '.join(first.unequal_inputs(group[0]))}."
            for group in groups[1:]
        ]
        blocks += [Text("Not compared, because their inputs are not equal:"), Bullets(reasons)]
    return Section(f"{len(results)} runs of {slug}", blocks)


def _comparison(results: Sequence[Result], names: Sequence[str]) -> list[Block]:
    """Runs with equal inputs, one column each."""
    _, metric = next(iter(results[0].metrics.items()))
    unit = f" in {metric.unit}" if metric.unit not in ("", "B") else ""
    rows = [
        [results[0].arms[arm], *(_fixed(v, metric.unit) for v in values)]
        for arm, values in compare(results).items()
    ]
    times = ["wall time", *(duration(r.wall_seconds) for r in results)]
    return [
        Text(f"Same data and settings; mean {metric.label}{unit} on the fresh seeds."),
        Table(["arm", *names], [*rows, times]),
    ]


def _fixed(value: float | None, unit: str) -> str:
    """A number whose column lines up: four digits, zeros at the end included."""
    return format_value(value, unit) if value is None or unit == "B" else f"{value:#.4g}"


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()

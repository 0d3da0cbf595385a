"""The demo's experiment: learn a new text without losing the old one, small enough to watch."""

import functools
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spanwise.atlas import Atlas
from spanwise.datasets import cache_folder
from spanwise.io import open_tensors, save_tensors
from spanwise.optim import GaLore
from spanwise.report import Metric, Panel, Progress, Result, Verdict, provenance, run_cells
from spanwise.reproductions._byte_texts import ByteText, byte_text
from spanwise.reproductions._keeping import (
    Losses,
    Taught,
    Watch,
    anywhere,
    evenly,
    mean_loss,
    teach,
)
from spanwise.reproductions._keeping_figures import draw_equal_learning, draw_frontier
from spanwise.reproductions._keeping_verdict import judge, tune_and_run
from spanwise.zoo import load_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Learning something new without losing the old"
CLAIM = (
    "Keeping updates out of the directions that old text's activations use costs less of the "
    "old, at equal learning, than a lower rate, stopping early, shrinking the update or "
    "avoiding random directions."
)
CRITERION = """\
A byte-level LLaMA knows Python source. Every arm then teaches it the same new text on the same
batches; only the linear maps inside the layers move. Each arm's rate is the one of a common grid
that forgets least at the level of learning named in the settings, on the tuning seed. An arm's
forgetting at that level is the least rise of the old held-out loss on two curves where the new
held-out loss has fallen by exactly the level: along its training (early stop) and along
W_s + alpha (W_t - W_s) (keeping a fraction). The controls are AdamW at its rate and at a third of
it, GaLore, and GaLore that avoids a random atlas of equal rank. The best control is chosen
with hindsight, on each fresh seed anew. On at least three fresh seeds (start, batches and
sketches), GaLore that avoids the activations' atlas of the old text
(1) forgets less than the best control: their difference is below 0;
(2) forgets less than half as much: log2(avoiding / best control) is below -1, where less than
    0.001 nats counts as 0.001;
(3) leaves less than 1e-9 of its squared update inside the atlas, read back from the file.
Reproduced: all three, with the whole 95 % paired intervals of (1) and (2).
Direction only: all three by the means, but an interval reaches past its bound.
Not reproduced: otherwise.
"""

ARMS = {
    "adamw": "AdamW",
    "adamw_low": "AdamW, a third of the rate",
    "galore": "GaLore",
    "galore_random": "GaLore avoiding a random atlas",
    "galore_avoid": "GaLore avoiding the old text",
}
OURS = "galore_avoid"
CONTROLS = [arm for arm in ARMS if arm != OURS]
METRICS = {
    "forgot_at_level": Metric(label="forgot at equal learning", unit="nats/byte", better="lower"),
    "learned": Metric(label="learned in the end", unit="nats/byte", better="higher"),
    "forgot": Metric(label="forgot in the end", unit="nats/byte", better="lower"),
    "inside": Metric(label="update inside the atlas", unit="%", better="lower"),
    "state_bytes": Metric(label="optimizer state", unit="B", better="lower"),
    "step_ms": Metric(label="time of a step", unit="ms", better="lower"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The experiment; the defaults are the committed run."""

    old: str = "python-stdlib"
    """What the model knows."""
    new: str = "unicode-names"
    """What it learns: unicode-names is far from the old text, python-docs is near."""
    model: str = "llama-1m"
    """Its shape."""
    layers: int = 4
    """How many of the shape's layers."""
    length: int = 128
    """Bytes in a sequence."""
    batch: int = 16
    """Sequences in a step."""
    pretrain_steps: int = 400
    """Steps on the old text."""
    pretrain_rate: float = 3e-3
    """Their peak rate (AdamW; linear warm-up and decay)."""
    steps: int = 60
    """Steps on the new text, at a constant rate."""
    every: int = 10
    """Steps between two evaluations."""
    held_out: int = 64
    """Held-out sequences of either text in an evaluation."""
    energy: float = 0.98
    """Share of the old activations' mean square that the atlas keeps."""
    atlas_sequences: int = 192
    """Old sequences, from its training part, that the atlas is made of."""
    rank: int = 32
    """GaLore's rank, a quarter of the width."""
    refresh_every: int = 20
    """Steps between two of GaLore's bases."""
    level: float = 0.8
    """Nats per byte of learning at which arms are compared."""
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """Grid of rates, common to all arms."""
    extensions: int = 2
    """How many rates an arm's grid may grow by while its best lies on the edge."""
    tuning_seeds: tuple[int, ...] = (0,)
    """Seeds that choose the rates."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds that judge."""

    @property
    def checkpoints(self) -> list[int]:
        """Steps at which to evaluate; one early, where learning is fastest."""
        early = [self.every // 2] if self.every > 1 else []
        return [*early, *range(self.every, self.steps, self.every), self.steps]


_QUICK = {
    "pretrain_steps": 12, "steps": 6, "every": 3, "batch": 4, "length": 64, "held_out": 4,
    "atlas_sequences": 8, "layers": 1, "level": 0.05, "rates": (1e-3, 1e-2), "extensions": 0,
    "seeds": (100,),
}  # fmt: skip
PRESETS = {
    "quick": Settings(**_QUICK),
    "default": Settings(),
    "full": Settings(pretrain_steps=2000, seeds=(100, 101, 102, 103, 104)),
}


@dataclass(frozen=True)
class Texts:
    """What the model knows and what it learns."""

    old: ByteText
    new: ByteText

    @classmethod
    def load(cls, settings: Settings) -> "Texts":
        """Both texts of an experiment."""
        return cls(byte_text(settings.old), byte_text(settings.new))

    @property
    def digest(self) -> str:
        """Of both together."""
        return hashlib.sha256(f"{self.old.digest} {self.new.digest}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a result records about them."""
        return {
            "name": f"{self.old.name}, then {self.new.name}",
            "digest": self.digest,
            **{f"old_{key}": value for key, value in self.old.describe().items()},
            **{f"new_{key}": value for key, value in self.new.describe().items()},
        }


@dataclass(frozen=True)
class Lesson:
    """A model that knows the old text, the atlas of what it needs for it, and what to learn."""

    settings: Settings
    texts: Texts
    seed: int
    file: Path
    """The model's weights, safetensors."""
    base: Losses
    atlas: Atlas

    @classmethod
    def prepare(
        cls, settings: Settings, seed: int, watch: Watch | None = None, *, fresh: bool = False
    ) -> "Lesson":
        """Pre-train the model, or take it from the cache, and extract the atlas.

        Args:
            settings: The experiment.
            seed: Start, batches and sketches.
            watch: Told how the pre-training goes; never called if the model was cached.
            fresh: Pre-train even so.
        """
        texts = Texts.load(settings)
        file = base_file(settings, texts, seed)
        if fresh or not file.is_file():
            pretrain(settings, texts, seed, file, watch)
        model = new_model(settings, file)
        generator = torch.Generator().manual_seed(seed)
        known = anywhere(texts.old.train, settings.atlas_sequences, settings.length, generator)
        atlas = Atlas.from_activations(model, known.split(16), energy=settings.energy)
        base = losses_of(model, settings, texts)
        return cls(settings, texts, seed, file, base, atlas)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """The same new text for every arm."""
        settings, generator = self.settings, torch.Generator().manual_seed(self.seed)
        while True:
            ids = anywhere(self.texts.new.train, settings.batch, settings.length, generator)
            yield {"input_ids": ids, "labels": ids}

    def optimizer(self, arm: str, rate: float, model: nn.Module) -> Optimizer:
        """The optimizer of an arm."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if arm.startswith("adamw"):
            return torch.optim.AdamW(named, lr=rate, weight_decay=0.0, fused=True)
        avoid = {"galore_avoid": self.atlas, "galore_random": self.atlas.random_like(self.seed)}
        settings = self.settings
        return GaLore(
            [{"params": named, "rank": settings.rank, "refresh_every": settings.refresh_every}],
            lr=rate,
            seed=self.seed,
            avoid=avoid.get(arm),
        )

    def teach(self, arm: str, rate: float, watch: Watch | None = None) -> tuple[nn.Module, Taught]:
        """Run one arm from the base; returns the model with its whole update, and the curves."""
        model = new_model(self.settings, self.file)
        taught = teach(
            model,
            functools.partial(self.optimizer, arm, rate),
            self.batches(),
            functools.partial(losses_of, model, self.settings, self.texts),
            base=self.base,
            checkpoints=self.settings.checkpoints,
            watch=watch,
        )
        return model, taught

    def inside(self, model: nn.Module, file: Path) -> float:
        """Write the model, read it back, and give the share of its update inside the atlas."""
        save_tensors(file, model.state_dict())
        return self.atlas.update_share(self.file, file).inside


def new_model(settings: Settings, file: Path | None = None, seed: int = 0) -> nn.Module:
    """The model in training mode, fresh or with the weights in `file`."""
    model = load_model(settings.model, layers=settings.layers, seed=seed).model.train()
    if file is not None:
        model.load_state_dict(dict(open_tensors(file)))
    return model


def losses_of(model: nn.Module, settings: Settings, texts: Texts) -> Losses:
    """Held-out losses, on sequences that never change."""
    new, old = (
        mean_loss(model, evenly(text.held_out, settings.held_out, settings.length), batch=32)
        for text in (texts.new, texts.old)
    )
    return Losses(new, old)


def base_file(settings: Settings, texts: Texts, seed: int) -> Path:
    """Where the cache keeps a pre-trained model; the name tells what made it."""
    chosen = ("model", "layers", "length", "batch", "pretrain_steps", "pretrain_rate")
    made_by = {name: getattr(settings, name) for name in chosen}
    key = json.dumps([made_by, texts.old.digest, seed, torch.__version__])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache_folder() / "demo" / f"base-{digest}.safetensors"


def pretrain(
    settings: Settings, texts: Texts, seed: int, file: Path, watch: Watch | None = None
) -> None:
    """Teach a fresh model the old text and write it to `file`."""
    model = new_model(settings, seed=seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.pretrain_rate,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        fused=True,
    )
    steps = settings.pretrain_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 30, (steps - step) / (0.6 * steps))
    )
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        ids = anywhere(texts.old.train, settings.batch, settings.length, generator)
        model(input_ids=ids, labels=ids).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if watch:
            measure = step % 50 == 0 or step == steps
            watch(step, losses_of(model, settings, texts) if measure else None)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(file, model.state_dict())


def prepare_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Pre-train one seed's model, in its own process."""
    Lesson.prepare(Settings(**cell["settings"]), cell["seed"])
    return {}


def cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """One arm at one rate on one seed, in its own process."""
    torch.set_flush_denormal(True)
    settings = Settings(**cell["settings"])
    lesson = Lesson.prepare(settings, cell["seed"])
    if lesson.texts.digest != cell["data"]:
        raise ValueError(f"the texts have changed: {lesson.texts.digest}, not {cell['data']}.")
    model, taught = lesson.teach(cell["arm"], cell["rate"])
    with tempfile.TemporaryDirectory() as folder:
        inside = lesson.inside(model, Path(folder) / "tuned.safetensors")
    return {**taught.row(settings.level), "inside": 100 * inside}


def run(
    settings: Settings | None = None,
    *,
    preset: str = "default",
    workers: int | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    slug: str = "demo",
    title: str = TITLE,
) -> Result:
    """Choose each arm's rate, judge on fresh seeds, and say what follows.

    Args:
        settings: The experiment; by default that of `preset`.
        preset: The name that the result carries.
        workers: Processes at once; by default one for each core.
        cache: Folder of finished cells.
        progress: Told how far it is.
        slug: Name of the result.
        title: Headline of the result.
    """
    start = time.perf_counter()
    settings = settings or PRESETS[preset]
    texts = Texts.load(settings)
    own = {
        f.name: getattr(settings, f.name)
        for f in fields(Settings)
        if f.name not in ("rates", "extensions", "tuning_seeds", "seeds")
    }
    seeds = [*settings.tuning_seeds, *settings.seeds]
    run_cells(prepare_cell, [{"settings": own, "seed": s} for s in seeds], workers)
    tuning, rows = tune_and_run(
        cell,
        list(ARMS),
        settings,
        {"settings": own, "data": texts.digest},
        derived={"adamw_low": ("adamw", 1 / 3)},
        workers=workers,
        cache=cache,
        progress=progress,
    )
    return Result(
        slug=slug,
        title=title,
        claim=CLAIM,
        criterion=CRITERION,
        preset=preset,
        settings=asdict(settings),
        data=texts.describe(),
        metrics=METRICS,
        arms=ARMS,
        rows=rows,
        sweep=tuning.rows,
        chosen=tuning.best,
        verdict=Verdict.of(
            judge(rows, OURS, CONTROLS),
            fresh_seeds=settings.seeds,
            tuning_seeds=settings.tuning_seeds,
            untuned=[ARMS[arm] for arm in tuning.untuned],
        ),
        notes=notes(settings),
        wall_seconds=time.perf_counter() - start,
        peak_bytes=max(r["peak_bytes"] or 0 for r in [*tuning.rows, *rows]) or None,
        **provenance(__file__, CRITERION),
    )


def notes(settings: Settings) -> tuple[str, ...]:
    """What the numbers alone do not say."""
    seeds = " and ".join(map(str, settings.tuning_seeds))
    return (
        f"Energy {settings.energy:g} of the atlas, GaLore's rank and the length of the lesson were "
        f"chosen by hand on seeds 0 and 1; rates by the sweep on seed {seeds}.",
        "Embeddings, norms and the head stay frozen in every arm.",
        "Early stop and alpha are curves of every arm, ours included; each arm counts with the "
        "better of the two.",
    )


PANELS = (
    Panel(
        draw_frontier,
        alt="Learned against forgotten: the arm that avoids the old text's activations learns "
        "as much as the others and forgets far less.",
        caption="Solid: keeping a fraction of the update. Dotted: stopping early. Grey: plain "
        "fine-tuning with AdamW. Up and to the left is better.",
    ),
    Panel(
        draw_equal_learning,
        alt="What each arm forgets at equal learning.",
        caption="The better of stopping early and keeping a fraction, for every arm. Dots are "
        "seeds.",
    ),
)


def figure(result: Result, axes: Sequence["Axes"]) -> None:
    """Draw both panels on two axes of your own."""
    for ax, panel in zip(axes, PANELS, strict=True):
        panel.draw(ax, result)

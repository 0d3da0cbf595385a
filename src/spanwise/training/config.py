"""The options of a training run: one typed dataclass, which is also the command line."""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from spanwise.io.configs import named_values

# Flags keep their short names while `--help` groups them as the dataclasses do.
_Flat = tyro.conf.OmitArgPrefixes

FRESH_RATES = {
    "galore": 1e-2, "grass": 1e-2, "grasswalk": 1e-2, "grassjump": 1e-2, "osd": 1e-2,
    "snsm": 1e-2, "adamsn": 1e-2, "adamw": 1e-3, "muon": 1e-3, "sgd": 1e-1,
}  # fmt: skip
"""Learning rates for fresh weights when none is given; pretrained weights get a tenth."""
RIVALS = ("adamw", "muon", "sgd")
"""Methods that are not this library's: no rank, no options of their own."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """What is read, and how it is cut."""

    data: tuple[str, ...] = ()
    """Text to learn: files, folders, globs, python-stdlib, python-docs, or a hub's owner/name.
    Formats: plain text, .jsonl (text | prompt,completion | messages), .csv, .npz, all also .gz."""
    watch: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=PATH of another text, evaluated but never learned, to see what is forgotten."""
    text: str | None = None
    """Column or key that holds the text in --data."""
    label: str | None = None
    """Column or key with the answer: the text is read, only the answer is learned."""
    held_out: float = 0.05
    """Share of --data kept away from training to measure what was learned, in (0, 0.5]."""
    tokenizer: str | None = None
    """`bytes`, a folder or a model's name; by default the model's own (presets read bytes)."""
    sequence: int = 256
    """Tokens in a sequence; documents are packed end to end, an end-of-text token between."""

    def __post_init__(self) -> None:
        _check(0 < self.held_out <= 0.5, "held_out", self.held_out, "in (0, 0.5]")
        _check(self.sequence >= 2, "sequence", self.sequence, "at least 2")
        seen: set[str] = set()
        for entry in self.watch:
            name, sign, path = entry.partition("=")
            if not sign or not name.strip() or not path.strip():
                raise ValueError(f"watch must read NAME=PATH, such as old=old.txt; got {entry!r}.")
            if name in seen or name == "held_out":
                raise ValueError(f"watch: the name {name!r} is taken; give each text its own.")
            seen.add(name)

    @property
    def watched(self) -> dict[str, str]:
        """Name to source of every watched text."""
        return dict(entry.split("=", 1) for entry in self.watch)


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the weights move, and where they must not."""

    method: str = "galore"
    """Moments in a subspace of each gradient: galore, grass, grasswalk, grassjump, osd, snsm;
    one second moment per row or column: adamsn; or a rival: adamw, muon, sgd."""
    rank: int | None = None
    """Dimension of each gradient's subspace; by default a quarter of the width."""
    lr: float | None = None
    """Peak learning rate. Worth a sweep: it matters more than the method.
    By default 1e-2, or 1e-3 (adamw, muon), 1e-1 (sgd); a tenth for pretrained weights."""
    plain_lr: float | None = None
    """Peak rate of embeddings, norms and head, which subspace methods leave to AdamW; lr by
    default."""
    weight_decay: float = 0.0
    """Decoupled decay."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 turns clipping off."""
    avoid: Path | None = None
    """Atlas of directions that no update may enter (`spanwise atlas extract` makes one)."""
    within: Path | None = None
    """Atlas of directions that updates must stay in."""
    measure: Path | None = None
    """Atlas to measure against without obeying it: the share of the update outside is shown."""
    bias: Literal["freeze", "allow"] = "freeze"
    """What happens to the bias of a map whose input directions are avoided."""
    refresh_every: int | None = None
    """Steps between two bases (200)."""
    scale: float | None = None
    """Factor of the lifted update (0.25; snsm and adamsn 1)."""
    side: str | None = None
    """The side that carries the basis: short (the default), long, left, right, full, local."""
    svd: str | None = None
    """How singular vectors are found: randomized (the default), exact, gram, warm."""
    moments: str | None = None
    """What a new basis does to the moments: keep, rotate, project_aware, reset, keep_common."""
    stagger: bool = False
    """Spread the refreshes over the interval, so that no single step pays for all."""
    option: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE of any other option of the method, such as walk_angle=0.5 or select=uniform_nr
    (`python -c "help(spanwise.optim.GrassWalk)"` lists them)."""

    def __post_init__(self) -> None:
        if self.method not in FRESH_RATES:
            near = difflib.get_close_matches(self.method, FRESH_RATES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            methods = ", ".join(FRESH_RATES)
            raise ValueError(f"method must be one of {methods}; got {self.method!r}.{hint}")
        _check(self.rank is None or self.rank >= 1, "rank", self.rank, "at least 1")
        for name in ("lr", "plain_lr", "scale"):
            value = getattr(self, name)
            _check(value is None or 0 < value < math.inf, name, value, "above 0 and finite")
        _check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        _check(self.clip >= 0, "clip", self.clip, "at least 0")
        refresh = self.refresh_every
        _check(refresh is None or refresh >= 1, "refresh_every", refresh, "at least 1")
        given = [*self.own_options, *(["plain_lr"] if self.plain_lr else [])]
        if self.method in RIVALS and given:
            raise ValueError(
                f"{given[0]} is an option of subspace methods; method {self.method} has none."
            )

    @property
    def own_options(self) -> dict[str, Any]:
        """What was set of the method's own options; the others keep its defaults."""
        names = ("refresh_every", "scale", "side", "svd", "moments")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.stagger:
            chosen["stagger"] = True
        for name, found in named_values(self.option, "walk_angle=0.5").items():
            if name in chosen:
                entry = next(e for e in self.option if e.partition("=")[0].strip() == name)
                raise ValueError(f"{name} is given twice, the second time by {entry!r}; keep one.")
            chosen[name] = tuple(found) if isinstance(found, list) else found
        return chosen

    def rate(self, *, pretrained: bool) -> float:
        """The peak learning rate, given or by method."""
        return self.lr or FRESH_RATES[self.method] * (0.1 if pretrained else 1.0)


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """How long, and how fast."""

    steps: int = 1000
    """Optimizer steps."""
    batch: int = 16
    """Sequences in a forward pass of one process."""
    accumulate: int = 1
    """Forward passes in a step."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after its linear warm-up."""
    warmup: float = 0.1
    """Share of the steps that warm up."""
    floor: float = 0.1
    """Share of the peak rate at the end of a cosine."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _check(0 <= self.warmup < 1, "warmup", self.warmup, "in [0, 1)")
        _check(0 <= self.floor <= 1, "floor", self.floor, "in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """What is evaluated, shown and saved along the way."""

    log_every: int | None = None
    """Steps between two lines; by default about 25 lines, and one after ten seconds at most."""
    eval_every: int | None = None
    """Steps between two evaluations; ten in all by default. The first comes before training."""
    eval_sequences: int = 64
    """At most so many sequences of each text in an evaluation, evenly spread."""
    save_every: int | None = None
    """Steps between two checkpoints; four in all by default. 0: only at the end."""
    keep: int = 2
    """Complete checkpoints to keep."""
    alpha: float | Literal["sweep"] | None = None
    """Fraction of the update to keep in the saved model, W_s + alpha (W_t - W_s).
    With sweep: evaluate eleven fractions after one training, draw learned against forgotten."""

    def __post_init__(self) -> None:
        for name in ("log_every", "eval_every"):
            value = getattr(self, name)
            _check(value is None or value >= 1, name, value, "at least 1")
        _check(
            self.save_every is None or self.save_every >= 0, "save_every", self.save_every, ">= 0"
        )
        _check(self.eval_sequences >= 1, "eval_sequences", self.eval_sequences, "at least 1")
        _check(self.keep >= 1, "keep", self.keep, "at least 1")
        if isinstance(self.alpha, str):
            _check(self.alpha == "sweep", "alpha", self.alpha, "a number in [0, 1], or sweep")
        elif self.alpha is not None:
            _check(0 <= self.alpha <= 1, "alpha", self.alpha, "in [0, 1], or sweep")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Pre-train or fine-tune a causal language model on your text.

    Teach a pretrained model a new text while it keeps out of what it needs for the old one:

      spanwise atlas extract MODEL --data old.txt --out know.atlas.safetensors
      spanwise train MODEL --data new.txt --watch old=old.txt --avoid know.atlas.safetensors
      --out runs/new

    Pre-train a small one from nothing, on text this interpreter ships:

      spanwise train llama-1m --data python-stdlib --out runs/first

    Ask what a run would need before it runs:

      spanwise train llama-7b --rank 1024 --plan
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A transformers folder, a packaged model (smollm2-135m), or a size with fresh weights:
    llama-1m, llama-3m, llama-10m, llama-60m, llama-130m, llama-350m, llama-1b or llama-7b."""
    texts: Annotated[TextOptions, _Flat] = field(default_factory=TextOptions)
    optimizer: Annotated[OptimizerOptions, _Flat] = field(default_factory=OptimizerOptions)
    schedule: Annotated[ScheduleOptions, _Flat] = field(default_factory=ScheduleOptions)
    record: Annotated[RecordOptions, _Flat] = field(default_factory=RecordOptions)
    out: Path | None = None
    """Folder of the run: model, checkpoints, config.yaml, manifest.json, events.jsonl, plots."""
    resume: bool = False
    """Continue the run in --out exactly where its last complete checkpoint left it."""
    plan: bool = False
    """Predict the peak bytes of every method at this rank, and stop."""
    seed: int = 0
    """Of fresh weights, data order and sketches; the held-out text is the same for all seeds."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; CUDA_VISIBLE_DEVICES picks one GPU of several, torchrun uses them all."""
    precision: Literal["float32", "mixed", "bfloat16"] = "float32"
    """float32; mixed: float32 weights, bfloat16 arithmetic; bfloat16: weights too."""
    layers: int | None = None
    """Keep only the first so many layers of the model."""

    def __post_init__(self) -> None:
        _check(self.seed >= 0, "seed", self.seed, "at least 0")
        if self.plan:
            return
        if not self.texts.data:
            raise ValueError("data is missing: name the text to learn, --data new.txt.")
        if self.out is None:
            raise ValueError("out is missing: name a folder for the run, --out runs/first.")

    @property
    def log_every(self) -> int:
        """Steps between two progress lines."""
        return self.record.log_every or max(1, self.schedule.steps // 25)

    @property
    def eval_every(self) -> int:
        """Steps between two evaluations."""
        return self.record.eval_every or max(1, self.schedule.steps // 10)

    @property
    def save_every(self) -> int:
        """Steps between two checkpoints."""
        chosen = self.record.save_every
        if chosen is None:
            return max(1, self.schedule.steps // 4)
        return chosen or self.schedule.steps

    @classmethod
    def flat(cls, model: str, **options: Any) -> "TrainConfig":
        """A config from flat keywords, as on the command line.

        Raises:
            ValueError: If a keyword is unknown; the message tells the nearest.

        Example:
            >>> config = TrainConfig.flat("llama-1m", data="python-docs", out="runs/x", rank=8)
            >>> config.optimizer.rank
            8
        """
        groups = {
            f.name: get_type_hints(cls)[f.name]
            for f in dataclasses.fields(cls)
            if dataclasses.is_dataclass(get_type_hints(cls)[f.name])
        }
        homes = {f.name: name for name, kind in groups.items() for f in dataclasses.fields(kind)}
        own = {f.name for f in dataclasses.fields(cls)} - groups.keys()
        parts: dict[str, dict[str, Any]] = {name: {} for name in groups}
        top: dict[str, Any] = {"model": str(model)}
        for key, value in options.items():
            if key in homes:
                parts[homes[key]][key] = _tidy(key, value)
            elif key in own:
                top[key] = _tidy(key, value)
            else:
                near = difflib.get_close_matches(key, [*homes, *own], n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(homes)}."
                raise ValueError(f"unknown option {key!r}: {hint}")
        return cls(**top, **{name: groups[name](**values) for name, values in parts.items()})


def _tidy(key: str, value: Any) -> Any:
    """Strings where tuples or paths are expected, as Python callers like to write them."""
    if key == "data" and isinstance(value, (str, Path)):
        return (str(value),)
    if key == "data":
        return tuple(str(source) for source in value)
    if key == "watch":
        pairs = value.items() if isinstance(value, dict) else None
        return tuple(f"{n}={p}" for n, p in pairs) if pairs is not None else tuple(value)
    if key in ("out", "avoid", "within", "measure") and isinstance(value, str):
        return Path(value)
    return value


def _check(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {value!r}.")

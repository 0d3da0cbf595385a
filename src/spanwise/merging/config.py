"""The options of a merge: one typed dataclass, which is also the command line."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from spanwise.io.configs import named_values

RECIPES = (".yml", ".yaml")
"""Endings of mergekit's configurations."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Merge models that were trained from one base, a few tensors in memory at a time.

    Give the base first, then what was trained from it, whole or as LoRA folders:

      spanwise merge llama llama-code llama-math --method iso_c --out merged

    Keep out of what the base needs for an old text while merging:

      spanwise atlas extract llama --data old.txt --out know.atlas.safetensors
      spanwise merge llama llama-code llama-math --avoid know.atlas.safetensors --out merged

    Or bring a mergekit configuration:

      spanwise merge recipe.yml --out merged

    Ask what would be read, written and held, without doing it, with --plan. After Ctrl-C or a kill,
    the same command goes on where it stopped.

    `spanwise merge methods` lists the methods, `spanwise merge diagnose` compares models before any
    is merged, and `spanwise merge stats` collects what regmean, fisher and mats ask for.
    """

    models: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="BASE MODEL [MODEL ...]")
    ] = ()
    """The base, then the models: transformers folders, safetensors files, PEFT LoRA folders or
    packaged names (smollm2-135m); `none` as base for methods that need none. Or a mergekit
    CONFIG.yml alone."""
    out: Path | None = None
    """The folder to create, for `from_pretrained`; it appears when it is whole."""
    method: str | None = None
    """How to merge: iso_c by default; `spanwise merge methods` lists them."""
    alpha: float | None = None
    """Scale of the merged update, base + alpha * update (1.0). Worth a sweep on validation data."""
    alpha_vectors: float | None = None
    """Another scale for everything that is no matrix."""
    weight: tuple[float, ...] = ()
    """The models' weights: one for all, or one each."""
    density: tuple[float, ...] = ()
    """Share of entries that are kept of each update: one for all, or one each."""
    option: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE of any other parameter of the method, such as trim_scope=tensor."""
    stats: tuple[Path, ...] = ()
    """For methods that weigh by data (fisher, regmean, mats): each model's statistics, in order."""
    include: tuple[str, ...] | None = None
    """Merge only tensors whose name contains one of these parts; the others stay the base's."""
    exclude: tuple[str, ...] = ()
    """Tensors that are averaged, not treated as matrices: embed_tokens lm_head is wise for
    spectral methods."""
    avoid: Path | None = None
    """Atlas of directions that must not change (`spanwise atlas extract` makes one)."""
    within: Path | None = None
    """Atlas of the only directions that may change."""
    tokenizer: str | None = None
    """For models with different vocabularies: base, union, or the folder of a tokenizer."""
    plan: bool = False
    """Check everything, tell what would be read, written and held, and stop."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    workers: int = 1
    """Tensors at once, each on one core."""
    memory: float = 2.0**30
    """Bytes that tensors in work may take together."""
    max_shard_bytes: float = 2e9
    """Bytes in one file at most, which is also what a kill costs."""
    work_dtype: Literal["float32", "float64"] = "float32"
    """What is computed in."""
    out_dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    """Dtype of the result; by default each tensor keeps the base's."""
    seed: int = 0
    """For methods that draw at random."""
    device: str = "cpu"
    """Where to compute."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("name the base and the models to merge, or a mergekit CONFIG.yml.")
        for name in ("workers", "memory", "max_shard_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.out is None and not self.plan:
            raise ValueError("out is missing: name the folder of the result, --out merged.")
        if self.recipe is None:
            if len(self.models) < 2:
                raise ValueError(
                    f"{self.models[0]} alone cannot be merged: name the base, then the models."
                )
            _ = self.parameters
            file = next((m for m in self.models if Path(m).suffix in RECIPES), None)
            if file is not None and Path(file).is_file():
                raise ValueError(f"{file} names its models itself: give it alone, with --out.")
            return
        defaults = {f.name: f.default for f in fields(self)}
        for name in _MATHEMATICS:
            if getattr(self, name) != defaults[name]:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is said by {self.recipe}: change it there.")

    @property
    def recipe(self) -> Path | None:
        """The mergekit configuration, if one was given."""
        path = Path(self.models[0])
        alone = len(self.models) == 1
        return path if alone and path.suffix in RECIPES and not path.is_dir() else None

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's own parameters, as `merge` takes them."""
        found = named_values(self.option, "trim_scope=tensor")
        for name in ("weight", "density"):
            values = getattr(self, name)
            if values:
                if name in found:
                    raise ValueError(f"{name} is given twice, by --{name} and --option; keep one.")
                found[name] = values[0] if len(values) == 1 else list(values)
        return found


_MATHEMATICS = (
    "method", "alpha", "alpha_vectors", "weight", "density", "option", "stats", "include",
    "exclude", "tokenizer", "work_dtype", "out_dtype",
)  # fmt: skip
"""What a mergekit configuration says itself."""

"""`spanwise decompose`: the components of a symmetric tensor, or of a moment of a table."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanwise.cli._shared import Terminal, run_verb
from spanwise.cli._tables import (
    TableOptions,
    as_array,
    check,
    naming_flags,
    on_device,
    results,
    tell_files,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from spanwise.estimators import SubspacePowerMethod

FILES = {
    "components.csv": "one line a component: weight, fit, and its entries",
    "cp_tensor.npz": "weights (r,) and factors (m, d, r), as tensorly has them",
    "eigenvalues.csv": "of the flattening, largest magnitude first",
    "scree.svg": "those eigenvalues, for the choice of a rank",
    "model.safetensors": "the fitted model, for SubspacePowerMethod.load",
    "summary.json": "rank, weights, residual, and what was done",
}
FLAGS = {
    "order": "order", "rank": "rank", "noise_variance": "noise-variance", "rank_tol": "rank-tol",
    "component_tol": "component-tol", "n_tries": "tries", "refine": "refine",
    "symmetrize": "symmetrize", "force": "force", "eigenvalues": "scree",
}  # fmt: skip
"""Parameter of the estimator -> the flag that sets it."""


@dataclass(frozen=True, kw_only=True)
class DecomposeOptions(TableOptions):
    """Decompose a symmetric tensor, or a moment of samples, into powers of vectors.

    T = sum of w_i a_i^m, unit a_i, more of them than dimensions if need be. An array with three
    or more equal axes is the tensor itself; a table holds samples in rows, whose moment of
    --order is decomposed, or with --cumulant its cumulant: then the components are the columns
    of the mixing of independent sources.

      spanwise decompose tensor.npy --out found
      spanwise decompose signals.csv --cumulant --scree
      spanwise decompose signals.csv --cumulant --rank 5 --out found

    Noise gives the tensor full rank: look at the eigenvalues with --scree, then give --rank.
    """

    order: int | None = None
    """m of the moment of a table, at least 3; 4 by default. A tensor has its own."""
    rank: int | None = None
    """Number of components; without it the eigenvalues that matter are counted."""
    cumulant: bool = False
    """Decompose the cumulant of a table, of order 3 or 4, instead of the moment."""
    noise_variance: float | None = None
    """Variance of isotropic Gaussian noise to take out of a table's moment."""
    scree: bool = False
    """Show the eigenvalues only, to choose a rank; nothing is decomposed."""
    rank_tol: float = 1e-4
    """How large an eigenvalue has to be to count, as a share of their usual size."""
    component_tol: float = 1e-2
    """With noise: how much of a component's power may lie outside of the flattening's range."""
    tries: int = 3
    """Batches of starts without a component, before the best point is taken with a warning."""
    refine: int = 0
    """With noise: steps of least squares on the whole tensor afterwards, such as 50."""
    symmetrize: bool = False
    """Decompose the symmetric tensor nearest to a tensor that is not symmetric."""
    force: bool = False
    """Try a rank at which components are not unique."""

    def __post_init__(self) -> None:
        if self.order is not None and self.order < 3:
            raise ValueError(
                f"--order must be at least 3, got {self.order}: an order of 2 has no unique "
                "decomposition."
            )
        if self.cumulant and self.noise_variance is not None:
            raise ValueError("a cumulant holds no Gaussian noise: leave --noise-variance out.")
        if self.scree and self.rank is not None:
            raise ValueError("--scree decomposes nothing: leave --rank out, or --scree.")


def main(argv: list[str]) -> int:
    """Run `spanwise decompose`."""
    return run_verb(DecomposeOptions, argv, run, prog="spanwise decompose")


def run(options: DecomposeOptions, terminal: Terminal) -> None:
    """Read, decompose, tell, write."""
    begun = time.perf_counter()
    path = check(options)
    array, names, is_tensor = _read(options, path, terminal)
    order = array.ndim if is_tensor else options.order or 4
    given = on_device(array, options.device)
    if options.scree:
        _scree_only(options, path, given, order, is_tensor, terminal)
        return
    with naming_flags(FLAGS):
        model = _fitted(options, given, order, is_tensor, verbose=not terminal.quiet)
    weights, components = as_array(model.weights_), as_array(model.components_)
    summary = {
        "what": _what(options, order, is_tensor),
        "order": order,
        "dimension": int(components.shape[1]),
        "rank": int(model.rank_),
        "weights": weights.tolist(),
        "fit": as_array(model.fit_).tolist(),
        "residual": float(model.residual_),
        "noise_variance": float(model.noise_variance_),
        "steps": int(model.n_iter_),
    }
    if summary["rank"]:
        _tell(summary, components, names, terminal)
    else:
        terminal.say(_nothing(options, is_tensor))
    if options.out is not None:
        values = as_array(model.eigenvalues_)
        with results(options, {"data": path}) as folder:
            _write(folder, model, names, components, summary)
            _write_values(folder, values, summary["rank"], options.pictures)
        tell_files(options.out, terminal, FILES)
    terminal.say(f"done in {time.perf_counter() - begun:.1f} s")
    terminal.result(summary)


def _read(
    options: DecomposeOptions, path: Path, terminal: Terminal
) -> "tuple[np.ndarray, Sequence[str], bool]":
    """The array, what its axes are called, and whether it is a tensor.

    Raises:
        ValueError: If options for tables are given for a tensor, or the other way round.
    """
    from spanwise.datasets.formats import suffix_of
    from spanwise.datasets.tables import ARRAYS, load_array, load_table

    if suffix_of(path) in ARRAYS:
        array = load_array(path, key=options.key)
        if array.ndim > 2:
            own = ["noise_variance"] if options.noise_variance is not None else []
            own += [name for name in ("cumulant", "drop", "keep") if getattr(options, name)]
            if own or options.order not in (None, array.ndim):
                asked = [f"--{name.replace('_', '-')}" for name in own] or ["--order"]
                raise ValueError(
                    f"{path} is a tensor of order {array.ndim}, not samples in rows: leave "
                    f"{', '.join(asked)} out."
                )
            terminal.say(f"{path}: a tensor of {' x '.join(map(str, array.shape))}")
            return array, [f"x{i}" for i in range(len(array))], True
        if _is_symmetric(array) and options.order is None and not options.cumulant:
            raise ValueError(
                f"{path} is a symmetric matrix, a tensor of order 2: that has no unique "
                "decomposition, use numpy.linalg.eigh. If its rows are samples, give --order 4."
            )
    if options.symmetrize:
        raise ValueError(
            f"{path} holds samples, whose moment is symmetric: leave --symmetrize out."
        )
    table = load_table(path, apart=options.keep, drop=options.drop, key=options.key)
    n, d = table.values.shape
    terminal.say(f"{path}: {n} samples, {d} feature{'s' if d > 1 else ''}")
    return table.values, table.columns, False


def _is_symmetric(array: "np.ndarray") -> bool:
    """Whether this is no table of samples but a matrix such as a covariance."""
    import numpy as np

    square = array.ndim == 2 and len(array) == array.shape[1] > 1
    return square and np.allclose(array, array.T, rtol=0, atol=1e-6 * np.abs(array).max())


def _fitted(
    options: DecomposeOptions, given: Any, order: int, is_tensor: bool, *, verbose: bool
) -> "SubspacePowerMethod":
    from spanwise.estimators import SubspacePowerMethod

    model = SubspacePowerMethod(
        order,
        options.rank,
        rank_tol=options.rank_tol,
        component_tol=options.component_tol,
        n_tries=options.tries,
        refine=options.refine,
        symmetrize=options.symmetrize,
        force=options.force,
        random_state=options.seed,
        verbose=verbose,
    )
    if is_tensor:
        return model.fit(given)
    return model.fit_moments(
        given, cumulant=options.cumulant, noise_variance=options.noise_variance
    )


def _what(options: DecomposeOptions, order: int, is_tensor: bool) -> str:
    if is_tensor:
        return f"tensor of order {order}"
    return f"{'cumulant' if options.cumulant else 'moment'} of order {order}"


def _nothing(options: DecomposeOptions, is_tensor: bool) -> str:
    """Why there is no component."""
    if is_tensor:
        return "all entries are zero: there is nothing to decompose"
    alike = "alike, so that their cumulant is zero" if options.cumulant else "zero"
    return f"all samples are {alike}: there is nothing to decompose"


def _scree_only(
    options: DecomposeOptions, path: Path, given: Any, order: int, is_tensor: bool,
    terminal: Terminal,
) -> None:  # fmt: skip
    """The eigenvalues, where they fall most, and their picture."""
    from spanwise.estimators import flattening_values
    from spanwise.estimators._spm.spectrum import rank_bound

    with naming_flags(FLAGS):
        found = flattening_values(
            given,
            None if is_tensor else order,
            cumulant=options.cumulant,
            noise_variance=options.noise_variance,
            symmetrize=options.symmetrize,
        )
    values = as_array(found)
    most = rank_bound(given.shape[-1], order)
    gap = _largest_gap(values, most)
    rows = [
        [index + 1, f"{value:.4g}", f"{abs(values[index + 1] / value):.2g}" if value else ""]
        for index, value in enumerate(values[: max(12, min(gap + 4, 40))])
        if index + 1 < len(values)
    ]
    terminal.table(
        ["index", "eigenvalue", "next / this"], rows, title=f"{len(values)} eigenvalues:"
    )
    terminal.say(
        f"of the first {most}, as many components as can be told apart here, they fall most after "
        f"{gap}: try --rank {gap}"
        if gap
        else _nothing(options, is_tensor)
    )
    summary = {
        "what": _what(options, order, is_tensor),
        "eigenvalues": values.tolist(),
        "suggested_rank": gap,
    }
    if options.out is not None:
        from spanwise.io import write_json

        with results(options, {"data": path}) as folder:
            _write_values(folder, values, gap, options.pictures and gap > 0)
            write_json(folder / "summary.json", summary)
        tell_files(options.out, terminal, FILES)
    terminal.result(summary)


def _largest_gap(values: "np.ndarray", most: int) -> int:
    """After how many values, `most` or less, the next is smallest beside the last, but rounding."""
    import numpy as np

    size = np.abs(values)
    floor = len(size) * np.finfo(size.dtype).eps * size[0]
    if not size.any():
        return 0
    size = np.maximum(size, floor)
    if len(size) < 2:
        return 1
    return int(np.argmax((size[:-1] / size[1:])[:most])) + 1


def _tell(
    summary: dict[str, Any], components: "np.ndarray", names: "Sequence[str]", terminal: Terminal
) -> None:
    terminal.say(
        f"{summary['what']}: rank {summary['rank']} in {summary['dimension']} dimensions, relative "
        f"residual {summary['residual']:.2g}"
    )
    terminal.say()
    rows = []
    for i, (w, f) in enumerate(zip(summary["weights"], summary["fit"], strict=True)):
        if i == 12:
            break
        largest = sorted(range(len(names)), key=lambda j: (-abs(components[i][j]), j))[:4]
        rows.append([
            i + 1, f"{w:.4g}", f"{f:.6f}",
            ", ".join(f"{names[j]} {components[i][j]:+.2f}" for j in largest),
        ])  # fmt: skip
    title = "Components, heaviest first:" if len(rows) == summary["rank"] else (
        f"The heaviest {len(rows)} components:"
    )  # fmt: skip
    terminal.table(
        ["component", "weight", "fit", "largest entries"], rows, left=["largest entries"],
        title=title,
    )  # fmt: skip


def _write(
    folder: Path, model: "SubspacePowerMethod", names: "Sequence[str]", components: "np.ndarray",
    summary: dict[str, Any],
) -> None:  # fmt: skip
    import numpy as np

    from spanwise.datasets.tables import write_arrays, write_table
    from spanwise.io import write_json

    factors = np.broadcast_to(components.T, (summary["order"], *components.T.shape))
    weights = np.asarray(summary["weights"], dtype=components.dtype)
    write_arrays(folder / "cp_tensor.npz", {"weights": weights, "factors": factors})
    entries = {name: components[:, j] for j, name in enumerate(names)}
    head = {"component": list(range(1, len(components) + 1)),
            "weight": summary["weights"], "fit": summary["fit"]}  # fmt: skip
    taken = set(head) & set(entries)
    entries = {f"x.{name}" if name in taken else name: e for name, e in entries.items()}
    write_table(folder / "components.csv", {**head, **entries})
    model.save(folder / "model.safetensors")
    write_json(folder / "summary.json", summary)


def _write_values(folder: Path, values: "np.ndarray", rank: int, pictures: bool) -> None:
    from spanwise.datasets.tables import write_table

    index = list(range(1, len(values) + 1))
    write_table(folder / "eigenvalues.csv", {"index": index, "eigenvalue": values})
    if pictures and len(values):
        from spanwise import plots

        fig, ax = plots.figure()
        plots.scree(ax, values, rank=rank or None)
        plots.save(fig, folder / "scree.svg")

"""`spanwise cluster`: clusters of a table's samples, and features in which each is a subspace."""

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spanwise.cli._shared import Terminal, run_verb
from spanwise.cli._tables import (
    TableOptions,
    as_array,
    flagged,
    naming_flags,
    on_device,
    read,
    results,
    tell_files,
)

if TYPE_CHECKING:
    import numpy as np

    from spanwise.datasets.tables import Table
    from spanwise.estimators import MLC

FILES = {
    "labels.csv": "every sample: its cluster, and how much of it the cluster's subspace holds",
    "embedding.npz": "features Z (unit rows) and labels",
    "affinity.svg": "who shares a cluster with whom, sorted by cluster",
    "spectra.svg": "singular values of each cluster's features",
    "coding_bits.svg": "length of the code for each number of clusters",
    "model.safetensors": "the fitted model, for --model or MLC.load",
    "summary.json": "sizes, ranks, rates, and the number of clusters that was chosen",
}
FLAGS = {
    "n_clusters": "clusters", "candidates": "most", "scaling": "scaling", "augment": "noise",
    "eta": "eta", "epochs": "epochs", "n_features": "features",
}  # fmt: skip
"""Parameter of the estimator -> the flag that sets it."""
DRAWN = 1500
"""Samples whose affinity is drawn."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(TableOptions):
    """Cluster the samples of a table: learn features in which every cluster is a subspace.

    Tables, embeddings of texts or pictures, anything with numbers in columns:

      spanwise cluster embeddings.npy --clusters auto --out found
      spanwise cluster new.npy --model found/model.safetensors --out again

    The method is MLC (rate reduction). Samples of one cluster should lie near a curved surface of
    few dimensions; for round clouds k-means does as well.
    """

    clusters: int | Literal["auto"] = "auto"
    """How many clusters; auto: of 2 to --most, the number of shortest code."""
    most: int = 20
    """The largest number that auto tries."""
    model: Path | None = None
    """A model.safetensors of an earlier run, instead of learning."""
    known: str | None = None
    """A column of known classes: kept out of the features, and compared with the clusters."""
    scaling: Literal["standard", "none"] = "standard"
    """standard: columns to mean 0 and deviation 1; none: as they are."""
    noise: float | None = None
    """Learn from noisy views, of so many deviations, by a network instead of linear features."""
    eta: float | None = None
    """Temperature of the membership: smaller ones make smaller neighbourhoods (0.175)."""
    epochs: int | None = None
    """Passes over the samples at most (20)."""
    features: int | None = None
    """Length of the features; by default a quarter of a batch, at most 64."""

    def __post_init__(self) -> None:
        if self.clusters != "auto" and self.clusters < 2:
            raise ValueError(f"--clusters must be auto or at least 2, got {self.clusters}.")
        if self.most < 2:
            raise ValueError(f"--most must be at least 2, got {self.most}.")
        asked = ("noise", "eta", "epochs", "features")
        given = [name for name in asked if getattr(self, name) is not None]
        usual = {"clusters": "auto", "most": 20, "scaling": "standard"}
        given += [name for name, value in usual.items() if getattr(self, name) != value]
        if self.model is not None and given:
            raise ValueError(
                f"{', '.join(f'--{name}' for name in given)} cannot be set with --model: it has "
                "learned already. Leave --model out to learn anew."
            )
        if self.clusters != "auto" and self.most != usual["most"]:
            raise ValueError("--most is for --clusters auto: leave one of them out.")

    def options(self) -> dict[str, Any]:
        """Parameters of the estimator."""
        given = {
            "augment": self.noise, "eta": self.eta, "epochs": self.epochs,
            "n_features": self.features,
        }  # fmt: skip
        return {
            "n_clusters": self.clusters,
            "candidates": list(range(2, self.most + 1)),
            "scaling": None if self.scaling == "none" else self.scaling,
            "random_state": self.seed,
            **{name: value for name, value in given.items() if value is not None},
        }


def main(argv: list[str]) -> int:
    """Run `spanwise cluster`."""
    return run_verb(ClusterOptions, argv, run, prog="spanwise cluster")


def run(options: ClusterOptions, terminal: Terminal) -> None:
    """Read, learn, cluster, tell, write."""
    import numpy as np

    begun = time.perf_counter()
    kept = options.keep
    if options.known is not None and options.known not in kept:
        kept = (*kept, options.known)
    table = read(replace(options, keep=kept), terminal)
    if options.model is None and len(table) > 1 and (table.values == table.values[0]).all():
        raise ValueError(
            f"{table.path}: all samples are alike, so that there is nothing to cluster. Check the "
            "file, or which columns --drop and --keep leave."
        )
    X = on_device(table.values, options.device)
    model, labels, notes = _fitted(options, table, X, verbose=not terminal.quiet)
    Z = as_array(model.transform(X)).astype(float)
    held = np.array([
        float(np.linalg.norm(as_array(model.bases_[label]).T @ z))
        for label, z in zip(labels, Z, strict=True)
    ])  # fmt: skip
    summary = {**_summary(options, table, model, labels, held), "notes": notes}
    _tell(summary, terminal)
    if options.out is not None:
        inputs = {"data": table.path}
        if options.model is not None:
            inputs["model"] = options.model
        with results(options, inputs) as folder:
            _write(folder, table, model, labels, held, Z, summary)
            if options.pictures:
                _draw(folder, model, table.values, labels, Z, options.device)
        tell_files(options.out, terminal, FILES)
    terminal.say(f"done in {time.perf_counter() - begun:.1f} s")
    terminal.result(summary)


def _fitted(
    options: ClusterOptions, table: "Table", X: Any, verbose: bool
) -> "tuple[MLC, np.ndarray, list[str]]":
    """The fitted model, labels, and what the fit warned of."""
    from spanwise.estimators import MLC

    if options.model is None:
        with naming_flags(FLAGS), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model = MLC(**options.options(), verbose=verbose).fit(X)
        notes = [flagged(str(w.message), FLAGS) for w in told if "spanwise" in w.filename]
        return model, as_array(model.labels_), notes
    model = MLC.load(options.model)
    if model.n_features_in_ != len(table.columns):
        raise ValueError(
            f"{options.model} was learned from {model.n_features_in_} features, {table.path} has "
            f"{len(table.columns)}. Leave columns out with --drop, or keep them with --keep."
        )
    names = list(vars(model).pop("feature_names_in_", table.columns))
    if names != list(table.columns):
        raise ValueError(
            f"{options.model} was learned from {', '.join(names[:5])} ..., in this order; "
            f"{table.path} has {', '.join(table.columns[:5])} ..."
        )
    return model, as_array(model.predict(X)), []


def _summary(
    options: ClusterOptions, table: "Table", model: "MLC", labels: "np.ndarray", held: "np.ndarray"
) -> dict[str, Any]:
    import numpy as np

    from spanwise.estimators import clustering_accuracy

    rates = model.coding_rates_
    summary: dict[str, Any] = {
        "samples": len(labels),
        "features": len(table.columns),
        "clusters": model.n_clusters_,
        "sizes": np.bincount(labels, minlength=model.n_clusters_).tolist(),
        "ranks": [int(as_array(basis).shape[1]) for basis in model.bases_],
        "held_by_own_subspace": float(held.mean()),
        "coding_bits": dict(
            zip(
                map(str, as_array(model.candidates_).tolist()),
                as_array(model.coding_bits_).tolist(),
                strict=True,
            )
        ),
        "rates": {
            name: [float(x) for x in as_array(rates[name])[[0, -1]]] if len(rates[name]) else []
            for name in ("R", "delta")
        },
        "epochs": model.n_iter_,
        "best_epoch": model.best_epoch_,
        "learned": options.model is None,
    }
    if options.known is not None:
        known = list(table.apart[options.known])
        summary["accuracy"] = clustering_accuracy(known, labels)
        summary["classes"] = len(set(known))
    return summary


def _tell(summary: dict[str, Any], terminal: Terminal) -> None:
    terminal.say(
        f"{summary['clusters']} clusters; their subspaces hold "
        f"{summary['held_by_own_subspace']:.1%} of the samples' length"
    )
    terminal.say()
    rows = [
        [label, size, rank]
        for label, (size, rank) in enumerate(zip(summary["sizes"], summary["ranks"], strict=True))
    ]
    terminal.table(["cluster", "samples", "rank"], rows)
    if "accuracy" in summary:
        terminal.say(
            f"{summary['accuracy']:.1%} of the samples agree with the {summary['classes']} known "
            "classes, under the best match"
        )
    for note in summary["notes"]:
        terminal.say(f"note: {note}")


def _write(
    folder: Path, table: "Table", model: "MLC", labels: "np.ndarray", held: "np.ndarray",
    Z: "np.ndarray", summary: dict[str, Any],
) -> None:  # fmt: skip
    import numpy as np

    from spanwise.datasets.tables import write_arrays, write_table
    from spanwise.io import write_json

    columns: dict[str, Any] = {"row": list(range(1, len(labels) + 1)), **table.apart}
    write_table(folder / "labels.csv", {**columns, "cluster": labels, "held": held})
    write_arrays(folder / "embedding.npz", {"Z": Z, "labels": labels})
    model.feature_names_in_ = np.array(table.columns, dtype=object)
    model.save(folder / "model.safetensors")
    write_json(folder / "summary.json", summary)


def _draw(
    folder: Path, model: "MLC", values: "np.ndarray", labels: "np.ndarray", Z: "np.ndarray",
    device: str,
) -> None:  # fmt: skip
    import numpy as np

    from spanwise import plots

    vars(model).pop("feature_names_in_", None)
    if len(values) >= 2:
        rows = np.random.default_rng(0).permutation(len(values))[:DRAWN]
        fig, ax = plots.figure(width=5.2, height=4.4)
        membership = as_array(model.membership(on_device(values[rows], device)))
        plots.cluster_affinity(ax, membership, labels[rows], label="membership")
        plots.save(fig, folder / "affinity.svg")
    fig, ax = plots.figure()
    plots.cluster_spectra(ax, Z, labels)
    plots.save(fig, folder / "spectra.svg")
    if len(model.candidates_) > 1:
        fig, ax = plots.figure()
        plots.coding_bits(ax, model.candidates_, model.coding_bits_, chosen=model.n_clusters_)
        plots.save(fig, folder / "coding_bits.svg")

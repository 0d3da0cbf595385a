"""The methods that have landed, one row each.

`spanwise list`, `show` and `cite`, the README's table, the docs index and the tests read this
table. It holds strings only, so that reading it loads nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

Verdict = Literal["reproduced", "direction only", "not reproduced"]

LIBRARY_BIBTEX = """\
@software{spanwise,
  title   = {spanwise: subspaces as first-class values for training, merging and auditing models},
  author  = {{The spanwise authors}},
  license = {Apache-2.0},
  version = {VERSION}
}"""


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """One method: what it is, where it lives and how its claim fared here."""

    slug: str
    """Its name on the command line and in file names."""
    family: str
    """The room under `spanwise` that holds it."""
    entries: tuple[str, ...]
    """Public entry points, `"module:attribute"`; the first is the method itself."""
    title: str
    """The paper's title."""
    authors: str
    """Family names, separated by commas."""
    year: int
    arxiv: str
    claim: str
    """What the paper promises, in one sentence."""
    verdict: Verdict
    """Of the committed result, `results/SLUG.json`."""

    @property
    def module(self) -> str:
        """The name that reproductions and files in Python use for the slug."""
        return self.slug.replace("-", "_")

    @property
    def reproduction(self) -> str:
        """Dotted name of the module that reproduces the claim."""
        return f"spanwise.reproductions.{self.module}"

    @property
    def docs(self) -> str:
        """Path of the method's page, from the root of the repository."""
        return f"docs/methods/{self.slug}.md"

    @property
    def result(self) -> str:
        """Path of the committed result, from the root of the repository."""
        return f"results/{self.slug}.json"

    @property
    def bibtex(self) -> str:
        """The paper's BibTeX entry."""
        names = " and ".join(name.strip() for name in self.authors.split(","))
        return (
            f"@misc{{{self.slug},\n"
            f"  title         = {{{{{self.title}}}}},\n"
            f"  author        = {{{names}}},\n"
            f"  year          = {{{self.year}}},\n"
            f"  eprint        = {{{self.arxiv}}},\n"
            f"  archivePrefix = {{arXiv}}\n"
            f"}}"
        )


METHODS: tuple[MethodCard, ...] = (
    MethodCard(
        slug="galore2",
        family="optim",
        entries=("spanwise.optim:GaLore", "spanwise.optim:param_groups"),
        title="GaLore 2: Large-Scale LLM Pre-Training by Gradient Low-Rank Projection",
        authors="Su, Gu, Xu, Tian, Zhao",
        year=2025,
        arxiv="2504.20437",
        claim="Full-parameter training at a third of Adam's state, with Adam's loss.",
        verdict="reproduced",
    ),
    MethodCard(
        slug="grass",
        family="optim",
        entries=("spanwise.optim:Grass", "spanwise.optim:grass_linear_"),
        title="Grass: Compute Efficient Low-Memory LLM Training with Structured Sparse Gradients",
        authors="Muhamed, Li, Woodruff, Diab, Smith",
        year=2024,
        arxiv="2406.17660",
        claim="Rows of the gradient instead of projections: no decompositions, a quarter of Adam's "
        "state.",
        verdict="not reproduced",
    ),
    MethodCard(
        slug="grasswalk-grassjump",
        family="optim",
        entries=("spanwise.optim:GrassWalk", "spanwise.optim:GrassJump"),
        title="Randomized Gradient Subspaces for Efficient Large Language Model Training",
        authors="Rajabi, Nonta, Vajpayee, Rambhatla",
        year=2025,
        arxiv="2510.01878",
        claim="Random subspaces beat singular ones at GaLore's memory, once nothing is lost.",
        verdict="direction only",
    ),
    MethodCard(
        slug="online-subspace-descent",
        family="optim",
        entries=("spanwise.optim:OnlineSubspaceDescent",),
        title="Memory-Efficient LLM Training with Online Subspace Descent",
        authors="Liang, Liu, Chen, Liu",
        year=2024,
        arxiv="2408.12857",
        claim="A basis that learns at every step: no decompositions, no stalls, a lower loss than "
        "GaLore's.",
        verdict="not reproduced",
    ),
    MethodCard(
        slug="subset-norm-subspace-momentum",
        family="optim",
        entries=("spanwise.optim:SNSM", "spanwise.optim:AdamSN", "spanwise.optim:AdamSNSM"),
        title="Lean and Mean Adaptive Optimization via Subset-Norm and Subspace-Momentum with "
        "Convergence Guarantees",
        authors="Nguyen, Nguyen",
        year=2025,
        arxiv="2411.07120",
        claim="One second moment a row, momentum in a subspace: Adam's loss, a fifth of its state.",
        verdict="not reproduced",
    ),
    MethodCard(
        slug="iso-merging",
        family="merging",
        entries=("spanwise.merging:merge",),
        title="No Task Left Behind: Isotropic Model Merging with Common and Task-Specific "
        "Subspaces",
        authors="Marczak, Magistri, Cygert, Twardowski, Bagdanov, van de Weijer",
        year=2025,
        arxiv="2502.04959",
        claim="Every direction of the summed update gets the same weight: one model, good at all "
        "tasks.",
        verdict="not reproduced",
    ),
    MethodCard(
        slug="mats",
        family="merging",
        entries=("spanwise.merging:merge", "spanwise.merging:collect_stats"),
        title="Merging by Matching Models in Task Parameter Subspaces",
        authors="Tam, Bansal, Raffel",
        year=2024,
        arxiv="2312.04339",
        claim="The merged model solves a linear system of each task's statistics, a few steps of "
        "conjugate gradient.",
        verdict="not reproduced",
    ),
    MethodCard(
        slug="gods",
        family="estimators",
        entries=("spanwise.estimators:GODS",),
        title="GODS: Generalized One-class Discriminative Subspaces for Anomaly Detection",
        authors="Wang, Cherian",
        year=2019,
        arxiv="1908.05884",
        claim="Two orthonormal frames with normal data between their hyperplanes find anomalies "
        "better than a one-class SVM.",
        verdict="not reproduced",
    ),
    MethodCard(
        slug="subspace-power-method",
        family="estimators",
        entries=(
            "spanwise.estimators:SubspacePowerMethod",
            "spanwise.estimators:symmetric_cp",
            "spanwise.estimators:symmetric_btd",
            "spanwise.estimators:GPCA",
        ),
        title="Subspace Power Method for Symmetric Tensor Decomposition",
        authors="Kileel, Pereira",
        year=2019,
        arxiv="1912.04007",
        claim="Many more components than dimensions, and their number, are found to rounding, one "
        "order of magnitude faster.",
        verdict="not reproduced",
    ),
    MethodCard(
        slug="mlc",
        family="estimators",
        entries=("spanwise.estimators:MLC",),
        title="Unsupervised Manifold Linearizing and Clustering",
        authors="Ding, Tong, Chan, Dai, Ma, Haeffele",
        year=2023,
        arxiv="2301.01805",
        claim="Features and clusters learned together by rate reduction cluster better than fixed "
        "features, and make each cluster a subspace.",
        verdict="not reproduced",
    ),
    MethodCard(
        slug="lran",
        family="estimators",
        entries=(
            "spanwise.estimators:LRAN",
            "spanwise.estimators:LRANModule",
            "spanwise.estimators:lran_loss",
            "spanwise.estimators:DMD",
            "spanwise.estimators:EDMD",
            "spanwise.estimators:KernelDMD",
            "spanwise.estimators:BalancedReduction",
            "spanwise.estimators:MultiKernelRegressor",
        ),
        title="Linearly-Recurrent Autoencoder Networks for Learning Dynamics",
        authors="Otto, Rowley",
        year=2019,
        arxiv="1712.01378",
        claim="A few learned coordinates in which nonlinear dynamics are linear: forecasts, and "
        "Koopman eigenfunctions.",
        verdict="not reproduced",
    ),
)


def get(slug: str) -> MethodCard:
    """The row of `slug`.

    Raises:
        ValueError: If no such method has landed; the nearest slug is named.
    """
    rows = {card.slug: card for card in METHODS}
    if slug in rows:
        return rows[slug]
    near = get_close_matches(slug, list(rows), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(rows)}."
    raise ValueError(f"unknown method {slug!r}: {hint}")


def markdown_table(cards: Iterable[MethodCard] = METHODS, *, root: str = "") -> str:
    """The methods as a Markdown table.

    Args:
        cards: Rows to show.
        root: What to put before the paths of pages, such as `"../"`.
    """
    lines = ["| method | entry point | claim | here |", "| --- | --- | --- | --- |"]
    for card in cards:
        entry = card.entries[0].replace(":", ".")
        paper = f"[arXiv {card.arxiv}](https://arxiv.org/abs/{card.arxiv})"
        lines.append(
            f"| [{card.slug}]({root}{card.docs}) | `{entry}` | {card.claim} ({paper}) "
            f"| [{card.verdict}]({root}{card.result}) |"
        )
    return "\n".join(lines)


def write_table(text: str, *, root: str = "") -> str:
    """`text` with the table between its `<!-- methods -->` markers renewed.

    Raises:
        ValueError: If the two markers are not there.
    """
    begin, end = "<!-- methods -->", "<!-- /methods -->"
    before, found, rest = text.partition(begin)
    _, also_found, after = rest.partition(end)
    if not found or not also_found:
        raise ValueError(f"the file needs a line {begin} and, below it, a line {end}.")
    return f"{before}{begin}\n{markdown_table(root=root)}\n{end}{after}"

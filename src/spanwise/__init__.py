"""spanwise: teach your model something new, keep what it knows.

A subspace found by one method is a value that another can use: `Subspace` is one,
`Atlas` is a model's worth of them in one file, and training, merging, erasing and
auditing all obey it. Attributes load on first use, so `import spanwise` needs no torch.
"""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
    from spanwise.atlas import Atlas as Atlas
    from spanwise.subspace import Subspace as Subspace

__version__ = "0.1.0.dev0"

__all__ = ["Atlas", "Subspace", "__version__"]

__getattr__, __dir__ = lazy_attributes(
    "spanwise",
    {"Atlas": "spanwise.atlas", "Subspace": "spanwise.subspace"},
    rooms=frozenset(
        {
            "atlas",
            "catalog",
            "datasets",
            "estimators",
            "io",
            "layouts",
            "linalg",
            "merging",
            "optim",
            "plots",
            "report",
            "reproductions",
            "subspace",
            "training",
            "zoo",
        }
    ),
)

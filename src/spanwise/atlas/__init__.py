"""`Atlas`: the named subspaces of a model, where they come from, and their file.

An entry belongs to one side of one linear map: its outputs or its inputs. Training, merging,
erasing and auditing all read the same object.
"""

from spanwise.atlas._activations import ActivationPlan, activation_bytes
from spanwise.atlas._atlas import Atlas
from spanwise.atlas._compare import AtlasComparison, Comparison
from spanwise.atlas._entry import Entry
from spanwise.atlas._share import Share, UpdateShare, split_energy
from spanwise.atlas._storage import file_bytes
from spanwise.atlas._weights import weights_digest

__all__ = [
    "ActivationPlan",
    "Atlas",
    "AtlasComparison",
    "Comparison",
    "Entry",
    "Share",
    "UpdateShare",
    "activation_bytes",
    "file_bytes",
    "split_energy",
    "weights_digest",
]

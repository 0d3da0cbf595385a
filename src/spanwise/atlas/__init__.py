"""`Atlas`: the named subspaces of a model, where they come from, and their file.

An entry belongs to one side of one linear map: its outputs or its inputs. Training, merging,
erasing and auditing all read the same object.
"""

from spanwise.atlas._atlas import Atlas, Entry
from spanwise.atlas._compare import AtlasComparison, Comparison
from spanwise.atlas._share import Share, UpdateShare

__all__ = ["Atlas", "AtlasComparison", "Comparison", "Entry", "Share", "UpdateShare"]

"""Merging: several fine-tunes of one model become one model."""

from spanwise.merging._merge import merge
from spanwise.merging._merged import Merged
from spanwise.merging._methods._method import Method
from spanwise.merging.methods import METHODS

__all__ = ["METHODS", "Merged", "Method", "merge"]

"""Docstrings as the site reads them."""

import re

import griffe


class Examples(griffe.Extension):
    """Read our sections `Example:` as Google's `Examples:`, so that they show as code."""

    def on_object(self, *, obj, **kwargs):
        """Rename the section in one object's docstring."""
        if obj.docstring is not None:
            value = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", value, flags=re.MULTILINE)

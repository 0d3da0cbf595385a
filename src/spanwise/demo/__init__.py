"""Three minutes that show what the library is for, on text that every Python ships."""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
    from spanwise.demo.options import DemoOptions
    from spanwise.demo.show import show

__all__ = ["DemoOptions", "show"]

__getattr__, __dir__ = lazy_attributes(
    __name__, {"DemoOptions": "spanwise.demo.options", "show": "spanwise.demo.show"}
)

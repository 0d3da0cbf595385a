"""What a way of merging is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from spanwise.merging._work import Work


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way of merging; its fields are the parameters of the whole merge.

    A method sees one tensor at a time and knows nothing of files, shards or dtypes on disk.
    """

    gives: ClassVar[Literal["update", "weights"]] = "update"
    """Whether `merge_tensor` returns an update of the base or the weights themselves."""
    needs_base: ClassVar[bool] = True
    fewest: ClassVar[int] = 1
    """Least number of models."""
    most: ClassVar[int | None] = None
    """Largest number of models."""
    per_model: ClassVar[Mapping[str, float]] = {}
    """Parameters that each model has its own of, with their defaults."""
    per_row: ClassVar[bool] = False
    """Whether rows may be merged apart: element by element, or row by row."""
    reference: ClassVar[str] = ""
    """The paper."""

    @abstractmethod
    def merge_tensor(self, work: Work) -> Tensor:
        """The merged update (or weights) of `work`, in its dtype."""

    def splits(self, shape: tuple[int, ...]) -> bool:
        """Whether rows of a tensor of this shape may be merged apart, with these parameters."""
        del shape
        return self.per_row

    def copies(self, work: Work) -> float:
        """Peak memory of `merge_tensor`, in tensors of the work's own size and dtype."""
        return 4.0

    def check_kept(self) -> None:  # noqa: B027 - most methods can
        """Raise `ValueError` if the method cannot obey `avoid` and `within`."""

    def begin(self, names: Sequence[str], work_of: Callable[[str], Work]) -> "Method":
        """Look at all tensors beforehand, where one alone does not tell enough.

        Args:
            names: The tensors that will be merged.
            work_of: What `merge_tensor` will get for each.

        Returns:
            The method to go on with: this one, or a copy that knows more.
        """
        del names, work_of
        return self

    def kinds(self) -> tuple[str, ...]:
        """Statistics (`TensorStats` keys) that each model must bring, with these parameters."""
        return ()

    def reads(self) -> Sequence[Path]:
        """Files and folders beside the models that the result depends on."""
        return ()

    def check_models(self, count: int, based: bool) -> None:
        """Raise `ValueError` if these parameters do not allow what is merged.

        Args:
            count: How many models.
            based: Whether there is a base.
        """
        del count, based

    def check(self, values: Mapping[str, list[float]]) -> None:
        """Raise `ValueError` if a parameter is out of range, before anything is read.

        The fields themselves are checked in `__post_init__`.

        Args:
            values: Every plain value of each per-model parameter.
        """
        del values

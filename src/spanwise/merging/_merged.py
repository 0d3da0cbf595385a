"""The result of a merge in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor
from typing_extensions import override

from spanwise.atlas import Atlas
from spanwise.merging._job import Job

if TYPE_CHECKING:
    from spanwise.merging._subspaces import Subspaces

T = TypeVar("T")


class Merged(Mapping[str, Tensor]):
    """Name -> merged tensor, `base + alpha * delta`, put together when it is asked for.

    The decompositions are done; another alpha costs one pass over the weights.

    Attributes:
        delta: Name -> merged update in the work dtype; without a base, the merged weights.
        alpha: The scale, None where it varies.
    """

    def __init__(self, job: Job, delta: Mapping[str, Tensor], alpha: float | None = None) -> None:
        self._job, self.delta, self.alpha = job, delta, alpha

    def __getitem__(self, name: str) -> Tensor:
        job = self._job
        name = job.inputs.reference.aliases.get(name, name)
        if name not in self.delta:
            return job.inputs.reference.read(name)
        own = job.alpha_vectors is not None and job.kind(name) != "matrix"
        scale = job.scale(name) if self.alpha is None or own else self.alpha
        if job.inputs.base is not None and scale == 0:
            return job.inputs.base.read(name)
        return job.applied(name, self.delta[name], scale)

    def __iter__(self) -> Iterator[str]:
        yield from self._job.inputs.reference
        yield from self._job.inputs.reference.aliases

    def __len__(self) -> int:
        return len(self._job.inputs.names) + len(self._job.inputs.reference.aliases)

    @override
    def __contains__(self, name: object) -> bool:
        reference = self._job.inputs.reference
        return name in reference.aliases or name in set(reference)

    def at(self, alpha: float) -> "Merged":
        """The same merge with one alpha for every tensor; `alpha_vectors`, where given, stays.

        Raises:
            ValueError: If the merge has no base, so that there is nothing to scale from.
        """
        if self._job.inputs.base is None:
            raise ValueError("without a base there is no update to scale: give merge(base=...).")
        return Merged(self._job, self.delta, float(alpha))

    def sweep(
        self, alphas: Sequence[float], evaluate: Callable[["Merged"], T]
    ) -> list[tuple[float, T]]:
        """Evaluate the merge at several alphas; nothing is decomposed again.

        Args:
            alphas: Scales, in any order.
            evaluate: Called with the merge at each; give it validation data, never the test's.

        Returns:
            (alpha, what `evaluate` returned) in the order of `alphas`.
        """
        return [(float(alpha), evaluate(self.at(alpha))) for alpha in alphas]

    def save(self, path: str | Path, **metadata: str) -> Path:
        """Write a safetensors file, tied tensors once."""
        from spanwise.io import save_tensors

        names = list(self._job.inputs.reference)
        return save_tensors(path, _Lazy(self, names), metadata)

    @property
    def log(self) -> dict[str, dict[str, float]]:
        """Tensor -> how it went, for methods that iterate: steps, relative residuals."""
        return {name: self._job.log[name] for name in self.delta if name in self._job.log}

    @property
    def removed(self) -> dict[str, tuple[float, float]]:
        """Tensor -> (energy that `avoid` and `within` took of all updates, energy before).

        Methods that look at the updates several times count them as often: read the ratio.
        """
        from spanwise.merging._folder import removed

        return removed(self._job)

    @property
    def atlas(self) -> Atlas:
        """What the models have in common: `subspaces().common`, a decomposition of every matrix."""
        return self.subspaces().common

    def subspaces(self, common_fraction: float | None = None) -> "Subspaces":
        """The common and the task-specific subspaces of Iso-CTS, whatever the method was.

        Args:
            common_fraction: f in [0, 1]; by default the method's, or 0.8.

        Raises:
            ValueError: If f is out of range, there is no base, or no model changed a matrix.
        """
        from spanwise.merging._subspaces import subspaces

        if common_fraction is None:
            common_fraction = getattr(self._job.method, "common_fraction", 0.8)
        return subspaces(self._job, common_fraction)


class _Lazy(Mapping[str, Tensor]):
    def __init__(self, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Any:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

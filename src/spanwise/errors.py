"""The errors that spanwise raises beyond `ValueError` and `TypeError`."""


class ConvergenceError(RuntimeError):
    """An iterative method stopped before it reached its tolerance.

    Attributes:
        steps: Iterations done.
        residual: The last residual, in the solver's own norm.
    """

    def __init__(self, message: str, *, steps: int, residual: float) -> None:
        super().__init__(f"{message} (after {steps} steps, residual {residual:.3g})")
        self.steps = steps
        self.residual = residual


class CorruptFileError(ValueError):
    """A file is truncated, damaged or not of the format that its name promises."""

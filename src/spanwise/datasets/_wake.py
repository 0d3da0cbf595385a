"""Lattice Boltzmann around a cylinder: D2Q9, two relaxation times, bounce-back by index."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SPEED = 0.1
"""Free stream in lattice units; compressibility errors grow with its square."""
ACROSS, ALONG, BEFORE = 8, 18, 5
"""Height, length, and what lies before the cylinder's center, in diameters."""
MAGIC = 3 / 16
"""Product of the two relaxation times less a half each: 3/16 puts walls midway between cells, and
1/4 is unstable at the inlet."""


class Wake:
    """The flow as populations `(9, rows * columns)`; the free stream goes along the columns.

    A collision is linear in the populations but for three products of velocities: one product
    of matrices each, and streaming, walls and outlet are a single gather.

    Args:
        reynolds: Of the diameter and the free stream.
        diameter: In cells.

    Raises:
        ValueError: If the lattice is too coarse to be stable.
    """

    def __init__(self, *, reynolds: float, diameter: int) -> None:
        if diameter < 6:
            raise ValueError(f"diameter must be at least 6 cells, got {diameter}.")
        if not 0 < reynolds < math.inf:
            raise ValueError(f"reynolds must be finite and above 0, got {reynolds}.")
        viscosity = SPEED * diameter / reynolds
        if viscosity < 0.004:
            raise ValueError(
                f"reynolds = {reynolds} on {diameter} cells leaves a viscosity of "
                f"{viscosity:.4f} in lattice units, and 0.004 is needed. Raise diameter."
            )
        self.diameter = diameter
        self.rows, self.columns = ACROSS * diameter, ALONG * diameter
        self.time_unit = diameter / SPEED
        cx = torch.tensor([0, 1, 0, -1, 0, 1, -1, -1, 1], dtype=torch.float64)
        cy = torch.tensor([0, 0, 1, 0, -1, 1, 1, -1, -1], dtype=torch.float64)
        w = torch.tensor([16, 4, 4, 4, 4, 1, 1, 1, 1], dtype=torch.float64) / 36
        opposite = torch.tensor([0, 3, 4, 1, 2, 7, 8, 5, 6])
        self._gather = self._sources(cx.long(), cy.long(), opposite)
        even_time = 3 * viscosity + 0.5
        odd_time = 0.5 + MAGIC / (even_time - 0.5)
        swap = torch.eye(9, dtype=torch.float64)[opposite]
        identity = torch.eye(9, dtype=torch.float64)
        even, odd = (identity + swap) / 2, (identity - swap) / 2
        density = torch.ones(1, 9, dtype=torch.float64)
        velocity = torch.stack([cx, cy])
        # Equilibrium: even w (rho + 4.5 (c.u)^2 - 1.5 u^2), odd 3 w (c.u).
        relaxed = (
            w[:, None] * density / even_time + 3 * w[:, None] * velocity.mT @ velocity / odd_time
        )
        products = torch.stack([4.5 * cx**2 - 1.5, 9 * cx * cy, 4.5 * cy**2 - 1.5], dim=1)
        self._linear = (identity - even / even_time - odd / odd_time + relaxed).float()
        self._products = (w[:, None] * products / even_time).float()
        self._velocity = velocity.float()
        u = torch.tensor([SPEED, 0.0], dtype=torch.float64)
        quadratic = torch.stack([u[0] ** 2, u[0] * u[1], u[1] ** 2])
        self._stream = (w * (1 + 3 * velocity.mT @ u + products @ quadratic)).float()[:, None]
        self._inlet = torch.arange(self.rows) * self.columns

    def solid(self) -> Bool[Tensor, "rows columns"]:
        """Cells inside the cylinder, symmetric about the middle row."""
        y = torch.arange(self.rows)[:, None] - (self.rows - 1) / 2
        x = torch.arange(self.columns)[None] - BEFORE * self.diameter
        return x**2 + y**2 <= (self.diameter / 2) ** 2

    def start(self) -> Float[Tensor, "9 cells"]:
        """The free stream everywhere, at rest inside the cylinder."""
        rest = torch.tensor([16, 4, 4, 4, 4, 1, 1, 1, 1], dtype=torch.float32) / 36
        return torch.where(self.solid().view(-1), rest[:, None], self._stream)

    def settled(self, steps: int) -> Float[Tensor, "9 cells"]:
        """The steady wake: symmetry is enforced while it forms, for no perturbation to grow."""
        f = self.start()
        mirror = torch.tensor([0, 1, 4, 3, 2, 8, 7, 6, 5])
        for start in range(0, steps, 50):
            f = self.run(f, min(50, steps - start))
            field = f.view(9, self.rows, self.columns)
            f = ((field + field[mirror].flip(1)) / 2).view(9, -1)
        return f

    def disturbed(
        self, f: Float[Tensor, "9 cells"], size: float, generator: torch.Generator
    ) -> Float[Tensor, "9 cells"]:
        """With a random smooth velocity across the stream, behind the cylinder."""
        coarse = torch.randn(1, 1, 2 * ACROSS, 2 * ALONG, generator=generator)
        smooth = torch.nn.functional.interpolate(
            coarse, size=(self.rows, self.columns), mode="bicubic", align_corners=False
        )[0, 0]
        x = torch.arange(self.columns) / self.diameter - BEFORE
        behind = ((x > 0.5) & (x < 6)).float()
        uy = (size * SPEED * smooth * behind).view(-1)
        w = torch.tensor([16, 4, 4, 4, 4, 1, 1, 1, 1]) / 36
        return f + 3 * (w * self._velocity[1])[:, None] * uy

    def run(self, f: Float[Tensor, "9 cells"], steps: int) -> Float[Tensor, "9 cells"]:
        """Advance by so many steps."""
        size = f.shape[1]
        after, u = torch.empty_like(f), f.new_empty(2, size)
        quadratic = f.new_empty(3, size)
        f = f.clone()
        for _ in range(steps):
            torch.mm(self._velocity, f, out=u)
            torch.mul(u, u[0], out=quadratic[:2])
            torch.mul(u[1], u[1], out=quadratic[2])
            torch.mm(self._linear, f, out=after)
            after.addmm_(self._products, quadratic)
            torch.index_select(after.view(-1), 0, self._gather, out=f.view(-1))
            f[:, self._inlet] = self._stream
        return f

    def vorticity(self, f: Float[Tensor, "9 cells"]) -> Float[Tensor, "rows columns"]:
        """In units of free stream over diameter, every third cell around the wake."""
        u = (self._velocity @ f).view(2, self.rows, self.columns) * ~self.solid()
        curl = torch.gradient(u[1], dim=1)[0] - torch.gradient(u[0], dim=0)[0]
        d = self.diameter
        above, left = int(1.5 * d), (BEFORE - 1) * d
        window = curl[above : self.rows - above, left : left + 9 * d]
        return (window[1::3, 1::3] * self.time_unit).clone()

    def _sources(self, cx: Tensor, cy: Tensor, opposite: Tensor) -> Any:
        """Where each population of each cell comes from in a step, as one flat index."""
        solid = self.solid()
        rows, columns = self.rows, self.columns
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        found = []
        for i in range(9):
            from_y, from_x = (y - cy[i]) % rows, x - cx[i]
            from_x = from_x.clamp(0, columns - 1)  # the outlet copies itself
            blocked = solid[from_y, from_x]
            plain = i * rows * columns + from_y * columns + from_x
            back = int(opposite[i]) * rows * columns + y * columns + x
            # Inside, nothing moves.
            found.append(
                torch.where(
                    solid, i * rows * columns + y * columns + x, torch.where(blocked, back, plain)
                )
            )
        return torch.stack(found).view(-1)

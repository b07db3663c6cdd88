"""The Poisson equation on the unit square with a known solution, for physics-informed networks.

``-laplace u = f`` inside, ``u = 0`` on the boundary, ``u = sin(pi x) sin(pi y)``: the first example
of Müller & Zeinhofer 2023 (arXiv 2302.13163, section 4.1). Everything is in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from natgrad.lab.data import DataSet, Pair, Splits
from natgrad.lab.metrics import Metric
from natgrad.lab.networks import mlp
from natgrad.lab.objective import outputs
from natgrad.least_squares import PointResiduals, laplacian
from natgrad.least_squares.residuals import Residuals

__all__ = ["RELATIVE_ERROR", "Poisson", "draw", "network", "points", "source", "u_exact"]

TESTED = 65  #: points of the test grid along each side
VALIDATED = 1000  #: points in the square that settings are chosen on, beside a tenth on the edge
EVALUATED_AT_ONCE = 2_000


def u_exact(x: Tensor) -> Tensor:
    """The solution at ``[..., 2]``."""
    return torch.sin(math.pi * x).prod(-1)


def source(x: Tensor) -> Tensor:
    """``f = -laplace u`` at ``[..., 2]``."""
    return 2 * math.pi**2 * u_exact(x)


def network(widths: Sequence[int]) -> nn.Module:
    """Fully connected, tanh, double precision, in torch's default initialisation."""
    return mlp((2, *widths, 1), nn.Tanh).double()


def points(side: int) -> DataSet:
    """``side^2`` training points in the square and ``4 side`` on its edge.

    The middles of a grid's cells, and of the pieces of the edge.
    """
    split = (
        f"training on the middles of a {side} x {side} grid and of {4 * side} pieces of the edge; "
        f"validation on {VALIDATED} random points and {VALIDATED // 10} of the edge; test on "
        f"{TESTED} x {TESTED} grid points"
    )
    return DataSet("Poisson equation on the unit square", split, partial(_splits, side))


def _splits(side: int, folder: Path | None) -> Splits:
    middles = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.rand, generator=generator, dtype=torch.float64)
    train = torch.cat([torch.cartesian_prod(middles, middles), _edge(middles)])
    drawn = torch.cat([random(VALIDATED, 2), _edge(random(VALIDATED // 40))])
    line = torch.linspace(0, 1, TESTED, dtype=torch.float64)
    tested = torch.cartesian_prod(line, line)
    pairs = (Pair(x, u_exact(x)[:, None]) for x in (train, drawn, tested))
    return Splits(next(pairs), next(pairs), next(pairs), "computed")


def _edge(along: Tensor) -> Tensor:
    zero, one = torch.zeros_like(along), torch.ones_like(along)
    sides = ((along, zero), (along, one), (zero, along), (one, along))
    return torch.cat([torch.stack(side, -1) for side in sides])


def _on_edge(x: Tensor) -> Tensor:
    return ((x == 0) | (x == 1)).any(-1)


@dataclass(frozen=True)
class Poisson:
    """``1/2 mean (laplace u + f)^2`` inside and ``1/2 mean u^2`` on the edge, added up.

    The solution is used by the metric alone, never in training or in choosing settings.
    """

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """By two backward passes for all points at once: what is fastest without a Jacobian."""
        inner, edge = self._parts(batch.inputs)
        with torch.enable_grad():
            x = inner.clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            curved = [
                torch.autograd.grad(slope[:, k].sum(), x, create_graph=True)[0][:, k]
                for k in range(2)
            ]
            r = curved[0] + curved[1] + source(inner)
            found: Tensor = (r.square().mean() + model(edge).square().mean()) / 2
        return found

    def residuals(self, batch: Pair) -> Residuals:
        """The same point by point."""
        inner, edge = self._parts(batch.inputs)
        return (
            PointResiduals(lambda u, x: laplacian(u, x) + source(x), inner),
            PointResiduals(lambda u, x: u(x), edge),
        )

    def evaluate(self, model: nn.Module, pair: Pair) -> tuple[float, float]:
        """The loss, and the relative error of the solution."""
        u = outputs(model, pair.inputs, EVALUATED_AT_ONCE)
        return self.loss(model, pair).item(), RELATIVE_ERROR.of(u, pair.targets)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        edge = _on_edge(x)
        return x[~edge], x[edge]


def _relative_error(u: Tensor, targets: Tensor) -> float:
    return float((u - targets).norm() / targets.norm())


RELATIVE_ERROR = Metric("relative L2 error", "", "lower", _relative_error)


def draw(models: Mapping[str, nn.Module], path: Path) -> list[Path]:
    """Write a picture of each optimizer's solution and, below it, its error.

    Args:
        models: trained networks by optimizer.
        path: of the PDF and the PNG, without a suffix.

    Returns:
        The files written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only where it is drawn
    from matplotlib.figure import Figure

    from natgrad.lab.report.style import save_figure, styled
    from natgrad.lab.report.text import display_name

    line = torch.linspace(0, 1, TESTED, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    exact = u_exact(x).reshape(TESTED, TESTED).numpy()
    with styled():
        figure = Figure(figsize=(2.6 * len(models), 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, len(models), squeeze=False)
        for column, (name, model) in enumerate(models.items()):
            with torch.no_grad():
                u = model(x).reshape(TESTED, TESTED).numpy()
            error = u - exact
            relative = np.linalg.norm(error) / np.linalg.norm(exact)
            most = max(float(np.abs(error).max()), 1e-300)
            top, below = axes[0][column], axes[1][column]
            shown = {"origin": "lower", "extent": (0, 1, 0, 1)}
            solution = top.imshow(u.T, cmap="viridis", vmin=0, vmax=1, **shown)
            wrong = below.imshow(error.T, cmap="RdBu_r", vmin=-most, vmax=most, **shown)
            top.set_title(display_name(name))
            below.set_title(f"error {relative:.1e}")
            for ax, image in ((top, solution), (below, wrong)):
                ax.set(xticks=(0, 1), yticks=(0, 1))
                ax.grid(visible=False)
                figure.colorbar(image, ax=ax, shrink=0.8)
        axes[0][0].set_ylabel("u")
        axes[1][0].set_ylabel("u minus the solution\n(above: relative L2 error)")
        return save_figure(figure, path)

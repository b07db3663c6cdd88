"""The condition number of the Fisher matrix along a run (Desjardins et al. 2015, figure 2c)."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from natgrad.gather import Kind
from natgrad.lab.errors import UsageError
from natgrad.lab.folder import Results, read_rows
from natgrad.lab.report.style import Look, literal, looks, save_figure, styled
from natgrad.lab.report.text import display_name
from natgrad.lab.running import Row, Silent
from natgrad.lab.training import Training
from natgrad.whiten import whitening_report

__all__ = ["Conditioning", "conditioning_figure", "read_conditioning", "write_conditioning"]

FILE = "conditioning.jsonl"


class Conditioning(Silent):
    """Measures every layer's Fisher block in the coordinates that an optimizer trains.

    A watch, as the progress displays are: rows of :func:`natgrad.whiten.whitening_report`, one for
    each layer, go to ``conditioning.jsonl`` beside the run's curve. Nothing of the run changes, and
    measuring is off its clock. Tuning runs are left out.

    Args:
        folder: the results folder of the runs.
        every: updates between two measurements; None is at every point of the curve.
        examples: of the training data, the first ones; more make blocks less singular.
        damping: added to the eigenvalues.
        cutoff: eigenvalues below this share of the largest count as zero.
        kind: ``"exact"`` or ``"sampled"``, which does with networks of many outputs.
        samples: draws per example of the sampled Fisher.
    """

    def __init__(
        self,
        folder: Path | str,
        every: int | None = None,
        examples: int = 100,
        damping: float = 0.0,
        cutoff: float = 1e-10,
        kind: Kind = "exact",
        samples: int = 1,
    ) -> None:
        if every is not None and every < 1:
            raise UsageError(f"every must be None or >= 1, got {every}")
        self.results, self.every, self.examples = Results(Path(folder)), every, examples
        self.settings: dict[str, Any] = {
            "damping": damping, "cutoff": cutoff, "kind": kind, "samples": samples,
        }  # fmt: skip

    def begin(self, training: Training) -> None:
        """A run begins, or goes on: what was measured later than that is dropped."""
        path = self._path(training)
        if path is None:
            return
        points = {row["update"] for row in training.rows}
        kept = [
            row
            for row in read_rows(path)
            if (row["update"] in points if self.every is None else row["update"] <= training.update)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(map(_line, kept)), encoding="utf-8")
        if self.every is not None and not kept:
            self.measure(training)

    def advance(self, training: Training, loss: float) -> None:
        """A step was made."""
        if self.every is not None and training.update % self.every == 0:
            self.measure(training)

    def evaluated(self, training: Training, row: Row) -> None:
        """The curve got a point."""
        if self.every is None:
            self.measure(training)

    def measure(self, training: Training) -> None:
        """Append a row for each layer; none if the network is no longer finite."""
        path = self._path(training)
        finite = all(bool(p.isfinite().all()) for p in training.model.parameters())
        if path is None or not finite:
            return
        run = training.run
        inputs = run.compute.moved(training.splits.train.first(self.examples)).inputs
        report = whitening_report(training.model, inputs, run.recipe.likelihood, **self.settings)
        at = {
            "optimizer": run.optimizer, "seed": run.seed, "update": training.update,
            "epoch": training.epoch,
        }  # fmt: skip
        rows = [{**at, **record} for record in report.records()]
        if all(math.isfinite(x) for row in rows for x in row.values() if isinstance(x, float)):
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, rows)))

    def _path(self, training: Training) -> Path | None:
        run = training.run
        return None if run.tuning else self.results.run(run.optimizer, run.seed).path / FILE


def read_conditioning(folder: Path | str) -> list[dict[str, Any]]:
    """All rows measured in a results folder, run by run."""
    paths = sorted((Path(folder) / "runs").glob(f"*/seed*/{FILE}"))
    return [row for path in paths for row in read_rows(path)]


def write_conditioning(folder: Path | str) -> list[Path]:
    """Write the figure for papers beside the runs, as PDF and PNG.

    Returns:
        The files written.

    Raises:
        UsageError: nothing was measured there.
    """
    rows = read_conditioning(folder)
    if not rows:
        raise UsageError(f"no {FILE} in the runs of {folder}: run with a Conditioning watch first")
    return save_figure(conditioning_figure(rows), Path(folder) / "conditioning")


def conditioning_figure(
    rows: Sequence[Mapping[str, Any]], label: str = "condition of the Fisher block"
) -> Figure:
    """Condition number against updates, a panel for each layer and a line for each optimizer.

    Lines are geometric means over seeds, bands reach from the least to the greatest.
    """
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    look = looks(list(dict.fromkeys(row["optimizer"] for row in rows)))
    with styled():
        figure = Figure(figsize=(2.9 * len(layers) + 0.4, 2.75), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
        for ax, layer in zip(axes, layers, strict=True):
            for name, style in look.items():
                mine = [r for r in rows if r["layer"] == layer and r["optimizer"] == name]
                _draw(ax, mine, style)
            ax.set_yscale("log")
            ax.set_title(literal(f"layer {layer}" if layer else "the layer"), fontsize=9)
            ax.set_xlabel("updates")
        axes[0].set_ylabel(label)
        handles = [
            Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.dash)
            for style in look.values()
        ]
        names = [literal(display_name(name)) for name in look]
        figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 8))
    return figure


def _draw(ax: Axes, rows: Iterable[Mapping[str, Any]], style: Look) -> None:
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        found[row["update"]].append(row["condition"])
    if not found:
        return
    x = sorted(found)
    logs = [np.log(found[update]) for update in x]
    low, high = ([float(np.exp(f(values))) for values in logs] for f in (np.min, np.max))
    ax.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0)
    mean = [float(np.exp(values.mean())) for values in logs]
    step = max(1, len(x) // 7)
    ax.plot(x, mean, color=style.colour, marker=style.marker, linestyle=style.dash, markevery=step)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"

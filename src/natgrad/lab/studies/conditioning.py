"""What whitening does to the Fisher matrix (Desjardins et al. 2015, Fig. 2)."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from natgrad import PRONG, whiten
from natgrad.lab.conditioning import Conditioning, conditioning_figure, read_conditioning
from natgrad.lab.folder import Results
from natgrad.lab.report.style import literal, styled
from natgrad.lab.report.text import deviation, display_name
from natgrad.lab.running import Watch
from natgrad.lab.study import Work
from natgrad.lab.tables import Table
from natgrad.likelihood import Likelihood

__all__ = ["FIRST_WHITENING", "LOG", "FisherBeforeAndAfter", "layer_fisher"]

LOG = "log10(condition / initial)"  #: a column of the table
REDUCTION = "reduction [%]"  #: another
FIGURES = (LOG, f"{LOG} sd", REDUCTION, f"{REDUCTION} sd")
FIRST_WHITENING = "first-whitening"  #: a table: what whitening does before any training
DARKEST = 1e-4  #: of the largest entry; what is smaller is drawn as dark


@dataclass(frozen=True)
class FisherBeforeAndAfter:
    """Heat maps of the Fisher of hidden layers, and condition numbers along training.

    Figures: ``fisher``, absolute values of the exact Fisher blocks at the initial weights, before
    and after the first whitening; ``conditioning``, condition numbers against updates, relative to
    the plain network's at the start. The table ``conditioning`` has them where each optimizer's
    training loss first is that of the slowest, so that they are compared at equal training error;
    ``first-whitening`` has PRONG's at the initial weights, before any training.

    Attributes:
        layers: the middle hidden layers, as the network names them.
        eps: of the whitening in the heat maps; in the runs it is PRONG's own.
        examples: of the training data, that the Fisher matrices are means over.
        damping: added to the eigenvalues for the condition numbers. Without, they are over the
            eigenvalues that are not zero: gradients of a layer before a narrow one span few
            directions, and their block is singular for any number of examples.
    """

    layers: tuple[str, ...]
    eps: float = 1e-4
    examples: int = 200
    damping: float = 0.0

    def watch(self, results: Results) -> Watch | None:
        """Measures condition numbers at every point of the curves."""
        return Conditioning(results.path, examples=self.examples, damping=self.damping)

    def conclude(self, work: Work) -> None:
        """See :class:`natgrad.lab.study.Study`."""
        if "fisher" not in work.folder.figures():
            work.tell("drawing the Fisher matrix before and after whitening")
            work.folder.write_figure("fisher", *self._heat_maps(work))
        rows = self._relative(read_conditioning(work.results.path))
        if not rows:
            return
        rows.sort(key=lambda row: work.optimizers.index(row["optimizer"]))  # colours as elsewhere
        figure = conditioning_figure(rows, "condition number / initial")
        caption = (
            "Condition number of the Fisher block of each middle hidden layer in the coordinates "
            f"that are trained, over the plain network's at the start (exact, {self.examples} "
            f"training examples, damping {self.damping:g}; without, over the eigenvalues that are "
            "not zero). Lines: geometric mean over seeds; bands: least to greatest."
        )
        work.folder.write_figure("conditioning", figure, caption)
        work.folder.write_table("conditioning", self._table(work, rows))
        first = _first_whitening(rows, self.layers)
        if first is not None:
            work.folder.write_table(FIRST_WHITENING, first)

    def _relative(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the middle layers, divided by the plain network's at the start, seed by seed."""
        named = [{**row, "layer": _plain_name(row["layer"])} for row in rows]
        mine = [row for row in named if row["layer"] in self.layers]
        start = {
            (row["layer"], row["seed"]): row["condition"]
            for row in mine
            if row["update"] == 0 and not row["whitened"] and row["optimizer"] == "sgd"
        }
        return [
            {**row, "condition": row["condition"] / start[row["layer"], row["seed"]]}
            for row in mine
            if (row["layer"], row["seed"]) in start
        ]

    def _table(self, work: Work, rows: Sequence[Mapping[str, Any]]) -> Table:
        curves = {
            (name, seed): work.results.run(name, seed).rows()
            for name in work.optimizers
            for seed in work.seeds
        }
        finished = {key: rows for key, rows in curves.items() if rows}
        level = max(min(row["train_loss"] for row in rows) for rows in finished.values())
        cells, by_seed = [], {}
        for name in work.optimizers:
            found = [_at(finished[key], level) for key in finished if key[0] == name]
            if not found:
                continue
            means = [
                statistics.fmean(row[key] for row in found)
                for key in ("update", "train_loss", "train_metric", "test_metric")
            ]
            when = {row["seed"]: row["update"] for row in found}
            logs = _logs_at(rows, name, when)
            cells.append([display_name(name), *means, *_figures(logs.values()), len(found)])
            by_seed[display_name(name)] = {LOG: logs}
        metric = work.recipe.metric
        columns = (
            "optimizer", "updates", "train loss", f"train {metric.name} [{metric.unit}]",
            f"test {metric.name} [{metric.unit}]", *FIGURES, "seeds",
        )  # fmt: skip
        note = (
            f"At the first evaluation with a training loss of at most {level:.4g}, the lowest that "
            "every run reached. Condition: geometric mean over the middle hidden layers and seeds."
        )
        return Table("Conditioning at equal training error", columns, cells, note, by_seed)

    def _heat_maps(self, work: Work) -> tuple[Figure, str]:
        torch.manual_seed(0)
        model = work.recipe.network()
        inputs = work.splits.train.inputs
        few, likelihood = inputs[: self.examples], work.recipe.likelihood
        before = [layer_fisher(model, name, few, likelihood) for name in self.layers]
        whiten(model, PRONG(every=1, eps=self.eps, samples=1000), data=inputs)
        after = [layer_fisher(model, name, few, likelihood) for name in self.layers]
        caption = (
            f"Absolute values of the exact Fisher block of each middle hidden layer at the initial "
            f"weights ({self.examples} training examples), each divided by its largest entry: with "
            f"respect to (W, b), and to (V, d) after the first whitening (eps {self.eps:g})."
        )
        return _drawn(self.layers, before, after), caption


def _first_whitening(rows: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> Table | None:
    """PRONG's condition over the plain network's, both at the initial weights."""
    logs = {
        (row["layer"], str(row["seed"])): math.log10(row["condition"])
        for row in rows
        if row["optimizer"] == "prong" and row["update"] == 0 and row["whitened"]
    }
    seeds = list(dict.fromkeys(seed for _, seed in logs))
    if not seeds:
        return None
    groups = {**{f"layer {name}": [name] for name in layers}, "mean": list(layers)}
    cells, by_seed = [], {}
    for label, names in groups.items():
        found = {seed: statistics.fmean(logs[name, seed] for name in names) for seed in seeds}
        cells.append([label, *_figures(found.values()), len(seeds)])
        by_seed[label] = {
            LOG: found, REDUCTION: {seed: _reduction(log) for seed, log in found.items()},
        }  # fmt: skip
    columns = ("layer", *FIGURES, "seeds")
    note = "Both at the initial weights, PRONG with its tuned eps. Mean: geometric, over layers."
    return Table("The first whitening alone", columns, cells, note, by_seed)


def _figures(logs: Collection[float]) -> tuple[float | None, ...]:
    """What stands under `FIGURES`, of the logarithms of each seed; the mean is geometric."""
    log = statistics.fmean(logs)
    spread = deviation([_reduction(each) for each in logs])
    return log, deviation(logs), _reduction(log), spread


def _reduction(log: float) -> float:
    """By how many percent a condition is below the initial one, from their ratio's log10."""
    return 100 * (1 - 10**log)


def layer_fisher(model: nn.Module, name: str, inputs: Tensor, likelihood: Likelihood) -> Tensor:
    """The exact Fisher block of a layer's ``weight`` and ``bias`` as they stand in the model.

    ``1/N sum_n J_n^T R(f_n) J_n`` with ``J_n`` the Jacobian of the logits, ``[p, p]``; ``R`` is the
    sum of the outer products of the likelihood's columns.

    Args:
        model: plain or whitened; a whitened layer's parameters are ``V`` and ``d``.
        name: of the layer.
        inputs: one batch, ``[n, ...]``.
        likelihood: of the targets.
    """
    own = list(model.get_submodule(name).parameters(recurse=False))
    rows = []
    for x in torch.split(inputs, 1):  # gradients of single examples, each alone in its batch
        f = model(x)
        for column in likelihood.columns(f.detach()):
            found = torch.autograd.grad(f, own, column, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in found]))
    J = torch.stack(rows)
    return J.mT @ J / len(inputs)


def _drawn(layers: Sequence[str], before: Sequence[Tensor], after: Sequence[Tensor]) -> Figure:
    with styled():
        figure = Figure(figsize=(2.6 * len(layers) + 1.1, 5.2), layout="constrained")
        figure.set_layout_engine("constrained", w_pad=0.08)
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, len(layers), squeeze=False)
        norm = LogNorm(DARKEST, 1.0)
        for row, matrices in zip(axes, (before, after), strict=True):
            for ax, name, F in zip(row, layers, matrices, strict=True):
                size = F.detach().abs()
                values = (size / size.max()).clamp_min(DARKEST).numpy()
                image = ax.imshow(values, norm=norm, cmap="cividis", interpolation="nearest")
                ax.grid(visible=False)
                ax.set_xticks([])
                ax.set_yticks([])
                ax.set_title(literal(f"layer {name}"), fontsize=9)
        axes[0][0].set_ylabel("before whitening")
        axes[1][0].set_ylabel("after whitening")
        figure.colorbar(image, ax=axes, shrink=0.7, label="|entry| / largest")
    return figure


def _plain_name(layer: str) -> str:
    """BatchNorm stands behind the layer in a sequence of its own: ``2.0`` was ``2``."""
    return layer.removesuffix(".0")


def _at(rows: Sequence[Mapping[str, Any]], level: float) -> Mapping[str, Any]:
    return next(row for row in rows if row["train_loss"] <= level)


def _logs_at(
    rows: Sequence[Mapping[str, Any]], optimizer: str, when: Mapping[int, int]
) -> dict[str, float]:
    """Of each seed the mean over layers of ``log10`` of the condition."""
    logs: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["optimizer"] == optimizer and when.get(row["seed"]) == row["update"]:
            logs[str(row["seed"])].append(math.log10(row["condition"]))
    return {seed: statistics.fmean(values) for seed, values in logs.items()}

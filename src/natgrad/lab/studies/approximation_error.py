"""How far the approximations are from the exact Fisher along training, and what damping does.

Gao et al. 2020 (arXiv 2011.10741, 2011.13609): the approximations are derived from what they keep
of the exact block; and: "without damping the methods fail", "a fixed one turns them first-order".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from natgrad import compare, fisher
from natgrad.lab.data import Pair
from natgrad.lab.folder import Results
from natgrad.lab.optimizers import complete
from natgrad.lab.report.style import Look, literal, looks, styled
from natgrad.lab.report.text import deviation, display_name
from natgrad.lab.running import Watch
from natgrad.lab.studies.alongside import Alongside, read_alongside
from natgrad.lab.study import Work
from natgrad.lab.tables import Table
from natgrad.lab.training import Training
from natgrad.likelihood import Likelihood

__all__ = ["LEAST", "LOG", "ApproximationError"]

LOG = "log10 error"  #: a column of the table of errors
LEAST = "least cosine"  #: a column of the table of fixed dampings
NAME = "approximations"
STRUCTURES = ("kfac", "ekfac", "tkfac", "tekfac")
FIGURES = ("error", "trace_ratio", "cosine", "step_error")
LABELS = {
    "error": "|F - F'| / |F|",
    "trace_ratio": "tr F' / tr F",
    "cosine": "cosine of the steps",
    "step_error": "|u - u'| / |u|",
}


@dataclass(frozen=True)
class ApproximationError:
    """Compares KFAC, EKFAC, TKFAC and TEKFAC with the exact block at every point of the curves.

    On validation examples, at the weights of one optimizer's runs. Damping is a multiple of each
    layer's mean eigenvalue ``tr F_l / dim F_l``, which falls along training: the same number is a
    small damping at the start and a large one later. The table ``damping`` has, for several
    multiples, the cosine between the damped natural gradient and the plain one: near 1 the method
    is first-order. The table ``first_order`` has the same of fixed dampings.

    Attributes:
        optimizer: whose runs are looked at.
        examples: that the Fisher matrices are means over.
        relative: damping of the steps that are compared, over the layer's mean eigenvalue.
        fixed: fixed dampings, the same number for every layer.
        multiples: dampings of the table, over the mean eigenvalue.
    """

    optimizer: str
    examples: int = 100
    relative: float = 1.0
    fixed: tuple[float, ...] = (0.03, 10.0)
    multiples: tuple[float, ...] = (1e-4, 1e-2, 1.0, 1e2, 1e4)

    def watch(self, results: Results) -> Watch | None:
        """Measures at every point of the curves."""
        return Alongside(results, NAME, self._measure)

    def _measure(self, training: Training) -> Sequence[Mapping[str, Any]]:
        if training.run.optimizer != self.optimizer:
            return []
        likelihood = training.run.recipe.likelihood
        pair = training.run.compute.moved(training.splits.validation.first(self.examples))
        means = mean_eigenvalues(training.model, pair, likelihood)
        damping = self.relative * statistics.fmean(means.values())
        found = compare(
            training.model, pair.inputs, likelihood, structures=STRUCTURES, targets=pair.targets,
            damping=damping,
        )  # fmt: skip
        bends = self._bends(training.model, pair, likelihood, means)
        loss = training.rows[-1]["train_loss"]
        sizes = {layer: sum(s.stop - s.start for s in parts)
                 for layer, parts in _spans(training.model).items()}  # fmt: skip
        settings = complete(training.run.optimizer, training.run.settings)
        nu = float(settings.get("nu", 0.0))
        return [
            {
                "layer": row.layer, "structure": row.structure, "train_loss": loss,
                "mean_eigenvalue": means[row.layer],
                "restricted": max(means[row.layer], nu / sizes[row.layer]),
                **{key: getattr(row, key) for key in FIGURES},
                **(bends[row.layer] if row.structure == "tekfac" else {}),
            }
            for row in found.rows
        ]  # fmt: skip

    def _bends(
        self, model: nn.Module, pair: Pair, likelihood: Likelihood, means: Mapping[str, float]
    ) -> dict[str, dict[str, float]]:
        """Cosine of TEKFAC's damped natural gradient with the gradient, by layer and damping."""
        F = fisher(model, pair.inputs, likelihood, kind="exact", structure="tekfac")
        loss = likelihood.nll(model(pair.inputs), pair.targets).mean()
        g = torch.cat([x.flatten() for x in torch.autograd.grad(loss, list(model.parameters()))])
        spans = _spans(model)
        bends: dict[str, dict[str, float]] = {layer: {} for layer in means}
        for layer, mean in means.items():
            plain = torch.cat([g[part] for part in spans[layer]])
            dampings = {f"cosine at {m:g}": m * mean for m in self.multiples}
            dampings |= {_at_fixed(damping): damping for damping in self.fixed}
            for key, damping in dampings.items():
                u = F.solve(g, damping=damping)
                mine = torch.cat([u[part] for part in spans[layer]])
                bends[layer][key] = _cosine(mine, plain)
        return bends

    def conclude(self, work: Work) -> None:
        """See :class:`natgrad.lab.study.Study`."""
        rows = read_alongside(work.results, NAME)
        if not rows:
            return
        tables = {
            "errors": _errors(rows),
            "damping": self._damping(rows),
            "first_order": self._first_order(rows),
        }
        for name, table in tables.items():
            work.folder.write_table(name, table)
        caption = (
            f"Against the exact Fisher block of every layer, along training by "
            f"{display_name(self.optimizer)}: medians over layers and seeds, on {self.examples} "
            f"validation examples; steps with damping {self.relative:g} times the mean eigenvalue."
        )
        work.folder.write_figure("errors", _drawn(rows), caption)
        caption = "Mean eigenvalue tr F / dim F of every layer's exact block (mean over seeds)."
        work.folder.write_figure("eigenvalues", _eigenvalues(rows), caption)

    def _damping(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        """For the first and last look at every layer: eigenvalues, and what damping does."""
        bent = [row for row in rows if row["structure"] == "tekfac"]
        keys = [f"cosine at {multiple:g}" for multiple in self.multiples]
        cells = []
        for layer in dict.fromkeys(row["layer"] for row in bent):
            mine = [row for row in bent if row["layer"] == layer]
            updates = [row["update"] for row in mine]
            for update in dict.fromkeys((min(updates), max(updates))):
                at = [row for row in mine if row["update"] == update]
                mean = statistics.fmean(row["mean_eigenvalue"] for row in at)
                restricted = statistics.fmean(row["restricted"] for row in at) / mean
                cosines = [statistics.fmean(row[key] for row in at) for key in keys]
                fixed = [damping / mean for damping in self.fixed]
                cells.append([f"{layer}, {update}", mean, restricted, *fixed, *cosines])
        note = (
            "Over the layer's mean eigenvalue: the damping of (3.5) with the run's nu, and fixed "
            "ones. Then the cosine between TEKFAC's natural gradient and the plain one, at "
            "dampings of so many mean eigenvalues: 1 is a first-order step."
        )
        fixed_columns = [f"{damping:g} / mean" for damping in self.fixed]
        columns = ("layer, updates", "mean eigenvalue", "(3.5) / mean", *fixed_columns, *keys)
        return Table("Damping against the mean eigenvalue", columns, cells, note)

    def _first_order(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        """For each fixed damping the least cosine among layers and moments, of every seed."""
        cells, by_seed = [], {}
        for damping in self.fixed:
            least: dict[str, float] = {}
            for row in rows:
                if row["structure"] == "tekfac":
                    seed = str(row["seed"])
                    least[seed] = min(row[_at_fixed(damping)], least.get(seed, math.inf))
            mean, sd = statistics.fmean(least.values()), deviation(least.values())
            cells.append([f"{damping:g}", mean, sd, len(least)])
            by_seed[f"{damping:g}"] = {LEAST: least}
        note = (
            "Cosine between TEKFAC's natural gradient with a fixed damping and the plain "
            "gradient, the least over layers and moments of training, mean over seeds."
        )
        columns = ("damping", LEAST, f"{LEAST} sd", "seeds")
        return Table("Fixed dampings: how first-order a step is", columns, cells, note, by_seed)


def mean_eigenvalues(model: nn.Module, pair: Pair, likelihood: Likelihood) -> dict[str, float]:
    """``tr F_l / dim F_l`` of the exact block of every layer; the trace is that of its diagonal."""
    F = fisher(model, pair.inputs, likelihood, kind="exact", structure="diagonal")
    parameters = torch.nn.utils.parameters_to_vector(model.parameters())
    diagonal = F @ torch.ones_like(parameters)
    found = {}
    for layer, parts in _spans(model).items():
        values = torch.cat([diagonal[part] for part in parts])
        found[layer] = float(values.mean())
    return found


def _spans(model: nn.Module) -> dict[str, list[slice]]:
    """Where each layer's parameters lie in the vector of all of them."""
    spans: dict[str, list[slice]] = {}
    start = 0
    for name, parameter in model.named_parameters():
        spans.setdefault(name.rpartition(".")[0], []).append(
            slice(start, start + parameter.numel())
        )
        start += parameter.numel()
    return spans


def _at_fixed(damping: float) -> str:
    return f"cosine at damping {damping:g}"


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()).clamp_min(torch.finfo(a.dtype).tiny))


def _medians(
    rows: Iterable[Mapping[str, Any]], structure: str, key: str
) -> tuple[list[float], list[float]]:
    """Medians over layers and seeds against updates."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["structure"] == structure:
            found.setdefault(row["update"], []).append(row[key])
    updates = sorted(found)
    return [float(u) for u in updates], [statistics.median(found[u]) for u in updates]


def _errors(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The four approximations, each the median over layers, seeds and moments, with the worst."""
    cells, by_seed = [], {}
    for structure in STRUCTURES:
        mine = [row for row in rows if row["structure"] == structure]
        figures = [statistics.median(row[key] for row in mine) for key in FIGURES]
        logs: dict[str, list[float]] = {}
        for row in mine:
            logs.setdefault(str(row["seed"]), []).append(math.log10(row["error"]))
        means = {seed: statistics.fmean(each) for seed, each in logs.items()}
        sd = deviation(means.values())
        cells.append(
            [structure.upper(), *figures, statistics.fmean(means.values()), sd, len(means)]
        )
        by_seed[structure.upper()] = {LOG: means}
    columns = ("structure", "error", "trace", "cosine", "step error", LOG, f"{LOG} sd", "seeds")
    note = (
        "Medians over layers, seeds and moments of training, of the logarithm the mean. Error "
        "|F - F'| / |F|, trace tr F' / tr F, cosine and relative error of the damped natural "
        "gradients."
    )
    return Table("Approximations against the exact Fisher", columns, cells, note, by_seed)


def _drawn(rows: Sequence[Mapping[str, Any]]) -> Figure:
    look = looks(STRUCTURES)
    with styled():
        figure = Figure(figsize=(3.0 * len(FIGURES), 2.9), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(FIGURES))
        for ax, key in zip(axes, FIGURES, strict=True):
            for structure, style in look.items():
                x, y = _medians(rows, structure, key)
                ax.plot(x, y, color=style.colour, marker=style.marker, linestyle=style.dash)
            ax.set_xlabel("updates")
            ax.set_ylabel(LABELS[key])
        _legend(figure, [(s.upper(), look[s]) for s in STRUCTURES])
    return figure


def _eigenvalues(rows: Sequence[Mapping[str, Any]]) -> Figure:
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    look = looks(layers)
    with styled():
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        FigureCanvasAgg(figure)
        ax: Axes = figure.subplots()
        for layer, style in look.items():
            mine = [row for row in rows if row["layer"] == layer]
            x, y = _medians(mine, STRUCTURES[0], "mean_eigenvalue")
            ax.plot(x, y, color=style.colour, marker=style.marker, linestyle=style.dash)
        if all(math.log10(row["mean_eigenvalue"]) > -math.inf for row in rows):
            ax.set_yscale("log")
        ax.set_xlabel("updates")
        ax.set_ylabel("mean eigenvalue")
        entries = [(literal(f"layer {k}"), look[k]) for k in layers]
        _legend(figure, entries)
    return figure


def _legend(figure: Figure, entries: Sequence[tuple[str, Look]]) -> None:
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash)
        for _, look in entries
    ]
    names = [name for name, _ in entries]
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 5))

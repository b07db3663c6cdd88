"""One hyperparameter over a range of values, with the paper's curve beside ours."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from matplotlib.figure import Figure

from natgrad.lab.folder import Results
from natgrad.lab.report.style import COLOURS, INK, styled
from natgrad.lab.report.text import deviation
from natgrad.lab.running import Watch
from natgrad.lab.study import Work
from natgrad.lab.tables import Table

__all__ = ["Printed", "Sensitivity", "sensitivity_figure"]

Printed: TypeAlias = Mapping[float, tuple[float, float]]
Runs: TypeAlias = Mapping[float, Sequence[Mapping[str, Any]]]  #: last points by value, seed by seed


@dataclass(frozen=True)
class Sensitivity:
    """The last figures of every value of a hyperparameter, and the paper's.

    Attributes:
        key: the hyperparameter.
        printed: the paper's test accuracy, mean and standard deviation, by its value.
        method: the optimizer; each value is compared under ``method[key=value]``.
        theirs: the paper's data set.
    """

    key: str
    printed: Printed
    method: str
    theirs: str

    def name(self, value: float) -> str:
        """What a value is compared under."""
        return f"{self.method}[{self.key}={value:g}]"

    def watch(self, results: Results) -> Watch | None:
        """Nothing is measured along the runs."""
        return None

    def conclude(self, work: Work) -> None:
        """Write the table ``sensitivity`` and its figure."""
        runs = {value: self._last_rows(work, value) for value in self.printed}
        diverged = {value: self._count(work, value, "diverged") for value in self.printed}
        name = work.recipe.data.name_of(work.splits)
        work.folder.write_table("sensitivity", self._table(runs, diverged, name))
        caption = f"Accuracy after training by {self.key}: {name}, and the paper's on {self.theirs}"
        with styled():
            figure = sensitivity_figure(self, runs, name)
        work.folder.write_figure("sensitivity", figure, caption)

    def _last_rows(self, work: Work, value: float) -> list[dict[str, Any]]:
        """The last point of every finished run."""
        places = [work.results.run(self.name(value), seed) for seed in work.seeds]
        return [p.rows()[-1] for p in places if p.status().get("status") == "finished"]

    def _count(self, work: Work, value: float, status: str) -> int:
        places = [work.results.run(self.name(value), seed) for seed in work.seeds]
        return sum(place.status().get("status") == status for place in places)

    def _table(self, runs: Runs, diverged: Mapping[float, int], name: str) -> Table:
        splits = ("train", "validation", "test")
        columns = [self.key]
        for split in splits:
            columns += [f"{split} accuracy", f"{split} accuracy sd"]
        columns += ["seeds", "diverged", f"paper, {self.theirs}", "paper sd"]
        rows = []
        for value, last in runs.items():
            row: list[Any] = [f"{value:g}"]
            for split in splits:
                row += _mean_and_sd([point[f"{split}_metric"] for point in last])
            rows.append([*row, len(last), diverged[value], *self.printed[value]])
        return Table(
            f"{self.key}: accuracy after training, {name} (%)",
            columns,
            rows,
            "Mean and sample standard deviation over the seeds that did not diverge; train figures "
            "are of whole images.",
        )


def _mean_and_sd(values: Sequence[float]) -> list[float | None]:
    mean = round(statistics.fmean(values), 4) if values else None
    sd = deviation(values)
    return [mean, None if sd is None else round(sd, 4)]


def sensitivity_figure(study: Sensitivity, runs: Runs, name: str) -> Figure:
    """Train and test accuracy against the hyperparameter, and the paper's on an axis of its own.

    Levels differ with data and size; what is to be compared is the shape, so both axes span the
    same number of points of a percent.
    """
    figure = Figure(figsize=(5.2, 3.5), layout="constrained")
    ours = figure.add_subplot()
    theirs = ours.twinx()
    lines = [
        _errorbars(ours, runs, split, label, style)
        for split, label, style in (
            ("test", f"test, {name}", ("-", "o", COLOURS[0])),
            ("train", f"train, {name}", (":", "^", COLOURS[2])),
        )
    ]
    means, sds = zip(*study.printed.values(), strict=True)
    lines.append(
        theirs.errorbar(
            list(study.printed), means, yerr=sds, linestyle="--", marker="s", color=INK, capsize=2,
            label=f"test, the paper ({study.theirs})",
        )
    )  # fmt: skip
    ours.set(xscale="log", xlabel=study.key, ylabel=f"accuracy, {name} (%)")
    theirs.set_ylabel("the paper (%)")
    theirs.grid(visible=False)
    theirs.spines["right"].set_visible(True)
    low, high = ours.get_ylim()
    middle = (min(means) + max(means)) / 2
    span = max(high - low, 1.2 * (max(means) - min(means)))
    ours.set_ylim((low + high - span) / 2, (low + high + span) / 2)
    theirs.set_ylim(middle - span / 2, middle + span / 2)
    figure.legend(handles=lines, loc="outside upper center", ncols=2)
    return figure


def _errorbars(
    axes: Any,
    runs: Runs,
    split: str,
    label: str,
    look: tuple[str, str, str],
) -> Any:
    points = [
        (value, *_mean_and_sd([point[f"{split}_metric"] for point in last]))
        for value, last in runs.items()
        if last
    ]
    line, marker, colour = look
    return axes.errorbar(
        [x for x, _, _ in points], [y for _, y, _ in points],
        yerr=[sd or 0.0 for _, _, sd in points], linestyle=line, marker=marker, color=colour,
        capsize=2, label=label,
    )  # fmt: skip

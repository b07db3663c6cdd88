"""One hyperparameter of TEKFAC over a range, with the paper's curve beside ours."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.figure import Figure

from natgrad.lab.folder import Results
from natgrad.lab.image_networks import CIFAR10_CHANNELS, CIFAR100_CHANNELS
from natgrad.lab.image_sets import CIFAR10, CIFAR100
from natgrad.lab.optimizers import Settings
from natgrad.lab.paper import Claim, Final, Number
from natgrad.lab.recipe import Recipe
from natgrad.lab.report.style import COLOURS, INK, styled
from natgrad.lab.running import Watch
from natgrad.lab.study import Work
from natgrad.lab.tables import Table
from natgrad.lab.tekfac import SOURCE, classifier

__all__ = ["Sensitivity", "sensitivity_figure", "sweep"]

METHOD = "tekfac_restricted"
Printed = Mapping[float, tuple[float, float]]


def sweep(key: str, printed: Printed, fixed: Settings, where: str) -> dict[str, Recipe]:
    """ResNet-20 on CIFAR-100, as in the paper, and on CIFAR-10.

    Args:
        key: the hyperparameter.
        printed: the paper's test accuracy, mean and standard deviation, by its value.
        fixed: the other settings.
        where: in the paper.
    """
    whole = classifier("resnet20", CIFAR100, CIFAR100_CHANNELS, 100)
    other = classifier("resnet20", CIFAR10, CIFAR10_CHANNELS, 10)
    found = {"cifar100": whole, "cifar10": other}
    return {name: _of_one(recipe, key, printed, fixed, where) for name, recipe in found.items()}


def _of_one(recipe: Recipe, key: str, printed: Printed, fixed: Settings, where: str) -> Recipe:
    grids: dict[str, list[Settings]] = {
        _name(key, value): [{key: value, **fixed}] for value in printed
    }
    smaller = {
        name: replace(profile, changes={**profile.changes, "grids": grids})
        for name, profile in recipe.profiles.items()
    }
    listed = ", ".join(f"{name} {value:g}" for name, value in fixed.items())
    return replace(
        recipe,
        title=f"TEKFAC's {key} ({listed}), {recipe.title}",
        source=f"{SOURCE}, {where}",
        grids=grids,
        settings={name: points[0] for name, points in grids.items()},
        optimizers=tuple(grids),
        paper=_stated(key, printed, where),
        profiles=smaller,
        study=Sensitivity(key, printed),
        differs=recipe.differs.replace(
            "settings are picked on validation images held out of the training set, ten points for "
            "every optimizer out of the paper's grids",
            "the validation images are held out of the training set; nothing is tuned",
        ),
    )


def _name(key: str, value: float) -> str:
    return f"{METHOD}[{key}={value:g}]"


def _stated(key: str, printed: Printed, where: str) -> tuple[Number | Claim, ...]:
    numbers = [
        Number(
            f"{key} {value:g}, test accuracy", mean, where, CIFAR100.name,
            Final(_name(key, value)), sd, "%",
        )
        for value, (mean, sd) in printed.items()
    ]  # fmt: skip
    best = max(printed, key=lambda value: printed[value][0])
    claim = Claim(
        f"{key} {best:g} is more accurate than {key} {max(printed):g}", where, CIFAR100.name,
        Final(_name(key, best)), Final(_name(key, max(printed))),
    )  # fmt: skip
    return (*numbers, claim)


@dataclass(frozen=True)
class Sensitivity:
    """The last figures of every value of a hyperparameter, and the paper's.

    Attributes:
        key: the hyperparameter.
        printed: the paper's test accuracy, mean and standard deviation, by its value.
    """

    key: str
    printed: Printed

    def watch(self, results: Results) -> Watch | None:
        """Nothing is measured along the runs."""
        return None

    def conclude(self, work: Work) -> None:
        """Write the table ``sensitivity`` and its figure."""
        runs = {
            value: _last_rows(work.results, _name(self.key, value), work.seeds)
            for value in self.printed
        }
        name = work.splits.name or work.recipe.data.name
        work.folder.write_table("sensitivity", self._table(runs, name))
        caption = f"Accuracy after training by {self.key}: {name}, and the paper's on CIFAR-100"
        with styled():
            figure = sensitivity_figure(self.key, runs, self.printed, name)
        work.folder.write_figure("sensitivity", figure, caption)

    def _table(self, runs: Mapping[float, Sequence[Mapping[str, Any]]], name: str) -> Table:
        splits = ("train", "validation", "test")
        columns = [self.key]
        for split in splits:
            columns += [f"{split} accuracy", f"{split} accuracy sd"]
        columns += ["seeds", "diverged", "paper, CIFAR-100", "paper sd"]
        rows = []
        for value, last in runs.items():
            row: list[Any] = [f"{value:g}"]
            for split in splits:
                row += _mean_and_sd([point[f"{split}_metric"] for point in last])
            of_seeds = max(len(found) for found in runs.values())
            rows.append([*row, len(last), of_seeds - len(last), *self.printed[value]])
        return Table(
            f"{self.key}: accuracy after training, {name} (%)",
            columns,
            rows,
            "Mean and sample standard deviation over the seeds that did not diverge; train figures "
            "are of whole images.",
        )


def _last_rows(results: Results, name: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The last point of every finished run."""
    places = [results.run(name, seed) for seed in seeds]
    return [p.rows()[-1] for p in places if p.status().get("status") == "finished"]


def _mean_and_sd(values: Sequence[float]) -> list[float | None]:
    mean = round(statistics.fmean(values), 4) if values else None
    return [mean, round(statistics.stdev(values), 4) if len(values) > 1 else None]


def sensitivity_figure(
    key: str, runs: Mapping[float, Sequence[Mapping[str, Any]]], printed: Printed, name: str
) -> Figure:
    """Train and test accuracy against the hyperparameter, and the paper's on an axis of its own.

    Levels differ with data and size; what is to be compared is the shape, so both axes span the
    same number of points of a percent.
    """
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    ours = figure.add_subplot()
    theirs = ours.twinx()
    lines = [
        _errorbars(ours, runs, split, label, style)
        for split, label, style in (
            ("test", f"test, {name}", ("-", "o", COLOURS[0])),
            ("train", f"train, {name}", (":", "^", COLOURS[2])),
        )
    ]
    means, sds = zip(*printed.values(), strict=True)
    lines.append(
        theirs.errorbar(
            list(printed), means, yerr=sds, linestyle="--", marker="s", color=INK, capsize=2,
            label="test, the paper (CIFAR-100)",
        )
    )  # fmt: skip
    ours.set(xscale="log", xlabel=key, ylabel=f"accuracy, {name} (%)")
    theirs.set_ylabel("the paper (%)")
    theirs.grid(visible=False)
    theirs.spines["right"].set_visible(True)
    low, high = ours.get_ylim()
    middle = (min(means) + max(means)) / 2
    span = max(high - low, 1.2 * (max(means) - min(means)))
    ours.set_ylim((low + high - span) / 2, (low + high + span) / 2)
    theirs.set_ylim(middle - span / 2, middle + span / 2)
    figure.legend(handles=lines, loc="outside upper center", ncols=3)
    return figure


def _errorbars(
    axes: Any,
    runs: Mapping[float, Sequence[Mapping[str, Any]]],
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

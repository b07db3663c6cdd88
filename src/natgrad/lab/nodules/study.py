"""Beside the curves of the nodule experiments: FROC with intervals, epochs to a loss."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from natgrad.lab.data import Pair
from natgrad.lab.folder import Results, RunFolder
from natgrad.lab.luna.bootstrap import Score, score
from natgrad.lab.luna.froc import OPERATING_POINTS, Marks, cpm, froc
from natgrad.lab.objective import outputs
from natgrad.lab.report.style import literal, looks, styled
from natgrad.lab.report.text import deviation, display_name
from natgrad.lab.running import Watch
from natgrad.lab.study import Work
from natgrad.lab.tables import Table
from natgrad.lab.training import Training

__all__ = ["FROC", "LOSS", "POINTS", "TEST", "DetectionStudy", "FrocStudy", "crossing"]

FROC, LOSS = "froc", "epochs-to-loss"
TEST = "test"  #: the column with what a paper gives
CAPTION = "FROC curves on the test set, means over seeds, with bootstrap intervals (95 %)."
#: the operating points as the tables name them
POINTS = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


@dataclass(frozen=True)
class FrocStudy:
    """FROC curves of the trained networks on the test set.

    Attributes:
        marks: a split's marks, from a network's outputs and the targets.
        at_once: examples that a network is given at a time.
        resamples: of the bootstrap.
    """

    marks: Callable[[Tensor, Tensor], Marks]
    at_once: int
    resamples: int = 1000

    def watch(self, results: Results) -> Watch | None:
        """None: the trained networks are enough."""
        return None

    def conclude(self, work: Work) -> None:
        """Write the tables and the figure."""
        found: dict[str, Score] = {}
        rows: list[list[Any]] = []
        by_seed: dict[str, dict[str, dict[str, float]]] = {}
        for name in work.optimizers:
            if work.stop():
                return
            judged = {seed: self._judged(work, name, seed) for seed in work.seeds}
            pairs = {seed: pair for seed, pair in judged.items() if pair is not None}
            if pairs:
                found[name] = score(*(test for _, test in pairs.values()), resamples=self.resamples)
                train, test = ({s: _figures(pair[k]) for s, pair in pairs.items()} for k in (0, 1))
                rows += _rows(name, found[name], list(train.values()), list(test.values()))
                by_seed |= _by_seed(name, test)
        if found:
            work.folder.write_table(FROC, _table(rows, by_seed, self.resamples))
            work.folder.write_figure(FROC, _figure(found), CAPTION)

    def _judged(self, work: Work, optimizer: str, seed: int) -> tuple[Marks, Marks] | None:
        """The marks on the training and on the test set; None for an unfinished run."""
        place = work.results.run(optimizer, seed)
        weights = place.load_weights()
        if weights is None:
            return None
        settings = place.status()["settings"]
        training = Training(work.run(optimizer, settings, seed), work.splits)
        training.model.load_state_dict(weights)
        train = training.splits.train.first(work.recipe.train_evaluated)
        return self._marks(training, train), self._marks(training, training.splits.test)

    def _marks(self, training: Training, pair: Pair) -> Marks:
        there = training.run.compute.moved(pair)
        return self.marks(outputs(training.model, there.inputs, self.at_once), there.targets)


@dataclass(frozen=True)
class DetectionStudy(FrocStudy):
    """The same for detectors, and the epochs to SGD's final training loss."""

    reference: str = "sgd"

    def conclude(self, work: Work) -> None:
        """Write the tables and the figure."""
        super().conclude(work)
        ends = [rows[-1]["train_loss"] for rows in self._rows(work, self.reference)]
        if not ends:
            return
        target = statistics.median(ends)
        rows = [_epochs(name, self._rows(work, name), target) for name in work.optimizers]
        columns = (
            "optimizer", "epochs", "epochs sd", "reached", "train loss", "test loss", "seeds",
        )  # fmt: skip
        title = f"Epochs to {display_name(self.reference)}'s final training loss, {target:.4g}"
        note = (
            "Linear between evaluations; mean over the seeds that get there. Losses are those of "
            "the last evaluation."
        )
        work.folder.write_table(LOSS, Table(title, columns, rows, note))

    def _rows(self, work: Work, optimizer: str) -> list[list[dict[str, Any]]]:
        places = [work.results.run(optimizer, seed) for seed in work.seeds]
        return [place.rows() for place in places if _finished(place)]


def crossing(rows: Sequence[Mapping[str, Any]], target: float) -> float | None:
    """The epoch at which the training loss first is at ``target``, linear between evaluations."""
    before: Mapping[str, Any] | None = None
    for row in rows:
        loss = row["train_loss"]
        if loss <= target:
            if before is None or before["train_loss"] == loss:
                return float(row["epoch"])
            share = (before["train_loss"] - target) / (before["train_loss"] - loss)
            return float(before["epoch"] + share * (row["epoch"] - before["epoch"]))
        before = row
    return None


def _epochs(
    optimizer: str, runs: Sequence[Sequence[Mapping[str, Any]]], target: float
) -> list[Any]:
    """A row of the table of epochs; no mean where none of the seeds gets there."""
    places = [crossing(rows, target) for rows in runs]
    reached = [place for place in places if place is not None]
    ends = [
        statistics.fmean(rows[-1][key] for rows in runs) if runs else None
        for key in ("train_loss", "test_loss")
    ]
    return [
        display_name(optimizer),
        statistics.fmean(reached) if reached else None,
        deviation(reached),
        f"{len(reached)} of {len(runs)}",
        *ends,
        len(reached),
    ]


def _rows(
    optimizer: str, found: Score, on_train: Sequence[list[float]], on_test: Sequence[list[float]]
) -> list[list[Any]]:
    """Rows of the table: the CPM and each sensitivity, on the training and on the test set."""
    train, test = np.array(on_train), np.array(on_test)
    intervals = (found.cpm, *found.sensitivities)
    return [
        [
            f"{display_name(optimizer)}, {heading}",
            float(train[:, k].mean()),
            intervals[k].value,
            deviation(test[:, k].tolist()),
            intervals[k].low,
            intervals[k].high,
            len(on_test),
        ]
        for k, heading in enumerate(("CPM", *POINTS))
    ]


def _by_seed(
    optimizer: str, on_test: Mapping[int, list[float]]
) -> dict[str, dict[str, dict[str, float]]]:
    """The CPM and each sensitivity on the test set, seed by seed."""
    return {
        f"{display_name(optimizer)}, {heading}": {
            TEST: {str(seed): figures[k] for seed, figures in on_test.items()}
        }
        for k, heading in enumerate(("CPM", *POINTS))
    }


def _figures(marks: Marks) -> list[float]:
    """The CPM and the seven sensitivities."""
    values = froc(marks).at()
    return [cpm(values), *values.tolist()]


def _table(
    rows: Sequence[Sequence[Any]],
    by_seed: Mapping[str, Mapping[str, Mapping[str, float]]],
    resamples: int,
) -> Table:
    return Table(
        "CPM, and sensitivity at so many false positives per scan",
        ("optimizer", "train", TEST, f"{TEST} sd", "low", "high", "seeds"),
        rows,
        "Means over seeds, sd is their sample standard deviation; low and high are the ends of the "
        f"95 % bootstrap interval of the test figure, {resamples} resamples of its scans.",
        by_seed,
    )


def _figure(found: Mapping[str, Score]) -> Figure:
    """FROC curves over the operating points, bands between the ends of the intervals."""
    look = looks(list(found))
    with styled():
        figure = Figure(figsize=(4.4, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, each in found.items():
            low, high = ([getattr(i, end) for i in each.sensitivities] for end in ("low", "high"))
            style = look[name]
            axes.fill_between(OPERATING_POINTS, low, high, color=style.colour, alpha=0.15, lw=0)
            values = [i.value for i in each.sensitivities]
            label = literal(f"{display_name(name)}, CPM {each.cpm.value:.3f}")
            axes.plot(
                OPERATING_POINTS, values, color=style.colour, marker=style.marker, label=label
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(OPERATING_POINTS, POINTS)
        axes.set(xlabel="false positives per scan", ylabel="sensitivity", ylim=(None, 1.01))
        axes.legend(loc="lower right")
    return figure


def _finished(place: RunFolder) -> bool:
    return place.status().get("status") == "finished"

"""Beside the curves of the nodule experiments: FROC with intervals, epochs to a loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from natgrad.lab.data import Pair
from natgrad.lab.errors import DamagedError
from natgrad.lab.folder import Results, RunFolder
from natgrad.lab.luna.froc import Marks
from natgrad.lab.nodules.curves import CAPTION, FROC, POINTS, TEST, Judged, drawing, judged, table
from natgrad.lab.nodules.kept_marks import keep_marks
from natgrad.lab.report.text import deviation, display_name
from natgrad.lab.running import Watch
from natgrad.lab.study import Work
from natgrad.lab.tables import Table
from natgrad.lab.training import Training

__all__ = ["FROC", "LOSS", "POINTS", "TEST", "DetectionStudy", "FrocStudy", "crossing"]

LOSS = "epochs-to-loss"
EPOCHS = "epochs"  #: the column with what a paper gives


@dataclass(frozen=True)
class FrocStudy:
    """FROC curves of the trained networks on training and test set.

    Their marks are kept beside the tables, so that folds can be pooled.

    Attributes:
        marks: those of a network in a split.
        thinned: a sentence about the training set where it is thinned out, to stand beneath the
            table.
        resamples: of the bootstrap.
    """

    marks: Callable[[nn.Module, Pair], Marks]
    thinned: str = ""
    resamples: int = 1000

    def watch(self, results: Results) -> Watch | None:
        """None: the trained networks are enough."""
        return None

    def conclude(self, work: Work) -> None:
        """Write the tables and the figure.

        Raises:
            DamagedError: a run is finished and its weights are not there.
        """
        found: dict[str, Judged] = {}
        for name in work.optimizers:
            if work.stop():
                return
            marks = {s: self._judged(work, name, s) for s in work.seeds if _finished(work, name, s)}
            if marks:
                train = {seed: [pair[0]] for seed, pair in marks.items()}
                test = {seed: pair[1] for seed, pair in marks.items()}
                found[name] = judged(train, test, self.resamples)
        if found:
            lost = {name: _diverged(work, name) for name in work.optimizers}
            work.folder.write_table(FROC, table(found, lost, self.resamples, [self.thinned]))
            work.folder.write_figure(FROC, drawing(found), CAPTION)

    def _judged(self, work: Work, optimizer: str, seed: int) -> tuple[Marks, Marks]:
        """The marks on the training and on the test set."""
        place = work.results.run(optimizer, seed)
        weights = place.load_weights()
        if weights is None:
            raise DamagedError(
                f"{optimizer} seed {seed} is finished, but its network is not there: no "
                f"weights.pt in {place.path}. Remove that folder and go on with --resume to repeat "
                "the run"
            )
        settings = place.status()["settings"]
        training = Training(work.run(optimizer, settings, seed), work.splits)
        training.model.load_state_dict(weights)
        pairs = (
            training.splits.train.first(work.recipe.train_evaluated),
            training.splits.test,
        )
        train, test = (self.marks(training.model, pair) for pair in pairs)
        keep_marks(work.folder, optimizer, seed, train, test)
        return train, test


@dataclass(frozen=True)
class DetectionStudy(FrocStudy):
    """The same for detectors, and the epochs to SGD's final training loss."""

    reference: str = "sgd"

    def conclude(self, work: Work) -> None:
        """Write the tables and the figure.

        Raises:
            DamagedError: a run is finished and its weights are not there.
        """
        super().conclude(work)
        ends = [rows[-1]["train_loss"] for rows in self._curves(work, self.reference).values()]
        if not ends:
            return
        target = statistics.median(ends)
        found = {name: self._epochs(work, name, target) for name in work.optimizers}
        rows = [
            _row(name, epochs, list(self._curves(work, name).values()))
            for name, epochs in found.items()
        ]
        columns = (
            "optimizer", EPOCHS, f"{EPOCHS} sd", "reached", "train loss", "test loss", "seeds",
        )  # fmt: skip
        title = f"Epochs to {display_name(self.reference)}'s final training loss, {target:.4g}"
        note = (
            "Linear between evaluations; the median over seeds, one that does not get there or "
            "diverges counted as infinite; sd where all get there. Losses are means over the last "
            "evaluations of those that finished."
        )
        by_seed = {
            display_name(name): {EPOCHS: {str(seed): value for seed, value in epochs.items()}}
            for name, epochs in found.items()
        }
        work.folder.write_table(LOSS, Table(title, columns, rows, note, by_seed))

    def _curves(self, work: Work, optimizer: str) -> dict[int, list[dict[str, Any]]]:
        return {
            seed: work.results.run(optimizer, seed).rows()
            for seed in work.seeds
            if _finished(work, optimizer, seed)
        }

    def _epochs(self, work: Work, optimizer: str, target: float) -> dict[int, float]:
        """Epochs to a loss, of every seed whose run is over; infinite where it never gets there."""
        curves = self._curves(work, optimizer)
        found = {}
        for seed in work.seeds:
            if _status(work, optimizer, seed) in ("finished", "diverged"):
                place = crossing(curves.get(seed, ()), target)
                found[seed] = math.inf if place is None else place
        return found


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


def _row(
    optimizer: str, epochs: Mapping[int, float], finished: Sequence[Sequence[Mapping[str, Any]]]
) -> list[Any]:
    """A row of the table of epochs: a seed that never gets there counts as infinite."""
    reached = [place for place in epochs.values() if math.isfinite(place)]
    middle = statistics.median(epochs.values()) if epochs else math.inf
    ends = [
        statistics.fmean(rows[-1][key] for rows in finished) if finished else None
        for key in ("train_loss", "test_loss")
    ]
    return [
        display_name(optimizer),
        middle if math.isfinite(middle) else None,
        deviation(reached) if len(reached) == len(epochs) else None,
        f"{len(reached)} of {len(epochs)}",
        *ends,
        len(epochs),
    ]


def _finished(work: Work, optimizer: str, seed: int) -> bool:
    return _status(work, optimizer, seed) == "finished"


def _diverged(work: Work, optimizer: str) -> list[int]:
    return [seed for seed in work.seeds if _status(work, optimizer, seed) == "diverged"]


def _status(work: Work, optimizer: str, seed: int) -> str:
    place: RunFolder = work.results.run(optimizer, seed)
    return str(place.status().get("status"))

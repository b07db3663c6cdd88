"""Beside the curves of the nodule experiments: FROC with intervals, epochs to a loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from natgrad.lab.data import Pair
from natgrad.lab.errors import DamagedError
from natgrad.lab.folder import Results, RunFolder
from natgrad.lab.luna.froc import Marks
from natgrad.lab.nodules.curves import CAPTION, FROC, POINTS, TEST, Judged, drawing, judged, table
from natgrad.lab.nodules.kept_marks import keep_marks
from natgrad.lab.report.crossing import first_crossing
from natgrad.lab.report.read import Quantity, Run, read_run
from natgrad.lab.report.text import deviation, display_name
from natgrad.lab.running import Watch
from natgrad.lab.study import Work
from natgrad.lab.tables import Table
from natgrad.lab.training import Training

__all__ = ["FROC", "LOSS", "POINTS", "TEST", "DetectionStudy", "FrocStudy"]

LOSS = "epochs-to-loss"
EPOCHS = "epochs"  #: the column with what a paper gives
ENDS: tuple[Quantity, ...] = ("train_loss", "test_loss")


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
    """The same for detectors, and the epochs to SGD's final training loss, where SGD is run too."""

    reference: str = "sgd"

    def conclude(self, work: Work) -> None:
        """Write the tables and the figure.

        Raises:
            DamagedError: a run is finished and its weights are not there.
        """
        super().conclude(work)
        if self.reference not in work.optimizers:
            return
        curves = {name: _over(work, name) for name in work.optimizers}
        ends = [run.final("train_loss") for run in curves[self.reference] if run.finished]
        if not ends:
            return
        target = statistics.median(ends)
        found = {name: _epochs(runs, target) for name, runs in curves.items()}
        rows = [_row(name, list(found[name].values()), runs) for name, runs in curves.items()]
        columns = (
            "optimizer", EPOCHS, f"{EPOCHS} sd", "reached", "train loss", "test loss", "seeds",
        )  # fmt: skip
        title = f"Epochs to {display_name(self.reference)}'s final training loss, {target:.4g}"
        note = (
            "Linear between evaluations; the median over seeds, one that does not get there or "
            "diverges counted as infinite; sd where all get there. Losses are means over the last "
            "evaluations of those that finished."
        )
        by_seed = {display_name(name): {EPOCHS: epochs} for name, epochs in found.items()}
        work.folder.write_table(LOSS, Table(title, columns, rows, note, by_seed))


def _over(work: Work, optimizer: str) -> list[Run]:
    """The runs of an optimizer that came to their end, finished or diverged."""
    runs = (read_run(optimizer, work.results.run(optimizer, seed).path) for seed in work.seeds)
    return [run for run in runs if run.status in ("finished", "diverged")]


def _epochs(runs: Sequence[Run], target: float) -> dict[str, float]:
    """Epochs to a training loss, by seed; infinite where a run never gets there or diverged."""
    return {
        run.label.removeprefix("seed"): (
            first_crossing(run.rows, target, "epochs", "train_loss") if run.finished else math.inf
        )
        for run in runs
    }


def _row(optimizer: str, epochs: Sequence[float], runs: Sequence[Run]) -> list[Any]:
    """A row of the table of epochs: a seed that never gets there counts as infinite."""
    reached = [place for place in epochs if math.isfinite(place)]
    middle = statistics.median(epochs) if epochs else math.inf
    finished = [run for run in runs if run.finished]
    ends = [
        statistics.fmean(run.final(quantity) for run in finished) if finished else None
        for quantity in ENDS
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

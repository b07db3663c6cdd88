"""What an experiment does beside comparing curves: tables and figures of its own.

A study is a field of a recipe. It may watch the runs of the comparison, every step of them, and it
is asked to conclude when they are over. What it leaves lies in ``DIR/study``: tables as JSON and
figures as PDF and PNG, which the report shows without knowing the study
(:mod:`natgrad.lab.tables`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from natgrad.lab.devices import PLAIN, Compute
from natgrad.lab.tables import StudyFolder
from natgrad.lab.training import Budget, Run

if TYPE_CHECKING:
    from natgrad.lab.data import Splits
    from natgrad.lab.folder import Results
    from natgrad.lab.optimizers import Settings
    from natgrad.lab.recipe import Recipe
    from natgrad.lab.running import Watch

__all__ = ["Study", "Work"]


class Study(Protocol):
    """An experiment's own measurements."""

    def watch(self, results: Results) -> Watch | None:
        """Is told of every step of the comparison's runs; None if it need not be.

        A run that goes on from a checkpoint calls ``begin`` again: what was measured later than
        that must be dropped.
        """
        ...

    def conclude(self, work: Work) -> None:
        """Write tables and figures; called when the runs are over, again on a resume.

        Long work asks ``work.stop()`` now and then, returns early if it says so, and leaves what is
        there already (``work.folder.table(name)``) as it is.
        """
        ...


@dataclass(frozen=True)
class Work:
    """What a study concludes from.

    Attributes:
        recipe: in its profile.
        optimizers: that were compared.
        seeds: each was trained from.
        splits: the data.
        results: the runs, with rows and weights.
        folder: where tables and figures go.
        tell: shows a line of progress.
        stop: whether to leave off.
        compute: the device and precision of the runs.
    """

    recipe: Recipe
    optimizers: Sequence[str]
    seeds: Sequence[int]
    splits: Splits
    results: Results
    folder: StudyFolder
    tell: Callable[[str], None]
    stop: Callable[[], bool]
    compute: Compute = PLAIN

    def run(self, optimizer: str, settings: Settings, seed: int) -> Run:
        """A run like those that were compared, of the recipe's budget."""
        budget = Budget(epochs=self.recipe.epochs)
        return Run(self.recipe, optimizer, settings, seed, budget, compute=self.compute)

"""Where PRONG's time goes: steps, statistics, whitening (Desjardins et al. 2015, section 4.2)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from natgrad.batches import Batches
from natgrad.lab.folder import Results
from natgrad.lab.optimizers import complete
from natgrad.lab.optimizers.whitened import WhitenedSGD
from natgrad.lab.running import Watch
from natgrad.lab.study import Work
from natgrad.lab.tables import Table
from natgrad.lab.training import Training
from natgrad.whiten.statistics import statistics_of

__all__ = ["WhiteningTime"]


@dataclass(frozen=True)
class WhiteningTime:
    """Times a step and a refit of PRONG, and works out the shares at the interval in use.

    Writes the table ``shares``: seconds of the steps between two refits, of the statistics of one
    refit (a pass over its samples), and of the rest of it: decompositions and new coordinates;
    measured with seed 0 alone, as its column ``seeds`` says.

    Attributes:
        optimizer: a whitened one.
        steps: timed; the median counts.
        repeats: of the refit.
    """

    optimizer: str = "prong"
    steps: int = 20
    repeats: int = 5

    def watch(self, results: Results) -> Watch | None:
        """None: measured by itself."""
        return None

    def conclude(self, work: Work) -> None:
        """See :class:`natgrad.lab.study.Study`."""
        if work.folder.table("shares") is not None or self.optimizer not in work.optimizers:
            return
        settings = work.results.manifest().get("tuned", {}).get(self.optimizer)
        if settings is None:  # it diverged at every point of its grid
            return
        training = Training(work.run(self.optimizer, settings, 0), work.splits)
        optimizer = training.optimizer
        if not isinstance(optimizer, WhitenedSGD):
            raise TypeError(f"{self.optimizer} whitens nothing")
        work.tell(f"timing {self.optimizer}: {self.steps} steps, {self.repeats} refits")
        every = int(complete(self.optimizer, settings)["every"])
        step = _median(training.step, self.steps)
        whitener, rule = optimizer.whitener, optimizer.whitener.rule
        inputs = Batches(work.compute.first(training.splits.train.inputs))

        def gather() -> object:
            return statistics_of(training.model, whitener.layers, inputs, rule.samples)

        seen, refit = _median(gather, self.repeats), _median(whitener.refit, self.repeats)
        parts = {
            f"{every} steps": every * step,
            "statistics": seen,
            "whitening": max(0.0, refit - seen),
        }
        total = sum(parts.values())
        rows = [[name, seconds, 100 * seconds / total, 1] for name, seconds in parts.items()]
        note = (
            f"Between two refits of {self.optimizer}, every {every} updates; medians of "
            f"{self.steps} steps and {self.repeats} refits with {torch.get_num_threads()} threads."
        )
        columns = ("part", "seconds", "share [%]", "seeds")
        work.folder.write_table("shares", Table("Where PRONG's time goes", columns, rows, note))


def _median(work: Callable[[], object], repeats: int) -> float:
    work()  # the first one allocates
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)

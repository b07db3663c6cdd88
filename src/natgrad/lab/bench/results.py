"""What was measured on one task, and the figures that follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from natgrad.lab.bench.intervals import KINDS, Interval, Kind, amortised
from natgrad.lab.bench.methods import BASELINE
from natgrad.lab.bench.tasks import Task
from natgrad.lab.bench.turns import Record

__all__ = ["Result", "Row"]

Average = Callable[[Iterable[float]], float]


@dataclass
class Row:
    """One method on one task.

    Attributes:
        record: the times of its steps.
        baseline: SGD's in the same turns.
        direct: seconds of the steps under the schedule itself, and SGD's beside them, by interval.
        memory: what :func:`natgrad.lab.bench.memory.used_by` found.
    """

    record: Record
    baseline: Record
    direct: dict[Interval, tuple[list[float], list[float]]] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The method's name."""
        return self.record.method.name

    @property
    def problem(self) -> str | None:
        """Why there are no figures, or not all."""
        found: str | None = self.record.problem or self.memory.get("problem")
        return found

    def times(self, average: Average = statistics.median) -> dict[Kind, float]:
        """Seconds of a step of each kind."""
        return {kind: average(found) for kind, found in self.record.seconds.items() if found}

    def seconds(self, interval: Interval, average: Average = statistics.median) -> float | None:
        """The mean time of a step, amortised from those of each kind."""
        if self.record.problem is not None:
            return None
        return amortised(self.times(average), self.record.method.rhythm.shares(interval))

    def ratio(self, interval: Interval, average: Average = statistics.median) -> float | None:
        """The same over SGD's."""
        own = self.seconds(interval, average)
        plain = self.baseline.seconds.get("plain")
        return own / average(plain) if own is not None and plain else None

    def direct_ratio(self, interval: Interval) -> float | None:
        """Mean time over SGD's, in a run of the schedule itself."""
        own, plain = self.direct.get(interval, ([], []))
        return statistics.fmean(own) / statistics.fmean(plain) if own and plain else None

    def to_json(self, intervals: Sequence[Interval]) -> dict[str, Any]:
        """All figures, times in seconds, memory in MiB."""
        return {
            "method": self.name,
            "ours": self.record.method.ours,
            "follows": self.record.method.rhythm.follows,
            "options": {k: repr(v) for k, v in self.record.method.options.items()},
            "median": self.times(),
            "mean": self.times(statistics.fmean),
            "steps": {kind: len(self.record.seconds.get(kind, [])) for kind in KINDS},
            "ratio": {str(i): self.ratio(i) for i in intervals},
            "ratio_of_means": {str(i): self.ratio(i, statistics.fmean) for i in intervals},
            "direct_ratio": {str(i): self.direct_ratio(i) for i in self.direct},
            "direct_steps": {str(i): len(own) for i, (own, _) in self.direct.items()},
            "peak_mib": self.memory.get("mib"),
            "problem": self.problem,
            "remarks": self.record.remarks,
        }


@dataclass
class Result:
    """All methods on one task; complete unless it was interrupted."""

    task: Task
    intervals: Sequence[Interval]
    rounds: int
    rows: list[Row] = field(default_factory=list)
    complete: bool = False

    @property
    def sgd(self) -> float | None:
        """SGD's median seconds for a step, of the first turns that it was in."""
        found = [row for row in self.rows if row.name == BASELINE]
        return found[0].times().get("plain") if found else None

    def least(self, interval: Interval, *, ours: bool, refits: bool = False) -> Row | None:
        """What adds least to SGD's step, of all that renew something.

        Args:
            interval: how often it is renewed.
            ours: of natgrad's, or of the others'.
            refits: of the reparametrizations, or of the optimizers.
        """
        candidates = [
            (ratio, row.name, row)
            for row in self.rows
            if row.record.method.ours is ours
            and row.record.method.rhythm.follows != "none"
            and (row.record.method.rhythm.follows == "second") is refits
            and (ratio := row.ratio(interval)) is not None
        ]
        return min(candidates)[2] if candidates else None

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "task": self.task.name,
            "about": self.task.about,
            "batch": self.task.batch,
            "rounds": self.rounds,
            "intervals": [str(i) for i in self.intervals],
            "complete": self.complete,
            "sgd_ms": None if self.sgd is None else 1e3 * self.sgd,
            "rows": [row.to_json(self.intervals) for row in self.rows],
        }

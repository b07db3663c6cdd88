"""One task through to its figures: turns, the schedules themselves, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from natgrad.lab.bench.intervals import SHORT, Interval
from natgrad.lab.bench.memory import used_by
from natgrad.lab.bench.method import Method
from natgrad.lab.bench.methods import BASELINE, method
from natgrad.lab.bench.results import Result, Row
from natgrad.lab.bench.tasks import Task
from natgrad.lab.bench.turns import Tell, take_turns

__all__ = ["Conditions", "measure"]


@dataclass(frozen=True)
class Conditions:
    """How to measure.

    Attributes:
        methods: names of methods, the baseline aside.
        intervals: what steps are amortised to.
        rounds: periods that count; None is the task's own number.
        direct: steps under each of the intervals themselves; 0 is none.
        together: methods that take turns at a time; None is the task's own number.
        memory: whether to measure memory.
        device: ``"cpu"`` or ``"cuda"``.
        processor_time: count this process's processor time, not wall time.
    """

    methods: Sequence[str]
    intervals: Sequence[Interval]
    rounds: int | None = None
    direct: int = 0
    together: int | None = None
    memory: bool = False
    device: str = "cpu"
    processor_time: bool = False


def measure(
    task: Task, how: Conditions, tell: Tell, stop: Callable[[], bool] = lambda: False
) -> Result:
    """Measure methods on a task.

    Where all of them do not fit into memory, they take turns in parts, each with SGD in it: ratios
    are of times from the same turns.

    Args:
        task: which.
        how: methods, and how much of everything.
        tell: is told of the progress.
        stop: asked before every step; what was measured until then is returned.
    """
    rounds = how.rounds or task.rounds
    result = Result(task, how.intervals, rounds)
    clock = time.process_time if how.processor_time else time.perf_counter
    turns = partial(take_turns, task, device=how.device, clock=clock, tell=tell, stop=stop)
    for part in _parts(how.methods, how.together or task.together):
        steps = SHORT.refresh * (rounds + 1)
        records = turns(part, SHORT, steps, skip=SHORT.refresh)
        rows = [Row(record, records[0]) for record in records]
        for interval in how.intervals if how.direct else ():
            working = [row for row in rows if row.record.problem is None]
            found = turns([row.record.method for row in working], interval, how.direct + 1, skip=1)
            all_times = [[s for each in r.seconds.values() for s in each] for r in found]
            for row, times in zip(working, all_times, strict=True):
                row.direct[interval] = times, all_times[0]
        result.rows += rows[1:] if result.rows else rows
    working = [row for row in result.rows if row.record.problem is None]
    for index, row in enumerate(working if how.memory else ()):
        if not stop():
            tell(index, len(working), f"memory of {row.name}")
            row.memory = used_by(task, row.record.method, how.device, torch.get_num_threads())
    result.complete = not stop()
    return result


def _parts(names: Sequence[str], together: int | None) -> Iterator[list[Method]]:
    """The methods in parts that take turns together, each begun by the baseline."""
    others = [name for name in names if name != BASELINE]
    size = max(1, (together or len(others) + 1) - 1)
    for k in range(0, max(1, len(others)), size):
        yield [method(name) for name in (BASELINE, *others[k : k + size])]

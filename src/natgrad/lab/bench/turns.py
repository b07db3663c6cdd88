"""Methods taking turns on the same batches, with the time of every step."""

from __future__ import annotations

import gc
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch

from natgrad.lab.bench.intervals import Interval, Kind
from natgrad.lab.bench.method import Method, Setup, Step
from natgrad.lab.bench.tasks import Task
from natgrad.lab.errors import LabError, PackageMissingError

__all__ = ["Clock", "Record", "Tell", "first_line", "start", "take_turns"]

Tell: TypeAlias = Callable[[int, int, str], None]
Clock: TypeAlias = Callable[[], float]


@dataclass
class Record:
    """What became of one method.

    Attributes:
        method: which.
        seconds: of each step, by kind, in order.
        problem: why there are none, or no more; None if all went well.
        remarks: what the method warned of when it was made.
    """

    method: Method
    seconds: dict[Kind, list[float]] = field(default_factory=dict)
    problem: str | None = None
    remarks: list[str] = field(default_factory=list)


def take_turns(
    task: Task,
    methods: Sequence[Method],
    interval: Interval,
    steps: int,
    *,
    skip: int,
    device: str = "cpu",
    clock: Clock = time.perf_counter,
    tell: Tell = lambda done, of, what: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Record]:
    """Train all methods side by side, step by step, and time every step.

    Each has its own copy of the network, from the same seed; all see the same batch before any
    sees the next. At every step they come in another order, so that none always works with the
    caches that the same neighbour has left. A method that fails is left out from then on.

    Args:
        task: network and batches.
        methods: which.
        interval: how often methods renew what they renew.
        steps: so many each.
        skip: the first so many do not count.
        device: ``"cpu"`` or ``"cuda"``.
        clock: of wall time; ``time.process_time`` counts the processor time of this process.
        tell: is told after every step how many of how many are done, and by which method.
        stop: asked before every step; what was measured until then is returned.

    Returns:
        A record for each method, in the order given.
    """
    gc.collect()  # what earlier turns have left
    records = [Record(method) for method in methods]
    batches = task.batches(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers' own, about torch's newer ways
        started = [_started(record, task, interval, device) for record in records]
        order, done, total = random.Random(0), 0, steps * len(records)
        for k in range(steps):
            turns = list(zip(records, started, strict=True))
            order.shuffle(turns)
            for record, step in turns:
                if stop():
                    return records
                tell(done, total, record.method.name)
                done += 1
                if step is None or record.problem is not None:
                    continue
                x, y = batches[k % len(batches)]
                seconds = _timed(record, partial(step, x, y), device, clock)
                if seconds is not None and k >= skip:
                    kind = record.method.rhythm.kind(k, interval)
                    record.seconds.setdefault(kind, []).append(seconds)
    return records


def start(task: Task, method: Method, interval: Interval, device: str) -> Step:
    """The function of a method's step, on a fresh copy of the network."""
    return method.begin(Setup(task, task.model(device), interval, device))


def first_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = str(error).strip().splitlines()
    line = text[0] if text else type(error).__name__
    if isinstance(error, PackageMissingError):
        return line
    return line if isinstance(error, LabError) else f"{type(error).__name__}: {line}"


def _started(record: Record, task: Task, interval: Interval, device: str) -> Step | None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            return start(task, record.method, interval, device)
        except Exception as error:  # of any peer, of any kind: a row says so
            record.problem = first_line(error)
            return None
        finally:
            record.remarks = list(dict.fromkeys(_remarks(heard)))


def _remarks(heard: Sequence[warnings.WarningMessage]) -> Iterator[str]:
    for warning in heard:
        lines = str(warning.message).strip().splitlines()
        if lines and not issubclass(warning.category, DeprecationWarning):
            yield lines[0]


def _timed(
    record: Record, step: Callable[[], torch.Tensor], device: str, clock: Clock
) -> float | None:
    try:
        _synchronise(device)
        begin = clock()
        loss = step()
        _synchronise(device)
        seconds = clock() - begin
        finite = bool(torch.isfinite(loss))
    except Exception as error:
        record.problem = first_line(error)
        return None
    if not finite:
        record.problem = f"the loss is {loss.item()}"
        return None
    return seconds


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()

"""The outcome of a benchmark as plain text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from natgrad.lab.bench.intervals import KINDS, Interval
from natgrad.lab.bench.results import Result, Row
from natgrad.table import aligned

__all__ = ["heading", "table"]

NONE = "-"


def heading(about: Mapping[str, Any]) -> list[str]:
    """Where and with what it was measured."""
    machine, git = about["machine"], about["git"]
    revision = git["revision"]
    if revision is not None:
        revision = f"revision {revision[:10]}{' (changed)' if git['dirty'] else ''}"
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    if about["device"] == "cuda":
        where = f"{machine['gpu']}, {where}"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [where, versions, ", ".join(filter(None, (about["started"], revision)))]


def table(result: Result) -> list[str]:
    """The table of a task with what could not be measured below it, and who adds least."""
    sgd = NONE if result.sgd is None else f"{1e3 * result.sgd:.3g} ms"
    title = f"{result.task.name}: {result.task.about}; a step of SGD takes {sgd}"
    lines = [title if result.complete else f"{title} (stopped before the end)"]
    header, columns = _columns(result)
    cells = [[row.name, *(column(row) for column in columns)] for row in result.rows]
    lines += aligned([["", *header], *cells], left=1)
    lines += [_problem(row) for row in result.rows if row.problem]
    lines += [line for interval in result.intervals if (line := _least(result, interval))]
    return lines


def _columns(result: Result) -> tuple[list[str], list[Any]]:
    header: list[str] = []
    columns: list[Any] = []
    for kind in KINDS:
        header.append(f"{kind}, ms")
        columns.append(lambda row, kind=kind: _milliseconds(row.times().get(kind)))
    for interval in result.intervals:
        header += [f"{interval}", "(means)", "extra"]
        columns.append(lambda row, i=interval: _number(row.ratio(i)))
        columns.append(lambda row, i=interval: _bracketed(row.ratio(i, statistics.fmean)))
        columns.append(lambda row, i=interval: _extra(row.ratio(i)))
        if any(row.direct_ratio(interval) is not None for row in result.rows):
            header.append("direct")
            columns.append(lambda row, i=interval: _number(row.direct_ratio(i)))
    header.append("renewed every")
    columns.append(lambda row: row.record.method.rhythm.describe(result.intervals[-1]))
    if any("mib" in row.memory for row in result.rows):
        header.append("peak, MiB")
        columns.append(lambda row: _memory(row))
    return header, columns


def _problem(row: Row) -> str:
    said = str(row.problem)
    return said if said.startswith(f"{row.name}: ") else f"{row.name}: {said}"


def _least(result: Result, interval: Interval) -> str:
    """Which optimizers and reparametrizations add least, ours beside the others."""
    found = {
        "of ours": result.least(interval, ours=True),
        "of the others": result.least(interval, ours=False),
        "of the reparametrizations": result.least(interval, ours=True, refits=True),
    }
    parts = [
        f"{whose} {row.name} ({_extra(row.ratio(interval))})" for whose, row in found.items() if row
    ]
    return f"{interval}: adding least: {', '.join(parts)}" if parts else ""


def _milliseconds(seconds: float | None) -> str:
    return (
        NONE
        if seconds is None
        else f"{1e3 * seconds:.3g}"
        if seconds < 1
        else f"{1e3 * seconds:.0f}"
    )


def _number(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.2f}"


def _bracketed(ratio: float | None) -> str:
    return NONE if ratio is None else f"({ratio:.2f})"


def _extra(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio - 1:+.2f}"


def _memory(row: Row) -> str:
    return f"{row.memory['mib']:.0f}" if "mib" in row.memory else NONE

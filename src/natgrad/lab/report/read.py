"""Load a folder of results, as `natgrad compare` leaves it, into small typed records.

The folder may be the remains of a killed or still running comparison: runs may be missing or
unfinished, values may be NaN or null, and the last line of a file may be cut off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from natgrad.lab.errors import LabError
from natgrad.lab.folder import SCHEMA, RunFolder
from natgrad.lab.tables import Table, study_folder

Status = Literal["finished", "diverged", "running", "interrupted"]
Quantity = Literal[
    "train_loss",
    "train_metric",
    "validation_loss",
    "validation_metric",
    "test_loss",
    "test_metric",
]
Axis = Literal["epochs", "updates", "seconds"]


class ResultsError(LabError):
    """The folder cannot be read as results; the message says what was expected."""


@dataclass(frozen=True)
class Row:
    """One evaluation; missing and null values are NaN.

    Attributes:
        epochs: Passes over the training set so far.
        updates: Optimizer steps so far.
        seconds: Time spent in training steps so far.
        values: The measured losses and metrics by name.
    """

    epochs: float
    updates: float
    seconds: float
    values: Mapping[str, float]

    def x(self, axis: Axis) -> float:
        """Return the row's place on an axis."""
        return {"epochs": self.epochs, "updates": self.updates, "seconds": self.seconds}[axis]

    def y(self, quantity: Quantity) -> float:
        """Return a measured value, NaN where there is none."""
        return self.values.get(quantity, math.nan)


@dataclass(frozen=True)
class Run:
    """One training run: its evaluations in order, how it ended, the share of fetching batches."""

    optimizer: str
    label: str
    settings: Mapping[str, Any]
    status: Status
    rows: tuple[Row, ...]
    fetch_share: float = math.nan

    @property
    def finished(self) -> bool:
        """Whether the run came to its end with finite values."""
        return self.status == "finished"

    def final(self, quantity: Quantity) -> float:
        """Return the value of the last evaluation, NaN where there is none."""
        return self.rows[-1].y(quantity) if self.rows else math.nan


@dataclass(frozen=True)
class Metric:
    """What is measured beside the loss."""

    name: str = "metric"
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"


@dataclass(frozen=True)
class Results:
    """A results folder: the manifest, the runs and tuning runs by optimizer, what the study found.

    Attributes:
        manifest: As it was written.
        metric: What is measured beside the loss.
        optimizers: In order.
        seeds: That were planned.
        runs: By optimizer.
        tuning: Runs at the points of the grid, by optimizer.
        tables: Of the study, by name.
        figures: Captions of the study's figures by name; the files lie in `study/`.
    """

    manifest: Mapping[str, Any]
    metric: Metric
    optimizers: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Mapping[str, tuple[Run, ...]]
    tuning: Mapping[str, Mapping[int, Run]] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)

    def part(self, key: str) -> Mapping[str, Any]:
        """Return a mapping in the manifest, empty where it is missing."""
        value = self.manifest.get(key)
        return value if isinstance(value, Mapping) else {}


def read_results(folder: Path) -> Results:
    """Read a results folder.

    Args:
        folder: The folder that holds `manifest.json` and `runs/`.

    Returns:
        What it holds; every optimizer of the manifest or of `runs/` is present, if without runs.

    Raises:
        ResultsError: The folder is missing, holds no results, none yet, or another schema.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    found = _named_folders(folder / "runs")
    named = [str(name) for name in manifest.get("optimizers") or []]
    optimizers = tuple(dict.fromkeys([*named, *found]))
    runs = {name: _runs(name, found.get(name)) for name in optimizers}
    study = study_folder(folder)
    tables = study.tables()
    if not tables and not any(run.rows for group in runs.values() for run in group):
        raise ResultsError(
            f"{folder.name} holds no evaluation yet: expected rows in "
            "runs/<optimizer>/seed<k>/rows.jsonl. Let the comparison go on past tuning, "
            "to the first evaluation."
        )
    metric = manifest.get("metric")
    return Results(
        manifest=manifest,
        metric=Metric(**_known(metric, ("name", "unit", "better"))),
        optimizers=optimizers,
        seeds=tuple(int(seed) for seed in manifest.get("seeds") or []),
        runs=runs,
        tuning=_tuning(folder / "tuning"),
        tables=tables,
        figures=study.figures(),
    )


def _manifest(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise ResultsError(f"no folder {folder}: expected one written by `natgrad compare`.")
    path = folder / "manifest.json"
    if not path.is_file():
        raise ResultsError(
            f"{folder} is not a results folder: expected manifest.json in it. "
            "Give a folder written by `natgrad compare` or `natgrad run`."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        schema = manifest.get("schema") if isinstance(manifest, dict) else None
        raise ResultsError(
            f"{path} has schema {schema!r}, this version of natgrad reads {SCHEMA}. "
            "Report it with the version that wrote it."
        )
    return manifest


def _known(mapping: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    given = mapping if isinstance(mapping, Mapping) else {}
    return {key: given[key] for key in keys if given.get(key) is not None}


def _named_folders(parent: Path) -> dict[str, Path]:
    if not parent.is_dir():
        return {}
    return {path.name: path for path in sorted(parent.iterdir()) if path.is_dir()}


def _runs(optimizer: str, folder: Path | None) -> tuple[Run, ...]:
    if folder is None:
        return ()
    names = _named_folders(folder)
    order = sorted(names, key=lambda name: (_trailing_number(name), name))
    return tuple(read_run(optimizer, names[name]) for name in order)


def _tuning(folder: Path) -> dict[str, dict[int, Run]]:
    return {
        optimizer: {
            int(name): read_run(optimizer, path)
            for name, path in _named_folders(group).items()
            if name.isdigit()
        }
        for optimizer, group in _named_folders(folder).items()
    }


def _trailing_number(name: str) -> int:
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits) if digits else -1


def read_run(optimizer: str, folder: Path) -> Run:
    """Read one run: its evaluations so far, and how it ended.

    Args:
        optimizer: Its name.
        folder: The run's own.
    """
    records = RunFolder(folder).rows()
    # a resumed run may evaluate again where it stopped: the later row stands
    rows = {row.updates: row for row in map(_row, records)}
    ordered = tuple(rows[key] for key in sorted(rows))
    settings = records[-1].get("settings") if records else None
    return Run(
        optimizer=optimizer,
        label=folder.name,
        settings=settings if isinstance(settings, Mapping) else {},
        status=_status(folder, ordered),
        rows=ordered,
        fetch_share=_fetch_share(folder),
    )


def _fetch_share(folder: Path) -> float:
    try:
        status = RunFolder(folder).status()
    except LabError:
        return math.nan
    seconds = _number(status.get("seconds"))
    return _number(status.get("fetch_seconds")) / seconds if seconds else math.nan


def _status(folder: Path, rows: tuple[Row, ...]) -> Status:
    try:
        status = RunFolder(folder).status().get("status")
    except LabError:  # damaged: what the rows say still stands
        status = None
    if status == "diverged":
        return "diverged"
    if status == "finished" and rows:
        return "finished" if math.isfinite(rows[-1].y("validation_loss")) else "diverged"
    return "interrupted" if status == "interrupted" else "running"


def _row(record: Mapping[str, Any]) -> Row:
    return Row(
        epochs=_number(record.get("epoch")),
        updates=_number(record.get("update")),
        seconds=_number(record.get("seconds")),
        values={
            key: _number(value)
            for key, value in record.items()
            if key.endswith(("_loss", "_metric"))
        },
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan

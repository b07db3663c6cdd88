"""Measuring at every point of a run's curve, into a file beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from natgrad.lab.folder import Results, read_rows
from natgrad.lab.running import Row, Silent
from natgrad.lab.training import Training

__all__ = ["Alongside", "read_alongside"]


class Alongside(Silent):
    """A watch that measures a network when its curve gets a point; off the run's clock.

    Rows lie in ``runs/<optimizer>/seed<k>/<name>.jsonl`` with optimizer, seed, update and epoch; a
    run that goes on drops what was measured later than its checkpoint. Tuning runs are left out,
    and networks with a number that is not finite.

    Args:
        results: the folder.
        name: of the files.
        measure: rows of plain values, of a training in progress.
    """

    def __init__(
        self,
        results: Results,
        name: str,
        measure: Callable[[Training], Sequence[Mapping[str, Any]]],
    ) -> None:
        self.results, self.name, self.measure = results, name, measure

    def begin(self, training: Training) -> None:
        """A run begins, or goes on."""
        if training.run.tuning:
            return
        path = self._path(training)
        points = {row["update"] for row in training.rows}
        kept = [row for row in read_rows(path) if row["update"] in points]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(map(_line, kept)), encoding="utf-8")

    def evaluated(self, training: Training, row: Row) -> None:
        """The curve got a point."""
        finite = all(bool(p.isfinite().all()) for p in training.model.parameters())
        if training.run.tuning or not finite:
            return
        at = {
            "optimizer": training.run.optimizer, "seed": training.run.seed,
            "update": training.update, "epoch": training.epoch,
        }  # fmt: skip
        rows = [{**at, **found} for found in self.measure(training)]
        finite = all(math.isfinite(x) for r in rows for x in r.values() if isinstance(x, float))
        if finite:
            with self._path(training).open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, rows)))

    def _path(self, training: Training) -> Path:
        run = training.run
        return self.results.run(run.optimizer, run.seed).path / f"{self.name}.jsonl"


def read_alongside(results: Results, name: str) -> list[dict[str, Any]]:
    """All rows of that name in a results folder, run by run."""
    rows: list[dict[str, Any]] = []
    for path in sorted((results.path / "runs").glob(f"*/seed*/{name}.jsonl")):
        rows += read_rows(path)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"

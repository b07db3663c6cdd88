"""The tables and figures of a study, as files.

```
DIR/study/<name>.json       {"title", "columns", "rows", "note", "by_seed"}
DIR/study/<name>.pdf .png   a figure, its caption in figures.json
```
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natgrad.lab.folder import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["StudyFolder", "Table", "study_folder"]

CAPTIONS = "figures.json"


@dataclass(frozen=True)
class Table:
    """A table: the first column names the row.

    Attributes:
        title: one line.
        columns: headings; train and test figures side by side.
        rows: cells, numbers as numbers.
        note: how it was counted, a sentence or two.
        by_seed: of the first cell of a row, then of a heading, then of a seed: its own figure;
            infinite where it did not get to what is timed, NaN where it diverged. Not shown; where
            the report finds them it compares rows seed by seed.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    by_seed: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    def cell(self, row: str, column: str) -> Any:
        """A cell; None where there is no such row or column."""
        if column not in self.columns:
            return None
        place = list(self.columns).index(column)
        return next((each[place] for each in self.rows if str(each[0]) == row), None)


@dataclass(frozen=True)
class StudyFolder:
    """The tables and figures that a study has written."""

    path: Path

    def table(self, name: str) -> Table | None:
        """A table, None if it was not written yet."""
        path = self.path / f"{name}.json"
        if name == Path(CAPTIONS).stem or not path.is_file():
            return None
        read = json.loads(path.read_text(encoding="utf-8"))
        return Table(**{**read, "by_seed": _each(float, read.get("by_seed", {}))})

    def tables(self) -> dict[str, Table]:
        """All tables by name."""
        names = sorted(path.stem for path in self.path.glob("*.json"))
        found = {name: self.table(name) for name in names}
        return {name: table for name, table in found.items() if table is not None}

    def write_table(self, name: str, table: Table) -> None:
        """Write or replace a table."""
        write_json(
            self.path / f"{name}.json", {**asdict(table), "by_seed": _each(_plain, table.by_seed)}
        )

    def figures(self) -> dict[str, str]:
        """Captions of the figures by name, in the order of writing."""
        path = self.path / CAPTIONS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def write_figure(self, name: str, figure: Figure, caption: str) -> None:
        """Write or replace a figure, as PDF and PNG."""
        from natgrad.lab.report.style import save_figure

        save_figure(figure, self.path / name)
        write_json(self.path / CAPTIONS, {**self.figures(), name: caption})


def _each(
    convert: Callable[[Any], Any], by_seed: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        row: {
            heading: {seed: convert(figure) for seed, figure in figures.items()}
            for heading, figures in headings.items()
        }
        for row, headings in by_seed.items()
    }


def _plain(figure: float) -> float | str:
    """JSON has no infinity and no NaN: "inf", "nan"."""
    return figure if math.isfinite(figure) else str(figure)


def study_folder(results: Path) -> StudyFolder:
    """Where the study of a results folder keeps what it found."""
    return StudyFolder(results / "study")

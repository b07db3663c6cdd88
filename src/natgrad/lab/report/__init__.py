"""Turn a folder of results into figures, tables and a page."""

from __future__ import annotations

from pathlib import Path

from natgrad.lab.report.figures import write_figures
from natgrad.lab.report.page import page
from natgrad.lab.report.published import publish
from natgrad.lab.report.read import ResultsError, read_results
from natgrad.lab.report.summary import (
    OptimizerSummary,
    Spread,
    Summary,
    Target,
    summarize,
    summary_of,
)

__all__ = [
    "OptimizerSummary",
    "ResultsError",
    "Spread",
    "Summary",
    "Target",
    "publish",
    "summarize",
    "write_report",
]


def write_report(folder: Path) -> Path:
    """Write `report.html` and `figures/` into a results folder.

    Args:
        folder: A folder written by `natgrad compare` or `natgrad run`; it may be unfinished.

    Returns:
        The path of the page, which needs nothing beside it.

    Raises:
        ResultsError: The folder cannot be read as results.
    """
    folder = Path(folder)
    results = read_results(folder)
    summary = summary_of(results)
    write_figures(results, summary, folder / "figures")
    path = folder / "report.html"
    path.write_text(page(results, summary), encoding="utf-8")
    return path

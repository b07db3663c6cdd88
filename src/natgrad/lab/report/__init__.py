"""Turn a folder of results into figures, tables and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from natgrad.lab.report import single, suite
from natgrad.lab.report.published import publish_single
from natgrad.lab.report.read import ResultsError
from natgrad.lab.report.suite_page import publish_suite
from natgrad.lab.report.summary import (
    OptimizerSummary,
    Spread,
    Summary,
    Target,
    summarize,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "OptimizerSummary",
    "ResultsError",
    "Spread",
    "Summary",
    "Target",
    "publish",
    "report_on",
    "summarize",
    "write_report",
]


def write_report(folder: Path) -> Path:
    """Write `report.html` and `figures/` into a results folder.

    Args:
        folder: A folder written by `natgrad compare` or `natgrad run`, of one experiment or of
            several; it may be unfinished.

    Returns:
        The path of the page, which needs nothing beside it.

    Raises:
        ResultsError: The folder cannot be read as results.
    """
    if suite.is_suite(folder):
        return suite.write(folder).page
    return single.write(folder).page


def report_on(folder: Path, console: Console, paper: bool = False) -> None:
    """Write the page of a results folder and print its tables.

    Args:
        folder: As for `write_report`.
        console: Where to.
        paper: Print what the paper states beside ours, too.

    Raises:
        ResultsError: The folder cannot be read as results.
    """
    if suite.is_suite(folder):
        suite.show(suite.write(folder), console, paper)
    else:
        single.show(single.write(folder), console, paper)


def publish(folder: Path, out: Path) -> Path:
    """Write a short page in Markdown with its figures, to be kept beside the code.

    Args:
        folder: As for `write_report`.
        out: Where the page goes; made if it is not there.

    Returns:
        The path of the page.

    Raises:
        ResultsError: The folder cannot be read as results.
    """
    if suite.is_suite(folder):
        return publish_suite(folder, out)
    return publish_single(folder, out)

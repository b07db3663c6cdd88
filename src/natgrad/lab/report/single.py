"""The report of one experiment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from natgrad.lab.report.beside import Beside, beside
from natgrad.lab.report.beside_tables import figure, terminal
from natgrad.lab.report.figures import write_figures
from natgrad.lab.report.page import page
from natgrad.lab.report.read import Results, read_results
from natgrad.lab.report.studies import terminal as study_table
from natgrad.lab.report.style import save_figure
from natgrad.lab.report.summary import Summary, summary_of

if TYPE_CHECKING:
    from rich.console import Console

PAPER = "paper"  #: name of the figure with the paper's numbers


@dataclass(frozen=True)
class Written:
    """A page that was written, and what it was made of."""

    results: Results
    summary: Summary
    rows: list[Beside]
    page: Path


def write(folder: Path) -> Written:
    """Write `report.html` and `figures/` into a results folder."""
    folder = Path(folder)
    results = read_results(folder)
    summary = summary_of(results)
    rows = beside(results, summary)
    if summary.entries:
        write_figures(results, summary, folder / "figures")
    draw_paper(rows, [results], folder / "figures")
    path = folder / "report.html"
    path.write_text(page(results, summary, rows, folder), encoding="utf-8")
    return Written(results, summary, rows, path)


def draw_paper(rows: Sequence[Beside], of: Sequence[Results], folder: Path) -> list[Path]:
    """Draw the paper's numbers beside ours into a folder, if there are any.

    Args:
        rows: What the paper states, beside ours.
        of: The results that ours are of, for the profile.
        folder: Where to.
    """
    profiles = dict.fromkeys(str(each.part("profile").get("name") or "") for each in of)
    drawn = figure(rows, " or ".join(filter(None, profiles)))
    return [] if drawn is None else save_figure(drawn, folder / PAPER)


def show(written: Written, console: Console, paper: bool) -> None:
    """Print the tables."""
    if written.summary.entries:
        console.print(written.summary.table())
    for timeline in written.summary.timelines:
        console.print()
        console.print(timeline.table())
    for table in written.results.tables.values():
        console.print()
        console.print(study_table(table))
    show_paper(written.rows, console, paper)
    console.print(f"\nreport: {written.page}", soft_wrap=True, highlight=False, markup=False)


def show_paper(rows: Sequence[Beside], console: Console, paper: bool) -> None:
    """Print the paper's numbers beside ours, or how many there are of each verdict."""
    if not rows:
        if paper:
            console.print("\nThe recipe states no numbers of a paper.")
        return
    console.print()
    if paper:
        console.print(terminal(rows))
        return
    counts = Counter(row.verdict for row in rows if not row.own)
    listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    console.print(f"Of the paper's numbers and claims: {listed} (natgrad report DIR --paper).")

"""A results folder as a short page in Markdown with one figure, to be kept beside the code."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from natgrad.lab.report.beside import Beside, as_table, beside, notes
from natgrad.lab.report.figures import (
    OVERVIEW,
    about,
    caption,
    describe_overview,
    write_figures,
)
from natgrad.lab.report.illustrate import illustrated
from natgrad.lab.report.page import commands, facts, provenance, sentences, settings
from natgrad.lab.report.read import Results, read_results
from natgrad.lab.report.single import draw_paper
from natgrad.lab.report.sizes import differences
from natgrad.lab.report.studies import markdown
from natgrad.lab.report.summary import Summary, summary_of
from natgrad.lab.report.text import NOTHING, markdown_table, without_paths
from natgrad.lab.report.tuning import grids, scored, tried

__all__ = ["paper_sections", "publish_single"]


def publish_single(folder: Path, out: Path) -> Path:
    """Write `README.md` of a results folder into `out`, and its figures as PNG and PDF.

    Args:
        folder: A folder written by `natgrad compare` or `natgrad run`.
        out: Where the page goes; made if it is not there.

    Returns:
        The path of the page.

    Raises:
        ResultsError: The folder cannot be read as results.
    """
    results = read_results(folder)
    summary = summary_of(results)
    out.mkdir(parents=True, exist_ok=True)
    if summary.entries:
        write_figures(results, summary, folder / "figures")
        for kind in ("png", "pdf"):
            shutil.copyfile(folder / "figures" / f"overview.{kind}", out / f"curves.{kind}")
    for name in results.figures:
        for kind in ("png", "pdf"):
            shutil.copyfile(folder / "study" / f"{name}.{kind}", out / f"{name}.{kind}")
    rows = beside(results, summary)
    draw_paper(rows, [results], out)
    drawn = bool(illustrated(folder, results, out / "solutions"))
    path = out / "README.md"
    text = "\n\n".join(_sections(results, summary, rows, drawn))
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _sections(
    results: Results, summary: Summary, rows: Sequence[Beside], drawn: bool = False
) -> Iterable[str]:
    recipe = results.part("recipe")
    yield f"# {recipe.get('name')}: {summary.title}"
    yield f"**{about(results)}**"
    yield "\n".join(f"    {command}" for command in commands(results))
    yield " ".join(sentences(results, summary))
    if summary.entries:
        yield f"![{describe_overview(results)}](curves.png)"
        yield caption(results, OVERVIEW)
    if drawn:
        yield "![What the networks of the first seed have learnt, by optimizer](solutions.png)"
    if summary.entries:
        yield summary.markdown()
    yield from map(markdown, results.tables.values())
    for name, words in results.figures.items():
        yield f"![{words}]({name}.png)"
    yield from paper_sections(rows, str(recipe.get("source")))
    yield from (f"**{label}**: {words}." for label, words in differences(results))
    yield from _settings(results)
    yield markdown_table(("", ""), [*facts(results), *provenance(results)])


def _settings(results: Results) -> Iterable[str]:
    """The settings that were chosen, out of what, and which of them lie at an end of that.

    Nothing of results that train nothing.
    """
    if not results.runs:
        return
    yield "## Settings"
    rule = without_paths(str(results.manifest.get("tuning_rule") or ""))
    if rule:
        yield f"{rule[0].upper()}{rule[1:]}."
    found = {grid.name: grid for grid in grids(results)}
    rows = [
        (
            name,
            ", ".join(f"{key} {value}" for key, value in used.items()),
            tried(found[name]) if name in found else NOTHING,
        )
        for name, used in settings(results)
    ]
    head = ("optimizer", "settings", "tried")
    yield markdown_table(head if found else head[:2], rows if found else [r[:2] for r in rows])
    losses = [f"- {name}: {scored(grid)}" for name, grid in found.items() if len(grid.points) > 1]
    if losses:
        yield "Validation losses of what was tried, that of what was chosen in bold:"
        yield "\n".join(losses)
    ends = [f"- {name}: {end}" for name, grid in found.items() for end in grid.edges]
    if ends:
        yield "Chosen at an end of what was tried:"
        yield "\n".join(ends)


def paper_sections(rows: Sequence[Beside], source: str) -> Iterable[str]:
    """The paper's numbers beside ours, with the figure and the rules; nothing without any."""
    if not rows:
        return
    yield f"## Beside the paper ({source})"
    headings, blocks = as_table(rows)
    for block in blocks:
        if block.title:
            yield f"**{block.title}**"
        yield markdown_table(headings, block.cells)
    if any(row.drawn for row in rows):
        yield (
            "![The paper's numbers and ours, one standard deviation to each side; ours are hollow "
            "and grey where they are not comparable](paper.png)"
        )
    yield "\n".join(f"- {rule}" for rule in notes(rows))

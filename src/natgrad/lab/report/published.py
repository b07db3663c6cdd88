"""A results folder as a short page in Markdown with one figure, to be kept beside the code."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from natgrad.lab.report.figures import write_figures
from natgrad.lab.report.headline import headline
from natgrad.lab.report.illustrate import illustrated
from natgrad.lab.report.page import commands, facts, paper_rows, provenance, settings
from natgrad.lab.report.read import Results, read_results
from natgrad.lab.report.summary import Summary, summary_of

__all__ = ["publish"]


def publish(folder: Path, out: Path) -> Path:
    """Write `README.md` and `curves.{png,pdf}` of a results folder into `out`.

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
    write_figures(results, summary, folder / "figures")
    for kind in ("png", "pdf"):
        shutil.copyfile(folder / "figures" / f"overview.{kind}", out / f"curves.{kind}")
    drawn = illustrated(folder, results, out / "solutions.png") is not None
    path = out / "README.md"
    text = "\n\n".join(_sections(results, summary, drawn))
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _sections(results: Results, summary: Summary, drawn: bool = False) -> Iterable[str]:
    recipe = results.part("recipe")
    yield f"# {recipe.get('name')}: {recipe.get('title')}"
    yield "\n".join(f"    {command}" for command in commands(results))
    yield " ".join(headline(summary))
    yield "![Curves against epochs, updates and seconds, by optimizer](curves.png)"
    if drawn:
        yield "![What the networks of the first seed have learnt, by optimizer](solutions.png)"
    yield summary.markdown()
    paper = paper_rows(recipe.get("paper_numbers"), summary)
    if paper:
        yield f"## Beside the paper ({recipe.get('source')})"
        rows = [(row.what, row.paper, row.ours, row.difference) for row in paper]
        yield _table(("", "paper", "here", "difference"), rows)
    if recipe.get("differs"):
        yield f"What differs: {recipe['differs']}."
    yield "## Settings"
    yield f"{results.manifest.get('tuning_rule')}."
    chosen = [
        (name, ", ".join(f"{key} {value}" for key, value in used.items()))
        for name, used in settings(results)
    ]
    yield _table(("optimizer", "settings"), chosen)
    yield _table(("", ""), [*facts(results), *provenance(results)])


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)

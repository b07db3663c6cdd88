"""The report: one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from natgrad.lab.report import figures, tables
from natgrad.lab.report.beside import HEADINGS, RULES, Beside, cells
from natgrad.lab.report.headline import headline
from natgrad.lab.report.read import Results
from natgrad.lab.report.studies import pictures, written
from natgrad.lab.report.summary import Summary
from natgrad.lab.report.tenths import TITLE
from natgrad.lab.report.text import display_name, plain_value, without_paths
from natgrad.lab.report.tuning import grids

_PRIVATE = {"host", "hostname", "node", "user", "cwd", "path", "executable"}


def page(results: Results, summary: Summary, paper: Sequence[Beside], folder: Path) -> str:
    """Return the report as HTML.

    Args:
        results: The results.
        summary: Their summary.
        paper: What the paper states, beside ours.
        folder: Of the results, for the figures of their study.

    Returns:
        A page that needs nothing beside it: styles and figures are inside.
    """
    recipe = {**dict.fromkeys(("name", "source", "differs")), **results.part("recipe")}
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            summary=summary,
            recipe=recipe,
            headline=[_bound(sentence) for sentence in sentences(results, summary)],
            tables=[
                ("What it took to reach the target", tables.cost_columns(summary)),
                ("Where training ended", tables.final_columns(summary)),
                *([(TITLE, summary.tenths.columns())] if summary.tenths else []),
            ],
            notes=tables.notes(summary) + (summary.tenths.notes() if summary.tenths else []),
            legend=[(name, Markup(svg)) for name, svg in figures.page_legend(results)],
            panels=[Markup(drawing.svg) for drawing in figures.page_panels(results, summary)],
            caption=figures.CAPTION,
            grids=grids(results),
            tuning_rule=without_paths(str(results.manifest.get("tuning_rule") or "")),
            settings=settings(results),
            facts=facts(results),
            studies=list(results.tables.values()),
            pictures=pictures(results.figures, folder),
            headings=HEADINGS,
            paper=[(row, cells(row)) for row in paper],
            rules=RULES,
            provenance=provenance(results),
            command="\n".join(commands(results)),
        )
    )


def environment() -> Environment:
    """Return the templates, with the filters they use."""
    found = Environment(
        loader=PackageLoader("natgrad.lab.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters.update(linked=linked, plain=plain_value, cell=written)
    return found


def sentences(results: Results, summary: Summary) -> list[str]:
    """Return the result in words: of the comparison, else the titles of the study's tables."""
    if summary.entries or not results.tables:
        return headline(summary)
    return [f"{table.title}." for table in results.tables.values()]


def linked(text: str) -> Markup:
    """Return text as HTML, its web addresses and arXiv numbers as links."""
    pattern = re.compile(r"(https?://[^\s<>\"]*[^\s<>\".,;)])|arXiv:\s?(\d{4}\.\d{4,5})", re.I)
    parts, end = [Markup("")], 0
    for match in pattern.finditer(text):
        address = match[1] or f"https://arxiv.org/abs/{match[2]}"
        parts.append(escape(text[end : match.start()]))
        parts.append(Markup('<a href="{}">{}</a>').format(address, match[0]))
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def _bound(sentence: str) -> str:
    # a number and its unit stay on one line
    return re.sub(r"(?<=[\d±]) (?=[\d±%]|s\b)", "\N{NO-BREAK SPACE}", sentence)


def commands(results: Results) -> list[str]:
    """Return the command of the comparison, and those that added runs of other programs to it."""
    added = results.manifest.get("added_by") or []
    return [without_paths(str(line)) for line in (results.manifest.get("command") or "", *added)]


def settings(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the settings that each optimizer ran with."""
    tuned = results.part("tuned")
    used = {
        name: next((run.settings for run in runs if run.settings), tuned.get(name) or {})
        for name, runs in results.runs.items()
    }
    return [(display_name(name), settings) for name, settings in used.items()]


def facts(results: Results) -> list[tuple[str, str]]:
    """Return what was trained on what, for how long."""
    recipe, data = results.part("recipe"), results.part("data")
    found = {
        "Data": ", ".join(str(data[key]) for key in ("name", "source") if data.get(key)),
        "Examples": _examples(data),
        "Split": data.get("split"),
        "Network": recipe.get("network"),
        "Parameters": recipe.get("parameters"),
        "Likelihood": recipe.get("likelihood"),
        "Batch size": recipe.get("batch_size"),
        "L2 penalty": recipe.get("l2"),
        "Learning rate": _schedule(recipe.get("schedule")),
        "Profile": profile_text(results.part("profile")),
        "Budget per run": _budget(results.part("budget")),
        "Budget per tuning run": _budget(results.part("tuning_budget")),
        "Seeds": ", ".join(map(str, results.seeds)),
    }
    return [(key, plain_value(value)) for key, value in found.items() if value not in (None, "")]


def profile_text(profile: Mapping[str, Any]) -> str:
    """The size of the experiment, and all that it changes of the full one."""
    return ": ".join(str(profile[key]) for key in ("name", "differs") if profile.get(key))


def _schedule(name: Any) -> str:
    known = {"constant": "constant", "linear": "falls linearly to zero over the budget"}
    return known.get(name, "")


def _examples(data: Mapping[str, Any]) -> str:
    sizes = data.get("sizes")
    if not isinstance(sizes, Mapping):
        return ""
    text = ", ".join(f"{part} {size}" for part, size in sizes.items())
    measured = data.get("train_evaluated")
    if measured is None or measured == sizes.get("train"):
        return text
    return f"{text}; train figures are measured on the first {measured} of the training set"


def _budget(budget: Mapping[str, Any]) -> str:
    units = {"epochs": "epochs", "seconds": "seconds of training steps"}
    return " or ".join(f"{budget[key]:g} {unit}" for key, unit in units.items() if budget.get(key))


def provenance(results: Results) -> list[tuple[str, str]]:
    """Return when, from which revision, and on what it was measured."""
    git = results.part("git")
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    revision = f"{git['revision']}{dirty}" if git.get("revision") else ""
    found = [
        ("Started", results.manifest.get("started")),
        ("Finished", results.manifest.get("finished")),
        ("Revision", revision),
        *((key, value) for key, value in results.part("versions").items()),
        *((key, value) for key, value in results.part("machine").items()),
    ]
    return [
        (key.replace("_gib", " [GiB]").replace("_", " "), plain_value(value))
        for key, value in found
        if value not in (None, "") and key.lower() not in _PRIVATE
    ]

"""The report: one self-contained HTML page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from natgrad.lab.errors import LabError
from natgrad.lab.report import figures, tables
from natgrad.lab.report.beside import Beside, as_table, notes
from natgrad.lab.report.headline import headline
from natgrad.lab.report.read import Results
from natgrad.lab.report.sizes import differences
from natgrad.lab.report.studies import pictures, written
from natgrad.lab.report.summary import Summary
from natgrad.lab.report.text import display_name, plain_value, without_paths
from natgrad.lab.report.tuning import grids
from natgrad.lab.schedules import parse

#: facts that results without optimizers, pooled of what others trained, do not have
OF_TRAINING = ("Examples", "Budget per run", "Budget per tuning run", "Seeds")
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
    recipe = {**dict.fromkeys(("name", "source")), **results.part("recipe")}
    headings, blocks = as_table(paper)
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
                *((timeline.title, timeline.columns()) for timeline in summary.timelines),
            ],
            notes=tables.notes(summary) + [n for each in summary.timelines for n in each.notes()],
            legend=[(name, Markup(svg)) for name, svg in figures.page_legend(results)],
            panels=[Markup(drawing.svg) for drawing in figures.page_panels(results, summary)],
            caption=(
                f"{figures.about(results)}. {figures.caption(results)} {figures.TARGET_CAPTION}"
            ),
            differences=differences(results),
            grids=grids(results),
            tuning_rule=without_paths(str(results.manifest.get("tuning_rule") or "")),
            settings=settings(results),
            facts=facts(results),
            studies=list(results.tables.values()),
            pictures=pictures(results.figures, folder),
            headings=headings,
            paper=blocks,
            rules=notes(paper),
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
    """Return what was trained on what, for how long; of what only pools, nothing of training."""
    recipe, data = results.part("recipe"), results.part("data")
    left_out = () if results.optimizers else OF_TRAINING
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
        "Augmentation": recipe.get("augmentation"),
        "Profile": results.part("profile").get("name"),
        "Budget per run": _budget(results.part("budget")),
        "Budget per tuning run": _budget(results.part("tuning_budget")),
        "Seeds": ", ".join(map(str, results.seeds)),
        "Device": _device(results.part("compute")),
        "Fetching batches": fetching(results),
    }
    return [
        (key, plain_value(value))
        for key, value in found.items()
        if value not in (None, "") and key not in left_out
    ]


def fetching(results: Results) -> str:
    """Return the greatest share of a run's time that fetching batches took, in words."""
    shares = [run.fetch_share for runs in results.runs.values() for run in runs]
    known = [share for share in shares if math.isfinite(share)]
    return f"{100 * max(known):.2g} % of the time of training steps at most" if known else ""


def _device(compute: Mapping[str, Any]) -> str:
    if not compute:
        return ""
    by_autocast = " by autocast" if compute.get("precision") == "bf16" else ""
    return f"{compute.get('device')}, {compute.get('precision')}{by_autocast}"


def _schedule(name: Any) -> str:
    try:
        return parse(str(name)).about
    except LabError:  # of another version, or none
        return ""


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
    units = {"epochs": "epoch{}", "seconds": "second{} of training steps"}
    return " or ".join(
        f"{budget[key]:g} {unit.format('' if budget[key] == 1 else 's')}"
        for key, unit in units.items()
        if budget.get(key)
    )


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

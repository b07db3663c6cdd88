"""The report: one self-contained HTML page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from natgrad.lab.report import figures, tables
from natgrad.lab.report.headline import headline
from natgrad.lab.report.read import Quantity, Results
from natgrad.lab.report.summary import Summary
from natgrad.lab.report.tenths import TITLE
from natgrad.lab.report.text import NOTHING, display_name, plain_value, with_spread, without_paths
from natgrad.lab.report.tuning import grids

_PRIVATE = {"host", "hostname", "node", "user", "cwd", "path", "executable"}


@dataclass(frozen=True)
class PaperRow:
    """One number of the source paper, with ours where there is a counterpart."""

    what: str
    paper: str
    ours: str
    difference: str


def page(results: Results, summary: Summary) -> str:
    """Return the report as HTML.

    Args:
        results: The results.
        summary: Their summary.

    Returns:
        A page that needs nothing beside it: styles and figures are inside.
    """
    environment = Environment(
        loader=PackageLoader("natgrad.lab.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["linked"] = linked
    environment.filters["plain"] = plain_value
    recipe = {**dict.fromkeys(("name", "source", "differs")), **results.part("recipe")}
    return environment.get_template("page.html.j2").render(
        summary=summary,
        recipe=recipe,
        headline=[_bound(sentence) for sentence in headline(summary)],
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
        paper=paper_rows(results.part("recipe").get("paper_numbers"), summary),
        provenance=provenance(results),
        command="\n".join(commands(results)),
    )


def paper_rows(numbers: Any, summary: Summary) -> list[PaperRow]:
    """Set the numbers of the paper beside ours.

    A number whose name holds an optimizer of the comparison is set against its test metric, or
    against what the name says: "kfac validation accuracy", "sgd test loss".
    """
    if not isinstance(numbers, Mapping):
        return []
    return [_paper_row(str(what), value, summary) for what, value in numbers.items()]


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


def _paper_row(what: str, value: Any, summary: Summary) -> PaperRow:
    words = re.split(r"[^a-z0-9+]+", what.lower())
    entry = next((e for e in summary.entries if e.optimizer.lower() in words), None)
    part = next((p for p in ("train", "validation") if p in words), "test")
    kind = "loss" if "loss" in words else "metric"
    key: Quantity = f"{part}_{kind}"  # type: ignore[assignment]
    ours = entry.final.get(key) if entry else None
    name = display_name(what) if entry and what.lower() == entry.optimizer else what
    if ours is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return PaperRow(name, plain_value(value), NOTHING, NOTHING)
    places = 2 if kind == "metric" else 4
    return PaperRow(
        what=name,
        paper=plain_value(value),
        ours=with_spread(ours.mean, ours.sd, places),
        difference=f"{ours.mean - value:+.{places}f}",
    )


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
        "Budget per run": _budget(results.part("budget")),
        "Budget per tuning run": _budget(results.part("tuning_budget")),
        "Seeds": ", ".join(map(str, results.seeds)),
        "Device": _device(results.part("compute")),
        "Fetching batches": fetching(results),
    }
    return [(key, plain_value(value)) for key, value in found.items() if value not in (None, "")]


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

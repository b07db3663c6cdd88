"""The paper's numbers and claims beside ours, each with a verdict and the rule it follows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from natgrad.lab.errors import UsageError
from natgrad.lab.paper import record
from natgrad.lab.recipe import load
from natgrad.lab.report.ordering import SINGLE, UNKNOWN, Difference, Ranks, ordering
from natgrad.lab.report.ours import Ours, ours_of
from natgrad.lab.report.read import Results
from natgrad.lab.report.significance import student_quantile
from natgrad.lab.report.summary import Summary
from natgrad.lab.report.text import NOTHING, decimals

Verdict = Literal[
    "reproduced", "not reproduced", "not comparable", "not measured", "holds", "does not hold"
]
#: on what we ask and the paper does not claim
OWN: dict[Verdict, Verdict] = {"reproduced": "holds", "not reproduced": "does not hold"}
BEYOND = "Beyond the paper, and not counted with it"
FACTOR = 2.0
ONLY_RUNS = "the smoke profile only shows that everything runs"
RULES = (
    "A number is reproduced if ours is within two combined standard deviations of it, ours over "
    "seeds and the paper's as printed (where it prints none, ours stands for both).",
    "A claim is reproduced if the difference of our means is on its side and the 95 % confidence "
    "interval, in brackets, leaves out zero: Student's t of the differences seed by seed where "
    f"both were run from the same seeds (three: {student_quantile(2):.2f} standard errors to each "
    "side), else Welch's.",
    "A seed that did not reach the target took infinitely long where the lower figure is claimed, "
    'and its whole budget, "at least", where the higher one is. A seed that diverged is behind all '
    "others, and what diverged in a seed is never ahead. Figures that have no mean then are judged "
    "by ranks, at one case of twenty by chance: three seeds all before three others.",
    "Spreads and intervals are over seeds alone, not over test cases.",
    "Not comparable: other data, a smaller profile, or a single seed.",
)


@dataclass(frozen=True)
class Beside:
    """One number or claim of the paper, and ours.

    Attributes:
        what: In the paper's sense.
        where: In the paper.
        paper: Its number, or what it claims.
        ours: Our mean and spread.
        difference: Ours less the paper's; of a claim, by how much it holds, with its interval.
        seeds: How many ours was run from.
        data: The data set's name, the paper's and ours.
        verdict: In words.
        why: The reason, or our best explanation; may be empty.
        unit: Of all of them.
        drawn: The paper's value and spread, ours and its spread, for the figure; None for a claim.
        own: Whether the paper does not claim it and we ask.
    """

    what: str
    where: str
    paper: str
    ours: str
    difference: str
    seeds: str
    data: str
    verdict: Verdict
    why: str
    unit: str = ""
    drawn: tuple[float, float | None, float, float | None] | None = None
    own: bool = False


HEADINGS = ("what", "where", "paper", "ours", "difference", "seeds", "data", "verdict", "why")
ONCE = ("where", "seeds", "data")  #: columns that are said once where all rows agree


@dataclass(frozen=True)
class Block:
    """Rows of a table that are of the same data, all of the paper or none.

    Attributes:
        title: The data, the paper's and ours, where not all rows are of the same; and that it is
            beyond the paper.
        rows: In order.
        cells: Of each row, as it is written.
    """

    title: str
    rows: list[Beside]
    cells: list[tuple[str, ...]]


def as_table(rows: Sequence[Beside]) -> tuple[tuple[str, ...], list[Block]]:
    """The columns of a table, without those of which `notes` says it once, and its blocks."""
    left_out = {*_common(rows), "data"}
    shown = tuple(heading for heading in HEADINGS if heading not in left_out)
    groups = [list(group) for _, group in itertools.groupby(rows, lambda row: (row.data, row.own))]
    several = len({row.data for row in rows}) > 1
    return shown, [
        Block(
            ": ".join(filter(None, (BEYOND * group[0].own, group[0].data * several))),
            group,
            [tuple(getattr(row, key) or NOTHING for key in shown) for row in group],
        )
        for group in groups
    ]


def notes(rows: Sequence[Beside]) -> tuple[str, ...]:
    """What stands below a table of these rows: what they have in common, and the rules."""
    return (*(f"{key.capitalize()}: {value}." for key, value in _common(rows).items()), *RULES)


def _common(rows: Sequence[Beside]) -> dict[str, str]:
    values = {heading: {getattr(row, heading) for row in rows} for heading in ONCE}
    once = {heading: found.pop() for heading, found in values.items() if len(found) == 1}
    return once if len(rows) > 1 else {key: once[key] for key in once if key == "data"}


def beside(results: Results, summary: Summary) -> list[Beside]:
    """Set everything that the paper states, and what we ask, beside what was measured."""
    data, profile = str(results.part("data").get("name")), results.part("profile")
    rows = []
    for entry in stated(results):
        if entry.get("kind") == "number":
            rows.append(_number(entry, results, summary))
        else:
            pair = (ours_of(entry[key], results, summary) for key in ("better", "worse"))
            rows.append(claimed(entry, *pair, data=data, profile=profile))
    return sorted(rows, key=lambda row: row.own)


def stated(results: Results) -> Sequence[Mapping[str, Any]]:
    """What the recipe says that the paper states, as it stands today.

    It belongs to the paper and not to the run: a folder measured before the recipe read the paper
    better is judged by the better reading. The manifest has what was read then; it serves where
    the recipe is no longer there.
    """
    recipe, profile = results.part("recipe"), results.part("profile").get("name")
    then = recipe.get("paper")
    try:
        today = load(str(recipe.get("name")), str(profile)).paper
    except UsageError:
        return then if isinstance(then, list) else []
    return [record(each) for each in today]


def claimed(
    entry: Mapping[str, Any],
    better: Ours | None,
    worse: Ours | None,
    *,
    data: str,
    profile: Mapping[str, Any],
) -> Beside:
    """Judge a claim.

    Args:
        entry: As the manifest has it.
        better: What is claimed to be ahead.
        worse: The other one.
        data: The name of ours.
        profile: Of the results, as the manifest has it.
    """
    wants = str(entry.get("wants"))
    own = bool(entry.get("own"))
    row = replace(_unmeasured(entry, f"{'ours' if own else 'claim'}: {wants}", data), own=own)
    if better is None or worse is None:
        return row
    found = ordering(better, worse, wants)
    places = decimals([better.mean, worse.mean])
    verdict, why = _judged(better, worse, found, profile)
    if verdict == "not reproduced":
        why = "; ".join(part for part in (why, entry.get("explanation"), _size(profile)) if part)
    return replace(
        row,
        ours=" against ".join(each.written(places) for each in (better, worse)),
        difference=NOTHING if isinstance(found, str) else found.written(places) or NOTHING,
        seeds=_fewest(better, worse),
        verdict=OWN.get(verdict, verdict) if own else verdict,
        why=why,
    )


def _fewest(*figures: Ours) -> str:
    """The number of seeds, of two figures the smaller; nothing where it is not known."""
    return str(min((each.n for each in figures if each.n), default=NOTHING))


def _unmeasured(entry: Mapping[str, Any], paper: str, data: str) -> Beside:
    names = dict.fromkeys((str(entry["data"]), data))
    return Beside(
        what=str(entry["what"]),
        where=str(entry["where"]),
        paper=paper,
        ours=NOTHING,
        difference=NOTHING,
        seeds=NOTHING,
        data="; ours: ".join(names),
        verdict="not measured",
        why="",
        unit=str(entry.get("unit") or ""),
    )


def _size(profile: Mapping[str, Any]) -> str:
    return f"{profile.get('name')} profile" if profile.get("differs") else ""


def _judged(
    better: Ours, worse: Ours, found: Difference | Ranks | str, profile: Mapping[str, Any]
) -> tuple[Verdict, str]:
    """The verdict on a claim and its reason, without our explanation."""
    if profile.get("name") == "smoke":
        return "not comparable", ONLY_RUNS
    if better.diverged and better.n != 1:
        return "not reproduced", f"the one claimed ahead {_lost(better)}"
    if isinstance(found, str):
        return "not comparable", found
    if found.leads:
        why = f"the other one {_lost(worse)}" if worse.diverged else ""
        return "reproduced", "; ".join(part for part in (why, _size(profile)) if part)
    if found.trails:
        return "not reproduced", "the reverse"
    if isinstance(found, Ranks) and better.missing:
        return "not reproduced", f"the one claimed ahead {_lost(better)}"
    return "not reproduced", "within the noise of the seeds"


def _lost(ours: Ours) -> str:
    """What became of the seeds without a finite figure."""
    if ours.diverged:
        return f"diverged in {ours.diverged} of {ours.n} seeds"
    return f"did not reach the target in {ours.missing} of {ours.n} seeds"


def _number(entry: Mapping[str, Any], results: Results, summary: Summary) -> Beside:
    ours = ours_of(entry["ours"], results, summary)
    value, spread = float(entry["value"]), entry.get("spread")
    data, unit = str(results.part("data").get("name")), str(entry.get("unit") or "")
    printed = f"{value:g}" if spread is None else f"{value:g} ± {spread:g}"
    row = _unmeasured(entry, f"{printed} {unit}".strip(), data)
    if ours is None:
        return row
    places = max(2, len(f"{value:g}".partition(".")[2]))
    verdict, why = _compared(entry, ours, data, results.part("profile"))
    row = replace(
        row, ours=ours.written(places, unit), seeds=_fewest(ours), verdict=verdict, why=why
    )
    if math.isnan(ours.mean):
        return row
    return replace(
        row,
        difference=f"{ours.mean - value:+.{places}f}",
        drawn=(value, spread, ours.mean, ours.sd),
    )


def _compared(
    entry: Mapping[str, Any], ours: Ours, data: str, profile: Mapping[str, Any]
) -> tuple[Verdict, str]:
    if not entry.get("comparable", True):
        return "not comparable", str(entry.get("reason"))
    if entry["data"] != data:
        return "not comparable", f"other data: {data}"
    if not profile.get("comparable", True):
        return "not comparable", f"the {profile.get('name')} profile is smaller"
    if ours.n == 1:
        return "not comparable", SINGLE
    if ours.diverged or (ours.missing and ours.missing == ours.n):
        return "not reproduced", f"ours {_lost(ours)}"
    if ours.missing:  # their mean is that of the fast ones
        return "not comparable", f"ours {_lost(ours)}"
    if ours.sd is None:
        return "not comparable", UNKNOWN
    spread = entry.get("spread")
    theirs = ours.sd if spread is None else float(spread)
    if abs(ours.mean - float(entry["value"])) <= FACTOR * math.hypot(theirs, ours.sd):
        return "reproduced", ""
    return "not reproduced", str(entry.get("explanation") or "")

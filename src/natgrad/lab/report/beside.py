"""The paper's numbers and claims beside ours, each with a verdict and the rule it follows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from natgrad.lab.report.ours import Ours, ours_of
from natgrad.lab.report.read import Results
from natgrad.lab.report.summary import Summary
from natgrad.lab.report.text import NOTHING, decimals, with_spread

Verdict = Literal["reproduced", "not reproduced", "not comparable", "not measured"]
FACTOR = 2.0
ONLY_RUNS = "the smoke profile only shows that everything runs"
RULES = (
    "A number is reproduced if ours is within two combined standard deviations of it, ours over "
    "seeds and the paper's as printed (where it prints none, ours stands for both).",
    "A claim is reproduced if our means are ordered as it says by more than two standard errors of "
    "their difference, of the differences seed by seed where both were run from the same seeds.",
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
        difference: Ours less the paper's; of a claim, by how much it holds.
        seeds: How many ours is the mean of.
        data: The data set's name, the paper's and ours.
        verdict: In words.
        why: The reason, or our best explanation; may be empty.
        drawn: The paper's value and spread, ours and its spread, for the figure; None for a claim.
        unit: Of all of them.
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


HEADINGS = ("what", "where", "paper", "ours", "difference", "seeds", "data", "verdict", "why")
ONCE = ("where", "seeds", "data")  #: columns that are said once where all rows agree


def as_table(rows: Sequence[Beside]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns of a table, without those of which `notes` says it once, and its cells."""
    common = _common(rows)
    shown = tuple(heading for heading in HEADINGS if heading not in common)
    return shown, [tuple(getattr(row, key) or NOTHING for key in shown) for row in rows]


def notes(rows: Sequence[Beside]) -> tuple[str, ...]:
    """What stands below a table of these rows: what they have in common, and the rules."""
    return (*(f"{key.capitalize()}: {value}." for key, value in _common(rows).items()), *RULES)


def _common(rows: Sequence[Beside]) -> dict[str, str]:
    if len(rows) < 2:
        return {}
    values = {heading: {getattr(row, heading) for row in rows} for heading in ONCE}
    return {heading: found.pop() for heading, found in values.items() if len(found) == 1}


def beside(results: Results, summary: Summary) -> list[Beside]:
    """Set everything that the paper states beside what was measured."""
    stated = results.part("recipe").get("paper")
    entries = stated if isinstance(stated, list) else []
    data, profile = str(results.part("data").get("name")), results.part("profile")
    rows = []
    for entry in entries:
        if entry.get("kind") == "number":
            rows.append(_number(entry, results, summary))
        else:
            pair = (ours_of(entry[key], results, summary) for key in ("better", "worse"))
            rows.append(claimed(entry, *pair, data=data, profile=profile))
    return rows


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
    row = _unmeasured(entry, f"claim: {wants}", data)
    if better is None or worse is None:
        return row
    if math.isnan(better.mean) or math.isnan(worse.mean):
        return _with_divergence(row, better, worse, profile)
    ahead = (better.mean - worse.mean) * (1 if wants == "higher" else -1)
    places = decimals([better.mean, worse.mean])
    error = _standard_error(better, worse)
    verdict, why = _judged(ahead, error, profile, str(entry.get("explanation") or ""))
    return replace(
        row,
        ours=" against ".join(with_spread(o.mean, o.sd, places) for o in (better, worse)),
        difference=f"{ahead:+.{places}f}" + ("" if error is None else f" ± {error:.{places}f}"),
        seeds=str(min(better.n, worse.n)),
        verdict=verdict,
        why=why,
    )


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


def _with_divergence(row: Beside, better: Ours, worse: Ours, profile: Mapping[str, Any]) -> Beside:
    """A claim of which one side has no figure, since none of its runs came to an end."""
    texts = ("diverged" if math.isnan(o.mean) else f"{o.mean:.4g}" for o in (better, worse))
    row = replace(row, ours=" against ".join(texts), seeds=str(max(better.n, worse.n)))
    if profile.get("name") == "smoke":
        return replace(row, verdict="not comparable", why=ONLY_RUNS)
    if math.isnan(better.mean):
        return replace(row, verdict="not reproduced", why="ours diverged from every seed")
    return replace(row, verdict="reproduced", why="the other one diverged from every seed")


def _judged(
    ahead: float, error: float | None, profile: Mapping[str, Any], explanation: str
) -> tuple[Verdict, str]:
    if profile.get("name") == "smoke":
        return "not comparable", ONLY_RUNS
    if error is None:
        return "not comparable", "a single seed has no spread"
    size = f"{profile.get('name')} profile" if profile.get("differs") else ""
    if ahead > FACTOR * error:
        return "reproduced", size
    within = "within the noise of the seeds" if abs(ahead) <= FACTOR * error else "the reverse"
    return "not reproduced", "; ".join(part for part in (within, explanation, size) if part)


def _standard_error(a: Ours, b: Ours) -> float | None:
    differences = a.paired(b)
    if differences is not None:
        return statistics.stdev(differences) / math.sqrt(len(differences))
    if a.sd is None or b.sd is None:
        return None
    return math.sqrt(a.sd**2 / a.n + b.sd**2 / b.n)


def _number(entry: Mapping[str, Any], results: Results, summary: Summary) -> Beside:
    ours = ours_of(entry["ours"], results, summary)
    value, spread = float(entry["value"]), entry.get("spread")
    data, unit = str(results.part("data").get("name")), str(entry.get("unit") or "")
    printed = f"{value:g}" if spread is None else f"{value:g} ± {spread:g}"
    row = _unmeasured(entry, f"{printed} {unit}".strip(), data)
    if ours is None:
        return row
    if math.isnan(ours.mean):
        why = "ours diverged from every seed"
        return replace(row, ours="diverged", verdict="not reproduced", why=why)
    places = max(2, len(f"{value:g}".partition(".")[2]))
    verdict, why = _compared(entry, ours, data, results.part("profile"))
    return replace(
        row,
        ours=f"{with_spread(ours.mean, ours.sd, places)} {unit}".strip(),
        difference=f"{ours.mean - value:+.{places}f}",
        seeds=str(ours.n),
        verdict=verdict,
        why=why,
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
    if ours.sd is None:
        return "not comparable", "a single seed has no spread"
    spread = entry.get("spread")
    theirs = ours.sd if spread is None else float(spread)
    if abs(ours.mean - float(entry["value"])) <= FACTOR * math.hypot(theirs, ours.sd):
        return "reproduced", ""
    return "not reproduced", str(entry.get("explanation") or "")

"""The result of a comparison in a few sentences, made from the figures measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from natgrad.lab.report.summary import REFERENCE, OptimizerSummary, Summary
from natgrad.lab.report.text import decimals, is_natural, listed, significant, with_spread

ABOUT_EQUAL = 1.05


def headline(summary: Summary) -> list[str]:
    """Say who won, by how much, and what it does to the test metric.

    The optimizer spoken of is the natural-gradient method that reaches the target in the fewest
    seconds (on the validation set); it is set against `sgd`, or against the fastest other method
    where `sgd` was not run.

    Returns:
        Sentences, the first of which can stand alone.
    """
    done = [entry for entry in summary.entries if entry.finished]
    if not done or summary.target is None:
        return ["No run has finished yet."]
    natural = [entry for entry in done if is_natural(entry.optimizer)]
    hero = min(natural or done, key=_seconds)
    rivals = [entry for entry in done if entry is not hero and not is_natural(entry.optimizer)]
    fastest = min(rivals, key=_seconds, default=None)
    rival = next((entry for entry in rivals if entry.optimizer == REFERENCE), fastest)
    sentences = [_speed(summary, hero, rival)]
    others = [entry for entry in done if entry is not hero and entry is not rival]
    if others:
        sentences.append(_others(others))
    return [*sentences, *_endings(summary, done), *_losses(summary.entries)]


def _seconds(entry: OptimizerSummary) -> tuple[float, float]:
    seconds, loss = entry.to_target["seconds"], entry.final.get("validation_loss")
    return (math.inf if seconds is None else seconds, loss.mean if loss else math.inf)


def _speed(summary: Summary, hero: OptimizerSummary, rival: OptimizerSummary | None) -> str:
    assert summary.target is not None
    if rival is None:
        loss = hero.final["validation_loss"]
        return f"{hero.name} ended at a validation loss of {significant(loss.mean)}."
    goal = f"{summary.target.name} ({significant(summary.target.loss)})"
    mine, theirs = hero.to_target["seconds"], rival.to_target["seconds"]
    if mine is None:
        tail = "" if theirs is None else f", {rival.name} did in {significant(theirs)} s"
        return f"{hero.name} did not reach {goal}{_share(hero)}{tail}."
    if theirs is None:
        tail = f"{rival.name} did not{_share(rival)}"
        return f"{hero.name} reached {goal} in {significant(mine)} s, {tail}."
    return (
        f"{hero.name} reached {goal} in {significant(mine)} s where {rival.name} took "
        f"{significant(theirs)} s: {_verdict(hero, rival)}."
    )


def _share(entry: OptimizerSummary) -> str:
    return f" ({entry.reached} of {entry.counted} seeds did)" if entry.reached else ""


def _verdict(hero: OptimizerSummary, rival: OptimizerSummary) -> str:
    seconds = _ratio(rival.to_target["seconds"], hero.to_target["seconds"])
    updates = _ratio(rival.to_target["updates"], hero.to_target["updates"])
    time = f"{_times(seconds)} {'faster' if seconds > 1 else 'slower'}"
    if max(seconds, 1 / seconds) < ABOUT_EQUAL:
        time = "about the same time"
    if max(updates, 1 / updates) < ABOUT_EQUAL:
        return f"{time}, with about as many updates"
    joint = "and" if (seconds > 1) == (updates > 1) else "but"
    return f"{time}, {joint} with {_times(updates)} {'fewer' if updates > 1 else 'more'} updates"


def _ratio(a: float | None, b: float | None) -> float:
    # a target crossed at the first evaluation takes no time at all
    return max(a or 0.0, 1e-9) / max(b or 0.0, 1e-9)


def _times(ratio: float) -> str:
    size = max(ratio, 1 / ratio)
    return f"{size:.1f} times" if size < 10 else f"{size:.0f} times"


def _others(entries: Sequence[OptimizerSummary]) -> str:
    there = sorted((e for e in entries if e.to_target["seconds"] is not None), key=_seconds)
    parts = ["To the same loss " + listed([_took(entry) for entry in there])] if there else []
    missed = [f"{e.name}{_share(e)}" for e in entries if e.to_target["seconds"] is None]
    if missed:
        parts.append(f"{listed(missed)} did not get there")
    return "; ".join(parts) + "."


def _took(entry: OptimizerSummary) -> str:
    seeds = "" if entry.reached == entry.counted else f" ({entry.reached} of {entry.counted} seeds)"
    return f"{entry.name} took {significant(entry.to_target['seconds'])} s{seeds}"


def _losses(entries: Sequence[OptimizerSummary]) -> list[str]:
    lost = [f"{e.diverged} of {e.counted} runs of {e.name}" for e in entries if e.diverged]
    return [f"Diverged: {listed(lost)}."] if lost else []


def _endings(summary: Summary, entries: Sequence[OptimizerSummary]) -> list[str]:
    metric = summary.metric
    pairs = [(e, e.final["test_metric"]) for e in entries if "test_metric" in e.final]
    if not pairs:
        return []
    places = 2 if metric.unit == "%" else decimals([spread.mean for _, spread in pairs])
    pairs.sort(key=lambda pair: pair[1].mean, reverse=metric.better == "higher")
    unit = f" {metric.unit}" if metric.unit else ""
    words = [
        f"{entry.name} {with_spread(spread.mean, spread.sd, places)}{unit}"
        for entry, spread in pairs
    ]
    return [f"Final test {metric.name}: {listed(words)}."]

"""Several experiments under one name: each in a folder of its own, and a report on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import typer

from natgrad.lab import provenance
from natgrad.lab.carrying import (
    Manner,
    begun,
    carried_out,
    check_plan,
    check_some_finished,
    print_report,
    tell_how_to_resume,
)
from natgrad.lab.comparison import Plan
from natgrad.lab.errors import DataMissingError, DivergedError, LabError, UsageError
from natgrad.lab.folder import SCHEMA, Results, open_results
from natgrad.lab.manifest import options, plan_of
from natgrad.lab.paper import record
from natgrad.lab.recipe import Suite
from natgrad.lab.running import Status

__all__ = ["carry_through_suite"]


def carry_through_suite(suite: Suite, plans: Sequence[Plan], manner: Manner) -> None:
    """One experiment after the other, then the report.

    Those whose data are not there are left out, and so are those that fail; the manifest says
    which and why. Failures are raised when all others and the report are done.

    Raises:
        DataMissingError: the data of none of them are there, or one has not what it is to be
            concluded from: a fold is not finished.
        DivergedError: no run of one of them came to its end.
        UsageError: to go on without a folder, or with other plans than those of the start.
        typer.Exit: the work was interrupted.
    """
    folder = manner.folder(suite.name)
    for plan in plans:
        check_plan(plan)
    top = open_results(folder, resume=manner.resume)
    if manner.resume:
        plans = _recorded(suite, plans, top, manner.as_before)
        top.update_manifest(status="running", finished=None, left_out={})
    else:
        top.update_manifest(**_written(suite, plans))
    status: Status = "interrupted"
    left_out: dict[str, LabError] = {}
    try:
        for plan in plans:
            try:
                if _one(plan, folder, manner) == "interrupted":
                    tell_how_to_resume(folder, suite.name, manner)
            except (DataMissingError, DivergedError) as error:
                typer.echo(f"{plan.recipe.name} is left out: {error}", err=True)
                left_out[_name(plan)] = error
        if len(left_out) == len(plans):
            raise _failure(left_out) or next(iter(left_out.values()))
        failure = _failure(left_out)
        status = "interrupted" if isinstance(failure, DataMissingError) else "finished"
    finally:
        reasons = {name: str(error) for name, error in left_out.items()}
        top.update_manifest(status=status, finished=provenance.now(), left_out=reasons)
    print_report(folder)
    if failure is not None:
        raise failure


class _NoDataError(DataMissingError):
    """The data of a variant are not at hand, so that it never began."""


def _failure(left_out: Mapping[str, LabError]) -> LabError | None:
    """The first of those that began and failed, with the name of its variant."""
    failed = ((n, error) for n, error in left_out.items() if not isinstance(error, _NoDataError))
    return next((type(error)(f"{name}: {error}") for name, error in failed), None)


def _name(plan: Plan) -> str:
    return plan.recipe.name.partition("/")[2]


def _one(plan: Plan, folder: Path, manner: Manner) -> Status:
    """Begin a variant, or go on with it; one that is over is left in no time."""
    name = _name(plan)
    there = bool(Results(folder / name).manifest())
    events = None if manner.tensorboard is None else manner.tensorboard / name
    own = replace(manner, out=folder / name, resume=there, as_before=False, tensorboard=events)
    try:
        results, plan, splits = begun(plan, folder / name, own)
    except DataMissingError as error:
        raise _NoDataError(str(error)) from error
    status = carried_out(plan, splits, results, own)
    if status == "finished":
        check_some_finished(plan, results)
    return status


def _written(suite: Suite, plans: Sequence[Plan]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "suite": {
            "name": suite.name,
            "title": suite.title,
            "source": suite.source,
            "paper": [record(claim) for claim in suite.paper],
        },
        "variants": [options(plan) for plan in plans],
        "command": provenance.command(),
        "started": provenance.now(),
        "finished": None,
        "status": "running",
        "left_out": {},
    }


def _recorded(suite: Suite, plans: Sequence[Plan], top: Results, as_before: bool) -> Sequence[Plan]:
    about = top.manifest()
    if about.get("suite", {}).get("name") != suite.name:
        raise UsageError(f"{top.path} does not hold {suite.name}")
    if as_before:
        return [plan_of(entry) for entry in about["variants"]]
    if about["variants"] != [options(plan) for plan in plans]:
        raise UsageError(f"can't resume: {top.path} was begun with other options")
    return plans

"""What a results folder says of itself, and the plan read back from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from natgrad.lab import provenance
from natgrad.lab.comparison import Plan
from natgrad.lab.data import Splits
from natgrad.lab.devices import Compute
from natgrad.lab.errors import LabError, UsageError
from natgrad.lab.folder import SCHEMA
from natgrad.lab.paper import record
from natgrad.lab.recipe import Recipe, load
from natgrad.lab.training import Budget

__all__ = ["check_recipe", "check_unchanged", "describe", "options", "plan_of", "written"]


#: entries that older folders do not have
DEFAULTS = {"compute": Compute().described()}


def written(plan: Plan, splits: Splits) -> dict[str, Any]:
    """The manifest of a plan that is about to be carried out."""
    return {
        "schema": SCHEMA,
        **describe(plan, splits),
        "tuned": {},
        "command": provenance.command(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "git": provenance.git(),
        "started": provenance.now(),
        "finished": None,
        "status": "running",
    }


def describe(plan: Plan, splits: Splits) -> dict[str, Any]:
    """The entries that must not change between start and resume."""
    recipe = plan.recipe
    return {
        "recipe": _of_recipe(recipe),
        "profile": asdict(recipe.profile),
        "metric": {
            "name": recipe.metric.name,
            "unit": recipe.metric.unit,
            "better": recipe.metric.better,
        },
        "data": {
            "name": recipe.data.name_of(splits),
            "source": splits.source,
            "split": recipe.data.split,
            "sizes": splits.sizes(),
            "train_evaluated": min(recipe.train_evaluated, len(splits.train)),
        },
        "compute": plan.compute.described(),
        "budget": _of_budget(plan.budget),
        "optimizers": list(plan.optimizers),
        "seeds": list(plan.seeds),
        "grids": {name: [dict(point) for point in recipe.grid(name)] for name in plan.tuned()},
        "settings": {name: dict(settings) for name, settings in plan.settings.items()},
        "tuning_rule": plan.rule(),
        "tuning_budget": _of_budget(plan.tuning_budget()) if plan.tuned() else None,
    }


def _of_recipe(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "title": recipe.title,
        "source": recipe.source,
        "paper": [record(stated) for stated in recipe.paper],
        "differs": recipe.differs,
        "batch_size": recipe.batch_size,
        "l2": recipe.l2,
        "schedule": recipe.schedule,
        "augmentation": recipe.augmentation and recipe.augmentation.about,
        "network": recipe.architecture,
        "likelihood": type(recipe.likelihood).__name__,
        "parameters": sum(p.numel() for p in recipe.network().parameters()),
    }


def _of_budget(budget: Budget) -> dict[str, float | None]:
    return {"epochs": budget.epochs, "seconds": budget.seconds}


def options(plan: Plan) -> dict[str, Any]:
    """What :func:`plan_of` needs to make the plan again."""
    return {
        "schema": SCHEMA,
        "recipe": {"name": plan.recipe.name, "schedule": plan.recipe.schedule},
        "profile": {"name": plan.recipe.profile.name},
        "compute": plan.compute.described(),
        "optimizers": list(plan.optimizers),
        "seeds": list(plan.seeds),
        "budget": _of_budget(plan.budget),
        "settings": {name: dict(settings) for name, settings in plan.settings.items()},
    }


def plan_of(manifest: Mapping[str, Any]) -> Plan:
    """The plan that a manifest, or :func:`options`, records.

    Raises:
        LabError: it was written by another version of the lab.
        UsageError: its recipe is no longer there.
    """
    if manifest.get("schema") != SCHEMA or "profile" not in manifest:
        raise LabError("the results are of another version of the lab; go on with that one")
    recipe = load(manifest["recipe"]["name"], manifest["profile"]["name"])
    return Plan(
        recipe.scheduled(manifest["recipe"]["schedule"]),
        tuple(manifest["optimizers"]),
        tuple(manifest["seeds"]),
        Budget(**manifest["budget"]),
        manifest["settings"],
        Compute(**manifest.get("compute", {})),
    )


def check_recipe(folder: Path, recorded: str, asked: str) -> None:
    """Refuse to go on with another recipe than that of the start.

    Raises:
        UsageError: the folder holds another one.
    """
    if recorded != asked:
        raise UsageError(f"{folder} holds {recorded}, not {asked}")


def check_unchanged(manifest: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """Refuse to go on with other conditions than those of the start.

    What the paper states is none of them: it changes nothing that is trained.

    Args:
        manifest: of the start.
        described: the entries that must not change, as they are now.

    Raises:
        UsageError: names the first entry that differs.
    """
    for key, now in described.items():
        before = manifest.get(key, DEFAULTS.get(key))
        if _trained(before) != _trained(now):
            raise UsageError(
                f"can't resume: {key} was {_short(before)} at the start and is "
                f"{_short(now)} now; start anew in another folder"
            )


def _trained(entry: object) -> object:
    """An entry without what it cites."""
    if isinstance(entry, Mapping):
        return {key: value for key, value in entry.items() if key != "paper"}
    return entry


def _short(value: object, limit: int = 200) -> str:
    text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."

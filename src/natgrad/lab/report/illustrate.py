"""A recipe's own picture of what its networks have learnt."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from natgrad.lab.errors import UsageError
from natgrad.lab.folder import RunFolder
from natgrad.lab.recipe import load
from natgrad.lab.report.read import Results

__all__ = ["illustrated"]


def illustrated(folder: Path, results: Results, path: Path) -> list[Path]:
    """Draw the networks of the first seed that finished, if the recipe knows how.

    Args:
        folder: of the results.
        results: read from it.
        path: of the PDF and the PNG, without a suffix.

    Returns:
        The files written; none where there is nothing to draw.
    """
    try:
        recipe = load(str(results.part("recipe").get("name")))
    except UsageError:  # a recipe that is no longer there
        return []
    if recipe.illustrate is None:
        return []
    models: dict[str, nn.Module] = {}
    for name, runs in results.runs.items():
        label = next((run.label for run in runs if run.finished), None)
        weights = None if label is None else _weights(folder / "runs" / name / label)
        if weights is not None:
            models[name] = recipe.network()
            models[name].load_state_dict(weights)
    return recipe.illustrate(models, path) if models else []


def _weights(place: Path) -> dict[str, object] | None:
    return RunFolder(place).load_weights()

"""Tiny sweeps on the digits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from natgrad.lab.comparison import Plan
from natgrad.lab.data import Splits
from natgrad.lab.folder import Results
from natgrad.lab.recipe import Recipe
from natgrad.lab.space import Range
from natgrad.lab.sweep.plan import Search, Sweep
from natgrad.lab.sweep.storage import default_url, open_storage
from natgrad.lab.sweep.work import Worker
from natgrad.lab.training import Budget

SPACE = {"lr": Range(0.01, 0.3), "momentum": Range(0.5, 0.95, log=False)}


@pytest.fixture
def sweep(tiny: Recipe) -> Sweep:
    """Six draws for SGD, no pruning, the best from two seeds."""
    recipe = dataclasses.replace(tiny, epochs=1, tuning_epochs=1, evaluations_per_epoch=2)
    plan = Plan(recipe, ("sgd",), (0, 1), Budget(epochs=1), {"sgd": {}})
    return Sweep("tiny", plan, (Search("sgd", space=SPACE, draws=6),), "none")


@pytest.fixture
def worker(sweep: Sweep, digits: Splits, tmp_path: Path) -> Callable[..., Worker]:
    """Makes workers that share a storage in the test's folder, and a folder."""

    def make(
        changed: Sweep = sweep, heartbeat: int = 20, url: str = "", **kwargs: object
    ) -> Worker:
        results = Results(tmp_path / "out")
        results.path.mkdir(exist_ok=True)
        if not results.manifest():
            results.update_manifest(command="natgrad sweep digits-mlp")
        storage = open_storage(url or default_url(results.path), heartbeat)
        return Worker(changed, digits, results, storage, **kwargs)  # type: ignore[arg-type]

    return make

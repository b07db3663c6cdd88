import dataclasses
import math
from pathlib import Path

import pytest
import torch

from natgrad.lab.comparison import Plan, best_index, compare, on_edge, settled
from natgrad.lab.data import Pair, Splits
from natgrad.lab.folder import Results
from natgrad.lab.recipe import Recipe
from natgrad.lab.running import Silent
from natgrad.lab.training import Budget, Run, Training


class Recorder(Silent):
    """Remembers the runs and what was said."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.said: list[str] = []
        self.skipped: list[str] = []

    def begin(self, training: Training) -> None:
        self.runs.append(str(training.run))

    def skip(self, run: Run) -> None:
        self.skipped.append(str(run))

    def say(self, message: str) -> None:
        self.said.append(message)


def never() -> bool:
    return False


@pytest.fixture
def plan(tiny: Recipe) -> Plan:
    return Plan(tiny, ("sgd", "kfac"), (0, 1), Budget(epochs=2))


def test_optimizers_take_turns_within_a_seed(plan: Plan, digits: Splits, tmp_path: Path) -> None:
    watch = Recorder()
    assert compare(plan, digits, Results(tmp_path), watch, never) == "finished"
    tuning, runs = watch.runs[:4], watch.runs[4:]
    assert [text.split()[:2] for text in tuning] == [
        ["tuning", "sgd"], ["tuning", "sgd"], ["tuning", "kfac"], ["tuning", "kfac"],
    ]  # fmt: skip
    assert runs == ["sgd seed 0", "kfac seed 0", "sgd seed 1", "kfac seed 1"]
    assert len(watch.runs) == plan.total()


def test_the_best_point_is_trained_and_recorded(plan: Plan, digits: Splits, tmp_path: Path) -> None:
    results = Results(tmp_path)
    compare(plan, digits, results, Silent(), never)
    for name, grid in plan.recipe.grids.items():
        if name not in plan.optimizers:
            continue
        losses = [settled(results.tuning(name, k).rows()) for k in range(2)]
        assert results.manifest()["tuning_losses"][name] == losses
        best = grid[losses.index(min(losses))]
        tuned = results.manifest()["tuned"][name]
        assert tuned.items() >= best.items()
        assert results.run(name, 1).rows()[0]["settings"] == tuned


def test_tuning_never_sees_the_test_set(plan: Plan, digits: Splits, tmp_path: Path) -> None:
    poisoned = torch.full_like(digits.test.inputs, math.nan)
    blind = dataclasses.replace(digits, test=Pair(poisoned, digits.test.targets))
    seen, unseen = Results(tmp_path / "seen"), Results(tmp_path / "unseen")
    compare(plan, digits, seen, Silent(), never)
    compare(plan, blind, unseen, Silent(), never)
    assert seen.manifest()["tuned"] == unseen.manifest()["tuned"]
    rows = [row for k in range(2) for row in seen.tuning("kfac", k).rows()]
    assert rows
    assert not any(key.startswith("test") for row in rows for key in row)


def test_going_on_leaves_what_is_finished(plan: Plan, digits: Splits, tmp_path: Path) -> None:
    results, watch = Results(tmp_path), Recorder()

    def after_five() -> bool:
        return len(watch.runs) > 5

    assert compare(plan, digits, results, watch, after_five) == "interrupted"
    again = Recorder()
    assert compare(plan, digits, results, again, never) == "finished"
    assert again.runs == ["kfac seed 0", "sgd seed 1", "kfac seed 1"]
    assert again.skipped == watch.runs[:5]


def test_given_settings_are_not_tuned(tiny: Recipe, digits: Splits, tmp_path: Path) -> None:
    plan = Plan(tiny, ("sgd",), (0,), Budget(epochs=1), {"sgd": {"lr": 0.07}})
    results, watch = Results(tmp_path), Recorder()
    compare(plan, digits, results, watch, never)
    assert watch.runs == ["sgd seed 0"]
    assert results.manifest()["tuned"] == {"sgd": {"lr": 0.07, "momentum": 0.9}}
    assert "no tuning" in plan.rule()


def test_a_single_point_is_not_tuned(tiny: Recipe, digits: Splits, tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny, grids={"sgd": [{"lr": 0.1}]})
    plan = Plan(recipe, ("sgd",), (0,), Budget(epochs=1))
    assert (plan.tuned(), plan.total()) == ([], 1)
    results = Results(tmp_path)
    assert compare(plan, digits, results, Recorder(), never) == "finished"
    assert results.manifest()["tuned"]["sgd"]["lr"] == 0.1
    assert not (tmp_path / "tuning").exists()


def test_an_optimizer_that_always_diverges_is_left_out(
    tiny: Recipe, digits: Splits, tmp_path: Path
) -> None:
    rates = {"sgd": (1e12, 1e13), "adam": (1e-3, 2e-3)}
    grids = {name: [{"lr": lr} for lr in tried] for name, tried in rates.items()}
    recipe = dataclasses.replace(tiny, grids=grids)
    plan = Plan(recipe, ("sgd", "adam"), (0,), Budget(epochs=1))
    results, watch = Results(tmp_path), Recorder()
    assert compare(plan, digits, results, watch, never) == "finished"
    assert list(results.manifest()["tuned"]) == ["adam"]
    assert any("sgd: every point of its grid diverged" in text for text in watch.said)


def test_tuning_budget(tiny: Recipe) -> None:
    def budget(**kwargs: float) -> Budget:
        return Plan(tiny, ("sgd",), (0,), Budget(**kwargs)).tuning_budget()

    assert budget(epochs=2) == Budget(epochs=1)
    assert budget(epochs=0.5) == Budget(epochs=0.5)
    assert budget(seconds=10) == Budget(seconds=5)  # the recipe tunes for half of its epochs


def test_best_index() -> None:
    assert best_index([None, 0.5, 0.2, 0.2]) == 2
    assert best_index([None, None]) is None


def test_settled_is_the_mean_over_the_last_quarter() -> None:
    rows = [{"validation_loss": loss} for loss in (9, 8, 7, 6, 5, 4, 3, 1)]
    assert settled(rows) == 2
    assert settled(rows[:3]) == 7


def test_on_edge() -> None:
    grid = [{"lr": lr, "damping": d} for lr in (0.1, 0.2, 0.3) for d in (1.0, 2.0)]
    assert on_edge(grid, 0) == ["lr", "damping"]  # of two dampings every one is on an edge
    assert on_edge(grid, 2) == ["damping"]
    held = [{"lr": lr, "damping": 1.0} for lr in (0.1, 0.2, 0.3)]
    assert on_edge(held, 1) == []

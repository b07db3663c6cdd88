from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from natgrad.lab.comparison import Plan, compare
from natgrad.lab.data import Splits
from natgrad.lab.folder import Results, open_results
from natgrad.lab.nodules.study import FROC, LOSS, TEST, DetectionStudy, crossing
from natgrad.lab.recipe import Recipe, load
from natgrad.lab.running import Silent
from natgrad.lab.study import Work
from natgrad.lab.tables import study_folder
from natgrad.lab.training import Budget


def rows(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"epoch": epoch, "train_loss": loss} for epoch, loss in points]


def test_the_epoch_of_a_loss_is_linear_between_evaluations() -> None:
    curve = rows((0, 4.0), (2, 2.0), (4, 1.0))
    assert crossing(curve, 3.0) == 1.0
    assert crossing(curve, 1.5) == 3.0
    assert crossing(curve, 5.0) == 0.0
    assert crossing(curve, 0.5) is None


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The smoke profile of the detection, carried out."""
    recipe: Recipe = replace(load("sngd-detection/generated", "smoke"), seeds=(0, 1))
    splits: Splits = recipe.data.load(None)
    results: Results = open_results(tmp_path_factory.mktemp("results"), resume=False)
    settings = {name: recipe.settings[name] for name in recipe.optimizers}
    plan = Plan(recipe, recipe.optimizers, recipe.seeds, Budget(epochs=1), settings)
    assert compare(plan, splits, results, Silent(), lambda: False) == "finished"
    return Work(
        recipe, recipe.optimizers, recipe.seeds, splits, results, study_folder(results.path),
        lambda text: None, lambda: False,
    )  # fmt: skip


def test_the_tables_hold_what_the_runs_measured(work: Work) -> None:
    study = work.recipe.study
    assert isinstance(study, DetectionStudy)
    replace(study, resamples=20).conclude(work)
    froc, loss = work.folder.table(FROC), work.folder.table(LOSS)
    assert froc is not None
    assert loss is not None
    for name, label in (("sgd", "SGD"), ("sgd_bn", "SGD + BatchNorm"), ("sngd", "SNGD")):
        ends = [work.results.run(name, seed).rows()[-1] for seed in (0, 1)]
        for column, key in ((TEST, "test_metric"), ("train", "train_metric")):
            mean = sum(end[key] for end in ends) / 2
            assert froc.cell(f"{label}, CPM", column) == pytest.approx(mean, abs=1e-9)
        assert froc.cell(f"{label}, 8", "seeds") == 2
        assert loss.cell(label, "train loss") == pytest.approx(
            sum(end["train_loss"] for end in ends) / 2
        )
    assert (Path(work.folder.path) / f"{FROC}.png").is_file()
    assert FROC in work.folder.figures()


def test_a_study_that_is_stopped_writes_nothing(work: Work, tmp_path: Path) -> None:
    stopped = replace(work, folder=study_folder(tmp_path), stop=lambda: True)
    assert work.recipe.study is not None
    work.recipe.study.conclude(stopped)
    assert stopped.folder.table(FROC) is None

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from natgrad.lab.comparison import Plan, compare
from natgrad.lab.data import Splits
from natgrad.lab.errors import DamagedError
from natgrad.lab.folder import Results, open_results
from natgrad.lab.luna.froc import cpm
from natgrad.lab.luna.froc import froc as curve_of
from natgrad.lab.nodules.kept_marks import kept_marks
from natgrad.lab.nodules.study import FROC, LOSS, TEST, DetectionStudy
from natgrad.lab.paper import Number
from natgrad.lab.recipe import Recipe, load
from natgrad.lab.running import Silent
from natgrad.lab.study import Work
from natgrad.lab.tables import study_folder
from natgrad.lab.training import Budget


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
        marks = kept_marks(work.folder, name, 1)
        assert marks is not None
        assert cpm(curve_of(marks[1]).at()) == ends[1]["test_metric"]
    assert (Path(work.folder.path) / f"{FROC}.png").is_file()
    assert FROC in work.folder.figures()


def test_a_study_that_is_stopped_writes_nothing(work: Work, tmp_path: Path) -> None:
    stopped = replace(work, folder=study_folder(tmp_path), stop=lambda: True)
    assert work.recipe.study is not None
    work.recipe.study.conclude(stopped)
    assert stopped.folder.table(FROC) is None


@pytest.fixture
def own(work: Work, tmp_path: Path) -> Work:
    """A copy, to change."""
    shutil.copytree(work.results.path, tmp_path / "own")
    results = Results(tmp_path / "own")
    return replace(work, results=results, folder=study_folder(results.path))


def conclude(work: Work) -> None:
    assert isinstance(work.recipe.study, DetectionStudy)
    replace(work.recipe.study, resamples=20).conclude(work)


def test_a_seed_that_does_not_arrive_counts_as_infinite(own: Work) -> None:
    def set_losses(name: str, seed: int, *losses: float) -> None:
        place = own.results.run(name, seed)
        last = place.rows()[-1]
        rows = [{**last, "epoch": k, "update": k, "train_loss": x} for k, x in enumerate(losses)]
        place.set_rows(rows)

    for seed in own.seeds:
        set_losses("sgd", seed, 3.0, 1.0)
    set_losses("sgd_bn", 0, 3.0, 2.0, 0.0)  # at 1.0 after one and a half epochs
    set_losses("sgd_bn", 1, 3.0, 2.0, 1.0)
    set_losses("sngd", 0, 3.0, 0.0)
    set_losses("sngd", 1, 3.0, 2.0)  # never
    conclude(own)
    found = own.folder.table(LOSS)
    assert found is not None
    assert [found.cell("SNGD", c) for c in ("epochs", "epochs sd")] == [None, None]
    assert [found.cell("SNGD", c) for c in ("reached", "seeds")] == ["1 of 2", 2]
    assert found.by_seed["SNGD"]["epochs"] == {"0": pytest.approx(2 / 3), "1": math.inf}
    assert found.cell("SGD + BatchNorm", "epochs") == pytest.approx(1.75)
    assert found.cell("SGD + BatchNorm", "reached") == "2 of 2"
    assert "counted as infinite" in found.note


def test_a_seed_that_diverged_does_not_arrive_either(own: Work) -> None:
    place = own.results.run("sngd", 1)
    place.set_status({**place.status(), "status": "diverged"})
    conclude(own)
    froc, loss = own.folder.table(FROC), own.folder.table(LOSS)
    assert froc is not None
    assert loss is not None
    assert loss.by_seed["SNGD"]["epochs"]["1"] == math.inf
    assert str(loss.cell("SNGD", "reached")).endswith("of 2")
    assert froc.cell("SNGD, CPM", "seeds") == 1
    assert "SNGD diverged from 1 of 2 seeds" in froc.note
    assert math.isnan(froc.by_seed["SNGD, CPM"][TEST]["1"])


def test_without_the_reference_there_are_no_epochs_to_its_loss(own: Work) -> None:
    shutil.rmtree(own.folder.path)
    conclude(replace(own, optimizers=("sngd", "sgd_bn")))
    froc = own.folder.table(FROC)
    assert froc is not None
    assert froc.cell("SNGD, CPM", "seeds") == 2
    assert own.folder.table(LOSS) is None


def test_a_run_that_is_not_over_is_in_no_table(own: Work) -> None:
    place = own.results.run("sngd", 1)
    place.set_status({**place.status(), "status": "interrupted"})
    conclude(own)
    loss = own.folder.table(LOSS)
    assert loss is not None
    assert list(loss.by_seed["SNGD"]["epochs"]) == ["0"]


def test_a_finished_run_without_its_network_is_named(own: Work) -> None:
    (own.results.run("sgd_bn", 1).path / "weights.pt").unlink()
    with pytest.raises(DamagedError, match=r"sgd_bn seed 1 is finished.*--resume to repeat"):
        conclude(own)


def test_the_note_says_where_train_figures_are_of_thinned_data(own: Work) -> None:
    assert isinstance(own.recipe.study, DetectionStudy)
    replace(own.recipe.study, resamples=20, thinned="Thinned to ten.").conclude(own)
    found = own.folder.table(FROC)
    assert found is not None
    assert found.note.endswith("Thinned to ten.")
    whole = load("sngd-detection/luna16", "cpu")
    assert isinstance(whole.study, DetectionStudy)
    assert "rate of false positives" in whole.study.thinned
    assert all(stated.reason for stated in whole.paper if isinstance(stated, Number))

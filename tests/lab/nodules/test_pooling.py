"""Ten folds as one: the marks of each are kept, and scored together."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from natgrad.lab.comparison import Plan
from natgrad.lab.errors import DamagedError, DataMissingError, UsageError
from natgrad.lab.folder import Results
from natgrad.lab.luna.bootstrap import score
from natgrad.lab.luna.froc import Marks, cpm, froc
from natgrad.lab.manifest import written
from natgrad.lab.nodules.curves import FROC, TEST
from natgrad.lab.nodules.kept_marks import keep_marks, kept_marks, pooled
from natgrad.lab.nodules.pooling import FOLD_NAMES, POOL, PooledStudy
from natgrad.lab.paper import Number
from natgrad.lab.recipe import Suite, find, load
from natgrad.lab.report import write_report
from natgrad.lab.report.beside import beside
from natgrad.lab.report.read import read_results
from natgrad.lab.report.summary import summary_of
from natgrad.lab.study import Work
from natgrad.lab.tables import Table, study_folder
from natgrad.lab.training import Budget

SUITES = pytest.mark.parametrize("name", ["sngd-nodules-folds", "sngd-detection-folds"])


def made_up(fold: int, seed: int, shift: float) -> Marks:
    """Two nodules and ten false positives in each scan; a scan more than in the fold before."""
    random = np.random.default_rng((fold, seed))
    scans = 2 + fold
    nodule = np.tile(np.arange(12) < 2, scans)
    scores = random.standard_normal(12 * scans) + shift * nodule
    return Marks(scores, nodule, np.repeat(np.arange(scans), 12), scans)


def write_fold(folder: Path, fold: int, seeds: tuple[int, ...] = (0, 1)) -> Results:
    """The results of a fold, as a comparison leaves them."""
    results = Results(folder / f"fold{fold}")
    results.path.mkdir(parents=True)
    results.update_manifest(
        status="finished", profile={"name": "cpu"}, budget={"epochs": 3, "seconds": None},
        optimizers=["sgd", "sngd"], seeds=[0, 1],
    )  # fmt: skip
    for shift, name in enumerate(("sgd", "sngd")):
        for seed in seeds:
            results.run(name, seed).set_status({"status": "finished"})
            pair = (made_up(fold, seed, shift + 1), made_up(fold, seed, shift))
            keep_marks(study_folder(results.path), name, seed, *pair)
    return results


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """All that pooling sees: ten folds beside its own folder."""
    for fold in range(10):
        write_fold(tmp_path, fold)
    recipe = load(f"sngd-nodules-folds/{POOL}", "cpu")
    results = Results(tmp_path / POOL)
    return Work(
        recipe, recipe.optimizers, recipe.seeds, recipe.data.load(None), results,
        study_folder(results.path), lambda text: None, lambda: False,
    )  # fmt: skip


def conclude(work: Work) -> Table:
    PooledStudy("Thinned.", resamples=50).conclude(work)
    found = work.folder.table(FROC)
    assert found is not None
    return found


def test_pooled_marks_are_of_scans_of_their_own() -> None:
    folds = [made_up(fold, 0, 1.0) for fold in range(3)]
    found = pooled(folds)
    assert found.scans == 2 + 3 + 4
    assert found.nodules == 2 * found.scans
    assert np.unique(found.scan).tolist() == list(range(9))
    assert found.scores.tolist() == [x for each in folds for x in each.scores]
    with pytest.raises(ValueError, match="no fold"):
        pooled([])


def test_the_table_is_of_all_folds_scored_together(work: Work) -> None:
    found = conclude(work)
    whole = [pooled([made_up(fold, seed, 1) for fold in range(10)]) for seed in (0, 1)]
    cpms = [cpm(froc(marks).at()) for marks in whole]
    expected = score(*whole, resamples=50)
    assert found.cell("SNGD, CPM", TEST) == pytest.approx(np.mean(cpms))
    assert found.cell("SNGD, CPM", "low") == pytest.approx(expected.cpm.low)
    assert found.cell("SNGD, CPM", "seeds") == 2
    assert found.by_seed["SNGD, CPM"][TEST] == pytest.approx({"0": cpms[0], "1": cpms[1]})
    trained = [froc(made_up(fold, seed, 2)).at() for fold in range(10) for seed in (0, 1)]
    assert found.cell("SNGD, CPM", "train") == pytest.approx(np.mean(trained))
    assert "65 scans with 130 nodules" in found.note
    assert "Thinned." in found.note
    assert FROC in work.folder.figures()
    # not the mean of the folds' own figures
    apart = np.mean([cpm(froc(made_up(fold, 0, 1)).at()) for fold in range(10)])
    assert apart != pytest.approx(cpms[0])


def test_numbers_of_the_full_profile_are_judged(work: Work, tmp_path: Path) -> None:
    for fold in FOLD_NAMES:
        Results(tmp_path / fold).update_manifest(profile={"name": "full"})
    recipe = load(f"sngd-nodules-folds/{POOL}", "full")
    conclude(replace(work, recipe=recipe))
    plan = Plan(recipe, recipe.optimizers, recipe.seeds, Budget(epochs=recipe.epochs))
    work.results.update_manifest(**written(plan, work.splits))
    results = read_results(work.results.path)
    rows = beside(results, summary_of(results))
    assert len(rows) == 17
    assert {row.verdict for row in rows} <= {"reproduced", "not reproduced"}
    page = write_report(work.results.path).read_text()
    assert "each subset is the test set of one fold" in page
    for of_training in ("Budget per run", "Examples", "Settings of the runs", "Tuning"):
        assert of_training not in page
    assert re.search(r'<img src="data:image/png;base64,[^"]*" width="\d{3}"', page)


def test_a_fold_that_is_not_finished_is_named(work: Work, tmp_path: Path) -> None:
    Results(tmp_path / "fold3").update_manifest(status="interrupted")
    (tmp_path / "fold7" / "manifest.json").unlink()
    with pytest.raises(DataMissingError, match=r"fold3, fold7 are not: natgrad compare .*/fold3"):
        conclude(work)


@pytest.mark.parametrize("change", [{"profile": {"name": "full"}}, {"budget": {"epochs": 5}}])
def test_folds_that_differ_are_not_pooled(work: Work, tmp_path: Path, change: dict) -> None:
    Results(tmp_path / "fold4").update_manifest(**change)
    with pytest.raises(UsageError, match="fold4"):
        conclude(work)


def test_a_seed_that_diverged_in_one_fold_is_said(work: Work, tmp_path: Path) -> None:
    Results(tmp_path / "fold2").run("sngd", 1).set_status({"status": "diverged"})
    found = conclude(work)
    assert found.cell("SNGD, CPM", "seeds") == 1
    assert found.cell("SGD, CPM", "seeds") == 2
    assert "SNGD diverged from 1 of 2 seeds" in found.note
    assert math.isnan(found.by_seed["SNGD, CPM"][TEST]["1"])


def test_damaged_marks_are_refused_by_name(work: Work, tmp_path: Path) -> None:
    path = tmp_path / "fold5" / "study" / "marks" / "sgd-seed1.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DamagedError, match=r"sgd-seed1\.npz is damaged"):
        conclude(work)


def test_kept_marks_are_those_that_were_written(tmp_path: Path) -> None:
    folder = study_folder(tmp_path)
    assert kept_marks(folder, "sgd", 0) is None
    missed = replace(made_up(0, 0, 1), scores=np.where(np.arange(24) == 0, -np.inf, 0.5))
    keep_marks(folder, "sgd", 0, made_up(1, 0, 1), missed)
    found = kept_marks(folder, "sgd", 0)
    assert found is not None
    assert found[0].scores.tolist() == made_up(1, 0, 1).scores.tolist()
    assert found[1].scores.tolist() == missed.scores.tolist()
    assert found[1].scans == missed.scans
    assert folder.tables() == {}


@SUITES
def test_each_fold_tests_another_subset_and_the_pool_holds_the_papers_numbers(name: str) -> None:
    suite = find(name)
    assert isinstance(suite, Suite)
    assert tuple(suite.variants) == (*FOLD_NAMES, POOL)
    for profile in ("smoke", "cpu", "full"):
        for k, fold in enumerate(FOLD_NAMES):
            recipe = load(f"{name}/{fold}", profile)
            assert f"subset {k} is the test set" in recipe.data.split
            assert recipe.paper == ()
            assert recipe.study is not None
    pool = load(f"{name}/{POOL}", "full")
    numbers = [stated for stated in pool.paper if isinstance(stated, Number)]
    assert len(numbers) in (16, 24)
    assert pool.optimizers == ()
    for stated in numbers:  # what the report asks of a number that it judges
        assert stated.comparable
        assert stated.data == pool.data.name_of(pool.data.load(None))

from pathlib import Path

import pytest

from natgrad.lab.data import Splits
from natgrad.lab.folder import Results, open_results
from natgrad.lab.recipe import Recipe
from natgrad.lab.studies.sensitivity import Sensitivity
from natgrad.lab.study import Work
from natgrad.lab.tables import study_folder

STUDY = Sensitivity("nu", {0.01: (77.0, 0.2), 1.0: (76.0, 0.3)}, "tekfac_restricted", "CIFAR-100")


def write_run(results: Results, name: str, seed: int, status: str, test: float) -> None:
    place = results.run(name, seed)
    place.set_status({"status": status})
    for figure in (1.0, test):  # the last point counts
        place.append({f"{s}_metric": figure for s in ("train", "validation", "test")})


@pytest.fixture
def results(tmp_path: Path) -> Results:
    found = open_results(tmp_path / "out", resume=False)
    for seed, test in enumerate((50.0, 52.0, 54.0)):
        write_run(found, STUDY.name(0.01), seed, "finished", test)
    write_run(found, STUDY.name(1.0), 0, "finished", 40.0)
    for seed in (1, 2):
        write_run(found, STUDY.name(1.0), seed, "diverged", 10.0)
    return found


def test_a_table_and_a_figure_of_the_last_points(
    results: Results, tiny: Recipe, digits: Splits
) -> None:
    folder = study_folder(results.path)
    splits = digits.named("CIFAR-10 (JPEG)")
    names = tuple(STUDY.name(value) for value in STUDY.printed)
    STUDY.conclude(
        Work(tiny, names, (0, 1, 2), splits, results, folder, lambda _: None, lambda: False)
    )
    table = folder.table("sensitivity")
    assert table is not None
    assert "CIFAR-10 (JPEG)" in table.title
    assert table.cell("0.01", "test accuracy") == 52
    assert table.cell("0.01", "test accuracy sd") == 2
    assert table.cell("0.01", "paper, CIFAR-100") == 77
    assert (table.cell("1", "test accuracy"), table.cell("1", "test accuracy sd")) == (40, None)
    assert (table.cell("1", "seeds"), table.cell("1", "diverged")) == (1, 2)
    assert "CIFAR-10 (JPEG)" in folder.figures()["sensitivity"]
    assert (folder.path / "sensitivity.pdf").stat().st_size > 1000


def test_a_value_that_always_diverged_has_an_empty_row(
    tmp_path: Path, tiny: Recipe, digits: Splits
) -> None:
    results = open_results(tmp_path / "none", resume=False)
    write_run(results, STUDY.name(0.01), 0, "finished", 50.0)
    write_run(results, STUDY.name(1.0), 0, "diverged", 10.0)
    folder = study_folder(results.path)
    STUDY.conclude(Work(tiny, (), (0,), digits, results, folder, lambda _: None, lambda: False))
    table = folder.table("sensitivity")
    assert table is not None
    assert table.cell("1", "test accuracy") is None
    assert table.cell("1", "diverged") == 1

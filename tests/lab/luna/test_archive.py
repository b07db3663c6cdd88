from pathlib import Path

import numpy as np
import pytest

from natgrad.lab.errors import DataMissingError
from natgrad.lab.luna.archive import Archive
from natgrad.lab.luna.tables import TableError, read_annotations, read_candidates, read_scans

from .files import HEADING, write_mhd, write_table


@pytest.fixture
def luna(tmp_path: Path) -> Path:
    """Three scans in two subsets: a nodule with two candidates, one with none, an excluded one."""
    rng = np.random.default_rng(0)
    for name, subset in (("a", 0), ("b", 0), ("c", 1)):
        voxels = rng.integers(-1000, 400, (20, 24, 24)).astype("<i2")
        write_mhd(tmp_path / f"subset{subset}" / f"{name}.mhd", voxels, (1, 1, 1), (-10, -10, -5))
    write_table(
        tmp_path / "annotations.csv", "diameter_mm",
        [("a", 0, 0, 0, 6), ("b", 5, 5, 5, 8), ("c", 1, 1, 1, 4)],
    )  # fmt: skip
    write_table(
        tmp_path / "annotations_excluded.csv",
        "diameter_mm",
        [("a", 8, 8, 8, -1), ("c", 0, 0, 9, 3)],
    )
    write_table(
        tmp_path / "candidates.csv", "class",
        [("a", 1, 0, 0, 1), ("a", 0, 2, 0, 1), ("a", 9, 8, 8, 0), ("b", -5, -5, 5, 0),
         ("b", -5, 5, 0, 0), ("c", 1, 1, 2, 1)],
    )  # fmt: skip
    return tmp_path


def test_tables_are_read(luna: Path) -> None:
    places = read_annotations(luna / "annotations.csv")
    assert places.scans == ("a", "b", "c")
    assert places.centres[1].tolist() == [5, 5, 5]
    findings = read_annotations(luna / "annotations_excluded.csv").findings(["c", "a"])
    assert findings.scan.tolist() == [1, 0]
    assert findings.radii.tolist() == [5.0, 1.5]  # a diameter that was not measured is 10 mm
    assert read_candidates(luna / "candidates.csv").values.tolist() == [1, 1, 0, 0, 0, 1]


def test_lists_of_scans(tmp_path: Path) -> None:
    (tmp_path / "seriesuids.csv").write_text("seriesuid\n1.2.3\n\n1.2.4\n")
    assert read_scans(tmp_path / "seriesuids.csv") == ["1.2.3", "1.2.4"]


def test_tables_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    with pytest.raises(DataMissingError, match=r"no annotations\.csv"):
        read_annotations(path)
    path.write_text(f"{HEADING}\n")
    with pytest.raises(TableError, match="no column diameter_mm"):
        read_annotations(path)
    path.write_text(f"{HEADING},diameter_mm\na,1,2,x,4\n")
    with pytest.raises(TableError, match="line 2: not numbers"):
        read_annotations(path)


def test_the_subsets_are_the_folds(luna: Path) -> None:
    archive = Archive(luna)
    assert archive.fold(0) == ["a", "b"]
    assert archive.fold(1) == ["c"]
    assert archive.volume("c").header.size == (24, 24, 20)
    with pytest.raises(DataMissingError, match=r"subset2.*subset2\.zip belongs there"):
        archive.fold(2)
    with pytest.raises(DataMissingError, match="no scan d"):
        archive.volume("d")


def test_candidates_are_cut_and_what_they_are_is_known(luna: Path) -> None:
    archive = Archive(luna)
    found = archive.cut(archive.fold(0), (6, 8, 8), (1, 1, 1))
    assert found.cubes.shape == (5, 6, 8, 8)
    assert found.nodule.tolist() == [0, 0, -1, -1, -1]
    assert found.scan.tolist() == [0, 0, 0, 1, 1]
    assert found.ignored.tolist() == [False, False, True, False, False]
    assert found.missed_in.tolist() == [1]  # nothing marks the nodule of scan b
    assert 0 <= found.cubes.min() <= found.cubes.max() <= 1


def test_a_cube_of_odd_size_holds_the_voxels_themselves(luna: Path) -> None:
    archive = Archive(luna)
    found = archive.cut(["a"], (3, 3, 3), (1, 1, 1))
    voxels = archive.volume("a").voxels.astype(float)
    expected = (voxels[4:7, 9:12, 10:13] + 1000) / 1400  # round voxel (x, y, z) = (11, 10, 5)
    assert found.cubes[0] == pytest.approx(expected, abs=1e-4)


def test_negatives_are_thinned_by_a_seeded_draw(luna: Path) -> None:
    archive = Archive(luna)
    first, again = (archive.cut(["a", "b"], (2, 2, 2), (1, 1, 1), 1.0, seed=4) for _ in range(2))
    assert first.nodule.tolist() == again.nodule.tolist()
    assert (first.nodule < 0).sum() == 2
    assert (first.nodule >= 0).sum() == 2


def test_the_second_list_of_candidates_comes_first(luna: Path) -> None:
    write_table(luna / "candidates_V2.csv", "class", [("a", 0, 0, 0, 1)])
    assert len(Archive(luna).candidates) == 1


def test_the_excluded_findings_may_lie_with_the_evaluation_script(luna: Path) -> None:
    name = "annotations_excluded.csv"
    assert len(Archive(luna).excluded) == 2
    place = luna / "evaluationScript" / "annotations"
    place.mkdir(parents=True)
    (luna / name).rename(place / name)
    assert len(Archive(luna).excluded) == 2
    (place / name).unlink()
    assert len(Archive(luna).excluded) == 0

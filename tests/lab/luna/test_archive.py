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
    for wrong in ("x", "nan", "inf"):
        path.write_text(f"{HEADING},diameter_mm\na,1,2,{wrong},4\n")
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


def test_candidates_are_listed_and_what_they_are_is_known(luna: Path) -> None:
    archive = Archive(luna)
    found = archive.listed(archive.fold(0))
    assert len(found) == 5
    assert found.nodule.tolist() == [0, 0, -1, -1, -1]
    assert found.scan.tolist() == [0, 0, 0, 1, 1]
    assert found.ignored.tolist() == [False, False, True, False, False]
    assert found.missed_in.tolist() == [1]  # nothing marks the nodule of scan b


def test_candidates_go_scan_by_scan_however_the_table_has_them(luna: Path) -> None:
    found = Archive(luna).listed(["c", "b", "a"])
    assert found.scan.tolist() == [0, 1, 1, 2, 2, 2]
    assert found.centres[0].tolist() == [1, 1, 2]
    assert found.nodule.tolist() == [2, -1, -1, 0, 0, -1]


def test_cubes_are_cut_one_scan_in_memory_at_a_time(
    luna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    volume = Archive.volume
    monkeypatch.setattr(Archive, "volume", lambda self, s: read.append(s) or volume(self, s))
    archive = Archive(luna)
    parts = archive.cubes(archive.listed(archive.fold(0)), (6, 8, 8), (1, 1, 1))
    assert next(parts).shape == (3, 6, 8, 8)
    assert read == ["a"]
    assert next(parts).shape == (2, 6, 8, 8)
    assert read == ["a", "b"]


def test_a_cube_of_odd_size_holds_the_voxels_themselves(luna: Path) -> None:
    archive = Archive(luna)
    found = next(archive.cubes(archive.listed(["a"]), (3, 3, 3), (1, 1, 1)))
    voxels = archive.volume("a").voxels.astype(float)
    expected = (voxels[4:7, 9:12, 10:13] + 1000) / 1400  # round voxel (x, y, z) = (11, 10, 5)
    assert found.dtype == np.uint8
    assert found[0] / 255 == pytest.approx(expected, abs=0.5 / 255 + 1e-4)


def test_negatives_are_thinned_by_a_seeded_draw(luna: Path) -> None:
    archive = Archive(luna)
    first, again = (archive.listed(["a", "b"], 1.0, seed=4) for _ in range(2))
    assert first.centres.tolist() == again.centres.tolist()
    assert (first.nodule < 0).sum() == 2
    assert (first.nodule >= 0).sum() == 2


def test_excluded_findings_of_several_readers_are_one(luna: Path) -> None:
    rows = [("a", 8, 8, 8, -1), ("a", 8, 8, 8, -1), ("a", 8, 8, 9, 4), ("a", 8, 8, 20, -1),
            ("a", 8, 8, 8, 0)]  # fmt: skip
    write_table(luna / "annotations_excluded.csv", "diameter_mm", rows)
    found = Archive(luna).ignored(["a", "b"])
    assert found.centres.tolist() == [[8, 8, 8], [8, 8, 20]]
    assert found.radii.tolist() == [5, 5]


def test_a_nodule_without_a_diameter_is_refused_with_its_scan(luna: Path) -> None:
    write_table(luna / "annotations.csv", "diameter_mm", [("b", 0, 0, 0, 0)])
    with pytest.raises(TableError, match="scan b has a finding of diameter 0"):
        Archive(luna).listed(["b"])


def test_the_checksum_is_of_tables_headers_and_sizes(luna: Path) -> None:
    archive = Archive(luna)
    first = archive.checksum(["a", "c"])
    assert Archive(luna).checksum(["a", "c"]) == first
    assert len({first, archive.checksum(["a"]), archive.checksum(["c", "a"])}) == 3
    alone = archive.checksum(["a", "c"], candidates=False)
    changed = []
    for change in ("candidates.csv", "annotations_excluded.csv", "subset1/c.mhd", "subset1/c.raw"):
        content = (luna / change).read_bytes()
        (luna / change).write_bytes(content + b"\n")
        changed.append(archive.checksum(["a", "c"]))
        assert (archive.checksum(["a", "c"], candidates=False) == alone) == ("candi" in change)
        (luna / change).write_bytes(content)
    assert len({first, *changed}) == 5
    assert archive.checksum(["a", "c"]) == first
    (luna / "annotations.csv").unlink()
    with pytest.raises(DataMissingError, match=r"no annotations\.csv"):
        archive.checksum(["a"])


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

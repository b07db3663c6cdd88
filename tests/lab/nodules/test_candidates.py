import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from natgrad.lab.errors import DataMissingError
from natgrad.lab.luna.froc import froc
from natgrad.lab.nodules import candidates
from natgrad.lab.nodules.candidates import (
    CUBE,
    EMPTY,
    LABEL,
    LOST,
    NODULE,
    SCAN,
    UNSEEN,
    generated,
    luna16,
    patches,
)
from natgrad.lab.nodules.judging import marks_of
from natgrad.lab.nodules.medmnist import NODULE_MNIST
from natgrad.lab.nodules.phantom import Style, phantom
from tests.lab.luna.files import write_mhd, write_table

#: just large enough for a cube
SMALL = Style(size=(46, 50, 50), nodules=2.0, vessels=3, margin=20)


def test_generated_candidates_are_cubes_with_what_must_be_known_of_them() -> None:
    data = generated(3, 1, 1, SMALL)
    assert data.name == "generated nodules and vessels, 3D"
    train = data.load(None).train
    assert train.inputs.dtype == torch.uint8
    assert train.inputs.shape[1:] == CUBE
    rows = train.targets
    assert rows.shape == (len(train), 6)
    assert ((rows[:, NODULE] >= 0) == (rows[:, LABEL] == 1)).all()
    assert 0 < rows[:, LABEL].float().mean() < 0.6
    assert set(rows[:, SCAN].tolist()) <= {0, 1, 2}
    marks = marks_of(np.zeros(len(train)), rows.numpy())
    assert marks.scans == 3


def test_generated_splits_are_the_same_every_time_and_differ_from_each_other() -> None:
    first, again = (generated(1, 1, 1, SMALL).load(None) for _ in range(2))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert first.train.inputs[0].float().mean() != first.test.inputs[0].float().mean()


def test_a_nodules_cube_is_brighter_in_the_middle_than_others() -> None:
    train = generated(6, 1, 1, SMALL).load(None).train
    middle = train.inputs[:, 11:15, 18:22, 18:22].float().flatten(1).mean(1)
    is_nodule = train.targets[:, LABEL] == 1
    assert middle[is_nodule].mean() > train.inputs.float().mean() + 20


def write_patches(path: Path, numbers: list[int], labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in numbers:
        file = io.BytesIO()
        Image.fromarray(np.full((50, 50), number % 251, np.uint8)).save(file, format="JPEG")
        rows.append({"bytes": file.getvalue(), "path": f"train/image_{number}.jpg"})
    pq.write_table(pa.table({"img": rows, "label": labels}), path)


def test_patches_are_split_by_candidate_number_and_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "luna16-patches-2d"
    write_patches(
        folder / "train.parquet", [400_000, 12, 346_000, 345_499, 348_500], [1, 0, 1, 1, 0]
    )
    write_patches(folder / "test.parquet", [500_000], [1])
    splits = patches().load(tmp_path)
    assert splits.sizes() == {"train": 2, "validation": 2, "test": 1}
    assert splits.train.targets[:, LABEL].tolist() == [0, 1]
    assert splits.train.targets[:, SCAN].tolist() == [-1, -1]
    assert splits.train.inputs[0].float().mean() == pytest.approx(12, abs=2)
    monkeypatch.setattr(candidates, "_decoded", lambda *_: pytest.fail("decoded again"))
    again = patches().load(tmp_path)
    assert again.source == splits.source
    assert torch.equal(again.validation.inputs, splits.validation.inputs)
    with pytest.raises(DataMissingError, match=r"luna16-patches-2d/train\.parquet"):
        patches().load(tmp_path / "elsewhere")


@pytest.fixture
def luna(tmp_path: Path) -> Path:
    """Ten subsets of one scan each, a nodule in every scan, two candidates on it and one off."""
    folder = tmp_path / "luna16"
    annotations, candidates = [], []
    for k in range(10):
        voxels = np.full((12, 16, 16), -900 + 10 * k, "<i2")
        write_mhd(folder / f"subset{k}" / f"s{k}.mhd", voxels, (2, 2, 2), (0, 0, 0))
        annotations.append((f"s{k}", 10, 10, 10, 8))
        candidates += [(f"s{k}", 10, 10, 11, 1), (f"s{k}", 11, 10, 10, 1), (f"s{k}", 25, 25, 15, 0)]
    annotations.append(("s9", 28, 28, 4, 6))  # which no candidate hits
    write_table(folder / "annotations.csv", "diameter_mm", annotations)
    write_table(folder / "candidates.csv", "class", candidates)
    return tmp_path


def test_luna16_is_read_by_subsets(luna: Path) -> None:
    splits = luna16(9).load(luna)
    assert splits.sizes() == {"train": 24, "validation": 3, "test": 3}
    assert splits.test.inputs.shape == (3, *CUBE)
    assert splits.test.targets.tolist() == [
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [0, -1, 0, 1, 0, 0],
    ]
    grey = round(255 * (-900 + 90 + 1000) / 1400)
    assert splits.test.inputs[0, 13, 20, 20] == grey
    assert marks_of(np.zeros(3), splits.test.targets.numpy()).nodules == 2
    few = luna16(0, scans=1)
    assert "the first 1 scans with a nodule" in few.split
    assert few.load(luna).test.targets[:, [LOST, EMPTY]].tolist() == [[0, 0]] * 3


def test_nodules_of_scans_without_a_candidate_are_missed(luna: Path) -> None:
    """One more scan of the test set has two nodules, and another has neither."""
    for name in ("t1", "t2"):
        write_mhd(luna / "luna16/subset9" / f"{name}.mhd", np.zeros((12, 16, 16), "<i2"), (2, 2, 2))
    with (luna / "luna16/annotations.csv").open("a") as file:
        file.write("t1,10,10,10,8\nt1,20,20,12,6\n")
    targets = luna16(9).load(luna).test.targets
    assert targets[:, [EMPTY, UNSEEN]].tolist() == [[2, 2]] * 3
    marks = marks_of(np.array([0.9, 0.8, 0.1]), targets.numpy())
    assert (marks.scans, marks.nodules) == (3, 4)
    assert froc(marks).at([8]).tolist() == [0.25]  # one of four, not of the two beside candidates


def test_nodules_of_generated_scans_without_a_candidate_are_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "FOUND", 0.5)
    scans = [phantom(SMALL, (1, k)) for k in range(8)]
    bare = [replace(each, mimics=each.mimics[:0]) for each in scans]
    pair = candidates._cut(bare, 1)
    assert pair.targets[0, UNSEEN] > 0
    marks = marks_of(np.zeros(len(pair)), pair.targets.numpy())
    assert marks.scans == 8
    assert marks.nodules == sum(len(each.radii) for each in scans)


def test_luna16_says_where_its_files_belong(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="luna16/subset0"):
        luna16().load(tmp_path)


def test_nodulemnist3d(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"nodulemnist3d\.npz"):
        NODULE_MNIST.load(tmp_path)
    random = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 4), ("val", 2), ("test", 3)):
        arrays[f"{name}_images"] = random.integers(0, 256, (count, 28, 28, 28), dtype=np.uint8)
        arrays[f"{name}_labels"] = random.integers(0, 2, (count, 1), dtype=np.uint8)
    np.savez(tmp_path / "nodulemnist3d.npz", **arrays)
    splits = NODULE_MNIST.load(tmp_path)
    assert splits.sizes() == {"train": 4, "validation": 2, "test": 3}
    assert splits.test.targets.tolist() == arrays["test_labels"][:, 0].tolist()
    assert torch.equal(splits.validation.inputs, torch.from_numpy(arrays["val_images"]))
    np.savez(tmp_path / "nodulemnist3d.npz", train_images=arrays["train_images"])
    with pytest.raises(DataMissingError, match="not as MedMNIST gives it"):
        NODULE_MNIST.load(tmp_path)

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from natgrad.lab import images
from natgrad.lab.data import CIFAR10_JPEG, DataSet
from natgrad.lab.errors import DataMissingError
from natgrad.lab.image_sets import CIFAR10, CIFAR100, IMAGENET, SVHN, TINY_IMAGENET

from .conftest import png


def photos(count: int, side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray, column: str, **labels: np.ndarray) -> None:
    """A parquet file in the layout that the hub has for a set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = [{"bytes": png(x), "path": f"{k}.png"} for k, x in enumerate(pixels)]
    pq.write_table(pa.table({column: encoded, **labels}), path)


def write_cifar10(folder: Path, seed: int = 0) -> None:
    for split, count in (("train", 40), ("test", 8)):
        labels = np.arange(count) % 10
        write(folder / f"{split}.parquet", photos(count, 32, seed), "img", label=labels)


def test_cifar10_says_which_copy_it_read(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar10-jpeg")
    copy = CIFAR10.load(tmp_path)
    assert copy.name == CIFAR10.first(8, 2, 2).load(tmp_path).name == "CIFAR-10 (JPEG)"
    write_cifar10(tmp_path / "cifar10", seed=1)
    original = CIFAR10.load(tmp_path)
    assert original.name == "CIFAR-10"
    assert not torch.equal(copy.train.inputs, original.train.inputs)


@pytest.mark.parametrize("data", [CIFAR10, CIFAR10_JPEG])
def test_the_hub_has_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: DataSet
) -> None:
    write_cifar10(tmp_path / "stored")
    _hub_from(tmp_path, monkeypatch)
    assert data.load(None).name == "CIFAR-10"


def _hub_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    import datasets

    asked: list[tuple[str, ...]] = []

    def stored(name: str, *config: str, split: str, revision: str) -> object:
        asked.append((name, *config, split))
        path = str(tmp_path / "stored" / f"{split}.parquet")
        return datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path / "hf"))

    monkeypatch.setattr(images, "_revision", lambda what, splits: "abc")
    monkeypatch.setattr(datasets, "load_dataset", stored)
    return asked


def test_pixels_stay_bytes_and_the_last_are_for_validation(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar10")
    splits = CIFAR10.load(tmp_path)
    assert splits.sizes() == {"train": 36, "validation": 4, "test": 8}
    assert splits.train.inputs.dtype == torch.uint8
    expected = torch.from_numpy(photos(40, 32, 0)).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([splits.train.inputs, splits.validation.inputs]), expected)
    assert splits.validation.targets.tolist() == [6, 7, 8, 9]


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    fine, coarse = np.arange(40) % 100, np.arange(40) % 20
    for split in ("train", "test"):
        path = tmp_path / "cifar100" / f"{split}.parquet"
        write(path, photos(40, 32, 2), "img", fine_label=fine, coarse_label=coarse)
    splits = CIFAR100.load(tmp_path)
    assert splits.test.targets.tolist() == fine.tolist()
    assert splits.name is None


def test_svhn_is_the_cropped_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in (("train", 20), ("test", 6)):
        path = tmp_path / "stored" / f"{split}.parquet"
        write(path, photos(count, 32, 3), "image", label=np.arange(count) % 10)
    asked = _hub_from(tmp_path, monkeypatch)
    assert SVHN.load(None).sizes() == {"train": 18, "validation": 2, "test": 6}
    assert asked[0] == ("ufldl-stanford/svhn", "cropped_digits", "train")


def test_tiny_imagenet_says_how_many_a_class(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("val", 10)):
        path = tmp_path / "tiny-imagenet" / f"{split}.parquet"
        write(path, photos(count, 64, 4), "img", label=np.arange(count) % 5)
    splits = TINY_IMAGENET.load(tmp_path)
    assert splits.name == "Tiny-ImageNet (8 a class)"
    assert splits.sizes() == {"train": 36, "validation": 4, "test": 10}
    assert splits.train.inputs.shape == (36, 3, 64, 64)


def write_tiny(folder: Path, train: np.ndarray, val: np.ndarray) -> None:
    for split, labels in (("train", train), ("val", val)):
        write(
            folder / f"tiny-imagenet/{split}.parquet",
            photos(len(labels), 8, 4),
            "img",
            label=labels,
        )


def test_tiny_imagenet_class_by_class_is_mixed_before_it_is_cut(tmp_path: Path) -> None:
    """As the hub has it; no class would be both trained on and in the validation set."""
    train, val = np.repeat(np.arange(10), 20), np.repeat(np.arange(10), 2)
    write_tiny(tmp_path, train, val)
    splits = TINY_IMAGENET.load(tmp_path)
    assert set(splits.train.first(60).targets.tolist()) == set(range(10))
    assert set(splits.validation.targets.tolist()) <= set(splits.train.targets.tolist())
    assert len(set(splits.test.first(10).targets.tolist())) > 5
    assert splits.source.count("its classes mixed with a fixed seed") == 2
    again = TINY_IMAGENET.load(tmp_path)  # from the cache
    assert torch.equal(again.train.inputs, splits.train.inputs)
    found = torch.cat([splits.train.inputs, splits.validation.inputs])
    labels = torch.cat([splits.train.targets, splits.validation.targets])
    pixels = {x.tobytes(): label for x, label in zip(photos(200, 8, 4), train, strict=True)}
    for x, label in zip(found, labels, strict=True):  # each image has its own label still
        assert pixels.pop(x.permute(1, 2, 0).numpy().tobytes()) == label


def test_tiny_imagenet_in_an_order_of_its_own_keeps_it(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 8))
    write_tiny(tmp_path, labels, labels[:10])
    splits = TINY_IMAGENET.load(tmp_path)
    kept = [*splits.train.targets.tolist(), *splits.validation.targets.tolist()]
    assert kept == labels.tolist()
    assert "mixed" not in splits.source


def test_offline_the_files_of_the_splits_asked_for_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> object:
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    both = r"tiny-imagenet/train\.parquet and tiny-imagenet/val\.parquet"
    with pytest.raises(DataMissingError, match=both):
        TINY_IMAGENET.load(None)


def test_tiny_imagenets_validation_split_has_another_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "valid"):
        path = tmp_path / "stored" / f"{split}.parquet"
        write(path, photos(500, 8, 5), "image", label=np.zeros(500, dtype=np.int64))
    asked = _hub_from(tmp_path, monkeypatch)
    assert TINY_IMAGENET.load(None).name is None  # 500 of its one class: the whole set
    assert [split for *_, split in asked] == ["train", "valid"]


@pytest.mark.parametrize("data", [CIFAR10, CIFAR100, SVHN, TINY_IMAGENET, IMAGENET])
def test_a_folder_without_the_set_is_told_what_belongs_there(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"train"):
        data.load(tmp_path)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for split, count in (("train", 10), ("val", 3)):
        for number, name in enumerate(("n01440764", "n01443537")):
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = np.full((30, 40, 3), 100 * number + k, dtype=np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, format="JPEG", quality=95)
                (folder / f"{name}_{k}.JPEG").write_bytes(file.getvalue())
    return tmp_path


def test_imagenet_is_read_from_its_folders_when_asked_for(imagenet: Path) -> None:
    splits = IMAGENET.load(imagenet)
    assert splits.sizes() == {"train": 18, "validation": 2, "test": 6}
    assert splits.train.inputs.shape == (18, 3, 256, 256)
    assert splits.test.targets[:3].unique().tolist() == [0, 1]  # not class by class
    for pair in (splits.train, splits.validation, splits.test):
        pixels = pair.inputs[torch.arange(len(pair))]
        assert ((pixels[:, 0, 128, 128].long() >= 90).long() == pair.targets).all()
    first = splits.train.first(4)
    assert (len(first), first.inputs.shape[0]) == (4, 4)


def test_imagenets_two_parts_must_have_the_same_classes(imagenet: Path) -> None:
    (imagenet / "imagenet" / "val" / "n01443537").rename(imagenet / "elsewhere")
    with pytest.raises(DataMissingError, match=r"2 classes and .* 1"):
        IMAGENET.load(imagenet)

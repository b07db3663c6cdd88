import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from natgrad.lab import images
from natgrad.lab.data import DIGITS, MNIST, MNIST_PIXELS
from natgrad.lab.errors import DataMissingError

from .conftest import make_images, write_images


def test_digits_are_cut_without_overlap() -> None:
    splits = DIGITS.load(None)
    assert splits.sizes() == {"train": 1197, "validation": 300, "test": 300}
    everything = torch.cat([splits.train.inputs, splits.validation.inputs, splits.test.inputs])
    assert everything.dtype == torch.float32
    assert (everything.min(), everything.max()) == (0, 1)
    assert len(torch.unique(everything, dim=0)) == 1797


def test_digits_are_the_same_every_time() -> None:
    assert torch.equal(DIGITS.load(None).train.inputs, DIGITS.load(None).train.inputs)


def test_mnist_from_local_files(mnist_folder: Path) -> None:
    splits = MNIST.load(mnist_folder)
    assert splits.sizes() == {"train": 50, "validation": 10, "test": 12}
    pixels, labels = make_images(60, 0)
    expected = torch.from_numpy(pixels.reshape(60, 784)) / 255
    assert torch.equal(torch.cat([splits.train.inputs, splits.validation.inputs]), expected)
    assert splits.validation.targets.tolist() == labels[50:].tolist()
    assert "sha256" in splits.source
    assert str(mnist_folder) not in splits.source


def test_pixels_are_their_own_targets(mnist_folder: Path) -> None:
    splits = MNIST_PIXELS.load(mnist_folder)
    assert splits.test.targets is splits.test.inputs


def test_the_folder_may_stand_in_the_environment(
    mnist_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATGRAD_DATA", str(mnist_folder))
    assert MNIST.load(None).sizes()["test"] == 12


def test_hub_style_parts_and_column_name(tmp_path: Path) -> None:
    pixels, labels = make_images(60, 0)
    for part in (0, 1):
        half = slice(30 * part, 30 * part + 30)
        path = tmp_path / "mnist" / f"train-0000{part}-of-00002.parquet"
        write_images(path, pixels[half], labels[half], column="img")
    write_images(tmp_path / "mnist" / "test-00000-of-00001.parquet", *make_images(12, 1))
    splits = MNIST.load(tmp_path)
    assert torch.cat([splits.train.targets, splits.validation.targets]).tolist() == labels.tolist()


def test_images_are_decoded_once(mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = MNIST.load(mnist_folder)
    monkeypatch.setattr(images, "_decoded", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(MNIST.load(mnist_folder).train.inputs, first.train.inputs)


def test_changed_files_are_decoded_anew(mnist_folder: Path) -> None:
    MNIST.load(mnist_folder)
    pixels, labels = make_images(12, 7)
    write_images(mnist_folder / "mnist" / "test.parquet", pixels, labels)
    assert MNIST.load(mnist_folder).test.targets.tolist() == labels.tolist()


def test_a_damaged_cache_is_decoded_anew(mnist_folder: Path) -> None:
    first = MNIST.load(mnist_folder)
    for file in images.cache_folder().rglob("images.npy"):
        file.write_bytes(file.read_bytes()[:200])
    assert torch.equal(MNIST.load(mnist_folder).test.inputs, first.test.inputs)


def test_without_a_place_for_the_cache_it_still_loads(
    mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("NATGRAD_CACHE", str(blocked))
    assert MNIST.load(mnist_folder).sizes()["train"] == 50


def test_missing_files_are_named(mnist_folder: Path) -> None:
    shutil.rmtree(mnist_folder / "mnist")
    with pytest.raises(DataMissingError, match=r"mnist/train\.parquet") as caught:
        MNIST.load(mnist_folder)
    assert "ylecun/mnist" in str(caught.value)


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(DataMissingError, match="--data or NATGRAD_DATA"):
        MNIST.load(None)


def test_from_the_hub(mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def stored(name: str, split: str, revision: str) -> object:
        asked.append((name, split, revision))
        path = str(mnist_folder / "mnist" / f"{split}.parquet")
        return datasets.Dataset.from_parquet(path, cache_dir=str(mnist_folder / "hf"))

    monkeypatch.setattr(images, "_revision", lambda what, splits: "abc")
    monkeypatch.setattr(datasets, "load_dataset", stored)
    splits = MNIST.load(None)
    assert asked == [("ylecun/mnist", "train", "abc"), ("ylecun/mnist", "test", "abc")]
    assert "revision abc" in splits.source
    np.testing.assert_array_equal(splits.test.targets.numpy(), make_images(12, 1)[1])

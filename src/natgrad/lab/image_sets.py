"""Colour image sets as bytes ``[n, 3, h, w]``: networks standardize them, batches are augmented.

A copy that is not the original says so: the name in :class:`natgrad.lab.data.Splits` is that of
what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from natgrad.lab.data import DataSet, Pair, Splits
from natgrad.lab.decoded import FileImages, class_folders
from natgrad.lab.errors import DataMissingError
from natgrad.lab.images import Images, ImageSet, data_folder, mixed, read_images

__all__ = ["CIFAR10", "CIFAR100", "IMAGENET", "SVHN", "TINY_IMAGENET"]

CIFAR10_ORIGINAL = ImageSet(folder="cifar10", hub="uoft-cs/cifar10", mode="RGB")
CIFAR10_COPY = ImageSet(folder="cifar10-jpeg", hub="uoft-cs/cifar10", mode="RGB")
CIFAR100_IMAGES = ImageSet(
    folder="cifar100", hub="uoft-cs/cifar100", mode="RGB", label="fine_label"
)
SVHN_IMAGES = ImageSet(
    folder="svhn", hub="ufldl-stanford/svhn", mode="RGB", config="cropped_digits"
)
TINY_IMAGES = ImageSet(
    folder="tiny-imagenet", hub="zh-plus/tiny-imagenet", mode="RGB", hub_splits={"val": "valid"}
)
TINY_A_CLASS = 500  #: training images of a class in the whole set
IMAGENET_HELD_OUT = 10_000


def _cifar10(folder: Path | None) -> Splits:
    """The original from the hub or ``DIR/cifar10``; else the copy in ``DIR/cifar10-jpeg``."""
    local = data_folder(folder)
    copied = local is not None and not (local / CIFAR10_ORIGINAL.folder).is_dir()
    train, test = read_images(
        CIFAR10_COPY if copied else CIFAR10_ORIGINAL, ("train", "test"), folder
    )
    return _splits(train, test, 5_000, "CIFAR-10 (JPEG)" if copied else "CIFAR-10")


def _whole(what: ImageSet, held_out: int, folder: Path | None) -> Splits:
    train, test = read_images(what, ("train", "test"), folder)
    return _splits(train, test, held_out)


def _tiny(folder: Path | None) -> Splits:
    """The hub has it class by class: its last tenth would be of classes never trained on."""
    train, test = map(mixed, read_images(TINY_IMAGES, ("train", "val"), folder))
    splits = _splits(train, test, len(train.labels) // 10)
    a_class = len(train.labels) / len(np.unique(train.labels))
    name = "Tiny-ImageNet"
    return splits if a_class == TINY_A_CLASS else splits.named(f"{name} ({a_class:g} a class)")


def _splits(train: Images, test: Images, held_out: int, name: str | None = None) -> Splits:
    """The last training images are for validation: no more than a tenth, in sets cut down."""
    x, y = _bytes(train.images), torch.from_numpy(train.labels)
    kept = len(x) - min(held_out, len(x) // 10)
    return Splits(
        Pair(x[:kept], y[:kept]),
        Pair(x[kept:], y[kept:]),
        Pair(_bytes(test.images), torch.from_numpy(test.labels)),
        f"{train.source}; {test.source}",
        name,
    )


def _bytes(images: NDArray[np.uint8]) -> Tensor:
    """Images ``[n, h, w, 3]`` as ``[n, 3, h, w]``, over the same memory."""
    return torch.from_numpy(images).movedim(-1, 1)


def _imagenet(folder: Path | None) -> Splits:
    local = data_folder(folder)
    parts = {} if local is None else {k: local / "imagenet" / k for k in ("train", "val")}
    if not parts or not all(path.is_dir() for path in parts.values()):
        raise DataMissingError(
            "ImageNet is not there: name a folder with --data or NATGRAD_DATA that holds "
            "imagenet/train/CLASS/*.JPEG and imagenet/val/CLASS/*.JPEG"
            + ("" if local is None else f"; {local} does not")
        )
    files, labels, names = class_folders(parts["train"])
    tested, test_labels, test_names = class_folders(parts["val"])
    if not files or names != test_names:
        raise DataMissingError(
            f"{parts['train']} has {len(names)} classes and {parts['val']} {len(test_names)}: "
            "both must have a folder of images for each class, of the same names"
        )
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    tested_order = np.random.default_rng(0).permutation(len(tested)).tolist()  # a part has them all
    kept = len(files) - min(IMAGENET_HELD_OUT, len(files) // 10)
    return Splits(
        _pair(files, labels, order[:kept]),
        _pair(files, labels, order[kept:]),
        _pair(tested, test_labels, tested_order),
        f"{len(names)} class folders, {len(files)} and {len(tested)} files",
    )


def _pair(files: Sequence[Path], labels: Sequence[int], chosen: Sequence[int]) -> Pair:
    return Pair(FileImages([files[k] for k in chosen]), torch.tensor([labels[k] for k in chosen]))


_Load = Callable[[Path | None], Splits]
_cifar100: _Load = partial(_whole, CIFAR100_IMAGES, 5_000)
_svhn: _Load = partial(_whole, SVHN_IMAGES, 7_325)

_HELD_OUT = "the last 5,000 of the 50,000 training images are for validation"
#: ``DIR/cifar10`` or the hub; the JPEG copy in ``DIR/cifar10-jpeg`` is named as such
CIFAR10 = DataSet("CIFAR-10", _HELD_OUT, _cifar10)
CIFAR100 = DataSet("CIFAR-100", _HELD_OUT, _cifar100)
SVHN = DataSet(
    "SVHN (cropped digits)",
    "the last 7,325 of the 73,257 training images are for validation; none of the extra ones",
    _svhn,
)
TINY_IMAGENET = DataSet(
    "Tiny-ImageNet",
    "the last tenth of the training images is for validation, the set's own validation images "
    "are the test set (those of its test set have no public labels)",
    _tiny,
)
IMAGENET = DataSet(
    "ImageNet (ILSVRC 2012)",
    "10,000 of the training images, drawn with a fixed seed, are for validation; the set's own "
    "validation images are the test set (those of its test set have no public labels)",
    _imagenet,
)

"""The data sets: tensors in memory, under the name they must be labelled with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from natgrad.lab.errors import DataMissingError
from natgrad.lab.images import ImageSet, data_folder, read_images
from natgrad.lab.text import read_kjv, sequences

__all__ = [
    "CIFAR10_JPEG",
    "DIGITS",
    "KJV",
    "MNIST",
    "MNIST_10X10",
    "MNIST_PIXELS",
    "DataSet",
    "Pair",
    "Splits",
]


@dataclass(frozen=True)
class Pair:
    """Inputs ``[n, ...]`` and their targets ``[n, ...]``."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, count: int) -> Pair:
        """The first ``count`` examples."""
        return Pair(self.inputs[:count], self.targets[:count])


@dataclass(frozen=True)
class Splits:
    """A data set in memory.

    Attributes:
        train: what is trained on.
        validation: what settings are picked on.
        test: what nothing is picked on.
        source: where the bytes came from.
        name: what was read, where that is another copy of the set than its name says.
    """

    train: Pair
    validation: Pair
    test: Pair
    source: str
    name: str | None = None

    def named(self, name: str) -> Splits:
        """The same under another name."""
        return replace(self, name=name)

    def sizes(self) -> dict[str, int]:
        """Examples in each split."""
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
        }


@dataclass(frozen=True)
class DataSet:
    """A data set that can be loaded.

    Attributes:
        name: the name every figure made from it carries, unless the splits have one of their own.
        split: the rule of the split, in words.
        load: reads it, from the folder of local data sets if one is given.
    """

    name: str
    split: str
    load: Callable[[Path | None], Splits]

    def first(self, train: int, validation: int, test: int) -> DataSet:
        """The first so many examples of every split: for the smaller profiles of an experiment."""
        words = f"{self.split}; of these the first {train:,} / {validation:,} / {test:,}"
        return DataSet(self.name, words, partial(_first, self.load, (train, validation, test)))


def _first(
    load: Callable[[Path | None], Splits], counts: tuple[int, int, int], folder: Path | None
) -> Splits:
    whole, (train, validation, test) = load(folder), counts
    return Splits(
        whole.train.first(train),
        whole.validation.first(validation),
        whole.test.first(test),
        whole.source,
        whole.name,
    )


def _digits(folder: Path | None) -> Splits:
    """1,797 8x8 digits that come with scikit-learn, shuffled with a fixed seed."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as missing:
        raise DataMissingError(
            'the bundled digits come with scikit-learn: pip install "natgrad[lab]"'
        ) from missing
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    pixels = torch.from_numpy((images[order] / 16).astype(np.float32))
    pair = Pair(pixels, torch.from_numpy(labels[order].astype(np.int64)))
    return _cut(pair, held_out=300, source="bundled with scikit-learn")


def _cut(pair: Pair, held_out: int, source: str) -> Splits:
    """The last ``held_out`` examples for the test, as many before them for validation."""
    x, y, n = pair.inputs, pair.targets, len(pair)
    a, b = n - 2 * held_out, n - held_out
    return Splits(Pair(x[:a], y[:a]), Pair(x[a:b], y[a:b]), Pair(x[b:], y[b:]), source)


MNIST_IMAGES = ImageSet(folder="mnist", hub="ylecun/mnist", mode="L")
MNIST_VALIDATION = 10_000


def _mnist(folder: Path | None) -> Splits:
    train, test = read_images(MNIST_IMAGES, ("train", "test"), folder)
    x, y = _pixels(train.images), torch.from_numpy(train.labels)
    kept = len(x) - min(MNIST_VALIDATION, len(x) // 6)  # a sixth, for sets cut down in tests
    return Splits(
        Pair(x[:kept], y[:kept]),
        Pair(x[kept:], y[kept:]),
        Pair(_pixels(test.images), torch.from_numpy(test.labels)),
        f"{train.source}; {test.source}",
    )


def _mnist_small(side: int, folder: Path | None) -> Splits:
    splits = _mnist(folder)
    train, validation, test = (
        Pair(_averaged(pair.inputs, side), pair.targets)
        for pair in (splits.train, splits.validation, splits.test)
    )
    return Splits(train, validation, test, splits.source)


def _averaged(pixels: Tensor, side: int) -> Tensor:
    """Rows of 28x28 pixels as rows of ``side x side``, each the mean of those it overlaps."""
    images = pixels.view(-1, 1, 28, 28)
    return torch.nn.functional.adaptive_avg_pool2d(images, side).flatten(1).contiguous()


def _mnist_pixels(folder: Path | None) -> Splits:
    splits = _mnist(folder)
    train, validation, test = (
        Pair(pair.inputs, pair.inputs) for pair in (splits.train, splits.validation, splits.test)
    )
    return Splits(train, validation, test, splits.source)


def _pixels(images: NDArray[np.uint8]) -> Tensor:
    """Grey images ``[n, h, w]`` as rows in [0, 1], ``[n, h w]``."""
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)


CIFAR_IMAGES = ImageSet(folder="cifar10-jpeg", hub="uoft-cs/cifar10", mode="RGB")
CIFAR_VALIDATION = 5_000
CIFAR_MEAN, CIFAR_SD = (0.4913, 0.4821, 0.4465), (0.2452, 0.2428, 0.2606)


def _cifar10(folder: Path | None) -> Splits:
    train, test = read_images(CIFAR_IMAGES, ("train", "test"), folder)
    x, y = _channels(train.images), torch.from_numpy(train.labels)
    kept = len(x) - min(CIFAR_VALIDATION, len(x) // 10)
    return Splits(
        Pair(x[:kept], y[:kept]),
        Pair(x[kept:], y[kept:]),
        Pair(_channels(test.images), torch.from_numpy(test.labels)),
        f"{train.source}; {test.source}",
        "CIFAR-10" if data_folder(folder) is None else None,  # the hub has the original
    )


def _channels(images: NDArray[np.uint8]) -> Tensor:
    """Colour images ``[n, h, w, 3]`` as ``[n, 3, h, w]``, channels of mean 0 and variance 1."""
    pixels = torch.from_numpy(images).movedim(-1, 1).to(torch.float32, copy=True) / 255
    shift, scale = (torch.tensor(each).view(3, 1, 1) for each in (CIFAR_MEAN, CIFAR_SD))
    return pixels.sub_(shift).div_(scale).contiguous()


def _kjv(length: int, folder: Path | None) -> Splits:
    train, validation, test, source = read_kjv(folder)
    pairs = (Pair(*sequences(verses, length)) for verses in (train, validation, test))
    return Splits(next(pairs), next(pairs), next(pairs), source)


DIGITS = DataSet(
    "scikit-learn digits (8x8)",
    "1,197 / 300 / 300 after one shuffle with a fixed seed",
    _digits,
)
#: the pixels are not the original ones: every figure says so
CIFAR10_JPEG = DataSet(
    "CIFAR-10 (JPEG)", "the last 5,000 of the 50,000 training images are for validation", _cifar10
)
#: sequences of 64 characters of the King James Bible
KJV = DataSet(
    "King James Bible, characters",
    "by book: up to Acts, Romans to Philemon (validation), Hebrews to Revelation (test)",
    partial(_kjv, 64),
)
MNIST_SPLIT = "the last 10,000 of the 60,000 training images are the validation set"
MNIST = DataSet("MNIST", MNIST_SPLIT, _mnist)
#: MNIST downsampled by averaging, for networks whose Fisher matrix fits in memory
MNIST_10X10 = DataSet("MNIST, 10x10", MNIST_SPLIT, partial(_mnist_small, 10))
#: MNIST with the images themselves as targets
MNIST_PIXELS = DataSet("MNIST", MNIST_SPLIT, _mnist_pixels)

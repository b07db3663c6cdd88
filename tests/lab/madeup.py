"""Made-up data sets in the layout of the real ones, for machines that have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .conftest import png, write_images
from .luna.files import write_mhd, write_table

#: folder, splits with their counts, shape of an image, classes, column of the images
SETS = (
    ("mnist", {"train": 720, "test": 160}, (28, 28), 10, "image"),
    ("cifar10-jpeg", {"train": 600, "test": 160}, (32, 32, 3), 10, "img"),
    ("svhn", {"train": 600, "test": 160}, (32, 32, 3), 10, "image"),
    ("tiny-imagenet", {"train": 400, "val": 120}, (64, 64, 3), 200, "img"),
)
VERSES = 400


def write_all(folder: Path) -> Path:
    """Every data set that a recipe reads from local files, small and random."""
    random = np.random.default_rng(0)
    for name, splits, shape, classes, column in SETS:
        for split, count in splits.items():
            images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
            labels = random.permutation(np.arange(count) % classes)
            write_images(folder / name / f"{split}.parquet", images, labels, column)
    _write_cifar100(folder / "cifar100", random)
    _write_imagenet(folder / "imagenet")
    _write_patches(folder / "luna16-patches-2d", random)
    _write_luna16(folder / "luna16", random)
    words = ["and", "the", "LORD", "said", "unto", "Moses", "behold", "a", "light;", "amen."]
    verses = [" ".join(random.choice(words, 20)) for _ in range(VERSES)]
    (folder / "kjv").mkdir(parents=True)
    (folder / "kjv" / "kjv.txt").write_text("\n".join(verses) + "\n", encoding="utf-8")
    return folder


def _write_cifar100(folder: Path, random: np.random.Generator) -> None:
    """Two columns of labels, as the hub has them."""
    for split, count in (("train", 600), ("test", 160)):
        images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        fine = random.permutation(np.arange(count) % 100)
        encoded = [{"bytes": png(x), "path": f"{k}.png"} for k, x in enumerate(images)]
        table = pa.table({"img": encoded, "fine_label": fine, "coarse_label": fine // 5})
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / f"{split}.parquet")


def _write_imagenet(folder: Path) -> None:
    """Folders of four classes."""
    for split, count in (("train", 20), ("val", 8)):
        for number in range(4):
            place = folder / split / f"n{number:08}"
            place.mkdir(parents=True)
            for k in range(count):
                pixels = np.full((60, 80, 3), 50 * number + k, dtype=np.uint8)
                (place / f"{k}.JPEG").write_bytes(png(pixels))


def _write_patches(folder: Path, random: np.random.Generator) -> None:
    """Candidate numbers, by which the patches are split, up to 439,000 in the training file."""
    for split, count, step in (("train", 360, 1_220), ("test", 120, 1)):
        images = random.integers(0, 256, (count, 50, 50), dtype=np.uint8)
        labels = random.permutation(np.arange(count) % 2)
        write_images(folder / f"{split}.parquet", images, labels, "img", step)


def _write_luna16(folder: Path, random: np.random.Generator) -> None:
    """Ten subsets of one scan, each with a nodule, two candidates on it and four off."""
    nodules, candidates = [], []
    for k in range(10):
        voxels = random.integers(-1000, -700, (30, 40, 40)).astype("<i2")
        z, y, x = (int(c) for c in random.integers(8, 22, 3))
        voxels[z - 3 : z + 4, y - 3 : y + 4, x - 3 : x + 4] = 50
        write_mhd(folder / f"subset{k}" / f"made-up.{k}.mhd", voxels, (1.5, 1.5, 1.5))
        at = [1.5 * c for c in (x, y, z)]
        nodules.append((f"made-up.{k}", *at, 10.0))
        candidates += [(f"made-up.{k}", at[0] + off, *at[1:], 1) for off in (0.0, 2.0)]
        elsewhere = random.uniform(30, 40, (4, 3)).round(1).tolist()
        candidates += [(f"made-up.{k}", *place, 0) for place in elsewhere]
    write_table(folder / "annotations.csv", "diameter_mm", nodules)
    write_table(folder / "candidates_V2.csv", "class", candidates)

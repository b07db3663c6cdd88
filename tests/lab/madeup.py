"""Made-up data sets in the layout of the real ones, for machines that have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .conftest import png, write_images

#: folder, splits with their counts, shape of an image, classes, column of the images
SETS = (
    ("mnist", {"train": 720, "test": 160}, (28, 28), 10, "image"),
    ("cifar10-jpeg", {"train": 600, "test": 160}, (32, 32, 3), 10, "img"),
    ("svhn", {"train": 600, "test": 160}, (32, 32, 3), 10, "image"),
    ("tiny-imagenet", {"train": 400, "val": 120}, (64, 64, 3), 200, "img"),
    ("luna16-patches-2d", {"train": 360, "test": 120}, (50, 50), 2, "img"),
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

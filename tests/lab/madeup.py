"""Made-up data sets in the layout of the real ones, for machines that have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .conftest import write_images

#: folder, splits with their counts, shape of an image, classes, column of the images
SETS = (
    ("mnist", {"train": 720, "test": 160}, (28, 28), 10, "image"),
    ("cifar10-jpeg", {"train": 600, "test": 160}, (32, 32, 3), 10, "img"),
    ("cifar100", {"train": 600, "test": 160}, (32, 32, 3), 100, "img"),
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
    words = ["and", "the", "LORD", "said", "unto", "Moses", "behold", "a", "light;", "amen."]
    verses = [" ".join(random.choice(words, 20)) for _ in range(VERSES)]
    (folder / "kjv").mkdir(parents=True)
    (folder / "kjv" / "kjv.txt").write_text("\n".join(verses) + "\n", encoding="utf-8")
    return folder

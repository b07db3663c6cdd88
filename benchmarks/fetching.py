"""How long data take: opening them from the cache, and the share of a step that a batch takes.

    python benchmarks/fetching.py --data DIR [--seconds 3] [RECIPE ...]

Prints a row for each recipe: seconds to load its data when the cache is empty and when it is not
(the checksum of the source files among them), memory of the process's own that the second takes,
and for two optimizers the time of a step, the share of it that making the batch takes, and the
share of the clock that steps wait for their batches. Torch has one thread, images in files are
decoded by one for each processor. Processor time but for the waiting, so that other work on the
machine does not count. Where DIR has no ImageNet, a folder of made-up JPEG files stands for it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from natgrad.lab.image_sets import IMAGENET
from natgrad.lab.recipe import Recipe, load
from natgrad.lab.training import Budget, Run, Training

RECIPES = (
    "digits-mlp",
    "mnist-mlp",
    "autoencoder",
    "cifar-cnn",
    "charlm",
    "tekfac-table3/resnet20-cifar10",  # augmented
    "prong-imagenet/ilsvrc2012",  # decoded from files, augmented
    "sngd-detection/generated",  # volumes
)
SIZE = (500, 375)  #: of a made-up image, ImageNet's most frequent one
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| recipe | batch | cold, s | warm, s | own memory, MiB | SGD | other |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NATGRAD_CACHE"] = f"{scratch}/cache"
        for name in given.recipes:
            recipe = load(name)
            data = folder_of(recipe, given.data, Path(scratch))
            label = "made-up JPEG files" if data != given.data else None
            print(row(recipe, data, given.seconds, label), flush=True)


def folder_of(recipe: Recipe, data: Path | None, scratch: Path) -> Path | None:
    """The folder of data sets; one with made-up images where ImageNet is wanted and not there."""
    wanted = recipe.data.name == IMAGENET.name
    if not wanted or (data is not None and (data / "imagenet").is_dir()):
        return data
    for split, each in (("train", 60), ("val", 10)):
        for k in range(10):
            write_jpegs(scratch / "imagenet" / split / f"n{k:08}", each)
    return scratch


def write_jpegs(folder: Path, count: int) -> None:
    """Colour gradients with some noise: about as many bytes as a photograph."""
    folder.mkdir(parents=True)
    random, (width, height) = np.random.default_rng(0), SIZE
    first = folder / "0.JPEG"
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = (smooth + random.normal(0, 10, (height, width, 3))).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(first, quality=90)
    for k in range(1, count):
        shutil.copyfile(first, folder / f"{k}.JPEG")


def row(recipe: Recipe, data: Path | None, seconds: float, label: str | None) -> str:
    cold = timed(lambda: recipe.data.load(data))
    before = own_memory()
    begin = time.process_time()
    splits = recipe.data.load(data)
    warm, memory = time.process_time() - begin, own_memory() - before
    cells = [
        f"{recipe.name}, {label or recipe.data.name_of(splits)}",
        str(recipe.batch_size),
        f"{cold:.2f}",
        f"{warm:.2f}",
        f"{memory:.0f}",
    ]
    for optimizer in ("sgd", "kfac" if "kfac" in recipe.grids else recipe.optimizers[-1]):
        settings = recipe.settings.get(optimizer, {})
        training = Training(Run(recipe, optimizer, settings, 0, Budget(seconds=seconds)), splits)
        step, fetch, wait = costs(training, seconds)
        shares = f"{100 * fetch / step:.2g} %, waits {100 * wait:.2g} %"
        cells.append(f"{optimizer}: {1e3 * step:.2f} ms, {shares}")
        training.batches.close()
    return "| " + " | ".join(cells) + " |"


def costs(training: Training, seconds: float) -> tuple[float, float, float]:
    """Processor seconds of a step and of making its batch; the waiting share of the clock."""
    for _ in range(WARM_UP):
        training.step()
    waited, clock = training.batches.seconds, training.seconds
    begin, begun = time.process_time(), training.update
    while time.process_time() - begin < seconds:
        training.step()
    made = training.update - begun
    step = (time.process_time() - begin) / made
    wait = (training.batches.seconds - waited) / (training.seconds - clock)
    begin = time.process_time()
    for update in range(begun, begun + made):
        training.batches.made(update)
    return step, (time.process_time() - begin) / made, wait


def timed(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def own_memory() -> float:
    """MiB that are this process's alone: pages of mapped files are not."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()

"""How long data take: opening them from the cache, and the share of a step that a batch takes.

    python benchmarks/fetching.py --data DIR [--seconds 3] [RECIPE ...]

Prints a row for each recipe: seconds to load its data when the cache is empty and when it is not
(the checksum of the source files among them), memory of the process's own that the second takes,
and for two optimizers the time of a step and the share that fetching the batch takes. One thread;
processor time, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from natgrad.lab.recipe import load
from natgrad.lab.training import Budget, Run, Training

RECIPES = ("digits-mlp", "mnist-mlp", "autoencoder", "cifar-cnn", "charlm")
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| recipe | batch | cold, s | warm, s | own memory, MiB | SGD | KFAC |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["NATGRAD_CACHE"] = cache
        for name in given.recipes:
            print(row(name, given.data, given.seconds), flush=True)


def row(name: str, data: Path | None, seconds: float) -> str:
    recipe = load(name)
    cold = timed(lambda: recipe.data.load(data))
    before = own_memory()
    begin = time.process_time()
    splits = recipe.data.load(data)
    warm, memory = time.process_time() - begin, own_memory() - before
    cells = [name, str(recipe.batch_size), f"{cold:.2f}", f"{warm:.2f}", f"{memory:.0f}"]
    for optimizer in ("sgd", "kfac"):
        settings = recipe.settings.get(optimizer, {})
        training = Training(Run(recipe, optimizer, settings, 0, Budget(seconds=seconds)), splits)
        step, fetch = costs(training, seconds)
        cells.append(f"{1e3 * step:.2f} ms, {100 * fetch / step:.2g} %")
    return "| " + " | ".join(cells) + " |"


def costs(training: Training, seconds: float) -> tuple[float, float]:
    """Processor seconds of a step, and of fetching its batch."""
    for _ in range(WARM_UP):
        training.step()
    begin, begun = time.process_time(), training.update
    while time.process_time() - begin < seconds:
        training.step()
    made = training.update - begun
    step = (time.process_time() - begin) / made
    begin = time.process_time()
    for update in range(begun, begun + made):
        training.batches.take(update)
    return step, (time.process_time() - begin) / made


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

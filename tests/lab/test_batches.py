"""Batches decoded ahead from files are those of the same images in memory."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from natgrad.lab.augmentation import RandomCrop
from natgrad.lab.batches import Batches
from natgrad.lab.checkpoints import Rhythm
from natgrad.lab.data import Pair, Splits
from natgrad.lab.decoded import FileImages
from natgrad.lab.devices import PLAIN
from natgrad.lab.errors import DamagedError
from natgrad.lab.folder import RunFolder
from natgrad.lab.image_networks import CIFAR10_CHANNELS, of_pixels, vgg
from natgrad.lab.recipe import Recipe
from natgrad.lab.running import Silent, carry_out
from natgrad.lab.training import Budget, Run, Training

from .test_running import StopAfter, assert_alike, never

CROP = RandomCrop(size=8)
OWN = ("ahead", "decoder")  # names of the threads


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    random, found = np.random.default_rng(0), []
    for k in range(50):
        pixels = random.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        found.append(tmp_path / f"{k:02}.JPEG")
        Image.fromarray(pixels).save(found[-1])
    return found


@pytest.fixture
def decoded(files: list[Path]) -> Splits:
    """Images of files; validation and test images are the same few."""
    targets = torch.arange(50) % 4
    few = Pair(FileImages(files[40:], side=12), targets[40:])
    return Splits(Pair(FileImages(files[:40], side=12), targets[:40]), few, few, "files")


def in_memory(splits: Splits) -> Splits:
    train, few = (Pair(pair.inputs + 0, pair.targets) for pair in (splits.train, splits.validation))
    return Splits(train, few, few, "memory")


@pytest.fixture
def run(tiny: Recipe) -> Run:
    def network() -> nn.Sequential:
        return of_pixels(lambda: vgg((4, 0, 6), hidden=8, size=8, classes=4), CIFAR10_CHANNELS, 8)

    recipe = dataclasses.replace(
        tiny, network=network, batch_size=12, augmentation=CROP, grids={}, settings={}
    )
    return Run(recipe, "sgd", {}, 3, Budget(epochs=3))


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(OWN)]


def test_batches_are_alike_with_and_without_threads_in_any_order(decoded: Splits) -> None:
    ahead = Batches(decoded.train, 12, 5, PLAIN, CROP)
    plain = Batches(in_memory(decoded).train, 12, 5, PLAIN, CROP)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for update in (0, 1, 2, 3, 4, 9, 10, 2):  # over ends of epochs, and back as a resumed run is
        for one, other in zip(ahead.take(update), plain.take(update), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert threads()
    ahead.close()
    assert not threads()


def test_only_images_in_files_take_threads(decoded: Splits) -> None:
    plain = Batches(in_memory(decoded).train, 12, 5, PLAIN, CROP)
    plain.take(0)
    assert not threads()
    plain.close()


def test_a_run_from_files_stopped_and_killed_ends_as_one_from_memory(
    run: Run, decoded: Splits, tmp_path: Path
) -> None:
    place, whole, stop = RunFolder(tmp_path / "files"), RunFolder(tmp_path / "memory"), StopAfter(3)
    assert carry_out(run, decoded, place, stop, stop) == "interrupted"
    assert not threads()
    with pytest.raises(KeyboardInterrupt):
        carry_out(run, decoded, place, StopAfter(4, killed=True), never, Rhythm(steps=2))
    assert not threads()
    assert carry_out(run, decoded, place, Silent(), never) == "finished"
    assert not threads()
    carry_out(run, in_memory(decoded), whole, Silent(), never)
    assert_alike(place, whole)


def test_a_file_that_is_no_image_fails_its_own_step_with_its_name(
    run: Run, decoded: Splits, files: list[Path]
) -> None:
    batches = Batches(decoded.train, 12, run.seed, PLAIN)
    damaged = files[int(batches._ordered(0)[2 * 12])]  # the first one of the third batch
    damaged.write_bytes(damaged.read_bytes()[:300])
    training, made = Training(run, decoded), list[float]()
    with pytest.raises(DamagedError, match=f"{damaged} can't be decoded .*put a whole image"):
        made.extend(training.step() for _ in range(4))
    assert len(made) == training.update == 2
    training.batches.close()
    assert not threads()

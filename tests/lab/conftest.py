"""What the tests of the lab share: a tiny recipe, made-up images, a cache of their own."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _pytest.mark import ParameterSet
from PIL import Image

from natgrad.lab.data import Splits
from natgrad.lab.optimizers import BUILDERS
from natgrad.lab.recipe import Recipe, load

PACKAGES = {"soap": "pytorch_optimizer", "kfac_pytorch": "kfac"}


def buildable(*without: str) -> list[ParameterSet]:
    """Every optimizer but these; one whose package is not installed is skipped."""
    names = [name for name in BUILDERS if name not in without]
    return [pytest.param(name, marks=_needs(PACKAGES.get(name))) for name in names]


def _needs(package: str | None) -> list[pytest.MarkDecorator]:
    missing = package is not None and importlib.util.find_spec(package) is None
    return [pytest.mark.skip(reason=f"{package} is not installed")] if missing else []


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NATGRAD_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def tiny() -> Recipe:
    """digits-mlp with two grid points per optimizer."""
    recipe = load("digits-mlp")
    grids = {name: [grid[0], grid[4]] for name, grid in recipe.grids.items()}
    return dataclasses.replace(
        recipe, grids=grids, epochs=2, tuning_epochs=1, evaluations_per_epoch=1
    )


@pytest.fixture
def digits(tiny: Recipe) -> Splits:
    return tiny.data.load(None)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def write_images(
    path: Path, images: np.ndarray, labels: np.ndarray, column: str = "image", step: int = 1
) -> None:
    """A parquet file as the Hugging Face hub lays out image sets; names count in steps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = [{"bytes": png(x), "path": f"{step * k}.png"} for k, x in enumerate(images)]
    pq.write_table(pa.table({column: encoded, "label": labels.astype(np.int64)}), path)


def make_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, random.integers(0, 10, count)


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    """A folder of data sets that holds a made-up MNIST."""
    folder = tmp_path / "data"
    write_images(folder / "mnist" / "train.parquet", *make_images(60, 0))
    write_images(folder / "mnist" / "test.parquet", *make_images(12, 1))
    return folder

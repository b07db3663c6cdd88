"""What the tests of the lab share: a tiny recipe, made-up images, a cache of their own."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _pytest.mark import ParameterSet
from PIL import Image

from natgrad.lab import recipes
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


SUITE = """
from dataclasses import dataclass, replace
from matplotlib.figure import Figure
from natgrad.lab.paper import Cell, Claim, Final, Number
from natgrad.lab.recipe import Suite
from natgrad.lab.recipes.digits_mlp import RECIPE as DIGITS
from natgrad.lab.tables import Table

@dataclass(frozen=True)
class Counts:
    def watch(self, results):
        return None

    def conclude(self, work):
        rows = [[name, len(work.results.run(name, 0).rows())] for name in work.optimizers]
        work.folder.write_table("counts", Table("Points of the curves", ("who", "points"), rows))
        work.folder.write_figure("empty", Figure(figsize=(1, 1)), "Nothing.")

def number(optimizer):
    return Number(f"{optimizer}, test accuracy", 99.0, "Table 9", "elsewhere", Final(optimizer))

BRIEF = {"optimizers": ("sgd", "adam"), "seeds": (0, 1), "epochs": 1}
RECIPE = Suite(
    name="made-up",
    title="Two experiments",
    source="Table 9",
    variants={
        "plain": replace(DIGITS, paper=(number("sgd"),), **BRIEF),
        "studied": replace(DIGITS, l2=0.01, study=Counts(), **BRIEF, paper=(
            Claim("more points", "text", "elsewhere", Cell("counts", "sgd", "points"),
                  Cell("counts", "adam", "points")),
        )),
    },
    paper=(Claim("l2 helps", "Table 9", "elsewhere", Final("studied/sgd"), Final("plain/sgd")),),
)
"""


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "made_up.py").write_text(SUITE)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(folder)])
    yield "made-up"
    sys.modules.pop(f"{recipes.__name__}.made_up", None)

"""The page in Markdown says what was run, on which data, and where the tuning ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from natgrad.lab.report import publish
from natgrad.lab.report.read import read_results
from natgrad.lab.report.sizes import differences

from .conftest import MANIFEST, learning, write_comparison, write_manifest, write_run

JPEG = {**MANIFEST["data"], "name": "CIFAR-10 (JPEG)"}


def described(folder: Path, **changes: Any) -> list[tuple[str, str]]:
    write_manifest(folder, optimizers=["sgd"], **changes)
    write_run(folder / "runs" / "sgd" / "seed0", learning(0, 1.0, 1.0))
    return differences(read_results(folder))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    base = tmp_path_factory.mktemp("published")
    page = publish(write_comparison(base / "results"), base / "page")
    for name in ("curves", "paper"):
        for kind in ("png", "pdf"):
            assert (base / "page" / f"{name}.{kind}").stat().st_size > 5_000
    return page.read_text(encoding="utf-8")


def test_it_says_data_profile_and_seeds_at_the_top(text: str) -> None:
    head = text.split("\n\n")
    assert head[0] == "# mnist-mlp: Four-layer perceptron on MNIST"
    assert head[1] == "**MNIST, cpu profile, 3 seeds**"


def test_the_ends_of_the_grids_stand_under_settings(text: str) -> None:
    settings = text.partition("## Settings")[2]
    assert "| SGD | lr 0.1, momentum 0.9 | lr 0.003, 0.01, 0.03, 0.1 |" in settings
    assert "- SGD: lr 0.1 is the upper end of the grid; a wider one might do better." in settings
    assert "one of the two values tried; more of them might do better." in settings
    assert "- Adam: lr 0.003: 0.3900; " in settings
    assert "- Adam" not in settings.partition("Chosen at an end")[2]


def test_the_words_for_the_curves_are_those_of_the_figure(text: str) -> None:
    assert "from top to bottom against epochs and seconds; MNIST, cpu profile" in text
    assert "updates and seconds" not in text


def test_what_differs_is_of_the_full_size_where_the_profile_changes_it(tmp_path: Path) -> None:
    words = MANIFEST["recipe"]["differs"]
    assert described(tmp_path / "cpu") == [
        ("What differs from the paper, at full size", words),
        ("What the cpu profile changes", "epochs: 10 instead of 70"),
    ]
    full = {"name": "full", "differs": "", "comparable": True}
    assert described(tmp_path / "full", profile=full) == [("What differs from the paper", words)]


def test_a_manifest_that_leaves_out_what_its_grids_hold_is_completed(tmp_path: Path) -> None:
    small = {"prong": [{"lr": lr, "eps": 0.1, "every": 50, "samples": 200} for lr in (1e-3, 3e-3)]}
    changes = {
        "recipe": {**MANIFEST["recipe"], "name": "prong-imagenet/tiny-imagenet"},
        "profile": {"name": "cpu", "differs": "grids: 2 points instead of 4 points"},
        "grids": small,
    }
    said = described(tmp_path / "old", **changes)[1][1]
    assert said.endswith("every 50 instead of 1000, samples 200 instead of 1000 (PRONG)")
    recorded = {"name": "cpu", "differs": said.replace(" (PRONG)", "")}
    again = described(tmp_path / "new", **{**changes, "profile": recorded})[1][1]
    assert again == recorded["differs"]


def test_titles_carry_the_name_of_what_was_loaded(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "results")
    title = {**MANIFEST["recipe"], "title": "ResNet-20 on CIFAR-10", "paper": []}
    write_manifest(folder, optimizers=["sgd"], recipe=title, data=JPEG)
    page = publish(folder, tmp_path / "page").read_text(encoding="utf-8")
    assert page.startswith("# mnist-mlp: ResNet-20 on CIFAR-10 (JPEG)\n\n**CIFAR-10 (JPEG), cpu")


def test_a_recipe_that_follows_no_paper_differs_from_none(tmp_path: Path) -> None:
    recipe = {**MANIFEST["recipe"], "name": "made-up", "source": "no paper", "differs": "ours"}
    assert described(tmp_path, recipe=recipe)[0] == ("About", "ours")

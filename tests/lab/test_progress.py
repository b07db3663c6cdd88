import io
from typing import Any

import pytest
from rich.console import Console

from natgrad.lab.data import Splits
from natgrad.lab.progress import LiveProgress, PlainProgress, clock, progress_for
from natgrad.lab.recipe import Recipe
from natgrad.lab.training import Budget, Run, Training


@pytest.fixture
def training(tiny: Recipe, digits: Splits) -> Training:
    return Training(Run(tiny, "sgd", {}, 0, Budget(epochs=2)), digits)


def follow(watch: Any, training: Training, steps: int = 30) -> None:
    watch.begin(training)
    watch.evaluated(training, training.evaluate())
    for _ in range(steps):
        watch.advance(training, training.step())
        if training.due():
            watch.evaluated(training, training.evaluate())


def test_plain_lines(training: Training) -> None:
    console = Console(file=io.StringIO(), width=200)
    with PlainProgress(console, total=12, line_every=0) as watch:
        watch.skip(training.run)
        follow(watch, training)
        watch.end(training, "finished")
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 3  # two evaluations, the end
    assert lines[1].startswith("[ 2/12] sgd seed 0: epoch 1.0/2, validation loss ")
    assert "steps/s" in lines[1]
    assert "left" in lines[1]
    assert "accuracy" in lines[-1]


def test_plain_lines_are_few(training: Training) -> None:
    console = Console(file=io.StringIO())
    with PlainProgress(console, total=1, line_every=1000) as watch:
        follow(watch, training)
        watch.end(training, "interrupted")
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1
    assert lines[0].endswith("interrupted")


def test_the_live_display_shows_figures_and_time_left(training: Training) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with LiveProgress(console, total=2) as watch:
        watch.skip(training.run)
        follow(watch, training)
        watch._live.refresh()
        watch.say("[kfac] is not markup")
        watch.end(training, "diverged")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("sgd seed 0", "1 of 2 runs", "validation loss", "accuracy", "steps/s", "left"):
        assert text in shown
    assert "[kfac] is not markup" in shown
    assert "diverged at epoch" in shown


def test_the_display_suits_the_output() -> None:
    assert isinstance(progress_for(Console(file=io.StringIO()), 1), PlainProgress)
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert isinstance(progress_for(terminal, 1), LiveProgress)


def test_clock() -> None:
    assert clock(59.4) == "0:59 left"
    assert clock(3600) == "1:00:00 left"
    assert clock(None) == ""

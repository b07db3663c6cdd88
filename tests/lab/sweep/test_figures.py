"""What the figures of a sweep show of records made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from natgrad.lab.report.style import styled
from natgrad.lab.sweep.figures import interaction, sensitivity, varied


def search(*settings: dict[str, Any], ended: str = "finished") -> dict[str, Any]:
    """Trials whose loss is least at lr 0.1, of which the fourth is pruned."""
    trials = []
    for place, point in enumerate(settings):
        loss = 0.1 + math.log10(point["lr"] / 0.1) ** 2
        state = "pruned" if place == 3 else ended
        trials.append(
            {"place": place, "settings": point, "ended": state, "validation_loss": loss,
             "curve": [2.3, loss], "seconds": 1.0}
        )  # fmt: skip
    whole = [t for t in trials if t["ended"] == "finished"]
    best = min(whole, key=lambda t: t["validation_loss"])["place"] if whole else None
    return {"optimizer": "sgd", "trials": trials, "best": best, "given_up": 0}


RATES = (0.01, 0.03, 0.1, 0.3, 0.5, 0.02, 0.2)


def drawn(figure: Any) -> None:
    with styled():
        figure.canvas.draw()


def test_one_setting() -> None:
    found = search(*({"lr": lr, "momentum": 0.9} for lr in RATES))
    assert varied(found) == ["lr"]
    figure = sensitivity(found)
    drawn(figure)
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_xscale()) == ("lr", "log")
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines]
    assert points[:-1] == [(t["settings"]["lr"], t["validation_loss"]) for t in found["trials"]]
    assert points[-1] == (0.1, pytest.approx(0.1))  # the ring
    hollow = [line.get_markerfacecolor() for line in ax.lines[:-1]]
    assert [k for k, face in enumerate(hollow) if face == "none"] == [3]
    assert interaction(found) is None


def test_two_settings_have_contours() -> None:
    found = search(*({"lr": lr, "momentum": 0.1 * k} for k, lr in enumerate(RATES, 1)))
    drawn(sensitivity(found))
    figure = interaction(found)
    assert figure is not None
    drawn(figure)
    assert figure.axes[0].get_xlabel() == "lr"
    assert figure.axes[0].get_xlim()[0] == pytest.approx(-2, abs=0.2)  # in the logarithm


@pytest.mark.parametrize("third", [(1, 2, 3, 4, 5, 6, 7), ("a", "b", "a", "b", "a", "b", "a")])
def test_three_settings_have_parallel_coordinates(third: tuple[Any, ...]) -> None:
    points = [
        {"lr": lr, "momentum": 0.1 * lr, "kind": k} for lr, k in zip(RATES, third, strict=True)
    ]
    figure = interaction(search(*points))
    assert figure is not None
    drawn(figure)
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["lr", "momentum", "kind"]
    assert len(ax.lines) == len(RATES) - 1  # the pruned one has no end
    assert ax.lines[-1].get_linewidth() > ax.lines[0].get_linewidth()


def test_a_setting_on_a_line_with_another_has_no_surface() -> None:
    figure = interaction(search(*({"lr": lr, "damping": 10 * lr} for lr in RATES)))
    assert figure is not None  # parallel coordinates instead
    drawn(figure)
    assert len(figure.axes[0].lines) == len(RATES) - 1


def test_what_blew_up_stands_on_the_edge_and_does_not_flatten_the_rest() -> None:
    found = search(*({"lr": lr} for lr in RATES))
    found["trials"][4] |= {"validation_loss": 1e30}
    found["trials"][5] |= {"ended": "diverged", "validation_loss": None, "curve": []}
    figure = sensitivity(found)
    drawn(figure)
    (ax,) = figure.axes
    assert ax.get_ylim()[1] < 10
    assert [line.get_marker() for line in ax.lines].count("x") == 2


def test_when_all_diverged() -> None:
    found = search({"lr": 1.0}, {"lr": 2.0}, ended="diverged")
    drawn(sensitivity(found))
    assert interaction(found) is None

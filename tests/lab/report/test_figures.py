"""Figures are written, and the caller's matplotlib stays as it was."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from natgrad.lab.report import summarize
from natgrad.lab.report.curves import curve, drawn
from natgrad.lab.report.figures import (
    OVERVIEW,
    about,
    describe_overview,
    draw_panel,
    overview,
    panels,
    write_figures,
)
from natgrad.lab.report.read import Metric, Results, Row, Run, read_results
from natgrad.lab.report.style import looks
from natgrad.lab.report.summary import summary_of


def run(*points, status="finished"):
    rows = tuple(Row(x, x, x, {"train_loss": y}) for x, y in points)
    return Run("sgd", "seed0", {}, status, rows)


def test_all_figures_are_written(comparison):
    before = dict(matplotlib.rcParams)
    paths = write_figures(read_results(comparison), summarize(comparison), comparison / "figures")
    names = {path.name for path in paths}
    assert names == {"curves.pdf", "curves.png", "overview.pdf", "overview.png"}
    assert all(path.stat().st_size > 10_000 for path in paths)
    assert dict(matplotlib.rcParams) == before


def test_a_curve_is_interpolated_where_all_runs_are():
    line = curve(
        [run((0, 4.0), (2, 2.0), (4, 0.0)), run((1, 1.0), (3, 3.0))], "seconds", "train_loss"
    )
    np.testing.assert_allclose(line.x, [1, 2, 3])
    np.testing.assert_allclose(line.mean, [2, 2, 2])
    np.testing.assert_allclose(line.low, [1, 2, 1])
    np.testing.assert_allclose(line.high, [3, 2, 3])
    assert line.runs == 2


def test_no_curve_without_two_points():
    assert curve([run((0, 1.0))], "epochs", "train_loss") is None
    assert curve([], "epochs", "train_loss") is None
    assert curve([run((0, 1.0), (1, float("nan")))], "epochs", "train_loss") is None


def test_unfinished_runs_are_drawn_only_where_none_finished():
    done, going, lost = run(), run(status="running"), run(status="diverged")
    assert drawn([done, going, lost]) == [done]
    assert drawn([going, lost]) == [going]


@pytest.mark.parametrize("count", [3, 8, 20])
def test_no_two_optimizers_look_the_same(count):
    names = ["sgd", "kfac", "adam", *[f"other{i}" for i in range(count)]]
    assert len(set(looks(names).values())) == len(names)


def rising(**floors):
    """Results of one optimizer whose figures rise from these floors."""
    values = [{key: floor + 5 * k for key, floor in floors.items()} for k in range(4)]
    rows = tuple(Row(k, 10 * k, k / 2, each) for k, each in enumerate(values))
    runs = {"sgd": (Run("sgd", "seed0", {}, "finished", rows),)}
    about = {"data": {"name": "CIFAR-10 (JPEG)"}, "profile": {"name": "cpu"}}
    return Results(about, Metric("accuracy", "%"), ("sgd",), (0,), runs)


@pytest.mark.parametrize("kind", ["loss", "metric"])
def test_train_and_test_figures_are_drawn_to_one_scale(kind):
    results = rising(**{f"test_{kind}": 20.0, f"train_{kind}": 40.0})
    axes = Figure().subplots(1, 2)
    for ax, panel in zip(axes, panels(("train", "test"), kind, "epochs"), strict=True):
        draw_panel(ax, panel, results, summary_of(results), looks(["sgd"]))
    assert axes[0].get_ylim() == axes[1].get_ylim()
    low, high = axes[0].get_ylim()
    assert low < 26
    assert high > 54


def test_the_overview_has_loss_and_metric_of_training_and_test_against_epochs_and_seconds():
    columns = ["train_loss", "test_loss", "train_metric", "test_metric"]
    assert [[panel.quantity for panel in row] for row in OVERVIEW] == [columns, columns]
    assert [{panel.axis for panel in row} for row in OVERVIEW] == [{"epochs"}, {"seconds"}]


def test_a_figure_says_its_data_and_profile_and_the_words_for_it_are_true(tmp_path):
    floors = {f"{part}_{kind}": 20.0 for part in ("train", "test") for kind in ("loss", "metric")}
    results = rising(**floors)
    assert about(results) == "CIFAR-10 (JPEG), cpu profile, 1 seed"
    assert describe_overview(results) == (
        "Training loss, test loss, training accuracy [%] and test accuracy [%], from top to "
        "bottom against epochs and seconds; CIFAR-10 (JPEG), cpu profile, 1 seed"
    )
    sheet = overview(results, summary_of(results))
    (legend,) = sheet.legends
    assert legend.get_title().get_text() == about(results)
    assert [text.get_text() for text in legend.get_texts()] == ["SGD"]
    assert [ax.get_xlabel() for ax in sheet.axes] == ["epochs of 10 updates"] * 4 + ["seconds"] * 4


def test_what_was_not_measured_has_no_panel():
    sheet = overview(results := rising(train_loss=2.0, test_loss=2.0), summary_of(results))
    titles = [ax.get_title(loc="left") for ax in sheet.axes]
    assert titles == ["training loss", "test loss"] * 2
    assert "accuracy" not in describe_overview(results)

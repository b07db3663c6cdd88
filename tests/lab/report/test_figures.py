"""Figures are written, and the caller's matplotlib stays as it was."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from natgrad.lab.report import summarize
from natgrad.lab.report.curves import curve, drawn
from natgrad.lab.report.figures import (
    CAPTION,
    OVERVIEW,
    about,
    caption,
    describe_overview,
    overview,
    write_figures,
)
from natgrad.lab.report.panel import draw_panel, panels
from natgrad.lab.report.read import Metric, Results, Row, Run, read_results
from natgrad.lab.report.style import looks
from natgrad.lab.report.summary import summary_of


def run(*points, status="finished", seconds=lambda update: update):
    rows = tuple(Row(x, x, seconds(x), {"train_loss": y}) for x, y in points)
    return Run("sgd", "seed0", {}, status, rows)


def test_all_figures_are_written(comparison):
    before = dict(matplotlib.rcParams)
    paths = write_figures(read_results(comparison), summarize(comparison), comparison / "figures")
    names = {path.name for path in paths}
    assert names == {"curves.pdf", "curves.png", "overview.pdf", "overview.png"}
    assert all(path.stat().st_size > 10_000 for path in paths)
    assert dict(matplotlib.rcParams) == before


def test_seeds_evaluated_at_equal_updates_are_averaged_there_whatever_time_they_take():
    fast = run((0, 8.0), (10, 4.0), (20, 2.0))
    slow = run((0, 6.0), (10, 5.0), (20, 1.0), seconds=lambda update: 3 + 4 * update)
    for axis, x in (("seconds", [1.5, 26.5, 51.5]), ("epochs", [0, 10, 20])):
        line = curve([fast, slow], axis, "train_loss")
        np.testing.assert_allclose(line.x, x)
        np.testing.assert_allclose(line.mean, [7, 4.5, 1.5])
        np.testing.assert_allclose(line.low, [6, 4, 1])
        np.testing.assert_allclose(line.high, [8, 5, 2])
        assert line.runs == 2


def test_an_evaluation_that_one_seed_has_more_is_interpolated_in_the_others():
    more = run((0, 8.0), (5, 7.0), (10, 4.0))
    line = curve([more, run((0, 6.0), (10, 4.0))], "seconds", "train_loss")
    np.testing.assert_allclose(line.x, [0, 5, 10])
    np.testing.assert_allclose(line.mean, [7, 6, 4])


def test_runs_in_progress_are_averaged_as_far_as_all_have_got():
    first = run((0, 8.0), (10, 4.0), (20, 2.0), status="running")
    second = run((0, 6.0), (10, 5.0), status="running", seconds=lambda update: 9 * update)
    line = curve([first, second], "seconds", "train_loss")
    np.testing.assert_allclose(line.x, [0, 50])
    np.testing.assert_allclose(line.mean, [7, 4.5])


def test_runs_of_one_budget_in_seconds_are_averaged_at_equal_seconds():
    fast = run((0, 4.0), (20, 2.0), (40, 0.0), seconds=lambda update: update / 10)
    slow = run((0, 6.0), (4, 3.0), seconds=lambda update: 1 + update / 2)
    line = curve([fast, slow], "seconds", "train_loss")
    np.testing.assert_allclose(line.x, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(line.mean, [5, 4.5, 3.25, 2, 1.5])  # 6 at first, 3 at last
    line = curve([fast, slow], "epochs", "train_loss")
    np.testing.assert_allclose(line.x, [0, 4])
    np.testing.assert_allclose(line.high, [6, 3.6])


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


def blown_up(loss):
    """Results of a method that learns, and of one whose losses rise to a value."""
    runs = {}
    for name, ends in (("sgd", (1.5, 1.0)), ("kfac", (loss, loss / 2))):
        rows = tuple(
            Row(k, 10 * k, k / 2, {"train_loss": y, "test_loss": y})
            for k, y in enumerate((2.0, *ends))
        )
        runs[name] = (Run(name, "seed0", {}, "finished", rows),)
    return Results({}, Metric("accuracy", "%"), tuple(runs), (0,), runs)


@pytest.mark.parametrize("loss", [9.0, 1e18])
def test_a_method_that_blows_up_leaves_the_panel_and_the_caption_says_so(loss):
    results = blown_up(loss)
    summary, axes = summary_of(results), Figure().subplots(1, 2)
    for ax, panel in zip(axes, panels(("train", "test"), "loss", "seconds"), strict=True):
        draw_panel(ax, panel, results, summary, looks(["sgd", "kfac"]))
        assert ax.get_ylim() == pytest.approx((0.85, 4.0))
        assert ax.get_yscale() == "linear"
        learns, blows = (line.get_ydata() for line in ax.lines)
        assert list(learns) == [2.0, 1.5, 1.0]
        assert 4.0 < blows[1] < 1e4  # out of sight, and within what canvases can draw
    assert caption(results) == (
        f"{CAPTION} In the panels of the loss KFAC goes beyond the upper end, which is 2 times "
        "the greatest value at the start."
    )


def test_a_loss_that_rises_a_little_stays_in_the_panel():
    results = blown_up(3.5)
    ax = Figure().subplots()
    draw_panel(
        ax, panels(("train",), "loss", "epochs")[0], results, summary_of(results),
        looks(["sgd", "kfac"]),
    )  # fmt: skip
    assert ax.get_ylim()[1] == pytest.approx(3.625)
    assert caption(results) == CAPTION

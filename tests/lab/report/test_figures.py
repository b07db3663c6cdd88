"""Figures are written, and the caller's matplotlib stays as it was."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from natgrad.lab.report import summarize
from natgrad.lab.report.curves import curve, drawn
from natgrad.lab.report.figures import Panel, draw_panel, write_figures
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


def test_train_and_test_figures_are_both_in_view():
    values = [{"test_metric": 70.0 + k, "train_metric": 80.0 + 5 * k} for k in range(4)]
    rows = tuple(Row(k, k, k, each) for k, each in enumerate(values))
    runs = {"sgd": (Run("sgd", "seed0", {}, "finished", rows),)}
    results = Results({}, Metric("accuracy", "%"), ("sgd",), (0,), runs)
    ax = Figure().subplots()
    panel = Panel("test_metric", "updates", "train_metric")
    draw_panel(ax, panel, results, summary_of(results), looks(["sgd"]))
    low, high = ax.get_ylim()
    assert low < 71
    assert high > 95

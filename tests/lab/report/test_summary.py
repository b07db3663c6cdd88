"""Figures against cases worked out by hand."""

import json
import math

import pytest
from rich.console import Console

from natgrad.lab.report import summarize
from natgrad.lab.report.crossing import first_crossing
from natgrad.lab.report.read import Row

from .conftest import learning, row, write_manifest, write_run


def rows(*losses):
    return [Row(i, 10 * i, 2 * i, {"validation_loss": v}) for i, v in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "target", "updates"),
    [
        ((1.0, 0.6, 0.2), 0.5, 12.5),  # a quarter of the way from 0.6 to 0.2
        ((1.0, 0.6, 0.2), 0.6, 10.0),
        ((0.4, 0.3), 0.5, 0.0),  # reached before the first update
        ((1.0, 0.6, 0.8, 0.2), 0.5, 22.5),  # from the running minimum 0.6, not from 0.8
        ((1.0, 0.4, 0.9), 0.5, 10 * (0.5 / 0.6)),  # later losses don't matter
        ((1.0, math.nan, 0.2), 0.6, 10.0),  # evaluations without a value are skipped
        ((1.0, 0.6), 0.5, math.inf),
        ((math.nan, math.nan), 0.5, math.inf),
        ((), 0.5, math.inf),
    ],
)
def test_first_crossing(losses, target, updates):
    assert first_crossing(rows(*losses), target, "updates") == pytest.approx(updates)
    assert first_crossing(rows(*losses), target, "seconds") == pytest.approx(updates / 5)


def test_hand_computed(folder):
    path = folder(
        sgd=[(1.0, 0.8, 0.5), (1.0, 0.7, 0.4), (1.0, 0.9, 0.6)],
        kfac=[(1.0, 0.2, 0.3), (1.0, 0.0, 0.1), (1.0, 0.6, 0.4)],
    )
    summary = summarize(path)
    assert summary.target.loss == 0.5  # the median of 0.5, 0.4, 0.6
    sgd, kfac = summary.entries
    # crossings: 20, 10 + 10 * 2/3, never
    assert (sgd.reached, sgd.counted) == (2, 3)
    assert sgd.to_target["updates"] == pytest.approx(20)
    # crossings: 10 * 0.5/0.8, 10 * 0.5/1, 10 + 10 * 0.1/0.2
    assert kfac.reached == 3
    assert kfac.to_target == pytest.approx({"updates": 6.25, "epochs": 0.625, "seconds": 1.25})
    assert kfac.times_reference["seconds"] == pytest.approx(1.25 / 4)
    assert kfac.ms_per_update == pytest.approx(200)
    assert kfac.times_reference["ms_per_update"] == pytest.approx(1)
    final = kfac.final["validation_loss"]
    assert final.mean == pytest.approx(0.8 / 3)
    assert final.sd == pytest.approx(
        math.sqrt(((0.1 / 3) ** 2 + (0.5 / 3) ** 2 + (0.4 / 3) ** 2) / 2)
    )
    assert final.n == 3


def test_final_is_the_last_evaluation_and_not_the_best(tmp_path):
    write_manifest(tmp_path, optimizers=["sgd"], seeds=[0])
    values = [
        row(1, 10, 1.0, validation_loss=0.3, test_metric=99.0),
        row(2, 20, 2.0, validation_loss=0.4, test_metric=95.0),
    ]
    write_run(tmp_path / "runs/sgd/seed0", values)
    final = summarize(tmp_path).entry("sgd").final["test_metric"]
    assert (final.mean, final.sd, final.n) == (95.0, None, 1)


def test_unreached_target(folder):
    path = folder(sgd=[(1.0, 0.3)], adam=[(1.0, 0.9)], _manifest={"seeds": [0]})
    adam = summarize(path).entry("adam")
    assert adam.reached == 0
    assert adam.to_target == {"epochs": None, "updates": None, "seconds": None}
    assert adam.times_reference["seconds"] is None


def test_a_diverged_seed_never_reaches_the_target_and_has_no_final_value(folder):
    path = folder(
        sgd=[(1.0, 0.5)] * 3,
        kfac=[(1.0, 0.1, math.nan), (1.0, 0.0), (1.0, 0.25)],
    )
    kfac = summarize(path).entry("kfac")
    assert (kfac.finished, kfac.diverged, kfac.reached) == (2, 1, 2)
    assert kfac.final["validation_loss"].mean == pytest.approx(0.125)
    # 5, 10 * 0.5 / 0.75, infinity
    assert kfac.to_target["updates"] == pytest.approx(20 / 3)


def test_a_target_that_most_seeds_miss_has_no_time(folder):
    path = folder(sgd=[(1.0, 0.5)] * 3, adam=[(1.0, 0.4), (1.0, 0.6), (1.0, 0.7)])
    adam = summarize(path).entry("adam")
    assert adam.reached == 1
    assert adam.to_target["seconds"] is None


def test_two_seeds_of_sgd_both_reach_the_upper_median(folder):
    summary = summarize(folder(sgd=[(1.0, 0.5), (1.0, 0.4)], _manifest={"seeds": [0, 1]}))
    assert summary.target.loss == 0.5
    assert summary.entry("sgd").reached == 2


def test_without_sgd_the_best_optimizer_sets_the_target(folder):
    path = folder(adam=[(1.0, 0.5)] * 3, kfac=[(1.0, 0.2), (1.0, 0.3), (1.0, 0.1)])
    summary = summarize(path)
    assert summary.target.loss == 0.3
    assert summary.target.optimizer == "kfac"
    assert "KFAC's worst seed" in summary.target.name
    assert summary.entry("kfac").reached == 3
    assert summary.entry("adam").reached == 0
    assert "SGD" not in summary.markdown()


def test_sgd_that_always_diverges_sets_no_target(folder):
    summary = summarize(folder(sgd=[(1.0, math.nan)] * 3, kfac=[(1.0, 0.2)] * 3))
    assert summary.target.optimizer == "kfac"
    assert summary.entry("sgd").diverged == 3


def test_nothing_finished(folder):
    path = folder(sgd=[(1.0, math.nan)])
    summary = summarize(path)
    assert summary.target is None
    assert summary.entry("sgd").unfinished == 2  # of three seeds planned
    assert "diverged" in summary.markdown()


def test_an_unfinished_run_enters_no_figure(comparison):
    adam = summarize(comparison).entry("adam")
    assert (adam.finished, adam.unfinished, adam.counted) == (2, 1, 2)


def test_rows_are_json(comparison):
    plain = summarize(comparison).rows()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert [entry["optimizer"] for entry in plain] == ["sgd", "adam", "muon", "kfac"]


def test_the_terminal_table_fits_80_characters(comparison):
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(summarize(comparison).table())
    text = capture.get()
    assert "…" not in text
    assert "KFAC" in text
    assert "of 3 runs 1 diverged" in text


def test_markdown_escapes_bars(tmp_path):
    write_manifest(tmp_path, optimizers=["a|b"], seeds=[0])
    write_run(tmp_path / "runs" / "a|b" / "seed0", learning(0, 1.0, 1.0))
    lines = summarize(tmp_path).markdown().splitlines()
    assert any("a\\|b" in line for line in lines)

"""Readings from curves and tables, by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from natgrad.lab.paper import At, Bound, Cell, Claim, Fewer, Final, Number, Reached, record
from natgrad.lab.report.beside import Beside, beside
from natgrad.lab.report.ours import Ours, ours_of
from natgrad.lab.report.read import read_results
from natgrad.lab.report.summary import summary_of
from natgrad.lab.tables import Table, study_folder

from .conftest import MANIFEST, losses, row, write_manifest, write_run

FULL = {"name": "full", "differs": "", "comparable": True}
NEVER = (1.0, 0.9, 0.9, 0.9, 0.9)
LOST = (1.0, 0.9, None)


def reaching(place: float) -> tuple[float, ...]:
    """A curve of five evaluations, 10 updates apart, that is at 0.5 at this update."""
    steps = [0.5 + (place - x) / 100 for x in (0, 10, 20, 30)]
    return (*steps, min(0.4, steps[-1]))


def read(folder: Path, reading: Any) -> Ours | None:
    results = read_results(folder)
    kind = {"kind": type(reading).__name__.lower()}
    return ours_of({**kind, **vars(reading)}, results, summary_of(results))


def reached(folder: Path, **curves: Any) -> None:
    """Runs of SGD whose median ends at 0.5 exactly, and of others."""
    write_manifest(folder, optimizers=["sgd", *curves], profile=FULL)
    for name, seeds in curves.items():
        for seed, values in enumerate(seeds):
            losses(folder, name, seed, values)


def judged(folder: Path, *stated: Number | Claim) -> list[Beside]:
    recipe = {**MANIFEST["recipe"], "name": "made-up", "paper": [record(entry) for entry in stated]}
    names = [path.name for path in sorted((folder / "runs").iterdir())]
    write_manifest(folder, optimizers=names, profile=FULL, recipe=recipe)
    results = read_results(folder)
    return beside(results, summary_of(results))


SGD = ((1.0, 0.9, 0.8, 0.6, 0.5), (1.0, 0.9, 0.8, 0.55, 0.4), (1.0, 0.9, 0.8, 0.7, 0.6))
# SGD's median end is 0.5: seed 0 is there at 40, seed 1 at 30 + 10 / 3, seed 2 never within 40
FASTER = Claim("fewer", "Fig.", "MNIST", Reached("prong"), Reached("sgd"), "lower")
SLOWER = Claim("more", "Fig.", "MNIST", Reached("sgd"), Reached("prong"), "higher")


def test_what_was_not_reached_is_infinite_and_at_least_the_budget(tmp_path: Path) -> None:
    reached(tmp_path, sgd=SGD)
    sgd = read(tmp_path, Reached("sgd"))
    assert sgd is not None
    assert sgd.by_seed == pytest.approx({"seed0": 40, "seed1": 30 + 10 / 3, "seed2": math.inf})
    assert sgd.least == {"seed2": 40}
    assert (sgd.n, sgd.arrived, sgd.missing) == (3, 2, 1)
    assert sgd.written(1) == "36.7 ± 4.7, reached 2 of 3"
    assert sgd.at_least().mean == pytest.approx((40 + 30 + 10 / 3 + 40) / 3)


def test_a_run_that_diverged_never_arrives(tmp_path: Path) -> None:
    crossed = (1.0, 0.3, None)  # it was below the target on its way
    reached(tmp_path, sgd=SGD, prong=(crossed, LOST, reaching(10)))
    prong = read(tmp_path, Reached("prong"))
    assert prong is not None
    assert list(prong.by_seed.values()) == pytest.approx([math.inf, math.inf, 10])
    assert not prong.least
    assert prong.written(0) == "10, reached 1 of 3"


@pytest.mark.parametrize(
    ("prong", "verdict", "why"),
    [
        # 40 - 10, 33.3 - 11, 40 - 12 at least: 26.8 with standard error 2.3, times 4.30
        ((10, 11, 12), "reproduced", ""),
        # 40 - 5, 33.3 - 31, 40 - 20: ahead in every seed, but 19.1 with standard error 9.5
        ((5, 31, 20), "not reproduced", "within the noise of the seeds"),
        (
            (10, 11, None),
            "not reproduced",
            "the one claimed ahead did not reach the target in 1 of 3",
        ),
        (
            (None, None, None),
            "not reproduced",
            "the one claimed ahead did not reach the target in 3",
        ),
    ],
)
def test_a_claim_on_what_sgd_itself_does_not_always_reach(
    tmp_path: Path, prong: Any, verdict: str, why: str
) -> None:
    reached(tmp_path, sgd=SGD, prong=[NEVER if each is None else reaching(each) for each in prong])
    fewer, more = judged(tmp_path, FASTER, SLOWER)
    assert fewer.verdict == verdict
    assert fewer.why.startswith(why)
    assert fewer.seeds == "3"
    assert "reached 2 of 3" in fewer.ours
    if None not in prong:  # the same claim the other way round
        assert (more.verdict, more.difference) == (fewer.verdict, fewer.difference)
        assert fewer.difference.startswith("at least +")


def test_the_reverse_of_a_claim_is_not_reproduced(tmp_path: Path) -> None:
    reached(tmp_path, sgd=SGD, prong=[reaching(each) for each in (10, 11, 12)])
    reverse = Claim("fewer", "Fig.", "MNIST", Reached("sgd"), Reached("prong"), "lower")
    (row,) = judged(tmp_path, reverse)
    assert (row.verdict, row.why) == ("not reproduced", "the reverse")
    assert row.difference == "ahead in 0 of 3 seeds"
    assert row.ours.startswith("36.67 ± 4.71, reached 2 of 3 against 11.00 ± 1.00, reached 3 of 3")


def test_where_the_other_one_never_arrives_its_budget_is_compared(tmp_path: Path) -> None:
    reached(tmp_path, sgd=SGD, prong=[reaching(each) for each in (10, 11, 12)], adam=[NEVER] * 3)
    claim = Claim("fewer", "Fig.", "MNIST", Reached("prong"), Reached("adam"), "lower")
    lost = Claim("fewer", "Fig.", "MNIST", Reached("adam"), Reached("prong"), "lower")
    holds, fails = judged(tmp_path, claim, lost)
    assert (holds.verdict, holds.difference) == ("reproduced", "at least +29.00 [+26.52, +31.48]")
    assert holds.ours == "11.00 ± 1.00, reached 3 of 3 against reached 0 of 3"
    assert (fails.verdict, fails.why) == ("not reproduced", "the reverse")


def test_a_budget_on_the_clock_that_is_shorter_proves_nothing(tmp_path: Path) -> None:
    """SGD's runs end after 8 s, before ours arrives: it may or may not have been faster."""
    reached(tmp_path, sgd=SGD)
    for seed in range(3):
        rows = [
            row(k, 10 * k, 20.0 * k, validation_loss=v) for k, v in enumerate(reaching(10 + seed))
        ]
        write_run(tmp_path / "runs" / "prong" / f"seed{seed}", rows)
    seconds = Reached("prong", "seconds"), Reached("sgd", "seconds")
    (clock,) = judged(tmp_path, Claim("sooner", "Fig.", "MNIST", *seconds, "lower"))
    assert clock.verdict == "not reproduced"
    (updates,) = judged(tmp_path, FASTER)
    assert updates.verdict == "reproduced"


def test_a_number_to_the_target(tmp_path: Path) -> None:
    reached(tmp_path, sgd=SGD, prong=[reaching(each) for each in (10, 11, 12)], adam=[NEVER] * 3)
    of = ("prong", "sgd", "adam")
    rows = judged(tmp_path, *(Number("updates", 11, "Fig.", "MNIST", Reached(name)) for name in of))
    assert [row.verdict for row in rows] == ["reproduced", "not comparable", "not reproduced"]
    assert rows[1].why == "ours did not reach the target in 1 of 3 seeds"
    assert (rows[2].ours, rows[2].drawn) == ("reached 0 of 3", None)


def test_how_many_times_fewer(tmp_path: Path) -> None:
    reached(tmp_path, sgd=SGD, prong=[reaching(10), NEVER, reaching(5)])
    fewer = read(tmp_path, Fewer("prong"))
    assert fewer is not None
    # 40 / 10; never; at least 40 / 5
    assert fewer.by_seed == pytest.approx({"seed0": 4, "seed1": 0, "seed2": 8})
    assert fewer.written(0) == "4 ± 4, reached 2 of 3"
    more = read(tmp_path, Fewer("sgd", than="prong"))
    assert more is not None
    assert more.by_seed == pytest.approx({"seed0": 0.25, "seed1": 40 / (30 + 10 / 3), "seed2": 0})
    assert read(tmp_path, Fewer("prong", than="adam")) is None


def test_an_order_of_magnitude_fewer(tmp_path: Path) -> None:
    reached(tmp_path, sgd=SGD, prong=[reaching(each) for each in (3.0, 2.5, 2.9)])
    ten, twenty = (
        Claim("fewer", "text", "MNIST", Fewer("prong"), Bound(times)) for times in (10.0, 20.0)
    )
    # 40 / 3, 33.3 / 2.5, at least 40 / 2.9
    holds, fails = judged(tmp_path, ten, twenty)
    assert (holds.verdict, holds.seeds) == ("reproduced", "3")
    assert (fails.verdict, fails.why) == ("not reproduced", "the reverse")


def test_a_bound_that_some_seeds_did_not_reach(tmp_path: Path) -> None:
    reached(tmp_path, sgd=SGD, prong=[reaching(10), NEVER, reaching(5)], adam=[NEVER] * 3)
    lost = (Reached("prong"), Reached("adam"))
    some, none = judged(
        tmp_path, *(Claim("soon", "text", "MNIST", each, Bound(20), "lower") for each in lost)
    )
    assert some.why == "the one claimed ahead did not reach the target in 1 of 3 seeds"
    assert none.why == "the one claimed ahead did not reach the target in 3 of 3 seeds"
    assert [some.verdict, none.verdict] == ["not reproduced"] * 2
    # at least 40 each: later than a bound of 20
    (late,) = judged(tmp_path, Claim("late", "text", "MNIST", Reached("adam"), Bound(20), "higher"))
    assert (late.verdict, late.difference) == ("reproduced", "at least +20.00 [+20.00, +20.00]")


def curves(folder: Path) -> None:
    """Accuracy 10 at the start and 50, 52, 54 after ten updates, then 60 at 20 or diverged."""
    write_manifest(folder, optimizers=["sgd"])
    for seed in range(3):
        rows = [
            row(0, 0, 0.0, validation_loss=1.0, test_metric=10.0),
            row(0.5, 10, 2.0, validation_loss=0.5, test_metric=50.0 + 2 * seed),
            row(1, 20, 4.0, validation_loss=0.4, test_metric=60.0),
        ]
        if seed == 2:
            rows[-1] = row(1, 20, 4.0, validation_loss=None, test_metric=None)
        status = "diverged" if seed == 2 else "finished"
        write_run(folder / "runs" / "sgd" / f"seed{seed}", rows, status)


@pytest.mark.parametrize(
    ("axis", "place", "values"),
    [
        ("updates", 10, (50, 52, 54)),
        ("updates", 5, (30, 31, 32)),
        ("epochs", 0.75, (55, 56, math.nan)),  # between, and after the last finite one
        ("seconds", 4.0, (60, 60, math.nan)),
        ("updates", 0, (10, 10, 10)),
        ("updates", 21, (math.nan,)),  # later than the runs: only the one that diverged is known
    ],
)
def test_a_point_of_a_curve(tmp_path: Path, axis: Any, place: float, values: Any) -> None:
    curves(tmp_path)
    for complement in (False, True):
        point = read(tmp_path, At("sgd", "test_metric", axis, place, complement))
        assert point is not None
        wanted = [100 - value for value in values] if complement else list(values)
        assert list(point.by_seed.values()) == pytest.approx(wanted, nan_ok=True)


def test_a_point_that_no_run_got_to_is_not_measured(tmp_path: Path) -> None:
    reached(tmp_path, sgd=SGD)
    assert read(tmp_path, At("sgd", "validation_loss", "updates", 41)) is None
    assert read(tmp_path, At("sgd", "test_metric", "updates", 10)) is None
    late = Number("loss", 0.4, "Fig.", "MNIST", At("sgd", "validation_loss", "updates", 1e5))
    (row_,) = judged(tmp_path, late)
    assert row_.verdict == "not measured"


def test_one_optimizer_ahead_at_a_point(tmp_path: Path) -> None:
    reached(tmp_path, sgd=SGD, prong=[reaching(each) for each in (10, 11, 12)])
    early, start = (
        Claim(
            "ahead", "Fig.", "MNIST", At("prong", "validation_loss", "updates", place),
            At("sgd", "validation_loss", "updates", place), "lower",
        )
        for place in (25, 30)
    )  # fmt: skip
    first, _ = judged(tmp_path, early, start)
    # 0.7, 0.675, 0.75 against 0.35, 0.36, 0.37
    assert first.ours == "0.360 ± 0.010 against 0.708 ± 0.038"
    assert first.verdict == "reproduced"


def test_an_optimizer_that_diverged_on_its_whole_grid(tmp_path: Path) -> None:
    reached(tmp_path, sgd=SGD)
    write_manifest(tmp_path, optimizers=["sgd", "prong"], tuning_losses={"prong": [None, None]})
    final, to_target = (read(tmp_path, each) for each in (Final("prong"), Reached("prong")))
    assert final is not None
    assert to_target is not None
    assert (final.written(2), to_target.written(2)) == ("diverged", "reached 0 of 3")


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    reached(tmp_path, sgd=SGD)
    columns = ("optimizer", "epochs", "epochs sd", "reached", "train loss", "seeds")
    known = {"PRONG": {"epochs": {"0": 3.0, "1": 4.0, "2": math.inf}}}
    rows = [
        ["SGD", 7.8, 0.3, "2 of 3", 0.9, 2],
        ["SNGD", None, None, "0 of 3", 1.1, 0],
        ["PRONG", 3.5, 0.7, "2 of 3", 0.8, 2],
        ["Adam", 5.0, 0.5, "3 of 3", 0.8, 3],
    ]
    folder = study_folder(tmp_path)
    folder.write_table("times", Table("Epochs", columns, rows, by_seed=known))
    folder.write_table("shares", Table("Shares", ("part", "share"), [["whitening", 1.4]]))
    return tmp_path


def test_cells_say_how_many_seeds_they_are_of(tables: Path) -> None:
    sgd, sngd, prong = (read(tables, Cell("times", k, "epochs")) for k in ("SGD", "SNGD", "PRONG"))
    assert sgd is not None
    assert sngd is not None
    assert prong is not None
    assert sgd.written(1) == "7.8 ± 0.3, reached 2 of 3"
    assert (sgd.n, sgd.missing, sgd.by_seed) == (3, 1, {})
    assert (sngd.written(1), sngd.missing) == ("reached 0 of 3", 3)
    assert prong.by_seed == {"0": 3.0, "1": 4.0, "2": math.inf}
    loss = read(tables, Cell("times", "SNGD", "train loss"))  # of all that ended, reached or not
    assert loss is not None
    assert (loss.mean, loss.arrived, loss.missing) == (1.1, None, 0)
    share = read(tables, Cell("shares", "whitening", "share"))
    assert share == Ours(1.4, None, None)
    assert read(tables, Cell("times", "SGD", "nothing")) is None


@pytest.mark.parametrize(
    ("better", "worse", "verdict", "why"),
    [
        ("SNGD", "SGD", "not reproduced", "the one claimed ahead did not reach"),
        ("SNGD", "Adam", "not reproduced", "the reverse"),
        ("Adam", "SNGD", "reproduced", ""),
        (
            "SGD",
            "SNGD",
            "not reproduced",
            "the one claimed ahead did not reach the target in 1 of 3",
        ),
        ("Adam", "SGD", "not comparable", "the figures of the seeds are not known"),
    ],
)
def test_cells_of_what_was_not_reached(
    tables: Path, better: str, worse: str, verdict: str, why: str
) -> None:
    cells = (Cell("times", name, "epochs") for name in (better, worse))
    (row_,) = judged(tables, Claim("fewer", "Fig.", "MNIST", *cells, "lower"))
    assert row_.verdict == verdict
    assert row_.why.startswith(why)


def test_a_table_keeps_what_is_infinite_or_diverged(tmp_path: Path) -> None:
    figures = {"SGD": {"epochs": {"0": 1.5, "1": math.inf, "2": math.nan}}}
    folder = study_folder(tmp_path)
    folder.write_table("times", Table("Epochs", ("optimizer", "epochs"), [], by_seed=figures))
    table = folder.table("times")
    assert table is not None
    kept = table.by_seed["SGD"]["epochs"]
    assert kept == pytest.approx(figures["SGD"]["epochs"], nan_ok=True)

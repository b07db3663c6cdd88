"""The verdicts: when a number or a claim of the paper counts as reproduced."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from natgrad.lab.paper import Bound, Claim, Final, Number, Reached, StepTime, record
from natgrad.lab.recipe import load
from natgrad.lab.report.beside import BEYOND, Beside, as_table, beside, claimed, notes, stated
from natgrad.lab.report.beside_tables import figure, terminal
from natgrad.lab.report.ours import Ours
from natgrad.lab.report.read import read_results
from natgrad.lab.report.single import show_paper
from natgrad.lab.report.summary import summary_of

from .conftest import MANIFEST, row, write_manifest, write_run

FULL = {"name": "full", "differs": "", "comparable": True}
SMALL = {"name": "cpu", "differs": "epochs: 1 instead of 9", "comparable": False}
SMOKE = {"name": "smoke", "differs": "epochs: 1 instead of 9", "comparable": False}
ENDS = {"sgd": (97.0, 97.4, 97.2), "sngd": (97.7, 97.9, 97.8)}  # sd 0.2 and 0.1
LOSSES = {"sgd": 0.10, "sngd": 0.05}
SPEEDS = {"sgd": 1.0, "sngd": 3.0}


def judged(
    folder: Path, *stated: Number | Claim, profile: Any = FULL, seeds: int = 3
) -> list[Beside]:
    recipe = {**MANIFEST["recipe"], "name": "made-up", "paper": [record(entry) for entry in stated]}
    write_manifest(folder, recipe=recipe, profile=profile, optimizers=list(ENDS))
    for name, values in ENDS.items():
        for seed, value in enumerate(values[:seeds]):
            rows = [
                row(k, 10 * k, SPEEDS[name] * k, test_metric=value, train_metric=value,
                    validation_loss=LOSSES[name] if k == 2 else 1.0 / (k + 1) + 0.2)
                for k in range(3)
            ]  # fmt: skip
            write_run(folder / "runs" / name / f"seed{seed}", rows)
    results = read_results(folder)
    return beside(results, summary_of(results))


def number(value: float, optimizer: str = "sgd", **more: Any) -> Number:
    return Number("accuracy", value, "Fig. 3", "MNIST", Final(optimizer), unit="%", **more)


def claim(better: Any, worse: Any, wants: Any = "higher") -> Claim:
    return Claim("one is better", "Fig. 3", "MNIST", better, worse, wants, explanation="because")


def test_a_number_within_two_combined_deviations_is_reproduced(tmp_path: Path) -> None:
    # ours 97.2 ± 0.2; the paper's spread is 0.15: two combined are 0.5
    inside, outside = judged(
        tmp_path, number(97.69, spread=0.15), number(97.71, spread=0.15, explanation="so and so")
    )
    assert inside.verdict == "reproduced"
    assert (outside.verdict, outside.why) == ("not reproduced", "so and so")
    assert inside.ours == "97.20 ± 0.20 %"
    assert inside.paper == "97.69 ± 0.15 %"
    assert inside.difference == "-0.49"
    assert inside.seeds == "3"


def test_without_a_spread_in_print_ours_stands_for_both(tmp_path: Path) -> None:
    # two combined deviations: 2 sqrt(2) 0.2 = 0.566
    inside, outside = judged(tmp_path, number(97.76), number(97.78))
    assert [inside.verdict, outside.verdict] == ["reproduced", "not reproduced"]


def test_what_is_not_comparable_says_why(tmp_path: Path) -> None:
    elsewhere = Number("accuracy", 97.2, "Fig. 3", "SVHN", Final("sgd"))
    other = number(97.2, comparable=False, reason="another measure")
    first, second = judged(tmp_path / "a", elsewhere, other)
    assert (first.verdict, first.why) == ("not comparable", "other data: MNIST")
    assert first.data == "SVHN; ours: MNIST"
    assert second.why == "another measure"
    (small,) = judged(tmp_path / "b", number(97.2), profile=SMALL)
    assert (small.verdict, small.why) == ("not comparable", "the cpu profile is smaller")
    (single,) = judged(tmp_path / "c", number(97.2), seeds=1)
    assert "single seed" in single.why


def test_diverging_fails_a_number_and_decides_a_claim(tmp_path: Path) -> None:
    lost = [row(0, 0, 0.0, validation_loss=2.0), row(1, 10, 1.0, validation_loss=None)]
    for seed in range(3):
        write_run(tmp_path / "runs" / "prong" / f"seed{seed}", lost, "diverged")
    of_lost = Number("accuracy", 97.2, "Fig. 3", "MNIST", Final("prong"))
    win, lose = claim(Final("sgd"), Final("prong")), claim(Final("prong"), Final("sgd"))
    rows = judged(tmp_path, of_lost, win, lose)
    assert [r.verdict for r in rows] == ["not reproduced", "reproduced", "not reproduced"]
    assert rows[0].ours == "diverged"
    assert rows[1].ours == "97.20 ± 0.20 against diverged"
    assert rows[1].difference == "ahead in 3 of 3 seeds"
    assert rows[1].why == "the other one diverged in 3 of 3 seeds"
    assert rows[2].why == "the one claimed ahead diverged in 3 of 3 seeds; because"


def test_a_number_of_what_was_not_run(tmp_path: Path) -> None:
    (missing,) = judged(tmp_path, number(97.2, "prong"))
    assert missing.verdict == "not measured"
    assert missing.drawn is None


def test_claims_need_an_interval_without_zero(tmp_path: Path) -> None:
    # 97.8 - 97.2 = 0.6; seed by seed 0.7, 0.5, 0.6: 4.30 * 0.1 / sqrt(3) = 0.25
    holds, reverse, noise = judged(
        tmp_path,
        claim(Final("sngd"), Final("sgd")),
        claim(Final("sgd"), Final("sngd")),
        claim(Final("sgd"), Final("sgd")),
    )
    assert holds.verdict == "reproduced"
    assert holds.difference == "+0.60 [+0.35, +0.85]"
    assert reverse.verdict == noise.verdict == "not reproduced"
    assert reverse.why == "the reverse; because"
    assert noise.why.startswith("within the noise")


def test_claims_are_judged_seed_by_seed_where_the_seeds_are_the_same() -> None:
    entry = record(claim(Final("a"), Final("b")))
    ours = over((1.0, 2.0, 3.0), "012")
    less = over((0.5, 1.7, 2.6), "012")  # 0.5, 0.3, 0.4: 4.30 * 0.1 / sqrt(3) = 0.25
    row = claimed(entry, ours, less, data="MNIST", profile=FULL)
    assert (row.difference, row.verdict) == ("+0.40 [+0.15, +0.65]", "reproduced")
    for other in ("123", ""):  # of other seeds, or not known one by one
        less = over((0.5, 1.7, 2.6), other)
        row = claimed(entry, ours, less, data="MNIST", profile=FULL)
        # Welch: standard error 0.84, 3.99 degrees of freedom, of which 3 are counted: 3.18
        assert (row.difference, row.verdict) == ("+0.40 [-2.27, +3.07]", "not reproduced")


def test_two_standard_errors_of_three_seeds_are_not_enough() -> None:
    entry = record(claim(Final("a"), Final("b")))
    ours, less = over((1.3, 1.1, 1.2), "012"), over((1.0, 1.0, 1.0), "012")
    row = claimed(entry, ours, less, data="MNIST", profile=FULL)  # 0.2 of 0.058: 3.5 of them
    assert row.verdict == "not reproduced"
    assert row.why.startswith("within the noise")
    row = claimed(entry, less, ours, data="MNIST", profile=FULL)
    assert row.why.startswith("within the noise")
    many = over((1.3, 1.1, 1.2, 1.25, 1.15), "01234")  # 0.2 of 0.035, 2.78 are needed
    row = claimed(entry, many, over((1.0,) * 5, "01234"), data="MNIST", profile=FULL)
    assert row.verdict == "reproduced"
    assert any("4.30 standard errors" in note for note in notes([row]))
    assert any("not over test cases" in note for note in notes([row]))


def over(values: tuple[float, ...], seeds: str) -> Ours:
    by_seed = dict(zip(seeds, values, strict=True)) if seeds else {}
    return Ours(statistics.fmean(values), statistics.stdev(values), len(values), by_seed)


def test_claims_are_judged_at_a_smaller_size_but_not_by_smoke(tmp_path: Path) -> None:
    (small,) = judged(tmp_path / "a", claim(Final("sngd"), Final("sgd")), profile=SMALL)
    assert (small.verdict, small.why) == ("reproduced", "cpu profile")
    (smoke,) = judged(tmp_path / "b", claim(Final("sngd"), Final("sgd")), profile=SMOKE)
    assert smoke.verdict == "not comparable"


def test_every_kind_of_reading(tmp_path: Path) -> None:
    error = Final("sngd", complement=True)
    slow = Number("time", 3.0, "text", "MNIST", StepTime("sngd"), unit="x")
    wrong = Number("error", 2.2, "text", "MNIST", error, unit="%")
    fast = claim(Reached("sngd"), Reached("sgd"), "lower")
    bound = claim(Final("sngd"), Bound(97.5))
    rows = judged(tmp_path, slow, wrong, fast, bound)
    assert rows[0].ours == "3.00 ± 0.00 x"
    assert rows[1].ours == "2.20 ± 0.10 %"
    # of 0.7, 0.53, 0.10 and 0.05: 0.7 - 0.6 within 0.43; 0.05 is passed on the way to it
    assert rows[2].ours.endswith("reached 3 of 3")
    assert [row.verdict for row in rows] == ["reproduced"] * 4


def test_a_reason_is_given_if_and_only_if_not_comparable() -> None:
    with pytest.raises(ValueError, match="say the reason"):
        number(1.0, comparable=False)
    with pytest.raises(ValueError, match="say the reason"):
        number(1.0, reason="none")


def test_a_ratio_of_times_can_be_shown_without_being_judged(tmp_path: Path) -> None:
    slow = Number(
        "time", 9.0, "text", "MNIST", StepTime("sngd"), unit="x", comparable=False,
        reason="it belongs to the machine",
    )  # fmt: skip
    for profile in (FULL, {**SMALL, "comparable": True}):
        (shown,) = judged(tmp_path / profile["name"], slow, profile=profile)
        assert (shown.paper, shown.ours) == ("9 x", "3.00 ± 0.00 x")
        assert (shown.verdict, shown.why) == ("not comparable", "it belongs to the machine")


def test_a_figure_of_an_unknown_number_of_seeds_claims_none() -> None:
    entry = record(claim(Final("a"), Final("b")))
    row = claimed(entry, Ours(2.0, None, None), Ours(1.0, None, None), data="MNIST", profile=FULL)
    assert (row.seeds, row.verdict) == ("\N{EN DASH}", "not comparable")
    assert row.why == "its spread over seeds is not known"


def test_a_number_of_which_seeds_diverged_is_not_reproduced(tmp_path: Path) -> None:
    write_ends(tmp_path, "prong", (97.2, 97.2, None))
    mine, other = judged(
        tmp_path,
        number(97.2, "prong"),
        Number("accuracy", 97.2, "Fig. 3", "SVHN", Final("prong")),
    )
    assert mine.ours == "97.20 ± 0.00 %, 1 of 3 diverged"
    assert (mine.verdict, mine.seeds) == ("not reproduced", "3")
    assert mine.why == "ours diverged in 1 of 3 seeds"
    assert other.verdict == "not comparable"  # diverging on other data is no verdict either


def write_ends(folder: Path, name: str, values: tuple[float | None, ...]) -> None:
    """Runs that end with this accuracy, or diverge."""
    for seed, value in enumerate(values):
        loss = None if value is None else 0.1
        rows = [
            row(0, 0, 0.0, validation_loss=2.0, test_metric=10.0),
            row(1, 10, 1.0, validation_loss=loss, test_metric=value),
        ]
        status = "diverged" if value is None else "finished"
        write_run(folder / "runs" / name / f"seed{seed}", rows, status)


@pytest.mark.parametrize(
    ("better", "worse", "verdict", "why"),
    [
        # one of the seeds of the worse one diverged: the others decide, all before all
        ((97.8, 97.7, 97.9), (97.2, None, 97.4), "reproduced", "the other one diverged in 1 of 3"),
        ((97.8, 97.3, 97.9), (97.2, None, 97.4), "not reproduced", "within the noise"),
        ((97.1, 97.0, 97.1), (97.2, None, 97.4), "not reproduced", "within the noise"),
        # survivors far ahead do not make up for the one that diverged
        (
            (99.8, None, 99.9),
            (97.2, 97.3, 97.4),
            "not reproduced",
            "the one claimed ahead diverged",
        ),
        (
            (99.8, None, 99.9),
            (None, None, None),
            "not reproduced",
            "the one claimed ahead diverged",
        ),
        ((97.2, 97.3, 97.1), (None, None, None), "reproduced", "the other one diverged in 3 of 3"),
        # two seeds each are all before all in one case of six
        ((97.2, 97.3), (None, None), "not comparable", "so few seeds"),
        ((97.2, None), (97.3, 97.1), "not reproduced", "the one claimed ahead diverged"),
        ((97.2,), (None,), "not comparable", "a single seed"),
    ],
)
def test_a_seed_that_diverged_is_behind_all_others(
    tmp_path: Path, better: Any, worse: Any, verdict: str, why: str
) -> None:
    write_ends(tmp_path, "prong", better)
    write_ends(tmp_path, "sgd_bn", worse)
    (row,) = judged(tmp_path, claim(Final("prong"), Final("sgd_bn")))
    assert row.verdict == verdict
    assert row.why.startswith(why)
    if 0 < worse.count(None) < len(worse):
        assert row.ours.endswith(", 1 of 3 diverged")


def test_what_we_ask_stands_apart_and_is_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = replace(claim(Final("sngd"), Final("sgd")), what="ours", own=True)
    lost = replace(asked, better=Final("sgd"), worse=Final("sngd"))
    rows = judged(tmp_path, asked, lost, claim(Final("sngd"), Final("sgd")))
    assert [row.verdict for row in rows] == ["reproduced", "holds", "does not hold"]
    assert [row.paper for row in rows] == ["claim: higher", "ours: higher", "ours: higher"]
    _, blocks = as_table(rows)
    assert [block.title for block in blocks] == ["", BEYOND]
    show_paper(rows, Console(), paper=False)
    assert "1 reproduced (" in capsys.readouterr().out


def test_what_the_paper_states_is_read_from_the_recipe_of_today(tmp_path: Path) -> None:
    then = [record(number(1.0))]
    today = [record(each) for each in load("sngd-mnist", "cpu").paper]
    for name, expected in (("sngd-mnist", today), ("of another version", then)):
        folder = tmp_path / name
        recipe = {**MANIFEST["recipe"], "name": name, "paper": then}
        write_manifest(folder, recipe=recipe, profile=SMALL)
        write_run(folder / "runs" / "sgd" / "seed0", [row(0, 0, 0.0), row(1, 10, 1.0)])
        assert stated(read_results(folder)) == expected


def test_the_table_and_the_figure(tmp_path: Path) -> None:
    rows = judged(tmp_path, number(97.2), claim(Final("sgd"), Final("sngd")))
    assert terminal(rows).row_count == 2
    assert figure(rows) is not None
    assert figure(rows[1:]) is None

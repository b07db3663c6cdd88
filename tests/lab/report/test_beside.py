"""The verdicts: when a number or a claim of the paper counts as reproduced."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from natgrad.lab.paper import Bound, Claim, Final, Number, Reached, StepTime, record
from natgrad.lab.report.beside import Beside, beside, claimed
from natgrad.lab.report.beside_tables import figure, terminal
from natgrad.lab.report.ours import Ours
from natgrad.lab.report.read import read_results
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
    recipe = {**MANIFEST["recipe"], "paper": [record(entry) for entry in stated]}
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
    assert rows[1].ours == "97.2 against diverged"


def test_a_number_of_what_was_not_run(tmp_path: Path) -> None:
    (missing,) = judged(tmp_path, number(97.2, "prong"))
    assert missing.verdict == "not measured"
    assert missing.drawn is None


def test_claims_need_two_standard_errors(tmp_path: Path) -> None:
    # 97.8 - 97.2 = 0.6; seed by seed 0.7, 0.5, 0.6: standard error 0.1 / sqrt(3) = 0.058
    holds, reverse, noise = judged(
        tmp_path,
        claim(Final("sngd"), Final("sgd")),
        claim(Final("sgd"), Final("sngd")),
        claim(Final("sgd"), Final("sgd")),
    )
    assert holds.verdict == "reproduced"
    assert holds.difference == "+0.60 ± 0.06"
    assert reverse.verdict == noise.verdict == "not reproduced"
    assert reverse.why == "the reverse; because"
    assert noise.why.startswith("within the noise")


def test_claims_are_judged_seed_by_seed_where_the_seeds_are_the_same() -> None:
    entry = record(claim(Final("a"), Final("b")))
    ours = over((1.0, 2.0, 3.0), "012")
    less = over((0.5, 1.7, 2.6), "012")  # 0.5, 0.3, 0.4: standard error 0.1 / sqrt(3)
    row = claimed(entry, ours, less, data="MNIST", profile=FULL)
    assert (row.difference, row.verdict) == ("+0.40 ± 0.06", "reproduced")
    for other in ("123", ""):  # of other seeds, or not known one by one
        less = over((0.5, 1.7, 2.6), other)
        row = claimed(entry, ours, less, data="MNIST", profile=FULL)
        assert (row.difference, row.verdict) == ("+0.40 ± 0.84", "not reproduced")


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
    assert rows[2].ours.startswith("1")
    assert [row.verdict for row in rows] == ["reproduced"] * 4


def test_a_reason_is_given_if_and_only_if_not_comparable() -> None:
    with pytest.raises(ValueError, match="say the reason"):
        number(1.0, comparable=False)
    with pytest.raises(ValueError, match="say the reason"):
        number(1.0, reason="none")


def test_the_table_and_the_figure(tmp_path: Path) -> None:
    rows = judged(tmp_path, number(97.2), claim(Final("sgd"), Final("sngd")))
    assert terminal(rows).row_count == 2
    assert figure(rows) is not None
    assert figure(rows[1:]) is None

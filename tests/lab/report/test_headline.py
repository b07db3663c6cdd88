"""The sentences say what the figures say, also where natural gradient loses."""

import math

import pytest

from natgrad.lab.report import summarize
from natgrad.lab.report.headline import headline


@pytest.mark.parametrize(
    ("runs", "start"),
    [
        (
            {"sgd": [(1.0, 0.7, 0.5)] * 3, "kfac": [(1.0, 0.0, 0.0)] * 3},
            "KFAC reached SGD's final validation loss (0.500) in 1.00 s where SGD took 4.00 s: "
            "4.0 times faster, and with 4.0 times fewer updates.",
        ),
        (
            {"sgd": [(1.0, 0.0, 0.5)] * 3, "kfac": [(1.0, 0.7, 0.4)] * 3},
            "KFAC reached SGD's final validation loss (0.500) in 3.33 s where SGD took 1.00 s: "
            "3.3 times slower, and with 3.3 times more updates.",
        ),
        (
            {"sgd": [(1.0, 0.5)] * 3, "kfac": [(1.0, 0.4), (1.0, 0.6), (1.0, 0.7)]},
            "KFAC did not reach SGD's final validation loss (0.500) (1 of 3 seeds did), SGD did "
            "in 2.00 s.",
        ),
        (
            {"sgd": [(1.0, 0.5)] * 3, "kfac": [(1.0, math.nan)] * 3},
            "SGD ended at a validation loss of 0.500.",
        ),
        (
            {"sgd": [(1.0, 0.5)] * 3, "kfac": [(1.0, 0.49)] * 3},
            "KFAC reached SGD's final validation loss (0.500) in 1.96 s where SGD took 2.00 s: "
            "about the same time, with about as many updates.",
        ),
        (
            {"adam": [(1.0, 0.5)] * 3, "kfac": [(1.0, 0.25)] * 3},
            "KFAC reached the final validation loss of KFAC's worst seed (0.250) in 2.00 s, Adam "
            "did not.",
        ),
        (
            {"sgd": [(1.0, 0.5)] * 3, "adam": [(1.0, 0.0)] * 3},
            "Adam reached SGD's final validation loss (0.500) in 1.00 s where SGD took 2.00 s",
        ),
        ({"sgd": [(1.0, math.nan)] * 3}, "No run has finished yet."),
    ],
)
def test_first_sentence(folder, runs, start):
    assert headline(summarize(folder(**runs)))[0].startswith(start)


def test_a_diverged_natural_method_is_not_passed_over(folder):
    summary = summarize(folder(sgd=[(1.0, 0.5)] * 3, kfac=[(1.0, math.nan)] * 3))
    assert "Diverged: 3 of 3 runs of KFAC." in headline(summary)


def test_the_others_and_the_test_metric(comparison):
    text = " ".join(headline(summarize(comparison)))
    assert "Adam took" in text
    assert "(2 of 3 seeds)" in text
    assert "Final test accuracy: KFAC" in text

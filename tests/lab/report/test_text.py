"""Numbers and names as they are written."""

import math

import pytest

from natgrad.lab.report.text import NOTHING, fixed, listed, significant, with_spread, without_paths


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("natgrad compare x --data /home/someone/data", "natgrad compare x --data …/data"),
        ("--out=/tmp/a/b --seeds 0,1", "--out=…/b --seeds 0,1"),
        ("'/Users/some one/x'", "'…/some one/x'"),
        (r"C:\Users\someone\data", "…/data"),
        ("natgrad compare x --data ../shared/data", "natgrad compare x --data ../shared/data"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("org/name and 1/2", "org/name and 1/2"),
        ("/tmp", "…/tmp"),
    ],
)
def test_absolute_paths_are_shortened(text, short):
    assert without_paths(text) == short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (None, NOTHING),
        (math.inf, NOTHING),
        (0.5, "0.500"),
        (-12.34, "-12.3"),
        (1e9, "1.00e+09"),
    ],
)
def test_significant(value, text):
    assert significant(value) == text


def test_fixed_keeps_small_values_visible():
    assert fixed(1.2e-7, 4) == "1.2e-07"
    assert fixed(0.12345, 4) == "0.1235"


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (250026864.1, 252515355.35, "2.5e+08 ± 2.5e+08"),
        (912345.6, 1580000.0, "9.1e+05 ± 1.6e+06"),
        (999999.0, 12.0, "999999.00 ± 12.00"),
        (-2e6, None, "-2.0e+06"),
        (0.0, 0.0, "0.00 ± 0.00"),
    ],
)
def test_what_is_too_large_for_a_column_has_an_exponent(mean, sd, text):
    assert with_spread(mean, sd, 2) == text


def test_listed():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"

"""Where the axes of panels end, against cases by hand."""

import math

import numpy as np
import pytest

from natgrad.lab.report.curves import Curve
from natgrad.lab.report.limits import limits


def line(*values):
    y = np.array(values, dtype=float)
    return Curve(np.arange(len(y), dtype=float), y, y, y, 1)


def test_losses_over_few_sizes_have_a_linear_axis_with_margins():
    ends = limits([line(2.0, 1.0), line(2.0, 0.5)], loss=True, falls=True)
    assert (ends.low, ends.high) == pytest.approx((0.425, 2.075))
    assert (ends.log, ends.ceiling, ends.drawable) == (False, math.inf, math.inf)


def test_losses_over_many_sizes_have_a_logarithmic_axis():
    ends = limits([line(2.0, 1.0), line(2.0, 0.02)], loss=True, falls=True)
    assert (ends.low, ends.high, ends.log) == pytest.approx((0.02 / 1.15, 2.3, True))


def test_a_loss_above_twice_the_greatest_at_the_start_is_cut_off():
    ends = limits([line(2.0, 0.02), line(3.0, 1e18)], loss=True, falls=True)
    assert (ends.high, ends.ceiling, ends.log) == (6.0, 6.0, True)
    assert ends.drawable == math.inf  # a logarithm is never far out


def test_what_is_cut_off_does_not_make_an_axis_logarithmic():
    ends = limits([line(2.0, 1.0), line(2.0, 1e18)], loss=True, falls=True)
    assert (ends.high, ends.log, ends.drawable) == (4.0, False, 4e3)


def test_losses_below_zero_have_no_ceiling():
    ends = limits([line(-1.0, 3.0)], loss=True, falls=True)
    assert (ends.low, ends.high) == pytest.approx((-1.2, 3.2))


def test_an_error_that_blows_up_is_cut_off_and_an_accuracy_that_rises_is_not():
    error = limits([line(8.0, 5.0, 4.0), line(8.0, 1e9, 1e9)], loss=False, falls=True)
    assert error.high == 16.0
    assert error.low < 4.0
    accuracy = limits([line(10.0, 60.0, 90.0)], loss=False, falls=False, most=100.0)
    assert 90.0 < accuracy.high <= 101.5
    assert accuracy.ceiling == math.inf


def test_alone_a_metric_that_blows_up_keeps_its_start_in_the_panel():
    ends = limits([line(8.0, 1e9, 1e9)], loss=False, falls=True)
    assert ends.low < 8.0 < ends.high == 16.0

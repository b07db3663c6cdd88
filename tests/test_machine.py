"""Seconds from counted work and a machine's rates."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from natgrad import blocks
from natgrad.flops import Cost, Rows, eigh, gathering, inverse, passes, product, warm
from natgrad.machine import DECOMPOSED, H100, WIDTHS, Machine, rate_at

SIMPLE = Machine(
    "simple", products=((1, 1e3),), inverses=((1, 10.0),), eighs=((1, 9.0),),
    bandwidth=((1, 100.0),), overhead=0.0,
)  # fmt: skip


def test_rates_are_interpolated_on_logarithmic_scales_and_constant_outside():
    rates = ((1, 10), (100, 1000))
    assert rate_at(rates, 10) == pytest.approx(100)
    assert [rate_at(rates, size) for size in (0.1, 1, 100, 1e9)] == pytest.approx(
        [10, 10, 1000, 1000]
    )


def test_the_slower_of_arithmetic_and_memory_counts():
    work = product(10, 10, 10)
    assert SIMPLE.seconds([work]) == 4 * 300 / 100  # memory: 12 s, arithmetic: 2 s
    assert replace(SIMPLE, bandwidth=((1, 1e9),)).seconds([work]) == 2000 / 1e3
    assert SIMPLE.seconds([work], itemsize=8) == 8 * 300 / 100


def test_decompositions_go_by_their_own_rates():
    assert SIMPLE.seconds([inverse(10)]) == 1000 / 10
    assert SIMPLE.seconds([eigh(10)]) == 9000 / 9
    assert SIMPLE.seconds([warm(10)]) == pytest.approx(20000 / 3 / 9)
    assert replace(SIMPLE, warms=((1, 20.0),)).seconds([warm(10)]) == pytest.approx(1000 / 3)


def test_passes_move_words_and_every_kernel_has_its_overhead():
    assert SIMPLE.seconds([passes(50, 3, 2)]) == 4 * 150 / 100
    assert replace(SIMPLE, overhead=1.0).seconds([passes(50, 3, 2)]) == 4 * 150 / 100 + 2


def test_memory_just_taken_and_another_order_cost_where_the_machine_says_so():
    fresh = replace(SIMPLE, fresh=((1, 8.0),))
    assert fresh.seconds([passes(50, 3, 1, fresh=1)]) == 6 + 200 / 8
    assert SIMPLE.seconds([gathering(50)]) == 4 * 100 / 100
    assert replace(SIMPLE, gathered=10.0).seconds([gathering(50)]) == 5


def test_stages_and_the_models_own_rate():
    cost = Cost((inverse(10),), (eigh(10),), (passes(25, 1),), itemsize=8)
    assert SIMPLE.stages(cost) == (100, 1000, 2)
    bound = replace(SIMPLE, bandwidth=((1, 1e9),), model=((1, 1e4),))
    assert bound.model_seconds([product(10, 10, 10)]) == 2000 / 1e4
    assert bound.seconds([product(10, 10, 10)]) == 2000 / 1e3


def test_it_measures_every_rate_by_the_clock_that_it_is_given():
    ticks = itertools.count()
    machine = Machine.measure(clock=lambda: float(next(ticks)), repeats=1)  # each run a second
    assert [size for size, _ in machine.products] == list(WIDTHS)
    assert [size for size, _ in machine.eighs] == list(DECOMPOSED)
    assert machine.eighs[-1][1] == 9 * DECOMPOSED[-1] ** 3
    assert machine.overhead > 0
    assert machine.gathered
    assert machine.fresh


def test_on_an_h100_wide_eigendecompositions_are_dearer_than_inverses():
    meta, rows = torch.device("meta"), Rows(8, 1024)
    kfac, ekfac = (
        getattr(blocks, kind)((4096, 4096), damping=0.1, device=meta) for kind in ("KFAC", "EKFAC")
    )
    dear, cheap = H100.stages(ekfac.cost(rows)), H100.stages(kfac.cost(rows))
    assert dear.decomposition > 10 * cheap.decomposition
    assert dear.solve > cheap.solve > 0

"""Which steps take statistics, and which decompose."""

from __future__ import annotations

import pytest

from natgrad.schedule import Schedule


def steps(found) -> list[int]:
    return [k for k in range(12) if found(k)]


def test_by_themselves_all_steps_do_both():
    assert steps(Schedule().takes_statistics) == steps(Schedule().refreshes) == list(range(12))


def test_each_has_its_interval_counted_from_the_first_step():
    schedule = Schedule(stats_every=2, refresh_every=5)
    assert steps(schedule.takes_statistics) == [0, 2, 4, 6, 8, 10]
    assert steps(schedule.refreshes) == [0, 5, 10]


def test_burning_in_does_both_at_every_step():
    schedule = Schedule(stats_every=4, refresh_every=6, burn_in=3)
    assert steps(schedule.takes_statistics) == [0, 1, 2, 4, 8]
    assert steps(schedule.refreshes) == [0, 1, 2, 6]


def test_a_decomposition_can_be_forced_once():
    schedule = Schedule(stats_every=4, refresh_every=6)
    schedule.forced = True
    assert schedule.refreshes(3)
    assert not schedule.takes_statistics(3)
    schedule.passed()
    assert not schedule.refreshes(3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stats_every": 0}, "stats_every must be at least 1, got 0"),
        ({"refresh_every": -1}, "refresh_every must be at least 1, got -1"),
        ({"burn_in": -1}, "burn_in must be at least 0, got -1"),
    ],
)
def test_intervals_must_make_sense(given, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**given)

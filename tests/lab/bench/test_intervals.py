import pytest

from natgrad.lab.bench.intervals import KINDS, SHORT, Interval, Rhythm, amortised
from natgrad.lab.errors import UsageError
from tests.lab.bench.conftest import COSTS

RHYTHMS = [
    *(Rhythm(follows) for follows in ("none", "both", "first", "second")),
    *(Rhythm(follows, late=True) for follows in ("first", "second")),
]


def test_a_refresh_in_a_hundred_and_statistics_in_ten() -> None:
    shares = Rhythm("both").shares(Interval(10, 100))
    assert shares == {"plain": 0.9, "statistics": 0.09, "refresh": 0.01}
    assert amortised(COSTS, shares) == pytest.approx((90 * 1 + 9 * 3 + 50) / 100)


def test_every_step_is_a_refresh_at_one_one() -> None:
    shares = Rhythm("both").shares(Interval(1, 1))
    assert amortised({"refresh": 50.0}, shares) == 50.0


def test_one_number_is_the_period_of_all_that_a_method_renews() -> None:
    interval = Interval(10, 100)
    assert amortised(COSTS, Rhythm("first").shares(interval)) == pytest.approx((9 + 50) / 10)
    assert amortised(COSTS, Rhythm("second").shares(interval)) == pytest.approx((99 + 50) / 100)
    assert amortised(COSTS, Rhythm().shares(interval)) == 1.0


def test_a_kind_that_was_not_measured_gives_no_figure() -> None:
    shares = Rhythm("both").shares(Interval(10, 100))
    assert amortised({"plain": 1.0, "refresh": 50.0}, shares) is None


@pytest.mark.parametrize("rhythm", RHYTHMS)
@pytest.mark.parametrize("interval", [SHORT, Interval(1, 1), Interval(3, 3), Interval(2, 8)])
def test_shares_count_the_kinds_of_many_steps(rhythm: Rhythm, interval: Interval) -> None:
    kinds = [rhythm.kind(k, interval) for k in range(48)]
    found = {kind: kinds.count(kind) / len(kinds) for kind in KINDS}
    assert found == pytest.approx(rhythm.shares(interval))


def test_the_first_step_refreshes_unless_late() -> None:
    assert Rhythm("both").kind(0, SHORT) == "refresh"
    assert Rhythm("second", late=True).kind(0, SHORT) == "plain"
    assert Rhythm("second", late=True).kind(5, SHORT) == "refresh"


def test_intervals_are_read_as_they_are_written() -> None:
    assert str(Interval.read("10/100")) == "10/100"
    for text in ("10", "10/", "a/b", "-1/2", "1.5/3"):
        with pytest.raises(UsageError, match="an interval is written 10/100"):
            Interval.read(text)
    for text in ("0/10", "3/10", "10/1"):
        with pytest.raises(UsageError, match="the second a multiple of the first"):
            Interval.read(text)

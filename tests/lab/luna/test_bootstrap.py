import numpy as np
import pytest

from natgrad.lab.luna.bootstrap import _resampled, score
from natgrad.lab.luna.froc import Marks, cpm, froc

from .test_froc import BY_HAND, marks


def drawn(scans: int, seed: int, shift: float = 1.0) -> Marks:
    """Two nodules and twelve false positives a scan, normal scores a shift apart."""
    random = np.random.default_rng(seed)
    nodule = np.tile(np.arange(14) < 2, scans)
    scores = random.standard_normal(14 * scans) + shift * nodule
    return Marks(scores, nodule, np.repeat(np.arange(scans), 14), scans)


def test_the_figures_are_those_of_the_curve() -> None:
    found = score(BY_HAND, resamples=20)
    assert [each.value for each in found.sensitivities] == froc(BY_HAND).at().tolist()
    assert found.cpm.value == pytest.approx(4 / 7)
    assert found.curve.rates.tolist() == froc(BY_HAND).rates.tolist()


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    system = drawn(20, seed=1)
    first, again, other = (score(system, resamples=50, seed=seed) for seed in (3, 3, 4))
    assert first.cpm == again.cpm
    assert first.sensitivities == again.sensitivities
    assert first.cpm != other.cpm


def test_a_resample_is_the_curve_of_the_scans_drawn() -> None:
    """Weights in place of copies: the same as the script's concatenation."""
    system = drawn(6, seed=2)
    times = np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6))
    copies = [np.flatnonzero(system.scan == s) for s in range(6) for _ in range(times[s])]
    taken = np.concatenate(copies)
    copied = Marks(system.scores[taken], system.nodule[taken], system.scan[taken], 6)
    assert _resampled(system, 1, seed=7)[0] == pytest.approx(froc(copied).at())


def test_intervals_cover_as_often_as_they_say() -> None:
    truth = cpm(froc(drawn(2000, seed=99)).at())
    covered = []
    for seed in range(40):
        interval = score(drawn(40, seed), resamples=80, seed=seed, level=0.9).cpm
        covered.append(interval.low <= truth <= interval.high)
    assert 0.75 <= np.mean(covered) <= 0.98


def test_more_scans_make_a_shorter_interval() -> None:
    short, long = (score(drawn(n, seed=5), resamples=200).cpm for n in (160, 10))
    assert short.high - short.low < 0.5 * (long.high - long.low)


def test_a_single_scan_has_no_spread() -> None:
    interval = score(marks([0.9, 0.5], [1, 0], [0, 0], 1), resamples=10).cpm
    assert (interval.low, interval.value, interval.high) == (1.0, 1.0, 1.0)
    assert str(interval) == "1.000 [1.000, 1.000]"


def test_resamples_without_a_nodule_are_drawn_again() -> None:
    sparse = marks([0.9] + [0.1] * 5, [1] + [0] * 5, [0, 1, 2, 3, 4, 5], 6)
    assert np.isfinite(_resampled(sparse, 100, seed=0)).all()


@pytest.mark.parametrize(
    ("arguments", "words"), [({"resamples": 0}, "resamples"), ({"level": 1.0}, "level")]
)
def test_bad_arguments_are_refused(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        score(BY_HAND, **arguments)  # type: ignore[arg-type]
